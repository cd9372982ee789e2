"""Runtime choice: what is measured is remembered, and choosing changes neither weights nor random numbers."""

import json
import math
import time

import pytest
import torch

from medvol.errors import MedvolError
from medvol.inference import runtime as runtime_module
from medvol.inference import turns
from medvol.inference.agreement import agreement
from medvol.inference.runtime import Probe, Runtime, RuntimeInferer, choose_runtime, fastest, measure_runtimes
from medvol.networks.resnet3d import resnet3d

CPU = torch.device("cpu")
SHAPE = (1, 7, 8, 9)


def small():
    torch.manual_seed(0)
    return resnet3d(1, 2, widths=(4, 8))


def test_the_fastest_is_taken_only_when_it_gains_more_than_noise():
    plain, layout, half = Runtime("cpu"), Runtime("cpu", channels_last=True), Runtime("cpu", "bfloat16")
    assert fastest({plain: 1.00, layout: 0.99, half: 0.96}) == plain
    assert fastest({plain: 1.00, layout: 0.97, half: 0.96}) == layout
    assert fastest({plain: 1.00, layout: 0.80, half: 0.79}) == layout
    assert fastest({plain: 1.00, layout: 0.80, half: 0.50}) == half


def test_both_precisions_and_both_layouts_are_measured_and_a_named_precision_is_taken_as_it_is(tmp_path):
    assert len(measure_runtimes(small(), SHAPE)) == 4
    memory = tmp_path / "runtime.json"
    assert choose_runtime(small(), SHAPE, device=CPU, precision="float32", memory_file=memory) == Runtime("cpu")
    assert choose_runtime(small(), SHAPE, device=CPU, precision="bfloat16") == Runtime("cpu", "bfloat16")
    assert not memory.exists()


def test_choosing_changes_neither_weights_nor_the_random_numbers_that_follow():
    network = small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    choose_runtime(network, SHAPE, device=CPU)
    torch.testing.assert_close(torch.rand(3), expected, atol=0, rtol=0)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)


def test_a_measurement_is_remembered_for_this_network_and_size_alone(tmp_path):
    memory = tmp_path / "cache" / "runtime.json"
    choose_runtime(small(), SHAPE, device=CPU, memory_file=memory)
    known = json.loads(memory.read_text())
    assert len(known) == 1
    # What is remembered is what is used: a planted answer comes back.
    (key,) = known
    memory.write_text(json.dumps({key: {"device_type": "cpu", "dtype": "bfloat16", "channels_last": True}}))
    assert choose_runtime(small(), SHAPE, device=CPU, memory_file=memory) == Runtime("cpu", "bfloat16", True)
    choose_runtime(small(), (1, 9, 8, 7), device=CPU, memory_file=memory)
    assert len(json.loads(memory.read_text())) == 2


def test_a_damaged_memory_is_measured_again(tmp_path):
    memory = tmp_path / "runtime.json"
    memory.write_text("{torn")
    choose_runtime(small(), SHAPE, device=CPU, memory_file=memory)
    assert len(json.loads(memory.read_text())) == 1


def test_a_memory_that_cannot_be_written_and_a_device_by_name_are_no_reason_to_stop(tmp_path):
    """As in a server's read-only folder, under MONAI Label, which names devices."""
    (tmp_path / "file").write_text("no folder")
    chosen = choose_runtime(small(), SHAPE, device="cpu", memory_file=tmp_path / "file" / "runtime.json")
    assert chosen.device_type == "cpu"


def test_bfloat16_answers_in_float32_and_close_to_it():
    network, batch = small().eval(), torch.randn(2, *SHAPE)
    with torch.no_grad():
        exact = RuntimeInferer()(batch, network)
        half = RuntimeInferer(Runtime("cpu", "bfloat16", channels_last=True))(batch, network)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.05, rtol=0.05)
    assert not torch.equal(half, exact)


class Layouts(torch.nn.Module):
    """Remembers whether its inputs and its weights had their channels last."""

    def __init__(self, convolution):
        super().__init__()
        self.convolution, self.seen = convolution, []

    def forward(self, inputs):
        last = torch.channels_last if inputs.dim() == 4 else torch.channels_last_3d
        self.seen.append([one.is_contiguous(memory_format=last) for one in (inputs, self.convolution.weight)])
        return self.convolution(inputs)


@pytest.mark.parametrize(("convolution", "shape"), [(torch.nn.Conv2d, (2, 7, 8)), (torch.nn.Conv3d, (2, 7, 8, 9))])
def test_channels_last_is_the_layout_of_images_and_of_volumes(convolution, shape):
    for channels_last in (True, False):
        network = Layouts(convolution(2, 3, 3))
        runtime = choose_runtime(network, shape, device=CPU, precision="float32", channels_last=channels_last)
        outputs = RuntimeInferer(runtime)(torch.zeros(2, *shape), network)
        assert network.seen == [[channels_last] * 2]
        assert outputs.is_contiguous()  # as losses over classes want them


def test_an_unknown_precision_is_refused_with_the_nearest():
    with pytest.raises(MedvolError, match="did you mean 'bfloat16'"):
        choose_runtime(small(), SHAPE, device=CPU, precision="bfloat")


def test_mirrored_outputs_are_averaged_over_every_combination_of_axes():
    network, batch = small().eval(), torch.randn(2, *SHAPE)
    with torch.no_grad():
        averaged = RuntimeInferer(mirror_axes=(0, 2))(batch, network)
        by_hand = sum(network(batch.flip(axes)) for axes in ([], [2], [4], [2, 4])) / 4
        mirrored = RuntimeInferer(mirror_axes=(0, 2))(batch.flip(4), network)
    torch.testing.assert_close(averaged, by_hand)
    torch.testing.assert_close(averaged, mirrored)
    assert not torch.allclose(averaged, network(batch))


class Calls(torch.nn.Module):
    """Remembers how it was called; deep copies share the list."""

    def __init__(self, calls, seconds=0.0):
        super().__init__()
        self.calls, self.seconds, self.late = calls, seconds, 0.0
        self.weight = torch.nn.Parameter(torch.ones(1))

    def __deepcopy__(self, memo):
        return Calls(self.calls, self.seconds)

    def forward(self, volumes):
        time.sleep(self.seconds + self.late)
        self.late = 0.0
        self.calls.append((len(volumes), self.training, torch.is_grad_enabled()))
        return [volumes * self.weight, volumes.mean() * self.weight]  # as with deep supervision


@pytest.mark.parametrize(("purpose", "expected"), [("train", (8, True, True)), ("infer", (1, False, False))])
def test_the_probe_runs_the_network_as_the_purpose_will(purpose, expected, monkeypatch):
    monkeypatch.setattr(turns, "HOPELESS", math.inf)  # so that none is left out, however busy the machine
    calls = []
    network = Calls(calls)
    choose_runtime(network, SHAPE, device=CPU, purpose=purpose)
    assert set(calls) == {expected}
    assert len(calls) == 4 * 6
    assert network.training
    assert network.weight.grad is None
    calls.clear()
    choose_runtime(network, SHAPE, device=CPU, purpose=purpose, batch=3)
    assert {call[0] for call in calls} == {3}


def test_slow_candidates_are_called_once_and_no_longer_than_the_probe_may_take():
    calls = []
    seconds = measure_runtimes(Calls(calls, 0.02), SHAPE, Probe("infer", seconds=0.04))
    assert len(calls) == len(seconds) == 4
    assert min(seconds.values()) >= 0.02


def test_candidates_take_turns(monkeypatch):
    order = []

    def duration(network, input_shape, runtime, probe):
        order.append(runtime)
        return 1.0

    monkeypatch.setattr(runtime_module, "_duration", duration)
    measured = measure_runtimes(small(), SHAPE, Probe(seconds=1000))
    assert order == list(measured) * 6


def test_a_fixed_layout_is_kept_measured_or_not():
    assert choose_runtime(small(), SHAPE, device=CPU, channels_last=True).channels_last
    assert not choose_runtime(small(), SHAPE, device=CPU, channels_last=False).channels_last
    fixed = choose_runtime(small(), SHAPE, device=CPU, precision="float32", channels_last=True)
    assert fixed == Runtime("cpu", "float32", True)


def test_purpose_batch_and_network_have_memories_of_their_own(tmp_path):
    memory = tmp_path / "runtime.json"
    wishes = [{}, {"purpose": "infer"}, {"purpose": "infer", "batch": 2}, {"channels_last": True}]
    for number, wish in enumerate(wishes, start=1):
        for _ in range(2):
            choose_runtime(small(), SHAPE, device=CPU, memory_file=memory, **wish)
            assert len(json.loads(memory.read_text())) == number
    # The same weights, computed otherwise.
    for number, activation in enumerate((torch.nn.ReLU(), torch.nn.Tanh()), start=len(wishes) + 1):
        other = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), activation)
        choose_runtime(other, SHAPE, device=CPU, memory_file=memory)
        assert len(json.loads(memory.read_text())) == number


def test_compiling_is_tried_only_for_many_calls_and_pays_for_its_own_time(monkeypatch):
    compiled = []
    monkeypatch.setattr(Calls, "compile", lambda self: compiled.append(id(self)))
    monkeypatch.setattr(runtime_module, "has_compiler", lambda: True)
    network = Calls([])
    choose_runtime(network, SHAPE, device=CPU, purpose="infer")
    choose_runtime(network, SHAPE, device=CPU, purpose="infer", expected_calls=10)
    assert not compiled
    seconds = measure_runtimes(Calls([], 0.01), SHAPE, Probe("infer", expected_calls=100_000))
    assert len(compiled) == 1
    assert sum(runtime.compiled for runtime in seconds) == 1
    # Compiling happens in the first call, here half a second; the next one has to bear all of it, ten a tenth each.
    monkeypatch.setattr(Calls, "compile", lambda self: setattr(self, "late", 0.5))
    monkeypatch.setattr(runtime_module, "COMPILE_WORTHWHILE", 0.0)
    for expected, low, high in ((1, 0.4, 1.0), (10, 0.04, 0.1)):
        seconds = measure_runtimes(Calls([]), SHAPE, Probe("infer", expected_calls=expected))
        (compiled_seconds,) = (value for runtime, value in seconds.items() if runtime.compiled)
        assert low < compiled_seconds < high
    monkeypatch.setattr(runtime_module, "has_compiler", lambda: False)
    assert len(measure_runtimes(Calls([], 0.01), SHAPE, Probe("infer", expected_calls=100_000))) == 4


def test_a_network_that_cannot_be_compiled_runs_uncompiled(monkeypatch, caplog):
    def fail(self):
        self.forward = None

    monkeypatch.setattr(Calls, "compile", fail)
    monkeypatch.setattr(runtime_module, "has_compiler", lambda: True)
    seconds = measure_runtimes(Calls([], 0.01), SHAPE, Probe("infer", expected_calls=100_000))
    assert not any(runtime.compiled for runtime in seconds)
    assert "running uncompiled" in caplog.text


def test_an_unknown_purpose_is_refused_with_the_nearest():
    with pytest.raises(MedvolError, match="did you mean 'infer'"):
        choose_runtime(small(), SHAPE, device=CPU, purpose="infers")


def test_agreement_counts_the_labels_that_the_runtime_changes(caplog):
    class Halves(torch.nn.Module):
        """Logits that bfloat16 rounds to a tie in one voxel of four: 1.001 becomes 1."""

        def forward(self, volumes):
            scores = torch.tensor([[2.0, 0.0, 0.999, 3.0], [1.0, 1.0, 1.001, 1.0]]).view(1, 2, 4, 1, 1)
            rounded = torch.is_autocast_enabled("cpu")
            return (scores.bfloat16() if rounded else scores).expand(len(volumes), -1, -1, -1, -1)

    network = Halves().train()
    caplog.set_level("INFO")
    result = agreement(network, torch.zeros(2, 1, 4, 1, 1), Runtime("cpu", "bfloat16"))
    assert result.labels == 8
    assert result.changed == 0.25
    assert result.max_difference == pytest.approx(0.001, rel=0.01)
    assert network.training
    assert len(caplog.records) == 1
    same = agreement(small(), torch.randn(2, *SHAPE), Runtime("cpu"))
    assert (same.max_difference, same.changed) == (0.0, 0.0)
