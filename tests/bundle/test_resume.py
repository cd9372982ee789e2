"""A training that was interrupted and resumed equals one that was not, bit by bit: weights, record and history."""

import json
from pathlib import Path

import pytest
import torch

from medvol.errors import find_refusal
from medvol.phantoms.cohort import classification_cohort
from medvol.training.checkpoint import SaveState

ROOT = Path(__file__).parents[2] / "bundles"
RESNET, CNN, MLP = (ROOT / f"{name}_classification" for name in ("resnet3d", "cnn2d", "mlp_tabular"))
QUIET = {"show_progress": False, "max_epochs": 4, "batch_size": 4}
OPTIONS = {
    RESNET: {"precision": "float32", "spatial_size": [8, 9, 7]},
    CNN: {"precision": "float32", "spatial_size": [18, 20]},
    MLP: {},
}
LAYOUTS = {RESNET: "nifti", CNN: "png", MLP: "csv"}

pytestmark = pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning")  # MONAI warns of expressions in any config


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    place = tmp_path_factory.mktemp("studies")
    return {
        bundle: classification_cohort(place / layout, patients=15, size=(13, 14, 12), layout=layout)
        for bundle, layout in LAYOUTS.items()
    }


@pytest.fixture
def train(bundle_run, cohorts):
    def run_training(bundle, output, **options):
        paths = {"dataset_dir": str(cohorts[bundle]), "model_dir": str(output / "models")}
        bundle_run(bundle, ["train"], output, **{**paths, **QUIET, **OPTIONS[bundle], **options})

    return run_training


@pytest.fixture
def interrupted(train, monkeypatch):
    """Train, and die right after the state of an epoch was written."""

    def run_interrupted(bundle, output, epoch, **options):
        save = SaveState.__call__

        def save_and_die(self, engine):
            save(self, engine)
            if engine.state.epoch == epoch:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(SaveState, "__call__", save_and_die)
            with pytest.raises(BaseException):  # noqa: B017, PT011
                train(bundle, output, **options)

    return run_interrupted


def history(output, rows_of):
    return [{name: float(cell) for name, cell in row.items() if cell} for row in rows_of(output / "history.csv")]


@pytest.mark.parametrize(
    ("bundle", "epoch", "options"),
    [
        pytest.param(RESNET, 2, {"keep": "last", "val_interval": 2}, id="3D-last"),
        # The best epoch is the first: a resumed run that forgot it would ship the third.
        pytest.param(CNN, 2, {"keep": "best", "learning_rate": 0.5}, id="2D-best"),
        pytest.param(MLP, 3, {"keep": "best"}, id="table-best"),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(bundle, epoch, options, tmp_path, train, interrupted, rows_of):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(bundle, whole, **options)
    interrupted(bundle, parts, epoch, **options)
    train(bundle, parts, resume=True, **options)
    weights = [torch.load(output / "models/model.pt", weights_only=True) for output in (whole, parts)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    records = [json.loads((output / "models/model.json").read_text()) for output in (whole, parts)]
    assert records[0] == records[1]
    rows = [history(output, rows_of) for output in (whole, parts)]
    assert rows[0] == rows[1]
    assert [row["epoch"] for row in rows[0]] == [1, 2, 3, 4]
    assert not list(parts.rglob("earlier"))  # what a resumed run finds is its own


def test_a_complete_run_is_only_finished_again(tmp_path, train, rows_of):
    train(MLP, tmp_path)
    before = (tmp_path / "models/model.pt").read_bytes()
    train(MLP, tmp_path, resume=True)
    assert (tmp_path / "models/model.pt").read_bytes() == before
    assert len(history(tmp_path, rows_of)) == 4
    assert not (tmp_path / "models" / "earlier").exists()


def test_a_model_of_an_earlier_training_is_kept(tmp_path, train, capfd):
    train(MLP, tmp_path)
    earlier = {name: (tmp_path / "models" / name).read_bytes() for name in ("model.json", "model.pt")}
    capfd.readouterr()
    train(MLP, tmp_path, seed=1)
    train(MLP, tmp_path, seed=2)
    kept = sorted((tmp_path / "models" / "earlier").iterdir())
    assert len(kept) == 2
    assert {path.name: path.read_bytes() for path in kept[0].iterdir()} == earlier
    assert (tmp_path / "models" / "model.pt").read_bytes() != earlier["model.pt"]
    told = [
        line
        for line in capfd.readouterr().out.splitlines()
        if "Kept of an earlier training: model.pt and model.json" in line
    ]
    assert [str(folder) in line for folder, line in zip(kept, told, strict=True)] == [True, True]
    assert not (tmp_path / "earlier").exists()  # the state of a training that was finished is of no use


def test_a_training_locks_its_folder_and_leaves_no_lock(tmp_path, train, interrupted):
    interrupted(MLP, tmp_path, 2)
    assert (tmp_path / ".training.lock").is_file()
    train(MLP, tmp_path, resume=True)
    assert not (tmp_path / ".training.lock").exists()


def test_the_state_of_an_unfinished_training_is_kept_and_told(tmp_path, train, interrupted, capfd):
    interrupted(MLP, tmp_path, 2)
    state = (tmp_path / "checkpoint.pt").read_bytes()
    capfd.readouterr()
    train(MLP, tmp_path)
    assert "unfinished training (epoch 2 of 4), which --resume True would go on with" in capfd.readouterr().out
    (folder,) = (tmp_path / "earlier").iterdir()
    assert (folder / "checkpoint.pt").read_bytes() == state


def test_what_cannot_be_a_state_is_kept_too(tmp_path, train):
    (tmp_path / "checkpoint.pt").write_bytes(b"of another program")
    train(MLP, tmp_path)
    (folder,) = (tmp_path / "earlier").iterdir()
    assert (folder / "checkpoint.pt").read_bytes() == b"of another program"


def test_a_resumed_run_stops_where_the_uninterrupted_one_stops(tmp_path, train, interrupted, rows_of):
    patience = {"keep": "best", "early_stop_patience": 2, "max_epochs": 8, "learning_rate": 3.0}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(MLP, whole, **patience)
    assert 3 <= len(history(whole, rows_of)) < 8
    interrupted(MLP, parts, 2, **patience)
    train(MLP, parts, resume=True, **patience)
    assert history(whole, rows_of) == history(parts, rows_of)


@pytest.mark.parametrize(
    ("bundle", "options", "words"),
    [
        (MLP, {"batch_size": 3}, "epochs of 3 batches, now 4"),
        (CNN, {"max_epochs": 5}, "a schedule of 12 steps, now 15"),
        (MLP, {"network_def#width": 32}, "size mismatch"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(bundle, options, words, tmp_path, train, interrupted):
    interrupted(bundle, tmp_path, 1)
    with pytest.raises(Exception) as wrapped:  # noqa: PT011 - MONAI wraps what an expression raises
        train(bundle, tmp_path, resume=True, **options)
    refusal = find_refusal(wrapped.value)
    assert refusal is not None, wrapped.value
    assert refusal.code == "OTHER_RUN"
    assert words in str(refusal)


def test_without_the_option_a_run_begins_at_the_beginning(tmp_path, train, interrupted, rows_of):
    interrupted(MLP, tmp_path, 3)
    train(MLP, tmp_path, max_epochs=2)
    assert [row["epoch"] for row in history(tmp_path, rows_of)] == [1, 2]
