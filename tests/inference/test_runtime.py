"""Runtime choice: what is measured is remembered, and choosing changes neither weights nor random numbers."""

import json

import pytest
import torch

from medvol.errors import MedvolError
from medvol.inference.runtime import Runtime, RuntimeInferer, choose_runtime, fastest, measure_runtimes
from medvol.networks.resnet3d import resnet3d

CPU = torch.device("cpu")
SHAPE = (1, 7, 8, 9)


def small():
    torch.manual_seed(0)
    return resnet3d(1, 2, widths=(4, 8))


def test_the_fastest_is_taken_only_when_it_gains_more_than_noise():
    plain, layout, half = Runtime("cpu"), Runtime("cpu", channels_last=True), Runtime("cpu", "bfloat16")
    assert fastest({plain: 1.00, layout: 0.97, half: 0.98}) == plain
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


def test_bfloat16_answers_in_float32_and_close_to_it():
    network, batch = small().eval(), torch.randn(2, *SHAPE)
    with torch.no_grad():
        exact = RuntimeInferer()(batch, network)
        half = RuntimeInferer(Runtime("cpu", "bfloat16", channels_last=True))(batch, network)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.05, rtol=0.05)
    assert not torch.equal(half, exact)


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
