"""The overrides of every bundle: merged over train.json they are complete, and they do what their name says."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from medvol.errors import find_refusal
from medvol.phantoms.cohort import classification_cohort, segmentation_cohort
from medvol.training.finetune import take_weights, tuned_parameters

ROOT = Path(__file__).parents[2] / "bundles"
BUNDLES = sorted(path.parent.parent for path in ROOT.glob("*/configs/metadata.json"))
QUIET = {"show_progress": False, "max_epochs": 1}
SMALL = {
    "resnet3d_classification": {"precision": "float32", "spatial_size": [8, 9, 7], "batch_size": 4},
    "vit2d_classification": {"precision": "float32", "spatial_size": [32, 32], "preset": "tiny", "batch_size": 4},
    "mlp_tabular_classification": {"batch_size": 4},
    "unet_segmentation": {"precision": "float32", "width": 4, "patches_per_epoch": 2, "batch_size": 2},
}
LAYOUTS = {"vit2d_classification": "png", "mlp_tabular_classification": "csv"}

pytestmark = pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning")  # MONAI warns of expressions in any config


def files(bundle, *modes):
    return [str(bundle / "configs" / f"{mode}.json") for mode in modes]


def refused(error):
    refusal = find_refusal(error.value)
    assert refusal is not None, error.value
    return str(refusal)


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def bundle(request):
    return request.param


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Return studies of two and of three classes by bundle; the third is cut out of the second."""
    place, made = tmp_path_factory.mktemp("studies"), {}
    for name in SMALL:
        if name.endswith("_segmentation"):
            made[name] = tuple(with_organs(place / f"{name}{count}", count) for count in (1, 2))
            continue
        layout = LAYOUTS.get(name, "nifti")
        table = classification_cohort(place / name, patients=15, size=(13, 14, 12), layout=layout, splits=None)
        made[name] = (table, with_third_class(table))
    return made


def with_organs(folder, count):
    """Write a study of bodies of whose organs only so many are marked."""
    table = segmentation_cohort(folder, patients=6, size=(22, 21, 20))
    table.with_suffix(".study.json").unlink()  # it names all four
    with table.open(newline="") as stream:
        masks = [table.parent / row["label"] for row in csv.DictReader(stream)]
    for mask in masks:
        image = nib.load(mask)
        labels = np.asarray(image.dataobj)
        nib.save(nib.Nifti1Image(np.where(labels <= count, labels, 0).astype(np.uint8), image.affine), mask)
    return table


def with_third_class(table):
    """Write a copy of a study in which every third case has a class of its own."""
    if table.is_dir():  # class-named folders
        rows = [{"case": file.stem, "image": str(file), "label": file.parent.name} for file in table.rglob("*.png")]
        three = table.parent / "three.csv"
    else:
        with table.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        three = table.with_name("three.csv")
    for number, row in enumerate(rows):
        row["label"] = "other" if number % 3 == 0 else row["label"]
    with three.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return three


@pytest.mark.parametrize("override", ["early_stop", "finetune"])
def test_an_override_holds_only_what_differs_and_every_reference_is_defined(bundle, override):
    train, own = (json.loads((bundle / "configs" / f"{name}.json").read_text()) for name in ("train", override))
    for name, value in own.items():
        assert train.get(name) != value, name
    parser = ConfigParser()
    parser.read_config(files(bundle, "train", override))
    known = {name.split("#")[0] for name in own}
    assert known <= set(parser.get())
    text = json.dumps({name: value for name, value in parser.get().items() if name != "_meta_"})
    for name in known - set(train):
        assert f"@{name}" in text, f"nothing reads {name}"


def test_the_head_of_a_bundle_is_what_depends_on_its_classes(bundle):
    config = json.loads((bundle / "configs" / "train.json").read_text())
    head_layers = json.loads((bundle / "configs" / "finetune.json").read_text())["head_layers"]
    size = [64, 64] if "2d_" in bundle.name else [64, 64, 64]

    def network(classes):
        facts = {"_target_": "types.SimpleNamespace", "in_channels": 1, "in_features": 5, "spatial_size": size}
        facts |= {"num_classes": classes, "num_logits": classes if classes > 2 else 1, "spacing_mm": [1, 1, 1]}
        numbers = {"width": 2, "levels": None, "feature_size": 12, "patch_size": None, "architecture": "vit"}
        preset = "tiny" if "vit2d" in bundle.name else "compact"
        return ConfigParser(
            {"facts": facts, "network_def": config["network_def"], "preset": preset, **numbers}
        ).get_parsed_content("network_def")

    two, three = network(2), network(3)
    started = take_weights(three, two.state_dict(), head_layers=head_layers)
    ours, theirs = three.state_dict(), two.state_dict()
    assert set(started.left) == {name for name in ours if ours[name].shape != theirs[name].shape}
    assert all(torch.equal(ours[name], theirs[name]) for name in started.taken)
    groups = tuned_parameters(three, head_layers=head_layers, learning_rate=1.0, encoder_factor=0.1)
    assert [group["lr"] for group in groups] == [1.0, 0.1]
    assert len(groups[0]["params"]) == len(started.left)
    assert sum(len(group["params"]) for group in groups) == len(list(three.parameters()))


@pytest.fixture
def pretrained(bundle_run, tables, tmp_path):
    """Train a bundle for an epoch on a study of two classes."""

    def train(name, **options):
        models = tmp_path / "before" / "models"
        options = {**SMALL[name], **QUIET, "model_dir": str(models), **options}
        bundle_run(ROOT / name, ["train"], tmp_path / "before", dataset_dir=str(tables[name][0]), **options)
        return models

    return train


@pytest.mark.parametrize("name", SMALL)
def test_fine_tuning_to_three_classes_starts_from_equal_encoder_tensors_and_trains(
    name, tmp_path, pretrained, tables, bundle_run
):
    models = pretrained(name)
    options = {**SMALL[name], **QUIET, "dataset_dir": str(tables[name][1]), "pretrained": str(models)}
    workflow = ConfigWorkflow(
        config_file=files(ROOT / name, "train", "finetune"),
        bundle_root=str(ROOT / name),
        output_dir=str(tmp_path / "after"),
        logging_file=False,
        **options,
    )
    workflow.initialize()
    network = workflow.parser.get_parsed_content("train#trainer").network
    before = torch.load(models / "model.pt", weights_only=True)
    after = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    other = {key for key in before if before[key].shape != after[key].shape}
    assert other
    assert all(torch.equal(before[key].to(after[key].dtype), after[key]) for key in set(before) - other)
    assert set(before) == set(after)
    workflow.run()
    workflow.finalize()
    record = json.loads((tmp_path / "after" / "models" / "model.json").read_text())
    assert len(record["facts"]["classes"]) == 3
    origin = record["training"]["fine_tuned_from"]
    assert len(origin["classes"]) == 2
    first = json.loads((models / "model.json").read_text())
    assert origin["sha256"] == first["weights_sha256"]
    for patients in ("trained_on", "fitted_on"):
        assert set(first[patients]) <= set(record[patients])
        assert first[patients]


def test_the_head_is_kept_where_the_classes_are_the_same(tmp_path, pretrained, tables, bundle_run):
    name = "mlp_tabular_classification"
    models = pretrained(name)
    frozen = {**SMALL[name], **QUIET, "learning_rate": 0.0, "pretrained": str(models / "model.pt")}
    bundle_run(ROOT / name, ["train", "finetune"], tmp_path / "after", dataset_dir=str(tables[name][0]), **frozen)
    weights = [torch.load(folder / "model.pt", weights_only=True) for folder in (models, tmp_path / "after/models")]
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-6) for key in weights[0])


def test_weights_that_do_not_fit_are_refused_with_counts(tmp_path, pretrained, tables, bundle_run):
    name = "mlp_tabular_classification"
    models = pretrained(name, **{"network_def#width": 32})
    options = {**SMALL[name], **QUIET, "dataset_dir": str(tables[name][1]), "pretrained": str(models)}
    with pytest.raises(Exception) as error:  # noqa: PT011 - MONAI wraps what an expression raises
        bundle_run(ROOT / name, ["train", "finetune"], tmp_path / "after", **options)
    message = refused(error)
    assert "OTHER_NETWORK" in message
    assert "0 of 4 tensors fit, 4 of another shape, 0 missing, 0 unknown; dense1.weight is 32x7, not 64x7" in message


def test_a_model_to_start_from_must_be_there(tmp_path, tables, bundle_run):
    name = "mlp_tabular_classification"
    with pytest.raises(Exception) as error:  # noqa: PT011 - MONAI wraps what an expression raises
        bundle_run(ROOT / name, ["train", "finetune"], tmp_path, dataset_dir=str(tables[name][1]), pretrained="")
    assert "NO_WEIGHTS" in refused(error)


def test_an_option_of_finetune_is_refused_without_it(tmp_path, tables, bundle_run):
    name = "mlp_tabular_classification"
    with pytest.raises(Exception) as error:  # noqa: PT011 - MONAI wraps what an expression raises
        bundle_run(ROOT / name, ["train"], tmp_path, dataset_dir=str(tables[name][0]), encoder_factor=0.5)
    assert "UNKNOWN_OPTION: --encoder_factor" in refused(error)
    assert "add configs/finetune.json" in refused(error)


def test_early_stop_ends_a_training_that_no_longer_improves(tmp_path, tables, bundle_run, rows_of):
    name = "mlp_tabular_classification"
    options = {**SMALL[name], **QUIET, "max_epochs": 9, "learning_rate": 3.0, "model_dir": str(tmp_path / "models")}
    bundle_run(ROOT / name, ["train", "early_stop"], tmp_path, dataset_dir=str(tables[name][0]), **options)
    epochs = len(rows_of(tmp_path / "history.csv"))
    assert epochs < 9
    record = json.loads((tmp_path / "models" / "model.json").read_text())
    assert record["training"]["epoch"] == epochs - 3


@pytest.mark.parametrize("name", ["mlp_tabular_classification", "unet_segmentation", "vit2d_classification"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore::FutureWarning:mlflow")
def test_mlflow_keeps_metrics_parameters_and_configuration_in_a_local_file(name, tmp_path, tables, bundle_run):
    pytest.importorskip("mlflow", reason="needs mlflow")
    pytest.importorskip("sqlalchemy", reason="mlflow's local store needs sqlalchemy and alembic")
    from mlflow import MlflowClient

    options = {**SMALL[name], **QUIET, "val_interval": 1, "model_dir": str(tmp_path / "models"), "tracking": "mlflow"}
    bundle_run(ROOT / name, ["train"], tmp_path, dataset_dir=str(tables[name][0]), **options)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns.db")
    (experiment,) = (one for one in client.search_experiments() if one.name == "monai_experiment")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["max_epochs"] == "1"
    assert {"train_loss", "lr_group_0", "dice" if "segmentation" in name else "auc"} <= set(run.data.metrics)
    (artifact,) = client.list_artifacts(run.info.run_id)
    assert artifact.path.startswith("config_")
    assert artifact.path.endswith(".json")
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore::FutureWarning:mlflow")
def test_the_run_that_mlflow_keeps_of_an_evaluation_ends_with_it(tmp_path, tables, bundle_run):
    pytest.importorskip("mlflow", reason="needs mlflow")
    pytest.importorskip("sqlalchemy", reason="mlflow's local store needs sqlalchemy and alembic")
    from mlflow import MlflowClient

    name = "mlp_tabular_classification"
    options = {**QUIET, "dataset_dir": str(tables[name][0]), "model_dir": str(tmp_path / "models")}
    bundle_run(ROOT / name, ["train"], tmp_path, **options, **SMALL[name])
    bundle_run(ROOT / name, ["train", "evaluate"], tmp_path, **options, tracking="mlflow")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns.db")
    (experiment,) = (one for one in client.search_experiments() if one.name == "monai_experiment")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert "auc" in run.data.metrics


def test_a_run_reports_nothing_to_the_makers_of_mlflow(tmp_path, tables, bundle_run, monkeypatch):
    pytest.importorskip("mlflow", reason="needs mlflow")
    telemetry = pytest.importorskip("mlflow.telemetry.client", reason="this MLflow has no telemetry")
    # `begin` sets it for the process; what was there before comes back.
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    monkeypatch.setattr(telemetry, "_MLFLOW_TELEMETRY_CLIENT", object())
    name = "mlp_tabular_classification"
    options = {**SMALL[name], **QUIET, "model_dir": str(tmp_path / "models")}
    bundle_run(ROOT / name, ["train"], tmp_path, dataset_dir=str(tables[name][0]), **options)
    assert telemetry.get_telemetry_client() is None


def test_an_option_of_the_tracking_is_refused_without_it(tmp_path, tables, bundle_run):
    name = "mlp_tabular_classification"
    with pytest.raises(Exception) as error:  # noqa: PT011 - MONAI wraps what an expression raises
        bundle_run(ROOT / name, ["train"], tmp_path, dataset_dir=str(tables[name][0]), experiment_name="x")
    assert "UNKNOWN_OPTION: --experiment_name" in refused(error)
