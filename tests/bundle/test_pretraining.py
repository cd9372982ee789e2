"""Who is pretrained on, on which grid, and what a later training remembers of it."""

import csv
import json

import pytest
import torch

from medvol.bundle.pretraining import plan_unlabelled, started_record, unlabelled_study, write_encoder_record
from medvol.bundle.study import classification_study, segmentation_study
from medvol.data.facts import Facts
from medvol.errors import MedvolError
from medvol.inference.record import ModelRecord, file_sha256, patient_digest
from medvol.networks.swin_unetr import swin_unetr
from medvol.phantoms.cohort import classification_cohort, segmentation_cohort

FACTS = Facts(
    classes=(),
    channels=("image",),
    spatial_size=(8, 8, 8),
    spacing_mm=None,
    intensity="mr",
    limits=None,
    has_geometry=False,
    laterality_matters=True,
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "cohort"
    return classification_cohort(folder, patients=15, size=(13, 14, 12), splits=None)


def patients(study, split):
    return {case.patient for case in study.cases if case.split == split}


def test_labels_are_forgotten_and_the_test_patients_of_a_later_training_left_out(cohort, tmp_path):
    trained = classification_study(str(cohort), tmp_path / "t", split_seed=3)
    study = unlabelled_study(str(cohort), tmp_path / "p", split_seed=3)
    assert patients(study, "train") == patients(trained, "train")
    assert patients(study, "val") == patients(trained, "val")
    assert not patients(study, "test")
    assert patients(trained, "test")
    assert (study.task, study.classes, {case.label for case in study.cases}) == ("unlabelled", (), {None})
    with (tmp_path / "p" / "pretraining_cases.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(study.cases)
    assert {row["label"] for row in rows} == {""}
    assert not (tmp_path / "p" / "cases.csv").exists()


def test_of_volumes_without_labels_none_are_set_aside_for_a_test(cohort, tmp_path):
    study = unlabelled_study(str(cohort.parent / "images"), tmp_path, fractions=(0.6, 0.2, 0.2))
    assert len(study.cases) == 20
    assert sum(case.split == "val" for case in study.cases) == 4
    assert not patients(study, "test")


def test_a_challenges_unlabelled_test_list_does_not_hide_the_split_of_its_labelled_cases(tmp_path):
    table = segmentation_cohort(tmp_path / "msd", patients=9, size=(16, 17, 18), splits=None)
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    document = {
        "labels": {"0": "background", "1": "a", "2": "b", "3": "c", "4": "d"},
        "training": [{"image": row["image"], "label": row["label"]} for row in rows[:-2]],
        "test": [row["image"] for row in rows[-2:]],
    }
    (table.parent / "dataset.json").write_text(json.dumps(document))
    trained = segmentation_study(str(table.parent), tmp_path / "t", split_seed=1)
    study = unlabelled_study(str(table.parent), tmp_path / "p", split_seed=1, task="segmentation")
    assert patients(trained, "test")
    assert patients(study, "train") == patients(trained, "train")
    assert patients(study, "val") == patients(trained, "val")


def test_a_test_split_of_the_source_is_left_out(cohort, tmp_path):
    with cohort.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    table = cohort.parent / "given.csv"
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["case", "patient", "image", "split"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, "split": "test" if row["patient"] == rows[0]["patient"] else "train"} for row in rows)
    study = unlabelled_study(str(table), tmp_path)
    assert rows[0]["patient"] not in {case.patient for case in study.cases}
    assert patients(study, "val")
    assert not patients(study, "val") & patients(study, "train")


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_without_a_data_set_a_synthetic_cohort_is_made(task, tmp_path, monkeypatch):
    made = {"classification": classification_cohort, "segmentation": segmentation_cohort}[task]
    small = made(tmp_path / "small", patients=6, size=(17, 18, 16))
    monkeypatch.setattr(f"medvol.bundle.study.{task}_cohort", lambda folder, **options: small)
    study = unlabelled_study("", tmp_path / "o", task=task)
    assert study.task == "unlabelled"
    assert patients(study, "train")
    assert not patients(study, "test")


def test_no_volumes_and_a_table_of_features_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MedvolError, match="EMPTY_DATASET"):
        unlabelled_study(str(tmp_path / "empty"), tmp_path / "o")
    features = classification_cohort(tmp_path / "csv", patients=6, layout="csv")
    with pytest.raises(MedvolError, match="WRONG_KIND"):
        unlabelled_study(str(features), tmp_path / "o")


def test_patches_are_planned_from_images_alone_as_for_the_segmentation(tmp_path):
    table = segmentation_cohort(tmp_path / "c", patients=6, size=(22, 21, 20))
    study = unlabelled_study(str(table), tmp_path, task="segmentation")

    def make_network(in_channels, num_outputs):
        return swin_unetr(in_channels, num_outputs, feature_size=12)

    plan = plan_unlabelled(study, make_network, spatial_size=[32, 32, 64], batch_size=2, max_epochs=3)
    assert (plan.facts.spatial_size, plan.batch_size, plan.max_epochs) == ((32, 32, 64), 2, 3)
    assert (plan.facts.intensity, plan.facts.limits) == ("ct", (-160.0, 240.0))
    assert (plan.facts.classes, plan.facts.label_values) == ((), ())
    assert plan.facts.spacing_mm is not None
    stated = plan_unlabelled(
        study, make_network, spatial_size=[32, 32, 64], batch_size=2, window_hu=[-100, 200], spacing_mm=[2, 2, 3]
    )
    assert (stated.facts.limits, stated.facts.spacing_mm) == ((-100.0, 200.0), (2.0, 2.0, 3.0))


@pytest.fixture
def encoder(cohort, tmp_path):
    """Write an encoder with its record, pretrained on every patient of the cohort but two."""

    def write(study, seen, **changes):
        torch.save({"a": torch.zeros(2)}, tmp_path / "encoder.pt")
        record = ModelRecord(
            facts=Facts(**{**FACTS.__dict__, **changes}),
            weights_sha256=file_sha256(tmp_path / "encoder.pt"),
            trained_on=tuple(sorted(patient_digest(one) for one in seen)),
            training={"epoch": 7},
        )
        write_encoder_record(tmp_path / "encoder.json", record)
        return tmp_path / "encoder.pt"

    return write


def test_a_training_remembers_which_of_its_patients_the_encoder_had_seen(cohort, tmp_path, encoder, caplog):
    study = classification_study(str(cohort), tmp_path / "t")
    seen = {*patients(study, "train"), sorted(patients(study, "test"))[0], "somebody else"}
    record = ModelRecord(facts=FACTS, training={"seed": 1})
    started = started_record(record, study, encoder(study, seen))
    origin = started.training["pretrained"]
    assert started.training["seed"] == 1
    assert origin["seen_unlabelled"] == {"train": len(seen) - 2, "val": 0, "test": 1}
    assert (origin["patients"], origin["training"]) == (len(seen), {"epoch": 7})
    assert origin["sha256"] == file_sha256(tmp_path / "encoder.pt")
    assert "1 test patients were seen" in caplog.text
    assert "other" not in caplog.text
    json.dumps(started.training)


def test_an_encoder_of_another_kind_of_volume_is_warned_of(cohort, tmp_path, encoder, caplog):
    study = classification_study(str(cohort), tmp_path / "t")
    started_record(ModelRecord(facts=FACTS), study, encoder(study, {"x"}, intensity="ct", limits=(0.0, 1.0)))
    assert "volumes with other intensity, limits" in caplog.text


def test_of_a_file_without_its_record_the_digest_is_remembered_and_of_none_nothing(cohort, tmp_path, encoder):
    study = classification_study(str(cohort), tmp_path / "t")
    record = ModelRecord(facts=FACTS)
    assert started_record(record, study, "") is record
    path = encoder(study, {"x"})
    torch.save({"a": torch.ones(2)}, path)  # another encoder than the record's
    assert started_record(record, study, path).training["pretrained"] == {
        "file": "encoder.pt",
        "sha256": file_sha256(path),
    }
