"""The commands `medvol train`, `evaluate`, `predict` and `list`: each prints and runs one command of MONAI's."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

import medvol
from medvol.bundle.short import PROGRAM, bundle_command, find_bundle, shipped_bundles, shown, split_options
from medvol.cli import main
from medvol.errors import MedvolError
from medvol.phantoms.cohort import classification_cohort

ROOT = Path(__file__).parents[2] / "bundles"

pytestmark = pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning")  # MONAI warns of expressions in any config


@pytest.fixture
def run_with(monkeypatch):
    """Return what MONAI's `run` would be called with by a short command."""

    def arguments_of(*words):
        seen = {}
        monkeypatch.setattr("monai.bundle.scripts.run", lambda **options: seen.update(options))
        assert main(list(words)) == 0
        return seen

    return arguments_of


def test_options_reach_monai_as_its_own_command_line_reads_them(run_with, capsys):
    options = [
        "--max_epochs",
        "3",
        "--window_hu",
        "[-160,240]",
        "--optimizer#lr",
        "1e-3",
        "--tensorboard",
        "--keep=best",
    ]
    seen = run_with("train", "resnet3d_classification", "study.csv", "-o", "out", *options)
    root = str(ROOT / "resnet3d_classification")
    assert seen == {
        "bundle_root": root,
        "config_file": f"{root}/configs/train.json",
        "dataset_dir": "study.csv",
        "output_dir": "out",
        "model_dir": "out/models",
        "max_epochs": 3,
        "window_hu": [-160, 240],
        "optimizer#lr": 1e-3,
        "tensorboard": True,
        "keep": "best",
    }
    assert capsys.readouterr().out.startswith(f"{PROGRAM} run --bundle_root {root} ")


def test_each_command_takes_its_files_and_weights_and_gives_way_to_what_is_stated(run_with):
    root = str(ROOT / "unet_segmentation")
    seen = run_with("evaluate", root, "study", "-o", "out")
    assert seen["config_file"] == [f"{root}/configs/train.json", f"{root}/configs/evaluate.json"]
    assert seen["model_dir"] == "out/models"
    seen = run_with("predict", root, "scan.nii.gz", "-o", "out")
    assert seen["config_file"] == f"{root}/configs/inference.json"
    assert "model_dir" not in seen
    assert run_with("predict", root, "scan.nii.gz", "-o", "out", "--model_dir", "m")["model_dir"] == "m"
    assert run_with("train", root, "study", "-o", "out", "--model-dir=m")["model_dir"] == "m"
    assert "dataset_dir" not in run_with("train", root, "-o", "out")


def test_paths_stay_the_texts_that_they_are(run_with):
    root = str(ROOT / "unet_segmentation")
    for path in ("2024", "1e3", "None", "a#b", "a b", "[x]", "it's", 'a "b"', "$HOME", "x,y", "@me", "%5", "a$#'\\b"):
        seen = run_with("train", root, path, "-o", path)
        read = ConfigParser({name: seen[name] for name in ("dataset_dir", "output_dir", "model_dir")})
        found = [read.get_parsed_content(name) for name in ("dataset_dir", "output_dir", "model_dir")]
        assert found == [path, path, f"{path}/models"]


@pytest.mark.parametrize("name", ["model_dir", "config_file", "output_dir", "dataset_dir"])
def test_a_path_without_a_value_is_refused(name, capsys):
    for words in (["-o", "out", f"--{name}"], ["-o", "out", f"--{name}", "--max_epochs", "1"]):
        assert main(["train", "resnet3d_classification", "study.csv", *words]) == 1
        assert f"BAD_VALUE: --{name} without a value; expected a path" in capsys.readouterr().err


def test_a_configuration_that_is_not_there_is_refused(capsys):
    words = ["train", "resnet3d_classification", "study.csv", "-o", "out", "--config_file", "nowhere.json"]
    assert main(words) == 1
    assert "NOT_FOUND: Cannot find the config file: nowhere.json; expected" in capsys.readouterr().err


def test_the_printed_command_is_what_a_shell_splits_into_the_same_words():
    for path in ("out", "it's", 'a "b"', "$HOME", "a b", "a\\b", "!x", "'$x'"):
        command = bundle_command("evaluate", "unet_segmentation", path, path, ["--window_hu", "[-1,2]"])
        assert shlex.split(shown(command)) == [*PROGRAM.split(), *command]


def test_options_may_stand_anywhere_and_take_one_word():
    words = ["--seed", "3", "B", "--lr=2", "D", "-o", "O", "--flag", "--low", "-160"]
    assert split_options(words) == (["B", "D", "-o", "O"], ["--seed", "3", "--lr=2", "--flag", "--low", "-160"])
    assert split_options(["--low", "-160", "B"]) == (["B"], ["--low", "-160"])
    assert split_options(["B", "--output=O", "-h", "D"]) == (["B", "--output=O", "-h", "D"], [])


def test_a_shipped_bundle_is_found_by_name_and_written_relative_to_where_one_stands(monkeypatch):
    assert find_bundle("unet_segmentation") == ROOT / "unet_segmentation"
    monkeypatch.chdir(ROOT.parent)
    assert find_bundle("unet_segmentation") == Path("bundles/unet_segmentation")


def test_an_unknown_bundle_is_refused_with_the_nearest_name(capsys, monkeypatch, tmp_path):
    assert main(["train", "resnet3d_clasification", "-o", "out"]) == 1
    assert "did you mean 'resnet3d_classification'?" in capsys.readouterr().err
    (tmp_path / "b" / "configs").mkdir(parents=True)
    assert main(["train", str(tmp_path / "b"), "-o", "out"]) == 1
    assert "no such file" in capsys.readouterr().err
    monkeypatch.setattr(medvol, "__file__", str(tmp_path / "site" / "medvol" / "__init__.py"))
    assert shipped_bundles() == ()
    with pytest.raises(MedvolError, match=r"this installation has no bundles.*expected a folder that holds 'configs'$"):
        find_bundle("unet_segmentation")
    assert main(["list"]) == 0
    assert "no bundles here" in capsys.readouterr().out


def test_an_installed_package_holds_its_bundles(monkeypatch, tmp_path):
    package = tmp_path / "site" / "medvol"
    shutil.copytree(ROOT / "mlp_tabular_classification", package / "shipped" / "mlp_tabular_classification")
    (tmp_path / "site" / "bundles" / "of_somebody" / "configs").mkdir(parents=True)
    (tmp_path / "site" / "bundles" / "of_somebody" / "configs" / "metadata.json").write_text("{}")
    monkeypatch.setattr(medvol, "__file__", str(package / "__init__.py"))
    assert [folder.name for folder in shipped_bundles()] == ["mlp_tabular_classification"]
    assert find_bundle("mlp_tabular_classification").resolve().is_relative_to(package)


def test_every_shipped_bundle_is_listed_with_what_it_expects(capsys):
    assert main(["list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    for folder in ROOT.glob("*/configs/metadata.json"):
        facts = json.loads(folder.read_text())
        line = lines[folder.parent.parent.name]
        assert facts["task"] in line
        assert line.endswith(facts["data_type"])
    assert "Anterior, Posterior" in lines["unet_segmentation"]


def test_a_study_is_trained_on_measured_and_predicted_and_a_broken_case_gives_exit_code_3(tmp_path, capsys, rows_of):
    cohort = classification_cohort(tmp_path / "c", patients=15, size=(22, 21, 20), layout="png")
    quiet = ["--show_progress", "False", "--precision", "float32", "--batch_size", "8"]
    small = ["--spatial_size", "[18, 20]", "--max_epochs", "1"]
    assert main(["train", "cnn2d_classification", str(cohort), "-o", "out put", *quiet, *small]) == 0
    assert main(["evaluate", "cnn2d_classification", str(cohort), "-o", "out put", *quiet]) == 0
    metrics = json.loads(Path("out put/metrics.json").read_text())
    assert metrics["split"] == "test"
    runs = json.loads(Path("out put/run.json").read_text())
    assert set(runs) == {"train", "evaluate"}
    assert runs["train"]["command"].startswith(f"{PROGRAM} run --bundle_root ")

    scans = tmp_path / "scans"
    scans.mkdir()
    images = sorted(cohort.parent.rglob("*.png"))[:3]
    for image in images:
        shutil.copy(image, scans)
    model = ["--model_dir", "out put/models", *quiet]
    assert main(["predict", "cnn2d_classification", str(scans), "-o", "p", *model]) == 0
    (scans / images[0].name).write_bytes(images[0].read_bytes()[:60])
    capsys.readouterr()
    assert main(["predict", "cnn2d_classification", str(scans), "-o", "p", *model]) == 3
    assert len(rows_of(Path("p/predictions.csv"))) == 3
    assert main(["predict", "cnn2d_classification", str(scans / images[0].name), "-o", "q", *model]) == 1
    assert main(["predict", "cnn2d_classification", str(scans), "-o", "q", *model, "--batch_sise", "8"]) == 1
    assert main(["predict", "cnn2d_classification", str(scans), "-o", "q", *quiet, "--model_dir", "nowhere"]) == 1
    error = capsys.readouterr().err
    assert "medvol: UNKNOWN_OPTION: --batch_sise" in error
    assert "medvol: NO_WEIGHTS: nowhere/model.pt: no trained weights; `medvol train BUNDLE DATA -o OUT` writes" in error
    assert "Traceback" not in error
