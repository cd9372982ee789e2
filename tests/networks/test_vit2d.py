"""ViT for images against timm's published layout, written here from its documentation, and its weights."""

import math

import pytest
import torch
from torch.nn import functional

from medvol.errors import MedvolError
from medvol.networks.vit2d import load_timm_vit, timm_state, vit2d
from medvol.networks.vit_blocks import fit_positions

BASE = {"width": 768, "heads": 12}
TINY = {"width": 192, "heads": 3}


def timm_layout(*, width, grid=14, classes=1000, channels=3, **_):
    """Return the shape of every tensor of the `state_dict` of timm's `vit_*_patch16_*`, 12 layers."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid**2, width),
        "patch_embed.proj.weight": (width, channels, 16, 16),
        "patch_embed.proj.bias": (width,),
    }
    for block in range(12):
        for name, shape in {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }.items():
            shapes[f"blocks.{block}.{name}"] = shape
    shapes["norm.weight"] = shapes["norm.bias"] = (width,)
    shapes["head.weight"], shapes["head.bias"] = (classes, width), (classes,)
    return shapes


def published(seed=0, **sizes):
    """Return random weights in timm's layout, none of them at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in timm_layout(**sizes).items():
        if len(shape) == 1:
            is_scale = "norm" in name and name.endswith("weight")
            state[name] = torch.randn(shape, generator=generator) * 0.2 + float(is_scale)
        else:
            fan_in = math.prod(shape[1:]) if "weight" in name else 1
            state[name] = torch.randn(shape, generator=generator) * fan_in**-0.5
    return state


def forward_of_timm(state, images, *, width, heads):
    """Return the logits of timm's ViT: class token first, norms before, epsilon 1e-6, exact GELU."""

    def norm(x, name):
        return functional.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    patches = functional.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    x = torch.cat((state["cls_token"].expand(len(images), 1, width), patches.flatten(2).transpose(1, 2)), 1)
    x = x + state["pos_embed"]
    for number in range(12):
        block = f"blocks.{number}"
        query, key, value = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, -1)
        query, key, value = (
            part.unflatten(-1, (heads, width // heads)).transpose(1, 2) for part in (query, key, value)
        )
        weights = (query @ key.mT / math.sqrt(width // heads)).softmax(-1)
        x = x + linear((weights @ value).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + linear(hidden, f"{block}.mlp.fc2")
    return linear(norm(x, "norm")[:, 0], "head")


@pytest.mark.parametrize(("preset", "sizes", "count"), [("base", BASE, 86_567_656), ("tiny", TINY, 5_717_416)])
def test_every_tensor_of_the_published_layout_has_its_place_and_there_is_none_besides(preset, sizes, count):
    with torch.device("meta"):
        network = vit2d(3, 1000, preset=preset)
        state = timm_state(network)
    assert {name: tuple(value.shape) for name, value in state.items()} == timm_layout(**sizes)
    assert sum(value.numel() for value in state.values()) == count
    # The class token's position is part of the token.
    assert sum(parameter.numel() for parameter in network.parameters()) == count - sizes["width"]


@pytest.mark.parametrize(("preset", "sizes"), [("tiny", TINY), pytest.param("base", BASE, marks=pytest.mark.slow)])
def test_published_weights_give_the_logits_of_the_published_layout_at_224(tmp_path, preset, sizes):
    state, network = published(**sizes), vit2d(3, 1000, preset=preset).eval()
    torch.save(state, tmp_path / "vit.pth")
    result = load_timm_vit(network, tmp_path / "vit.pth")
    assert len(result.loaded) == len(network.state_dict()) == len(state)
    assert (result.left, result.ignored) == ((), ())
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = forward_of_timm(state, images, **sizes), network(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_a_state_dict_comes_back_with_the_token_and_its_position_added_up():
    state, network, again = published(**TINY), vit2d(3, 1000, preset="tiny"), vit2d(3, 1000, preset="tiny")
    load_timm_vit(network, state)
    back = timm_state(network)
    assert set(back) == set(state)
    for name in set(state) - {"cls_token", "pos_embed"}:
        assert torch.equal(back[name], state[name]), name
    assert torch.equal(back["cls_token"] + back["pos_embed"][:, :1], state["cls_token"] + state["pos_embed"][:, :1])
    assert torch.equal(back["pos_embed"][:, 1:], state["pos_embed"][:, 1:])
    load_timm_vit(again, back)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in again.state_dict().items())


def test_positions_of_another_size_are_resized_and_the_class_token_is_not():
    state, network = published(**TINY), vit2d(3, 1000, preset="tiny", spatial_size=(32, 48)).eval()
    load_timm_vit(network, state)
    square = state["pos_embed"][:, 1:].transpose(1, 2).reshape(1, 192, 14, 14)
    resized = functional.interpolate(square, size=(2, 3), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    images = torch.randn(2, 3, 32, 48)
    expected = {**state, "pos_embed": torch.cat((state["pos_embed"][:, :1], resized), 1)}
    with torch.no_grad():
        torch.testing.assert_close(network(images), forward_of_timm(expected, images, **TINY), atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_ramp_of_positions_stays_a_ramp_along_its_axis(axis):
    grid = torch.arange(6.0).view(6, 1).expand(6, 6)
    old = (grid if axis == 0 else grid.T).reshape(1, 36, 1)
    size = [12, 6] if axis == 0 else [6, 12]
    new = fit_positions(old, size).view(size)
    ramp = (torch.arange(12.0) + 0.5) / 2 - 0.5  # centres of cells half as large
    rows = new if axis == 0 else new.T
    # Bicubic weights reproduce a ramp where no weight falls outside.
    torch.testing.assert_close(rows[4:-4], ramp[4:-4, None].expand(4, 6), atol=1e-5, rtol=0)
    assert fit_positions(old, [4, 9]) is old


def test_a_head_for_other_classes_stays_at_its_random_start_and_is_named():
    network = vit2d(3, 2, preset="tiny")
    before, state = network.classification_head.weight.clone(), published(**TINY)
    result = load_timm_vit(network, {"model": state})
    assert result.left == result.ignored == ("classification_head.weight", "classification_head.bias")
    assert torch.equal(network.classification_head.weight, before)
    without = {name: value for name, value in state.items() if not name.startswith("head.")}
    assert load_timm_vit(network, without).left == result.left


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "dist_token": torch.zeros(1, 1, 192)}, "dist_token is unknown"),
        (lambda state: {name: state[name] for name in state if "3.mlp.fc1.b" not in name}, "3.mlp.linear1.bias is mis"),
        (lambda state: {name: state[name] for name in state if name != "pos_embed"}, "position_embeddings is missing"),
        (lambda state: published(width=192, channels=1), "patch_embeddings.weight is 192x1x16x16, not 192x3x16x16"),
        (lambda state: {**state, "pos_embed": torch.zeros(1, 199, 192)}, "positions of 198 patches"),
        (lambda state: published(width=384), r"cls_token is 1x1x384, not 1x1x192.* and 1\d\d more"),
    ],
)
def test_foreign_weights_are_refused_with_the_layers_that_differ_and_change_nothing(change, message):
    network = vit2d(3, 1000, preset="tiny")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(MedvolError, match=f"OTHER_NETWORK.*{message}"):
        load_timm_vit(network, change(published(**TINY)))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("preset", "size", "patch"), [("compact", (28, 32), None), ("compact", (24, 40), 8), ("tiny", (32, 48), None)]
)
def test_every_parameter_receives_a_gradient_and_the_output_has_a_logit_per_class(preset, size, patch):
    torch.manual_seed(0)
    network = vit2d(1, 3, preset=preset, spatial_size=size, patch_size=patch)
    output = network(torch.randn(4, 1, *size))
    assert output.shape == (4, 3)
    output.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_dropout_is_for_training_and_images_do_not_depend_on_the_others_of_the_batch():
    torch.manual_seed(0)
    network, images = vit2d(1, 2, preset="compact", spatial_size=(16, 16), dropout=0.5), torch.randn(3, 1, 16, 16)
    assert not torch.equal(network(images), network(images))
    network.eval()
    torch.testing.assert_close(network(images)[:1], network(images[:1]))


def test_sizes_that_patches_do_not_fill_are_refused_with_the_multiple_and_the_next_size():
    with pytest.raises(MedvolError, match=r"INPUT_SIZE.*224 x 225 pixels.*multiples of 16.*'\[224, 240\]'"):
        vit2d(3, 2, spatial_size=(224, 225), preset="tiny")
    network = vit2d(3, 2, spatial_size=(32, 48), preset="tiny")
    with pytest.raises(MedvolError, match="INPUT_SIZE.*48 x 32 pixels; expected 32 x 48 pixels"):
        network(torch.zeros(1, 3, 48, 32))


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION: preset 'bas'.*'base'"):
        vit2d(3, 2, preset="bas")
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION: patch_size 12.*power of 2"):
        vit2d(3, 2, preset="compact", spatial_size=(24, 24), patch_size=12)


def test_it_survives_torchscript():
    network = vit2d(1, 2, preset="compact", spatial_size=(16, 24)).eval()
    images = torch.randn(2, 1, 16, 24)
    torch.testing.assert_close(torch.jit.script(network)(images), network(images))
