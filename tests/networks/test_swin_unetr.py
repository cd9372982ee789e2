"""Swin UNETR against MONAI's own: names, outputs, gradients, sizes, weights."""

import itertools
import pickle
import re

import monai.networks.nets.swin_unetr as monai_swin
import pytest
import torch
from monai.networks.utils import copy_model_state
from torch import nn
from torch.nn import functional

from medvol.errors import MedvolError
from medvol.networks import window_attention
from medvol.networks.merged_upsampling import merged_kernel, merged_pointwise, spread_children
from medvol.networks.swin_unetr import swin_unetr
from medvol.networks.swin_weights import load_swin_unetr_weights
from medvol.networks.window_attention import attend, window_plan

CPU = torch.device("cpu")


def rearrange(tensor, pattern):
    before, after = (side.split() for side in pattern.split("->"))
    return tensor.permute([before.index(name) for name in after])


@pytest.fixture(autouse=True)
def _permute_without_einops(monkeypatch):
    # MONAI's forward wants einops, which we do not need, for permutations alone.
    monkeypatch.setattr(monai_swin, "rearrange", rearrange)


def both(in_channels=1, feature_size=12, **settings):
    """Return MONAI's network and ours with the same weights, none of them at a value that hides a mistake."""
    torch.manual_seed(0)
    stock = monai_swin.SwinUNETR(in_channels, 3, feature_size=feature_size, **settings)
    for name, parameter in stock.named_parameters():
        if parameter.dim() == 1 or "bias_table" in name:
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.5)
    ours = swin_unetr(in_channels, 3, feature_size=feature_size, **settings)
    ours.load_state_dict(stock.state_dict())
    return stock, ours


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"feature_size": 24},
        {"use_v2": True, "downsample": "mergingv2"},
        {"depths": (2, 4, 2, 2), "qkv_bias": False},
    ],
)
def test_parameters_and_buffers_are_monais_in_name_shape_and_order(settings):
    stock, ours = both(2, **settings)
    assert [(name, value.shape) for name, value in ours.state_dict().items()] == [
        (name, value.shape) for name, value in stock.state_dict().items()
    ]
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in stock.named_parameters()]


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (2, 2, 64, 32, 32)),
        ({"use_v2": True, "downsample": "mergingv2"}, (1, 1, 32, 64, 32)),
        (
            {"depths": (3, 1, 2, 2), "patch_norm": True, "normalize": False, "window_size": (5, 7, 3)},
            (1, 1, 64, 32, 64),
        ),
        pytest.param({}, (1, 1, 64, 64, 64), marks=pytest.mark.slow),
        pytest.param({"feature_size": 24}, (1, 2, 64, 96, 32), marks=pytest.mark.slow),
        pytest.param({"feature_size": 24}, (1, 1, 96, 96, 96), marks=pytest.mark.slow),
    ],
)
def test_outputs_are_monais(settings, shape):
    stock, ours = both(shape[1], **settings)
    volumes = torch.randn(shape)
    with torch.no_grad():
        expected, result = stock.eval()(volumes), ours.eval()(volumes)
    assert expected.std() > 0.1
    torch.testing.assert_close(result, expected, atol=5e-5, rtol=0)


@pytest.mark.slow
def test_gradients_are_monais():
    # In float64: a rounding that moves a voxel across the kink of a leaky ReLU would change float32 gradients visibly.
    stock, ours = both(use_v2=True)
    stock.double(), ours.double()
    volumes = torch.randn(2, 1, 32, 32, 64, dtype=torch.float64)
    upstream = torch.randn(2, 3, 32, 32, 64, dtype=torch.float64)
    for network in (stock, ours):
        network(volumes).backward(upstream)
    expected = {name: parameter.grad for name, parameter in stock.named_parameters()}
    for name, parameter in ours.named_parameters():
        scale = expected[name].abs().max()
        torch.testing.assert_close(parameter.grad / scale, expected[name] / scale, atol=1e-7, rtol=0, msg=name)


def test_checkpointing_changes_no_gradient():
    stored, ours = both(), swin_unetr(1, 3, feature_size=12, use_checkpoint=True)
    ours.load_state_dict(stored[1].state_dict())
    volumes = torch.randn(1, 1, 64, 32, 32)
    for network in (stored[1], ours):
        network(volumes).square().mean().backward()
    for (name, parameter), reference in zip(ours.named_parameters(), stored[1].parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad, msg=name)


def test_bfloat16_is_as_close_as_monais_bfloat16():
    stock, ours = both()
    volumes = torch.randn(1, 1, 64, 32, 32)
    with torch.no_grad():
        exact = stock(volumes)
        with torch.autocast("cpu", torch.bfloat16):
            errors = [(network(volumes).float() - exact).square().mean().sqrt() for network in (stock, ours)]
    assert 0 < errors[1] < 1.3 * errors[0]


def test_dropped_paths_drop_whole_volumes():
    torch.manual_seed(0)
    block = swin_unetr(1, 3, feature_size=12, dropout_path_rate=0.9).swinViT.layers4[0].blocks[1].train()
    tokens, plan = torch.randn(4 * 8, 96), window_plan(4, (2, 2, 2), (7, 7, 7), (0, 0, 0), CPU)
    changed = (block(tokens, plan, torch.Size((4, 2, 2, 2, 96))) != tokens).view(4, -1)
    assert all(row.all() or not row.any() for row in changed)
    assert not changed.all()


@pytest.mark.parametrize("size", [(33, 64, 64), (32, 32, 32), (64, 64, 0)])
def test_a_size_that_the_halvings_do_not_divide_is_refused_with_the_next_legal_one(size):
    legal = {(33, 64, 64): "[64, 64, 64]", (32, 32, 32): "[32, 32, 64]", (64, 64, 0): "[64, 64, 32]"}[size]
    with pytest.raises(MedvolError, match=f"INPUT_SIZE.*--spatial_size '{re.escape(legal)}'"):
        swin_unetr(1, 2, feature_size=12)(torch.zeros(1, 1, *size))


def test_settings_that_the_fast_computation_does_not_cover_are_refused_and_img_size_is_ignored():
    swin_unetr(1, 2, feature_size=12, img_size=(96, 96, 96))
    for settings in ({"feature_size": 20}, {"attn_drop_rate": 0.1}, {"spatial_dims": 2}, {"patch_size": 4}):
        with pytest.raises(MedvolError, match="UNKNOWN_OPTION"):
            swin_unetr(1, 2, **settings)


@pytest.mark.parametrize(
    ("size", "window", "shift"), [((7, 8, 9), (3, 4, 9), (1, 2, 4)), ((4, 5, 6), (2, 7, 4), (1, 3, 2))]
)
def test_tokens_lie_in_the_windows_and_under_the_masks_of_monai(size, window, shift):
    plan = window_plan(1, size, window, shift, CPU)
    edges, steps = monai_swin.get_window_size(size, window, shift)
    padded = [-(-length // edge) * edge for length, edge in zip(size, edges, strict=True)]
    numbers = torch.arange(size[0] * size[1] * size[2]).view(1, *size, 1) + 1
    grid = functional.pad(numbers, [0, 0, *(part for axis in (2, 1, 0) for part in (0, padded[axis] - size[axis]))])
    windows = monai_swin.window_partition(grid.roll([-step for step in steps], (1, 2, 3)), edges).squeeze(-1)
    masks = monai_swin.compute_mask(padded, edges, steps, CPU)
    expected = {tuple(row.tolist()): mask for row, mask in zip(windows, masks, strict=True)}
    padding = torch.tensor([], dtype=torch.int64) if plan.padding is None else plan.padding
    rows = torch.where(torch.isin(torch.arange(len(plan.source)), padding), 0, plan.source + 1).view(windows.shape)
    assert {tuple(row.tolist()) for row in rows} == set(expected)
    assert plan.classes[-1][1] == len(rows)
    for start, end, mask in plan.classes:
        for row in rows[start:end]:
            found = torch.zeros(masks.shape[1:]) if mask is None else mask
            torch.testing.assert_close(found, expected[tuple(row.tolist())])
    torch.testing.assert_close(plan.source[plan.target], torch.arange(len(plan.target)))


@pytest.mark.parametrize("score_bytes", [1, 2**22])
@pytest.mark.parametrize("size", [1.0, 60.0])
def test_attention_is_softmax_in_parts_of_any_size_and_for_scores_that_would_overflow(monkeypatch, score_bytes, size):
    monkeypatch.setattr(window_attention, "SCORE_BYTES", score_bytes)
    torch.manual_seed(0)
    plan = window_plan(2, (5, 4, 3), (2, 2, 2), (1, 1, 1), CPU)
    qkv = (torch.randn(len(plan.source), 3 * 6, dtype=torch.float64) * size).requires_grad_()
    bias = torch.randn(2, 8, 8, dtype=torch.float64, requires_grad=True)
    query, key, value = qkv.view(-1, 8, 3, 2, 3).permute(2, 0, 3, 1, 4)
    masks = torch.zeros(len(query), 1, 8, 8, dtype=torch.float64)
    for start, end, mask in plan.classes:
        masks[start:end] = 0 if mask is None else mask
    expected = torch.softmax(query @ key.mT / 3**0.5 + bias + masks, -1) @ value
    expected = expected.transpose(1, 2).reshape(len(qkv), 6)
    result = attend(qkv, bias, plan)
    torch.testing.assert_close(result, expected)
    upstream = torch.randn_like(result)
    for mine, theirs in zip(
        torch.autograd.grad(result, (qkv, bias), upstream),
        torch.autograd.grad(expected, (qkv, bias), upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_merged_kernels_equal_the_transposed_convolution_and_the_convolution_in_turn():
    torch.manual_seed(0)
    small = torch.randn(2, 3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    up = torch.randn(3, 5, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    for edge in (3, 1):
        kernel = torch.randn(4, 5, edge, edge, edge, dtype=torch.float64, requires_grad=True)
        expected = functional.conv3d(functional.conv_transpose3d(small, up, stride=2), kernel, padding=edge // 2)
        merged = merged_kernel(up, kernel) if edge == 3 else merged_pointwise(up, kernel)
        result = spread_children(functional.conv3d(small, merged, padding=edge // 2), overlap=edge // 2)
        torch.testing.assert_close(result, expected)
        upstream = torch.randn_like(expected)
        for mine, theirs in zip(
            torch.autograd.grad(result, (small, up, kernel), upstream),
            torch.autograd.grad(expected, (small, up, kernel), upstream),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs)


def renamed(state, pattern, replacement):
    return {re.sub(pattern, replacement, name): value for name, value in state.items()}


def swinvit_layout(state):
    """The layout of model_swinvit.pt, written by hand from the names that MONAI's `load_from` reads."""
    encoder = {name: value for name, value in state.items() if re.match(r"swinViT\.(patch_embed|layers\d\.)", name)}
    encoder = renamed(renamed(encoder, r"^swinViT\.", "module."), r"mlp\.linear(\d)", r"mlp.fc\1")
    return {"epoch": 3, "state_dict": {**encoder, "module.rotation_head.weight": torch.zeros(4, 192)}}


def autoencoder_layout(state):
    """The layout of ssl_pretrained_weights.pth, written by hand from the names that `filter_swinunetr` reads."""
    encoder = {name: value for name, value in state.items() if re.match(r"swinViT\.(patch_embed|layers\d\.)", name)}
    encoder = renamed(renamed(encoder, r"^swinViT\.", "encoder."), r"^(encoder\.layers\d\.0\.)", r"\g<1>0.")
    return {
        "model": {**encoder, "encoder.mask_token": torch.zeros(1, 12, 1, 1, 1), "out.conv.conv.bias": torch.ones(9)}
    }


def built(*sizes, **settings):
    return swin_unetr(*sizes, **settings).state_dict()


def fresh(seed=5, **settings):
    torch.manual_seed(seed)
    return swin_unetr(1, 3, feature_size=12, **settings)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 4},
        lambda state: {"model": {"state_dict": renamed(state, "^", "module.")}},
        lambda state: {name: value for name, value in state.items() if "relative_position_index" not in name},
        lambda state: {**state, "swinViT.layers1.0.blocks.1.attn_mask": torch.zeros(8, 343, 343)},
    ],
)
def test_a_whole_network_is_loaded_from_a_file_in_any_wrapping(tmp_path, wrap):
    state, network = fresh(1).state_dict(), fresh(2)
    torch.save(wrap(state), tmp_path / "model.pt")
    result = load_swin_unetr_weights(network, tmp_path / "model.pt")
    assert not result.left
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, state[name], atol=0, rtol=0)


@pytest.mark.parametrize("layout", [swinvit_layout, autoencoder_layout])
def test_an_encoder_alone_is_loaded_as_monai_loads_it_and_the_rest_is_named_as_left(layout):
    state, network = fresh(1).state_dict(), fresh(2)
    stock = monai_swin.SwinUNETR(1, 3, feature_size=12)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stock.load_state_dict(before)
    if layout is swinvit_layout:
        stock.load_from(weights=layout(state))
    else:
        copy_model_state(stock, layout(state)["model"], filter_func=monai_swin.filter_swinunetr)
    result = load_swin_unetr_weights(network, layout(state))
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, stock.state_dict()[name], atol=0, rtol=0, msg=name)
    assert result.loaded
    assert all(name.startswith("swinViT.") for name in result.loaded)
    assert set(result.left) == {name for name in before if not name.startswith("swinViT.")}
    assert len(result.ignored) == (1 if layout is swinvit_layout else 2)


def test_version_2_takes_an_encoder_and_keeps_its_convolutions_at_random():
    result = load_swin_unetr_weights(fresh(use_v2=True), swinvit_layout(fresh(1).state_dict()))
    assert "swinViT.layers1c.0.layer.conv1.conv.weight" in result.left
    assert "swinViT.layers1.0.blocks.0.attn.qkv.weight" in result.loaded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: built(1, 3, feature_size=24), r"patch_embed.proj.weight is 24x1x2x2x2, not 12x1x"),
        (lambda state: built(1, 5, feature_size=12), r"out.conv.conv.weight is 5x12x1x1x1, not 3x12x"),
        (lambda state: {"conv1.weight": torch.zeros(3)}, "swinViT.patch_embed.proj.weight is missing"),
        (lambda state: {**state, "head.weight": torch.zeros(3)}, "head.weight is unknown"),
        (lambda state: swinvit_layout(built(2, 3, feature_size=12)), "is 12x2x2x2x2, not 12x1x"),
        (lambda state: {name: state[name] for name in state if "decoder1" not in name}, "decoder1.* is missing"),
    ],
)
def test_foreign_weights_are_refused_with_the_layers_that_differ_and_change_nothing(change, message):
    network = fresh()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(MedvolError, match=f"OTHER_NETWORK.*{message}"):
        load_swin_unetr_weights(network, change(network.state_dict()))
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)


def test_files_that_are_no_checkpoints_are_refused_and_no_code_of_theirs_runs(tmp_path):
    path = tmp_path / "model.pt"
    for content in (b"", b"torn", pickle.dumps(fresh)):
        path.write_bytes(content)
        with pytest.raises(MedvolError, match="BAD_WEIGHTS"):
            load_swin_unetr_weights(fresh(), path)
    for value in ([torch.zeros(3)], {}, {"state_dict": {"weight": 3}}):
        torch.save(value, path)
        with pytest.raises(MedvolError, match="BAD_WEIGHTS"):
            load_swin_unetr_weights(fresh(), path)
    with pytest.raises(MedvolError, match="BAD_WEIGHTS"):
        load_swin_unetr_weights(fresh(), tmp_path / "absent.pt")


@pytest.mark.parametrize(("channels", "dtype"), [(4, torch.bfloat16), (3, torch.bfloat16), (3, torch.float32)])
def test_children_are_spread_in_every_type_and_for_rows_of_any_length(channels, dtype):
    parts = torch.arange(8 * channels * 2 * 3 * 2).view(1, 8 * channels, 2, 3, 2).remainder(251).to(dtype)
    large = spread_children(parts)
    for number, (p, q, r) in enumerate(itertools.product(range(2), repeat=3)):
        expected = parts[:, number * channels : (number + 1) * channels]
        assert torch.equal(large[:, :, p::2, q::2, r::2], expected)
