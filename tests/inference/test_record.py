"""Weights and their record: whole or absent, and only together."""

import json

import pytest
import torch
from torch import nn

from medvol.data.facts import Facts
from medvol.errors import MedvolError
from medvol.inference.record import ModelRecord, load_record, load_weights, save_model

FACTS = Facts(("no", "yes"), ("image",), (7, 8, 9), (1.0, 1.5, 3.0), "ct", (-160.0, 240.0), True, True)


def network(width=3):
    torch.manual_seed(width)
    return nn.Linear(2, width)


def test_a_record_comes_back_as_it_was_written(tmp_path):
    patients = {"trained_on": ("ab", "cd"), "fitted_on": ("ab",), "class_counts": {"benign": 3, "malignant": 1}}
    written = ModelRecord(FACTS, temperature=1.5, training={"seed": 3}, mirror=True, **patients)
    saved = save_model(tmp_path, network(), written)
    loaded = load_record(tmp_path, {})
    assert loaded == saved
    assert loaded.facts == FACTS
    assert (loaded.temperature, loaded.training) == (1.5, {"seed": 3})
    assert (loaded.trained_on, loaded.fitted_on) == (("ab", "cd"), ("ab",))
    assert loaded.class_counts == {"benign": 3, "malignant": 1}
    assert loaded.mirror
    assert len(loaded.weights_sha256) == 64


def test_weights_come_back_exactly(tmp_path):
    record = save_model(tmp_path, network(), ModelRecord(FACTS))
    other = nn.Linear(2, 3)
    load_weights(other, tmp_path, record)
    torch.testing.assert_close(other.weight, network().weight, atol=0, rtol=0)


def test_without_a_record_the_shipped_facts_count(tmp_path):
    assert load_record(tmp_path, FACTS.as_dict()) == ModelRecord(FACTS)


def test_missing_weights_say_to_train_first(tmp_path):
    with pytest.raises(MedvolError, match=r"NO_WEIGHTS.*train the bundle first"):
        load_weights(network(), tmp_path, ModelRecord(FACTS))


def test_where_weights_are_required_their_absence_comes_before_the_shipped_facts(tmp_path):
    with pytest.raises(MedvolError, match=r"NO_WEIGHTS.*train the bundle first"):
        load_record(tmp_path, FACTS.as_dict(), require_weights=True)
    saved = save_model(tmp_path, network(), ModelRecord(FACTS))
    assert load_record(tmp_path, {}, require_weights=True) == saved


def test_one_flipped_byte_in_the_weights_is_noticed(tmp_path):
    record = save_model(tmp_path, network(), ModelRecord(FACTS))
    data = bytearray((tmp_path / "model.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model.pt").write_bytes(data)
    with pytest.raises(MedvolError, match="WEIGHTS_MISMATCH"):
        load_weights(network(), tmp_path, record)


def test_weights_of_another_network_are_refused_with_the_first_layer_that_differs(tmp_path):
    record = save_model(tmp_path, network(3), ModelRecord(FACTS))
    with pytest.raises(MedvolError, match=r"OTHER_NETWORK.*weight: \(3, 2\).*expected \(4, 2\)") as refusal:
        load_weights(network(4), tmp_path, record)
    assert refusal.value.details == ("weight", "bias")


def test_a_pickle_is_not_executed(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("canary").touch, ())

    (tmp_path / "model.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(MedvolError, match="BAD_WEIGHTS"):
        load_weights(network(), tmp_path, ModelRecord(FACTS))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", [torch.zeros(3), {}, {"weight": 1.0}, ["weight"]])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(MedvolError, match=r"BAD_WEIGHTS: .*model\.pt"):
        load_weights(network(), tmp_path, ModelRecord(FACTS))


def test_a_record_that_is_none_is_refused_with_its_file(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"facts": {}}))
    with pytest.raises(MedvolError, match=r"BAD_RECORD: .*model\.json"):
        load_record(tmp_path, {})


def test_a_failed_write_leaves_the_old_weights(tmp_path, monkeypatch):
    save_model(tmp_path, network(3), ModelRecord(FACTS))
    before = (tmp_path / "model.pt").read_bytes()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(MedvolError, match="DISK_FULL"):
        save_model(tmp_path, network(4), ModelRecord(FACTS))
    assert (tmp_path / "model.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.pt"]
