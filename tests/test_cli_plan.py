"""The command `medvol plan`: a table for the reader, a file for the bundle."""

import json

import pytest
from monai.bundle import ConfigParser

from medvol.bundle.session import check_options
from medvol.cli import main
from medvol.phantoms.cohort import segmentation_cohort

TRAIN = {
    "split_seed": 0,
    "split_fractions": [0.7, 0.15, 0.15],
    "label_column": "label",
    "structures": [],
    "spatial_size": "auto",
    "spacing_mm": "auto",
    "intensity": "auto",
    "window_hu": None,
    "flip_axes": "auto",
    "batch_size": "auto",
    "patches_per_epoch": "auto",
    "max_epochs": "auto",
    "make_network": {"_target_": "medvol.networks.unet.unet", "_mode_": "callable", "width": 8},
    "network_def": "$@make_network(1, 2, spatial_size=@spatial_size, spacing_mm=@spacing_mm)",
}


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "my_bundle"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "train.json").write_text(json.dumps(TRAIN))
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return str(segmentation_cohort(tmp_path_factory.mktemp("cohort") / "c", patients=6, size=(28, 26, 30)))


def test_the_plan_is_printed_with_its_reasons_and_written_into_the_bundle(bundle, table, capsys):
    assert main(["plan", table, "-b", str(bundle), "--structures", "a", "b", "c", "d"]) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    written = json.loads((bundle / "configs" / "plan.json").read_text())
    size = " ".join(map(str, written["spatial_size"]))
    assert size in lines["spatial_size"]
    assert "median training volume" in lines["spatial_size"]
    assert "none" in lines["flip_axes"]
    assert " GB " in lines["memory"]
    assert " min " in lines["time"]
    assert "0 background, 1 a, 2 b" in lines["structures"]
    assert written["structures"] == ["a", "b", "c", "d"]
    assert f"{written['window_hu'][0]:g} {written['window_hu'][1]:g}" in lines["window_hu"]
    assert written["_desc_"]["batch_size"]


def test_monai_takes_the_file_behind_train_json_and_no_option_of_it_is_unknown(bundle, table):
    main(["plan", table, "-b", str(bundle), "--batch-size", "2"])
    files = [bundle / "configs" / name for name in ("train.json", "plan.json")]
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    check_options({key: value for key, value in parser.get().items() if key != "_meta_"}, [TRAIN])
    network = parser.get_parsed_content("network_def")
    assert parser.get_parsed_content("batch_size") == 2
    size = parser.get_parsed_content("spatial_size")
    assert [length % int(step) for length, step in zip(size, network.shape_factor(), strict=True)] == [0, 0, 0]


def test_what_is_stated_is_written_where_it_is_said(bundle, table, tmp_path):
    output = tmp_path / "elsewhere.json"
    stated = ["--patch-size", "16", "16", "8", "--spacing-mm", "2", "2", "4", "--window-hu", "-100", "200"]
    assert main(["plan", table, "-b", str(bundle), "-o", str(output), *stated]) == 0
    written = json.loads(output.read_text())
    assert (written["spatial_size"], written["spacing_mm"]) == ([16, 16, 8], [2.0, 2.0, 4.0])
    assert (written["intensity"], written["window_hu"]) == ("ct", [-100.0, 200.0])
    assert not (bundle / "configs" / "plan.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patch-size", "15", "16", "16"], "medvol: BAD_PATCH_SIZE"),
        (["--memory-gb", "0.1"], "medvol: TOO_LARGE"),
        (["--structures", "a"], "medvol: BAD_VALUE: 1 structures for 4 values"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(bundle, table, capsys, arguments, message):
    assert main(["plan", table, "-b", str(bundle), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (bundle / "configs" / "plan.json").exists()


def test_a_folder_without_a_segmentation_network_is_refused(bundle, table, tmp_path, capsys):
    assert main(["plan", table, "-b", str(tmp_path)]) == 1
    assert "NO_BUNDLE" in capsys.readouterr().err
    (bundle / "configs" / "train.json").write_text("{}")
    assert main(["plan", table, "-b", str(bundle)]) == 1
    assert "WRONG_KIND" in capsys.readouterr().err


def test_a_shipped_bundle_goes_by_its_name_and_is_not_written_into(table, tmp_path, capsys):
    stated = ["--patch-size", "16", "16", "16", "--minutes", "1", "--memory_gb", "4"]  # underscores as in a training
    assert main(["plan", table, "-b", "unet_segmentation", *stated]) == 1
    assert "MISSING_OPTION" in capsys.readouterr().err
    file = tmp_path / "plan.json"
    assert main(["plan", table, "-b", "unet_segmentation", "-o", str(file), *stated]) == 0
    assert json.loads(file.read_text())["spatial_size"] == [16, 16, 16]
