"""The preflight: memory by hand, against recorded measurements and against a real step; shapes that cannot work."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from medvol.errors import MedvolError
from medvol.networks.unet import unet
from medvol.training import preflight
from medvol.training.losses import DeepDiceCeLoss
from medvol.training.preflight import (
    WORKSPACE,
    available_memory_gb,
    patch_multiple,
    predict_memory,
    require_fits,
    require_shape,
)

GIB = 2**30

STEP = """
import copy, torch
from medvol.inference.memory import keep_freed_memory
from medvol.networks.unet import unet
from medvol.training.losses import DeepDiceCeLoss
import medvol.training.plan
keep_freed_memory()
network = unet(1, 3, spatial_size=(48, 48, 48))
averaged, optimizer = copy.deepcopy(network), torch.optim.AdamW(network.parameters())
for _ in range(2):
    optimizer.zero_grad(set_to_none=True)
    outputs = network(torch.randn(4, 1, 48, 48, 48))
    DeepDiceCeLoss()(outputs, torch.randint(0, 3, (4, 1, 48, 48, 48))).backward()
    optimizer.step()
status = open("/proc/self/status").read()
print(status.split("VmHWM:")[1].split()[0])
"""


def test_a_linear_layer_is_counted_by_hand():
    network = nn.Linear(1000, 10, bias=False)
    estimate = predict_memory(network, (1000,), 50)
    assert estimate.weights_gb == pytest.approx(40_000 / GIB)
    assert estimate.state_gb == pytest.approx(120_000 / GIB)
    # When the weight's gradient is put into the weight's layout: input, output, the gradient twice; a few numbers.
    tensors = 4 * (50_000 + 500 + 2 * 10_000)
    assert estimate.tensors_gb * GIB / WORKSPACE == pytest.approx(tensors, rel=0.01)
    assert estimate.total_gb == pytest.approx(
        estimate.weights_gb + estimate.state_gb + estimate.tensors_gb + estimate.process_gb
    )


def test_what_works_in_place_is_not_counted_twice():
    def peak(inplace):
        layers = (nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(inplace=inplace), nn.ReLU(inplace=inplace))
        network = nn.Sequential(*layers).to("meta")
        with torch.no_grad(), preflight._LiveBytes() as live:
            network(torch.empty(1, 1, 10, 11, 12, device="meta"))
        return live.peak

    voxels = 10 * 11 * 12
    assert peak(True) == 4 * voxels * (1 + 8)
    assert peak(False) == 4 * voxels * (1 + 8 + 8)


def test_more_volumes_take_more():
    network = unet(1, 3, spatial_size=(16, 16, 16), width=8)
    one, two = (predict_memory(network, (1, 16, 16, 16), count).tensors_gb for count in (2, 4))
    assert 1.8 < two / one <= 2


def test_the_network_itself_stays_where_and_as_it_is():
    network = unet(1, 3, spatial_size=(16, 16, 16), width=8).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    predict_memory(network, (1, 16, 16, 16), 2)
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("size", "batch", "measured_gb"), [((40, 56, 40), 4, 1.14), ((64, 64, 64), 2, 1.47), ((96, 96, 96), 2, 3.37)]
)
def test_the_prediction_is_within_15_percent_of_what_was_measured(size, batch, measured_gb):
    # Recorded: peak resident memory of two steps in a process of its own, by the script below at other sizes.
    network = unet(1, 3, spatial_size=size, width=16)
    estimate = predict_memory(network, (1, *size), batch, loss=DeepDiceCeLoss())
    assert estimate.total_gb == pytest.approx(measured_gb, rel=0.15)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_a_real_step_takes_what_was_predicted():
    # Not getrusage: a new process begins with the peak of the one that started it.
    result = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    measured_gb = int(result.stdout) * 1024 / GIB
    size = (48, 48, 48)
    estimate = predict_memory(unet(1, 3, spatial_size=size), (1, *size), 4, loss=DeepDiceCeLoss())
    assert estimate.total_gb == pytest.approx(measured_gb, rel=0.3)


def test_a_step_that_does_not_fit_is_refused_with_both_numbers():
    require_fits(2.0, 2.0, spatial_size=(8, 8, 8), batch_size=2)
    with pytest.raises(MedvolError, match=r"TOO_LARGE: a step on 2 patches of 7 x 8 x 9 voxels.*3\.1 GB.*2\.0 GB") as e:
        require_fits(3.1, 2.0, spatial_size=(7, 8, 9), batch_size=2)
    assert all(option in str(e.value) for option in ("--spatial_size", "--batch_size", "--memory_gb"))


def test_a_shape_that_the_network_does_not_divide_is_refused_with_a_better_one():
    network = unet(1, 2, spatial_size=(32, 32, 32), width=8)
    require_shape(network, 1, (16, 24, 32))
    with pytest.raises(MedvolError, match=r"BAD_PATCH_SIZE: patches of 30 x 32 x 33.*\[32, 32, 40\]"):
        require_shape(network, 1, (30, 32, 33))


class Pooled(nn.Module):
    """Fails in torch's own words on what four does not divide, as most networks do."""

    def forward(self, volumes):
        small = nn.functional.max_pool3d(volumes, 4)
        return volumes + nn.functional.interpolate(small, scale_factor=4)


def test_a_failure_in_torchs_words_becomes_a_refusal():
    require_shape(Pooled(), 1, (4, 8, 12))
    with pytest.raises(MedvolError, match=r"BAD_PATCH_SIZE: patches of 7 x 8 x 9.*'\[8, 8, 12\]', multiples of 4"):
        require_shape(Pooled(), 1, (7, 8, 9))


def test_the_multiple_is_asked_for_or_found():
    assert patch_multiple(unet(1, 2, spatial_size=(64, 64, 64), width=8), 1) == (16, 16, 16)
    assert patch_multiple(unet(1, 2, spatial_size=(64, 64, 16), spacing_mm=(1.0, 1.0, 4.0), width=8), 1) == (16, 16, 4)
    assert patch_multiple(Pooled(), 1) == (4, 4, 4)
    assert patch_multiple(nn.Conv3d(1, 2, 3, padding=1), 1) == (1, 1, 1)


@pytest.mark.parametrize("network", [nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), nn.Conv3d(1, 2, 3, 2, 1)])
def test_a_network_that_returns_no_volume_of_the_same_size_is_refused(network):
    with pytest.raises(MedvolError, match="BAD_PATCH_SIZE: a .* that runs on no cube") as refusal:
        patch_multiple(network, 1)
    assert refusal.value.details[0]


def test_free_memory_is_the_least_of_machine_and_control_group(tmp_path, monkeypatch):
    free = available_memory_gb()
    assert 0 < free < 1e5
    (tmp_path / "max").write_text(f"{3 * 2**29}\n")
    (tmp_path / "now").write_text(f"{2**30}\n")
    monkeypatch.setattr(preflight, "_GROUP_FILES", ((tmp_path / "max", tmp_path / "now"),))
    assert available_memory_gb() == pytest.approx(min(0.5, free), rel=0.1)
    (tmp_path / "max").write_text("max\n")
    assert available_memory_gb() == pytest.approx(free, rel=0.2)
