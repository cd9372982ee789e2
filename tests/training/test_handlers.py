"""Handlers of a training run, on engines small enough to follow by hand."""

import copy
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn

from medvol.data.loading import EpochShuffle, collate_cases, training_loader
from medvol.errors import MedvolError
from medvol.training import handlers
from medvol.training.checkpoint import ResumeState, SaveState
from medvol.training.handlers import (
    AugmentBatch,
    AverageWeights,
    ClipGradients,
    RefuseNan,
    ShuffleByEpoch,
    StopEarly,
    averaged_weights,
)
from medvol.transforms.augment import AugmentRanges

SIZE = (3, 4, 5)


def cases(count, value=1.0):
    volumes = [torch.full((1, *SIZE), float(index) * value) for index in range(count)]
    return [{"image": volume, "label": i % 2, "case": f"c{i}", "patient": f"p{i}"} for i, volume in enumerate(volumes)]


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(60, 2))


def trainer(network, data, handlers=(), *, epochs=1, batch_size=2, learning_rate=0.1, workers=0):
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=training_loader(data, batch_size=batch_size, seed=3, workers=workers),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=learning_rate),
        loss_function=nn.CrossEntropyLoss(),
        train_handlers=list(handlers),
    )


def batches_seen(data, handlers, epochs=2, workers=0):
    engine = trainer(linear(), data, handlers, epochs=epochs, workers=workers)
    engine.add_event_handler(Events.EPOCH_STARTED, ShuffleByEpoch(engine.data_loader.sampler))
    seen = []
    # After AugmentBatch, which hooks into the same event, and before the step.
    engine.add_event_handler(Events.ITERATION_STARTED, lambda one: seen.append(one.state.batch["image"].clone()))
    engine.run()
    return seen


def test_augmented_batches_do_not_depend_on_the_number_of_workers():
    augment = AugmentBatch(AugmentRanges(), (3, 4, 5), seed=1)
    alone = batches_seen(cases(6), [augment])
    helped = batches_seen(cases(6), [augment], workers=2)
    assert len(alone) == 6
    for first, second in zip(alone, helped, strict=True):
        torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_a_batch_is_changed_on_the_device_that_trains(monkeypatch):
    # `meta` stands for a graphics card: tensors there have a device and no numbers.
    for name in ("apply_augmentation", "apply_to_labels"):
        monkeypatch.setattr(handlers, name, lambda tensor, *_: tensor)
    batch = {"image": torch.zeros(2, 1, *SIZE), "label": torch.zeros(2, 1, *SIZE)}
    state = SimpleNamespace(batch=batch, iteration=1, device=torch.device("meta"))
    AugmentBatch(AugmentRanges(), SIZE, seed=0)(SimpleNamespace(state=state))
    assert {tensor.device.type for tensor in batch.values()} == {"meta"}


def test_the_state_to_resume_from_holds_the_generator_of_a_card(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.tensor([3, 1, 4], dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: found.append(state.tolist()))
    state = SimpleNamespace(epoch=1, iteration=2, epoch_length=2, max_epochs=3)
    SaveState(tmp_path / "checkpoint.pt", {})(SimpleNamespace(state=state))
    ResumeState(tmp_path / "checkpoint.pt", {}, resume=True)(SimpleNamespace(state=state))
    assert found == [[3, 1, 4]]


def test_each_epoch_has_another_order_that_seed_and_epoch_decide():
    def order(seed, epoch):
        sampler = EpochShuffle(range(20), seed)
        sampler.epoch = epoch
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert sorted(order(5, 7)) == list(range(20))


def test_gradients_are_clipped_before_the_step():
    network, data = linear(), cases(2, value=1e4)
    before = copy.deepcopy(network)
    engine = trainer(network, data, [ClipGradients(network, max_norm=0.05)], learning_rate=1.0)
    engine.run()
    moved = [(new - old).norm() for new, old in zip(network.parameters(), before.parameters(), strict=True)]
    assert torch.stack(moved).norm().item() == pytest.approx(0.05, rel=1e-4)


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    network, data = linear(), cases(2)
    before = copy.deepcopy(network.state_dict())
    next(network.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    engine = trainer(network, data, [RefuseNan(), ClipGradients(network)])
    engine.logger.disabled = True
    with pytest.raises(MedvolError, match="NAN_GRADIENT: norm (nan|inf) in epoch 1, iteration 1"):
        engine.run()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)


def test_nan_stops_before_the_step_and_names_the_case():
    network, data = linear(), cases(4)
    data[2]["image"] = data[2]["image"].clone().fill_(float("nan"))
    before = copy.deepcopy(network.state_dict())
    engine = trainer(network, data, [RefuseNan()], batch_size=4)
    engine.logger.disabled = True
    with pytest.raises(MedvolError, match="NAN_LOSS: case c2.*epoch 1, iteration 1"):
        engine.run()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)


def test_averaged_weights_follow_the_warm_up_formula():
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    averaged = averaged_weights(network, decay=0.998)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, 4.0]):
        nn.init.constant_(network.weight, value)
        averaged.update_parameters(network)
        if step == 0:
            expected = value  # torch copies at the first update
            continue
        keep = (1 + step) / (10 + step)
        expected = keep * expected + (1 - keep) * value
        assert averaged.module.weight.item() == pytest.approx(expected)


def test_averages_hold_the_buffers_too_and_the_network_is_left_alone():
    network = nn.Sequential(nn.BatchNorm1d(60), nn.Linear(60, 2))
    full = nn.Sequential(nn.Flatten(), network)
    averaged = averaged_weights(full, decay=0.5)
    trainer(full, cases(8, value=3.0), [AverageWeights(averaged, full)], epochs=2).run()
    assert averaged.module[1][0].running_mean.abs().sum() > 0
    assert averaged.module[1][0].num_batches_tracked == network[0].num_batches_tracked == 8
    assert not torch.equal(averaged.module[1][1].weight, network[1].weight)


def test_batches_carry_names_and_a_missing_label_leaves_the_key_out():
    batch = collate_cases(cases(3))
    assert batch["image"].shape == (3, 1, *SIZE)
    assert batch["case"] == ["c0", "c1", "c2"]
    assert batch["label"].tolist() == [0, 1, 0]
    unlabelled = [{key: value for key, value in item.items() if key != "label"} for item in cases(2)]
    assert "label" not in collate_cases(unlabelled)


@pytest.mark.parametrize(("patience", "last"), [(2, 5), (None, 9), (1, 4)])
def test_training_stops_when_validation_has_not_improved_for_the_stated_epochs(patience, last):
    network = linear()
    engine = trainer(network, cases(4), epochs=9)
    validator = SimpleNamespace(state=SimpleNamespace(best_metric_epoch=-1))

    @engine.on(Events.EPOCH_COMPLETED)
    def improve_until_the_third(one):
        validator.state.best_metric_epoch = min(one.state.epoch, 3)

    StopEarly(validator, patience).attach(engine)
    engine.run()
    assert engine.state.epoch == last
