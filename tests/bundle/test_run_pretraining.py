"""The self-supervised start of the bundles that have one: pretrained, then fine-tuned, or frozen under a regression."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from medvol.errors import find_refusal
from medvol.inference.record import patient_digest
from medvol.phantoms.cohort import classification_cohort, segmentation_cohort

ROOT = Path(__file__).parents[2]
VIT = ROOT / "bundles" / "vit3d_classification"
SWIN = ROOT / "bundles" / "swin_unetr_segmentation"
QUIET = {"show_progress": False, "precision": "float32"}
SMALL = {"spatial_size": [12, 12, 16]}

pytestmark = pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning")  # MONAI warns of expressions in any config


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return classification_cohort(tmp_path_factory.mktemp("study") / "cohort", patients=15, size=(13, 14, 12))


@pytest.fixture
def pretrain(bundle_run):
    def run_pretraining(output, dataset, bundle=VIT, **options):
        defaults = {"max_epochs": 2, "batch_size": 8, **QUIET, **(SMALL if bundle == VIT else {})}
        bundle_run(bundle, ["train", "pretrain"], output, dataset_dir=str(dataset), **{**defaults, **options})
        return output / "models" / "encoder.pt"

    return run_pretraining


@pytest.fixture
def start(bundle_run):
    """Train with a learning rate of nothing: the model that is saved is the one that it started from."""

    def run_training(output, dataset, encoder, bundle=VIT, **options):
        still = {"learning_rate": 1e-12, "max_epochs": 1, "batch_size": 8, "pretrained": str(encoder), **QUIET}
        models = {"model_dir": str(output / "models")}
        bundle_run(bundle, ["train"], output, dataset_dir=str(dataset), **{**still, **models, **options})
        return torch.load(output / "models" / "model.pt", weights_only=True)

    return run_training


@pytest.fixture
def freeze(bundle_run):
    def run_frozen(output, dataset, **options):
        options = {**QUIET, **SMALL, **options}
        bundle_run(VIT, ["train", "frozen"], output, dataset_dir=str(dataset), **options)
        return json.loads((output / "metrics.json").read_text())

    return run_frozen


def refused(run, *args, **options):
    with pytest.raises(Exception) as wrapped:  # noqa: PT011 - MONAI wraps what an expression raises
        run(*args, **options)
    refusal = find_refusal(wrapped.value)
    assert refusal is not None, wrapped.value
    return refusal


def test_an_encoder_learnt_without_labels_arrives_in_the_classifier(cohort, tmp_path, pretrain, start, rows_of):
    output = tmp_path / "out put"
    encoder = pretrain(output, cohort)
    state = torch.load(encoder, weights_only=True)
    record = json.loads((output / "models" / "encoder.json").read_text())
    split = {row["patient"]: row["split"] for row in rows_of(cohort)}
    seen = sorted(patient_digest(patient) for patient, part in split.items() if part != "test")
    assert record["trained_on"] == seen
    assert record["facts"]["classes"] == []
    assert record["training"]["epoch"] == 2
    rows = rows_of(output / "history.csv")
    assert record["training"]["val_loss"] == pytest.approx(float(rows[-1]["val_loss"]))
    assert set(json.loads((output / "run.json").read_text())) == {"pretrain"}
    for name in ("pretraining.png", "reconstruction.png", "pretraining_cases.csv"):
        assert (output / name).stat().st_size > 100, name
    assert sorted(path.name for path in encoder.parent.iterdir()) == ["encoder.json", "encoder.pt"]

    trained = start(tmp_path / "t", cohort, encoder, **SMALL)
    assert set(trained) - set(state) == {"classification_head.weight", "classification_head.bias"}
    weights = [name for name in state if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert all(torch.allclose(trained[name], state[name], atol=1e-6) for name in weights)
    remembered = json.loads((tmp_path / "t/models/model.json").read_text())["training"]["pretrained"]
    assert remembered["sha256"] == record["weights_sha256"]
    assert remembered["seen_unlabelled"]["test"] == 0


def test_one_seed_gives_one_encoder_and_another_seed_another(cohort, tmp_path, pretrain):
    states = [
        torch.load(pretrain(tmp_path / name, cohort, max_epochs=1, seed=seed), weights_only=True)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_an_interrupted_pretraining_goes_on_to_the_same_encoder(cohort, tmp_path, pretrain, monkeypatch):
    from medvol.training.checkpoint import SaveState

    save = SaveState.__call__

    def die_after_one(self, engine):
        save(self, engine)
        raise KeyboardInterrupt

    whole = torch.load(pretrain(tmp_path / "whole", cohort), weights_only=True)
    with monkeypatch.context() as patched:
        patched.setattr(SaveState, "__call__", die_after_one)
        with pytest.raises(BaseException):  # noqa: B017, PT011
            pretrain(tmp_path / "parts", cohort)
    assert not (tmp_path / "parts" / "models").exists()
    parts = torch.load(pretrain(tmp_path / "parts", cohort, resume=True), weights_only=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    pretrain(tmp_path / "parts", cohort, seed=1, max_epochs=1)
    (kept,) = (tmp_path / "parts" / "models" / "earlier").rglob("encoder.pt")
    assert all(torch.equal(whole[name], value) for name, value in torch.load(kept, weights_only=True).items())


def test_bare_volumes_are_enough(cohort, tmp_path, pretrain):
    folder = tmp_path / "volumes"
    shutil.copytree(cohort.parent / "images", folder)
    pretrain(tmp_path / "o", folder, max_epochs=1)
    record = json.loads((tmp_path / "o/models/encoder.json").read_text())
    assert len(record["trained_on"]) == len(list(folder.iterdir()))


@pytest.mark.slow
def test_the_swin_encoder_arrives_in_the_classifier(cohort, tmp_path, pretrain, start):
    switch = {"architecture": "swin", "feature_size": 12, "spatial_size": [32, 32, 32]}
    encoder = pretrain(tmp_path / "o", cohort, max_epochs=1, batch_size=2, **switch)
    state = torch.load(encoder, weights_only=True)
    trained = start(tmp_path / "t", cohort, encoder, batch_size=2, **switch)
    assert set(trained) - set(state) == {"head.weight", "head.bias"}
    assert all(torch.allclose(trained[name], state[name], atol=1e-6) for name in state)
    assert refused(start, tmp_path / "u", cohort, encoder, **SMALL).code == "OTHER_NETWORK"


@pytest.mark.slow
def test_the_swin_encoder_arrives_in_the_segmentation(tmp_path, pretrain, start):
    cohort = segmentation_cohort(tmp_path / "cohort", patients=6, size=(22, 21, 20))
    small = {"feature_size": 12, "spatial_size": [32, 32, 64], "patches_per_epoch": 2, "batch_size": 2}
    encoder = pretrain(tmp_path / "o", cohort, SWIN, max_epochs=1, val_interval=1, **small)
    state = torch.load(encoder, weights_only=True)
    assert all(name.startswith("swinViT.") for name in state)
    trained = start(tmp_path / "t", cohort, encoder, SWIN, val_interval=2, **small)
    assert all(torch.allclose(trained[name], state[name], atol=1e-6) for name in state)
    record = json.loads(encoder.with_name("encoder.json").read_text())
    assert record["network"] == {"feature_size": 12}
    remembered = json.loads((tmp_path / "t/models/model.json").read_text())["training"]["pretrained"]
    assert remembered["sha256"] == record["weights_sha256"]


def test_a_frozen_encoder_is_measured_at_once_and_its_head_is_a_model(
    cohort, tmp_path, pretrain, freeze, bundle_run, rows_of
):
    output = tmp_path / "f"
    encoder = pretrain(tmp_path / "o", cohort, max_epochs=1)
    metrics = freeze(output, cohort, pretrained=str(encoder))
    test_cases = {row["case"] for row in rows_of(cohort) if row["split"] == "test"}
    rows = rows_of(output / "predictions.csv")
    assert {row["case"] for row in rows} == test_cases
    assert (metrics["split"], metrics["n_cases"]) == ("test", len(test_cases))
    for name in ("confusion.png", "roc.png", "reliability.png"):
        assert (output / name).stat().st_size > 100, name
    record = json.loads((output / "models/model.json").read_text())
    assert record["training"]["frozen"]["features"] == 96
    model, state = (torch.load(path, weights_only=True) for path in (output / "models/model.pt", encoder))
    assert all(torch.equal(model[name], state[name]) for name in state)

    # The regression is the network's head: evaluation finds the same probabilities.
    models = {"model_dir": str(output / "models"), "mirror": False}
    bundle_run(VIT, ["train", "evaluate"], tmp_path / "e", dataset_dir=str(cohort), **models, **QUIET)
    for one, other in zip(rows, rows_of(tmp_path / "e" / "predictions.csv"), strict=True):
        assert one["case"] == other["case"]
        assert float(one["prob_vessel"]) == pytest.approx(float(other["prob_vessel"]), abs=1e-4)


def test_features_are_computed_again_only_when_something_changed(cohort, tmp_path, freeze, monkeypatch, rows_of):
    from medvol.data.cache import CachedVolumes

    freeze(tmp_path / "f", cohort)
    first = (tmp_path / "f" / "predictions.csv").read_text()
    with monkeypatch.context() as patched:
        patched.setattr(CachedVolumes, "__getitem__", lambda self, index: pytest.fail("a volume was read"))
        patched.setattr(CachedVolumes, "__getitems__", lambda self, index: pytest.fail("a volume was read"))
        freeze(tmp_path / "f", cohort)
        assert (tmp_path / "f" / "predictions.csv").read_text() == first
        metrics = freeze(tmp_path / "f", cohort, eval_split="val")
        assert metrics["n_cases"] == sum(row["split"] == "val" for row in rows_of(cohort))
    before = (tmp_path / "f" / "features.npz").read_bytes()
    freeze(tmp_path / "f", cohort, seed=1)  # another random encoder
    assert (tmp_path / "f" / "features.npz").read_bytes() != before
    (tmp_path / "f" / "features.npz").write_bytes(before[:100])
    freeze(tmp_path / "f", cohort)
    assert (tmp_path / "f" / "predictions.csv").read_text() == first


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"dataset_dir": "empty"}, "EMPTY_DATASET"),
        ({"mask_ratio": 1.5}, "BAD_VALUE"),
        ({"mask_rati": 0.5}, "UNKNOWN_OPTION"),
        ({"architecture": "swim"}, "UNKNOWN_OPTION"),
        ({"pretrained": "nowhere.pt"}, "BAD_WEIGHTS"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, code, cohort, tmp_path, pretrain):
    (tmp_path / "empty").mkdir()
    refusal = refused(pretrain, tmp_path / "o", options.pop("dataset_dir", cohort), **options)
    assert refusal.code == code
    assert len(str(refusal)) <= 300


def test_an_encoder_of_another_size_is_refused(cohort, tmp_path, pretrain, start):
    encoder = pretrain(tmp_path / "o", cohort, max_epochs=1)
    assert refused(start, tmp_path / "t", cohort, encoder, spatial_size=[12, 12, 12]).code == "OTHER_NETWORK"
    assert refused(start, tmp_path / "t", cohort, encoder, **SMALL, patch_size=2).code == "OTHER_NETWORK"
