"""ResNet-50 against torchvision's published layout, written here from its documentation, and its weights."""

import hashlib
import json
import pickle

import pytest
import torch
from torch.nn import functional

from medvol.errors import MedvolError
from medvol.networks.resnet2d import cached_resnet50, load_torchvision_resnet50, resnet50_2d

STAGES = [(1, 3, 64), (2, 4, 128), (3, 6, 256), (4, 3, 512)]


def torchvision_layout(channels=3, classes=1000):
    """Return the shape of every tensor of torchvision's `resnet50().state_dict()`."""
    shapes = {}

    def norm(name, width):
        shapes.update({f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    shapes["conv1.weight"] = (64, channels, 7, 7)
    norm("bn1", 64)
    before = 64
    for stage, blocks, width in STAGES:
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            for number, shape in enumerate([(width, before, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)], 1):
                shapes[f"{name}.conv{number}.weight"] = shape
                norm(f"{name}.bn{number}", shape[0])
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, before, 1, 1)
                norm(f"{name}.downsample.1", 4 * width)
            before = 4 * width
    shapes["fc.weight"], shapes["fc.bias"] = (classes, 2048), (classes,)
    return shapes


def published(seed=0, **sizes):
    """Return random weights in torchvision's layout, none of them at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in torchvision_layout(**sizes).items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        elif len(shape) == 1:
            state[name] = torch.randn(shape, generator=generator) * 0.2 + float(name.endswith("weight"))
        else:
            fan_in = shape[1] * (shape[2] ** 2 if len(shape) == 4 else 1)
            state[name] = torch.randn(shape, generator=generator) * fan_in**-0.5
    return state


def forward_of_torchvision(state, images):
    """Return the logits of torchvision's ResNet-50 v1.5: its stride lies in the 3x3 convolution."""

    def norm(x, name):
        mean, variance, weight, bias = (
            state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, variance, weight, bias, eps=1e-5)

    x = functional.conv2d(images, state["conv1.weight"], stride=2, padding=3)
    x = functional.max_pool2d(norm(x, "bn1").relu(), kernel_size=3, stride=2, padding=1)
    for stage, blocks, _ in STAGES:
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            shortcut = x
            if block == 0:
                shortcut = functional.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
                shortcut = norm(shortcut, f"{name}.downsample.1")
            x = norm(functional.conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1").relu()
            x = functional.conv2d(x, state[f"{name}.conv2.weight"], stride=stride, padding=1)
            x = norm(x, f"{name}.bn2").relu()
            x = norm(functional.conv2d(x, state[f"{name}.conv3.weight"]), f"{name}.bn3")
            x = (x + shortcut).relu()
    return functional.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def test_every_tensor_of_the_published_layout_has_its_place_and_there_is_none_besides():
    network = resnet50_2d(3, 1000)
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == torchvision_layout()
    assert sum(parameter.numel() for parameter in network.parameters()) == 25_557_032


def test_published_weights_give_the_logits_of_the_published_layout_and_come_back_unchanged(tmp_path):
    state, network = published(), resnet50_2d(3, 1000).eval()
    torch.save(state, tmp_path / "resnet50.pth")
    result = load_torchvision_resnet50(network, tmp_path / "resnet50.pth")
    assert set(result.loaded) == set(state)
    assert (result.left, result.ignored) == ((), ())
    back = network.state_dict()
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    images = torch.randn(2, 3, 40, 65, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = forward_of_torchvision(state, images), network(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits / expected.abs().max(), expected / expected.abs().max(), atol=1e-5, rtol=0)


def test_a_head_for_other_classes_stays_at_its_random_start_and_is_named():
    network = resnet50_2d(3, 2)
    before, state = network.fc.weight.clone(), published()
    result = load_torchvision_resnet50(network, {"state_dict": {f"module.{name}": state[name] for name in state}})
    assert result.left == result.ignored == ("fc.weight", "fc.bias")
    assert torch.equal(network.fc.weight, before)
    assert torch.equal(network.conv1.weight, state["conv1.weight"])


def test_counters_that_old_files_lack_are_named_as_left():
    state = {name: value for name, value in published().items() if not name.endswith("num_batches_tracked")}
    result = load_torchvision_resnet50(resnet50_2d(3, 1000), state)
    assert len(result.left) == 53
    assert all(name.endswith("num_batches_tracked") for name in result.left)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "layer5.0.conv1.weight": torch.zeros(3)}, "layer5.0.conv1.weight is unknown"),
        (lambda state: {name: state[name] for name in state if name != "bn1.bias"}, "bn1.bias is missing"),
        (lambda state: published(channels=1), "conv1.weight is 64x1x7x7, not 64x3x7x7.*in_channels"),
        (lambda state: {**state, "fc.weight": torch.zeros(2, 512)}, "fc.weight is 2x512, not 1000x2048"),
    ],
)
def test_foreign_weights_are_refused_with_the_layers_that_differ_and_change_nothing(change, message):
    network = resnet50_2d(3, 1000)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(MedvolError, match=f"OTHER_NETWORK.*{message}"):
        load_torchvision_resnet50(network, change(published()))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_files_that_are_no_checkpoints_are_refused_and_no_code_of_theirs_runs(tmp_path):
    network, path = resnet50_2d(3, 2), tmp_path / "weights.pth"
    for content in (b"", b"torn", pickle.dumps(published)):
        path.write_bytes(content)
        for name in (path, path.rename(path.with_suffix(".safetensors"))):
            with pytest.raises(MedvolError, match="BAD_WEIGHTS"):
                load_torchvision_resnet50(network, name)
    for value in ([torch.zeros(3)], {}, {"state_dict": {"weight": 3}}):
        torch.save(value, path)
        with pytest.raises(MedvolError, match="BAD_WEIGHTS"):
            load_torchvision_resnet50(network, path)


def safetensors(tensors):
    """Return the bytes of a .safetensors file, as its specification says."""
    table, content = {"__metadata__": {"format": "pt"}}, bytearray()
    kinds = {torch.float32: "F32", torch.int64: "I64"}
    for name, tensor in tensors.items():
        start = len(content)
        content += tensor.numpy().tobytes()
        offsets = [start, len(content)]
        table[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    header = json.dumps(table).encode()
    return len(header).to_bytes(8, "little") + header + content


def test_a_safetensors_file_is_read_as_well(tmp_path):
    state, network = published(classes=2), resnet50_2d(3, 2)
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(state))
    assert not load_torchvision_resnet50(network, path).left
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_the_hub_cache_is_used_when_its_file_has_the_hash_of_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    with pytest.raises(MedvolError, match="NO_WEIGHTS.*no resnet50"):
        cached_resnet50()
    folder.mkdir()
    torch.save(published(classes=2), tmp_path / "weights")
    digest = hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest()[:8]
    path = (tmp_path / "weights").rename(folder / f"resnet50-{digest}.pth")
    assert not load_torchvision_resnet50(resnet50_2d(3, 2)).left
    path.rename(folder / "resnet50-00000000.pth")
    with pytest.raises(MedvolError, match=f"BAD_WEIGHTS.*begins with {digest}"):
        cached_resnet50()
    (folder / "resnet50-11111111.pth").touch()
    with pytest.raises(MedvolError, match="NO_WEIGHTS.*resnet50-00000000.pth, resnet50-11111111.pth"):
        cached_resnet50()


@pytest.mark.parametrize("channels", [1, 3])
def test_every_parameter_receives_a_gradient_and_the_output_has_a_logit_per_class(channels):
    torch.manual_seed(0)
    network = resnet50_2d(channels, 3)
    output = network(torch.randn(2, channels, 33, 34))
    assert output.shape == (2, 3)
    output.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())
