"""The segmentation bundles trained, evaluated and applied with MONAI's own command."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from medvol.bundle.join import join_models
from medvol.data.sources import open_study
from medvol.errors import find_refusal
from medvol.inference.record import ModelRecord, load_record, patient_digest, write_record
from medvol.phantoms.cohort import segmentation_cohort

ROOT = Path(__file__).parents[2]
BUNDLES = sorted(path.parent.parent for path in ROOT.glob("bundles/*_segmentation/configs/metadata.json"))
UNET = ROOT / "bundles" / "unet_segmentation"
QUIET = {"show_progress": False, "precision": "float32"}
SMALL = {"max_epochs": 2, "patches_per_epoch": 4, "batch_size": 2, "val_interval": 1}
SIZE = {
    "unet_segmentation": {"width": 4},
    "swin_unetr_segmentation": {"feature_size": 12, "spatial_size": [32, 32, 64]},
}

pytestmark = pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning")  # MONAI warns of expressions in any config


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return segmentation_cohort(tmp_path_factory.mktemp("study") / "cohort", patients=9, size=(22, 21, 20))


@pytest.fixture
def train(bundle_run):
    def run_training(output, dataset, bundle=UNET, **options):
        defaults = {**SMALL, **SIZE[bundle.name], "model_dir": str(output / "models"), **QUIET}
        bundle_run(bundle, ["train"], output, dataset_dir=str(dataset), **{**defaults, **options})

    return run_training


@pytest.fixture
def evaluate(bundle_run):
    def run_evaluation(output, dataset, bundle=UNET, **options):
        defaults = {"model_dir": str(output / "models"), **QUIET}
        bundle_run(bundle, ["train", "evaluate"], output, dataset_dir=str(dataset), **{**defaults, **options})

    return run_evaluation


@pytest.fixture
def predict(bundle_run):
    def run_inference(output, dataset, models, bundle=UNET, **options):
        paths = {"dataset_dir": str(dataset), "model_dir": str(models)}
        bundle_run(bundle, ["inference"], output, **paths, **QUIET, **options)

    return run_inference


@pytest.mark.slow
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_bundle_trains_evaluates_and_predicts_from_any_folder(
    bundle, cohort, tmp_path, train, evaluate, predict, rows_of, missing_properties
):
    output = tmp_path / "out put"
    models = output / "models"
    train(output, cohort, bundle)
    weights = torch.load(models / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    record = json.loads((models / "model.json").read_text())
    assert record["facts"]["label_values"] == [0, 1, 2, 3, 4]

    evaluate(output, cohort, bundle)
    metrics = json.loads((output / "metrics.json").read_text())
    test_cases = [row for row in rows_of(cohort) if row["split"] == "test"]
    assert (metrics["split"], metrics["n_cases"]) == ("test", len(test_cases))
    assert {"dice", "hd95_mm", "nsd"} <= set(metrics["metrics"])
    scored = rows_of(output / "predictions.csv")
    assert {row["case"] for row in scored} == {row["case"] for row in test_cases}

    # What was measured is what is written: the same mask, on the source's grid, alone or among others.
    case = test_cases[0]
    source = nib.load(cohort.parent / case["image"])
    predict(tmp_path / "one", cohort.parent / case["image"], models, bundle)
    (alone,) = rows_of(tmp_path / "one" / "predictions.csv")
    mask = nib.load(tmp_path / "one" / alone["output"])
    together = nib.load(output / next(row for row in scored if row["case"] == case["case"])["output"])
    assert mask.shape == source.shape
    np.testing.assert_allclose(mask.affine, source.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(together.dataobj))

    for mode, options in (("train", SIZE[bundle.name]), ("inference", {})):
        where = {"output_dir": output, "dataset_dir": cohort, "model_dir": models, "precision": "float32"}
        assert missing_properties(bundle, mode, **where, **options) == []
    runs = json.loads((output / "run.json").read_text())
    assert set(runs) == {"train", "evaluate"}
    for name in ("training.png", "overlays.png", "dice_by_case.png", "history.csv", "cases.csv"):
        assert (output / name).stat().st_size > 100, name


def test_a_network_learns_the_organs_of_the_phantom(cohort, tmp_path, train, rows_of):
    train(tmp_path / "o", cohort, max_epochs=6, patches_per_epoch=16, width=8, learning_rate=0.01, val_interval=6)
    losses = [float(row["train_loss"]) for row in rows_of(tmp_path / "o" / "history.csv")]
    assert losses[-1] < 0.75 * losses[0]


def test_clients_that_run_the_parts_themselves_get_the_same_mask(cohort, tmp_path, train, predict, rows_of):
    train(tmp_path / "o", cohort, levels=2)  # not what inference would choose for the patch
    image = next(cohort.parent.glob("images/*.nii.gz"))
    predict(tmp_path / "p", image, tmp_path / "o/models")
    (row,) = rows_of(tmp_path / "p" / "predictions.csv")
    written = np.asarray(nib.load(tmp_path / "p" / row["output"]).dataobj)

    workflow = ConfigWorkflow(
        config_file=str(UNET / "configs" / "inference.json"), workflow_type="infer", logging_file=False,
        **{"bundle_root": str(UNET), "output_dir": str(tmp_path / "q"), "dataset_dir": str(image)},
        **{"model_dir": str(tmp_path / "o/models"), **QUIET},
    )  # fmt: skip
    workflow.initialize()
    network = workflow.parser.get_parsed_content("networks").eval()
    item = workflow.preprocessing({"image": str(image)})
    item["pred"] = workflow.inferer(item["image"][None], network)[0]
    mask = workflow.postprocessing(item)["pred"]
    np.testing.assert_array_equal(mask[0].numpy(), written)


def test_an_interrupted_training_goes_on_to_the_same_weights(cohort, tmp_path, train, monkeypatch):
    from medvol.training.checkpoint import SaveState

    train(tmp_path / "whole", cohort, max_epochs=4)
    save = SaveState.__call__

    def die_after_two(self, engine):
        save(self, engine)
        if engine.state.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(SaveState, "__call__", die_after_two)
        with pytest.raises(BaseException):  # noqa: B017, PT011
            train(tmp_path / "parts", cohort, max_epochs=4)
    train(tmp_path / "parts", cohort, max_epochs=4, resume=True)
    whole, parts = (torch.load(tmp_path / n / "models/model.pt", weights_only=True) for n in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    rows = [(tmp_path / name / "history.csv").read_text().splitlines() for name in ("whole", "parts")]
    assert len(rows[0]) == len(rows[1]) == 5


def test_all_cases_can_be_trained_on_and_folds_be_ensembled(cohort, tmp_path, train, predict, evaluate, rows_of):
    train(tmp_path / "all", cohort, split="all", max_epochs=1, mirror=True)
    assert load_record(tmp_path / "all/models", {}).mirror
    folds = []
    for fold in (0, 1):
        # One plan for all folds, as `medvol plan` writes it; else each fold plans on its own training cases.
        plan = {"spatial_size": [16, 16, 16], "spacing_mm": [3.0, 3.0, 3.0], "window_hu": [-100, 200]}
        train(tmp_path / f"f{fold}", cohort, split=fold, max_epochs=1, **plan)
        folds.append(str(tmp_path / f"f{fold}" / "models"))
    image = next(cohort.parent.glob("images/*.nii.gz"))
    predict(tmp_path / "p", image, folds[0], ensemble=folds, save_probabilities=["liver"])
    (row,) = rows_of(tmp_path / "p" / "predictions.csv")
    probabilities = nib.load(tmp_path / "p" / row["output"].replace(".nii.gz", ".liver.nii.gz")).get_fdata()
    assert 0 <= probabilities.min() <= probabilities.max() <= 1
    with pytest.raises(Exception) as wrapped:  # noqa: PT011
        predict(tmp_path / "q", image, folds[0], ensemble=[folds[0], str(tmp_path / "all/models")])
    assert find_refusal(wrapped.value).code == "OTHER_STUDY"


def test_networks_learn_side_by_side_are_joined_and_hide_no_patient_that_one_of_them_saw(
    cohort, tmp_path, train, predict, evaluate
):
    pair, other = tmp_path / "pair" / "models", tmp_path / "other" / "models"
    train(tmp_path / "pair", cohort, width=[4, 6], max_epochs=1)
    evaluate(tmp_path / "pair", cohort)
    assert "dice" in json.loads((tmp_path / "pair" / "metrics.json").read_text())["metrics"]
    record = load_record(pair, {})
    assert record.network["width"] == [4, 6]

    joined = join_models([pair, pair], tmp_path / "joined" / "models")
    assert joined.network["width"] == [4, 6, 4, 6]
    image = next(cohort.parent.glob("images/*.nii.gz"))
    for name, models in (("one", pair), ("two", tmp_path / "joined" / "models")):
        predict(tmp_path / name, image, models)
    one, two = (nib.load(next((tmp_path / name).glob("predictions/*.nii.gz"))).get_fdata() for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)

    shutil.copytree(pair, other)
    everybody = tuple(patient_digest(case.patient) for case in open_study(str(cohort)).cases)
    write_record(other, replace(record, trained_on=everybody))
    with pytest.raises(Exception) as wrapped:  # noqa: PT011
        evaluate(tmp_path / "e", cohort, model_dir=str(pair), ensemble=[str(pair), str(other)])
    assert find_refusal(wrapped.value).code == "LEAK"


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
@pytest.mark.parametrize("trained", [False, True])
def test_a_model_is_applied_with_the_mirror_images_that_it_was_validated_with(bundle, trained, tmp_path):
    facts = load_record(UNET / "models", {}).facts
    write_record(tmp_path, ModelRecord(facts, mirror=trained, network={"width": 4, "feature_size": 12}))
    for files in (["train", "evaluate"], ["inference"]):
        parser = ConfigParser()
        parser.read_config([bundle / "configs" / f"{name}.json" for name in files])
        parser["model_dir"] = str(tmp_path)
        assert parser.get_parsed_content("mirror") is trained
        parser["mirror"] = not trained
        assert parser.get_parsed_content("mirror") is not trained


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_training_mirrors_what_was_planned_and_inference_averages_over_that(bundle, tmp_path):
    facts = replace(load_record(UNET / "models", {}).facts, flip_axes=(1,))
    write_record(tmp_path, ModelRecord(facts, mirror=True, network={"width": 4, "feature_size": 12}))
    for files in (["train"], ["train", "evaluate"], ["inference"]):
        parser = ConfigParser()
        parser.read_config([bundle / "configs" / f"{name}.json" for name in files])
        parser["model_dir"] = str(tmp_path)
        if files == ["train"]:
            assert parser["plan"]["flip_axes"] == "@flip_axes"
            parser["facts"], parser["mirror"] = facts, True
            assert parser.get_parsed_content("augmentation").flip_axes == (1,)
        parser["averaged_over"] = parser["inferer"]["mirror_axes"]
        assert parser.get_parsed_content("averaged_over") == (1,)


def test_masks_keep_the_values_of_the_study(cohort, tmp_path, train, predict, rows_of, capsys):
    study = tmp_path / "study"
    shutil.copytree(cohort.parent, study)
    (study / "cases.study.json").unlink()  # the names of the organs
    for path in (study / "masks").glob("*.nii.gz"):
        mask = nib.load(path)
        liver = (np.asarray(mask.dataobj) == 1).astype(np.uint8) * 255
        nib.save(nib.Nifti1Image(liver, mask.affine), path)
    name = "liver / right lobe"
    train(tmp_path / "o", study / "cases.csv", structures=[name], max_epochs=8, patches_per_epoch=16, width=8)
    assert "%|" not in capsys.readouterr().err  # a progress bar, which was not asked for
    record = json.loads((tmp_path / "o/models/model.json").read_text())
    assert record["facts"]["classes"] == ["background", name]
    image = next((study / "images").glob("*.nii.gz"))
    predict(tmp_path / "p", image, tmp_path / "o/models", save_probabilities=[name])
    (probabilities,) = (tmp_path / "p" / "predictions").glob("*liver*right_lobe.nii.gz")
    assert str(probabilities) in json.loads((tmp_path / "p" / "run.json").read_text())["inference"]["outputs"]
    (row,) = rows_of(tmp_path / "p" / "predictions.csv")
    assert set(np.unique(np.asarray(nib.load(tmp_path / "p" / row["output"]).dataobj))) <= {0, 255}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_epoch": 1}, "UNKNOWN_OPTION"),
        ({"spatial_size": [20, 20, 21]}, "BAD_PATCH_SIZE"),
        ({"split": 7}, "UNKNOWN_OPTION"),
        ({"save_probabilitie": []}, "UNKNOWN_OPTION"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, expected, cohort, tmp_path, train):
    with pytest.raises(Exception) as wrapped:  # noqa: PT011
        train(tmp_path / "o", cohort, **options)
    refusal = find_refusal(wrapped.value)
    assert refusal is not None, wrapped.value
    assert refusal.code == expected
    assert len(str(refusal)) <= 300


def test_swin_unetr_starts_from_a_checkpoint_of_monai(cohort, tmp_path, train):
    from monai.networks.nets import SwinUNETR

    swin = next(bundle for bundle in BUNDLES if bundle.name.startswith("swin"))
    checkpoint = SwinUNETR(1, 5, feature_size=12)
    torch.save({"state_dict": checkpoint.state_dict()}, tmp_path / "stock.pt")
    # With a learning rate of nothing the model that is saved is the one that it started from.
    start = {"pretrained": str(tmp_path / "stock.pt"), "learning_rate": 1e-12, "max_epochs": 1}
    train(tmp_path / "o", cohort, swin, **start)
    saved = torch.load(tmp_path / "o/models/model.pt", weights_only=True)
    assert saved.keys() == checkpoint.state_dict().keys()
    assert all(torch.allclose(saved[name], value, atol=1e-5) for name, value in checkpoint.state_dict().items())


def test_a_study_of_test_cases_alone_is_measured(cohort, tmp_path, train, evaluate, rows_of):
    train(tmp_path / "o", cohort, max_epochs=1)
    header, *lines = cohort.read_text().splitlines()
    kept = [line for line, row in zip(lines, rows_of(cohort), strict=True) if row["split"] == "test"]
    table = cohort.with_name("elsewhere.csv")
    table.write_text("\n".join([header, *kept]))
    evaluate(tmp_path / "e", table, model_dir=str(tmp_path / "o" / "models"), width=4)
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["n_cases"] == len(kept)
