"""What MONAI's clients rely on beside the ids: MONAI's `load` and federated client, MONAI Label, MONAI Deploy.

The clients themselves are tried by tests/benchmarks/clients.py and clients_label_deploy.py.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, load
from monai.transforms import Compose, MapTransform

from medvol.errors import find_refusal
from medvol.inference.record import load_record
from medvol.phantoms.cohort import segmentation_cohort

ROOT = Path(__file__).parents[2]
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))
SEGMENTATIONS = [bundle for bundle in BUNDLES if bundle.name.endswith("segmentation")]

pytestmark = pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning")  # MONAI warns of expressions in any config

TINY = {
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "model_dir": "$@bundle_root + '/models'",
    "session": {
        "_target_": "medvol.bundle.session.begin",
        "bundle_root": "@bundle_root",
        "output_dir": "@output_dir",
    },
    "initialize": ["$@session"],
    "run": ["$@model_dir"],
}


@pytest.fixture
def tiny(tmp_path):
    """Return the configuration file of a bundle that only begins."""
    configs = tmp_path / "away" / "tiny_classification" / "configs"
    configs.mkdir(parents=True)
    (configs / "metadata.json").write_text("{}")
    (configs / "train.json").write_text(json.dumps(TINY))
    return configs / "train.json"


def started(file, **options):
    workflow = ConfigWorkflow(config_file=str(file), logging_file=False, workflow_type=None, **options)
    return workflow, workflow.initialize()[0]


def test_a_bundle_that_is_not_told_its_folder_takes_that_of_its_configuration(tiny):
    workflow, session = started(tiny)
    bundle = tiny.parents[1]
    assert (session.bundle, session.output_dir) == (bundle.name, bundle / "eval")
    assert workflow.run() == [f"{bundle}/models"]
    assert not Path("eval").exists()


def test_an_output_folder_that_is_named_stays_where_it_was_named(tiny):
    _, session = started(tiny, output_dir="out")
    assert session.output_dir.resolve() == Path("out").resolve()


@pytest.mark.parametrize("kept_outside", [True, False])
def test_a_folder_that_is_no_bundle_is_refused_as_before(tiny, kept_outside):
    options = {"bundle_root": "elsewhere"}
    if kept_outside:
        Path("deep/er").mkdir(parents=True)
        shutil.copy(ROOT / "bundles" / "unet_segmentation" / "configs" / "metadata.json", "deep/er")
        tiny, options = Path(shutil.copy(tiny, "deep/er")), {}
    with pytest.raises(RuntimeError) as wrapped:
        started(tiny, **options)
    refusal = find_refusal(wrapped.value)
    assert (refusal.code, Path(refusal.file)) == ("NO_BUNDLE", Path.cwd() / options.get("bundle_root", ""))


def test_load_gives_the_trained_network_in_any_folder(tmp_path):
    shipped = ROOT / "bundles" / "unet_segmentation"
    copied = tmp_path / "zoo" / shipped.name
    shutil.copytree(shipped, copied, ignore=shutil.ignore_patterns("eval"))
    network = load(name=copied.name, bundle_dir=str(copied.parent), workflow_type="inference")
    weights = torch.load(copied / "models" / "model.pt", weights_only=True)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value.cpu(), weights[name].to(value.dtype), atol=0, rtol=0)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_the_chains_around_the_network_are_composed_of_map_transforms(bundle):
    """Label wants a `Compose` or a list, Deploy a `Compose` whose first step it takes for the kind of all.

    Neither hands over rows of a table.
    """
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    takes_rows = re.match("fusion|mlp", bundle.name)
    for name in ("postprocessing",) if takes_rows else ("preprocessing", "postprocessing"):
        chain = parser.get_parsed_content(name)
        assert isinstance(chain, Compose), name
        assert isinstance(chain.transforms[0], MapTransform), name


def test_a_record_is_found_in_the_folder_that_a_client_put_on_the_module_path(tmp_path, monkeypatch):
    shipped = ROOT / "bundles" / "unet_segmentation"
    copied = tmp_path / "map" / shipped.name
    shutil.copytree(shipped, copied, ignore=shutil.ignore_patterns("eval"))
    parser = ConfigParser()
    parser.read_config(copied / "configs" / "inference.json")
    values = parser.get()["record"]["shipped"]
    assert load_record("./models", values).weights_sha256 == ""
    monkeypatch.syspath_prepend(str(copied))
    assert parser.get_parsed_content("record").weights_sha256 == load_record(copied / "models", {}).weights_sha256 != ""
    assert load_record("./models", {**values, "intensity": "ct"}).weights_sha256 == "", "another bundle's"
    assert load_record(tmp_path / "models", values).weights_sha256 == "", "a folder that was named"


@pytest.mark.parametrize("bundle", SEGMENTATIONS, ids=lambda bundle: bundle.name)
@pytest.mark.parametrize("pretrained", [True, False])
def test_the_cases_that_label_hands_over_become_the_study(bundle, pretrained, tmp_path):
    table = segmentation_cohort(tmp_path / "cohort", patients=6, size=(16, 16, 16))
    cases = [
        {"image": str(image), "label": str(image.parents[1] / "masks" / image.name)}
        for image in sorted((table.parent / "images").iterdir())
    ]
    file = bundle / "configs" / "train.json"
    own = json.loads(file.read_text())
    handlers = own["train"]["handlers"]
    if pretrained:
        weights = str(ROOT / "bundles" / "unet_segmentation" / "models" / "model.pt")
        loader = {"_target_": "CheckpointLoader", "load_path": weights, "load_dict": {"model": "$@network"}}
        handlers = [{**loader, "strict": False}, *handlers]
    workflow, _ = started(
        file,
        init_id="session",
        **{
            "bundle_root": str(bundle),
            "output_dir": str(tmp_path / "out"),
            "train#trainer#max_epochs": 2,
            "train#dataset#data": cases[1:],
            "validate#dataset#data": cases[:1],
            "train#handlers": handlers,
            "device": "cpu",
        },
    )
    parser = workflow.parser
    study = parser.get_parsed_content("study")
    assert {case.split: case.image for case in study.cases}["val"] == (cases[0]["image"],)
    assert sum(case.split == "train" for case in study.cases) == len(cases) - 1
    assert parser.get_parsed_content("max_epochs") == 2
    assert "data" not in parser["train#dataset"]
    assert parser["validate#dataset#data"] == "$cases_of(@study, 'val')"
    assert len(parser["train#handlers"]) == len(own["train"]["handlers"]), "the loader would move `train#handlers#10`"
    if not pretrained:
        assert parser.get("pretrained") == own.get("pretrained")
    else:
        assert (parser["pretrained"], parser["spatial_size"]) == (weights, [40, 56, 40])
        assert parser["model_dir"] == "$@bundle_root + '/models'", "where Label reads it"


def test_a_list_of_cases_that_is_the_files_own_expression_is_left_alone(tiny):
    config = {**TINY, "train": {"dataset": {"data": "$[1]"}}, "validate": {"dataset": {"data": "$[2]"}}}
    tiny.write_text(json.dumps({**config, "initialize": ["$@session", "$@train", "$@validate"]}))
    workflow, _ = started(tiny)
    assert workflow.parser["train#dataset#data"] == "$[1]"
    assert not list(tiny.parents[1].glob("eval/handed*"))
