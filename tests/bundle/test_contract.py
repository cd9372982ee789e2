"""What every bundle must keep, whatever it does: each folder in bundles/, and what `medvol new` makes of them."""

import functools
import json
import re
import warnings
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from medvol.bundle.new import NewOptions, make_bundle
from medvol.data.facts import Facts
from medvol.phantoms.cohort import classification_cohort, segmentation_cohort

ROOT = Path(__file__).parents[2]
BUNDLES = sorted(path.parent.parent for path in ROOT.glob("bundles/*/configs/metadata.json"))
SCHEMA = ROOT.parent / "shared" / "reference" / "meta_schema_20240725.json"
MODES = ("train", "evaluate", "inference")
OVERRIDES = ("evaluate", "pretrain", "frozen", "finetune", "early_stop", "multi_gpu_train", "multi_process_cpu")
"""Modes that are files over train.json."""

OWN = {
    "own_classification": {"layout": "nifti", "bundle": "resnet3d_classification"},
    "own_vit_classification": {"layout": "npy", "bundle": "vit3d_classification"},
    "own_fusion_classification": {"layout": "nifti", "bundle": "fusion_classification"},
    "own_2d_classification": {"layout": "png", "bundle": "cnn2d_classification"},
    "own_tabular_classification": {"layout": "csv", "bundle": "mlp_tabular_classification"},
    "own_segmentation": {"layout": "nifti", "bundle": "unet_segmentation"},
}
"""Bundles that `medvol new` makes for small synthetic studies, one of each kind."""

FOLDERS = {bundle.name: bundle for bundle in BUNDLES} | {
    name: ROOT / "bundles" / made["bundle"] for name, made in OWN.items()
}
CONFIGS = [
    pytest.param(name, mode, id=f"{name}-{mode}")
    for name, folder in FOLDERS.items()
    for mode in dict.fromkeys((*MODES, *OVERRIDES))
    if mode in MODES or (folder / "configs" / f"{mode}.json").is_file()
]

PUBLIC = {
    *("bundle_root", "output_dir", "dataset_dir", "model_dir", "device", "network_def", "network", "loss", "optimizer"),
    *("train", "validate", "dataset", "preprocessing", "inferer", "evaluator", "handlers", "run"),
    *("imports", "initialize", "finalize", "val_interval", "postprocessing"),
}
"""Ids that clients look up; every other id must be referenced by something."""

pytestmark = pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning")  # MONAI warns of expressions in any config


@pytest.fixture(scope="session")
def made_bundle(tmp_path_factory):
    """Make the bundles of `OWN`, each once."""
    place = tmp_path_factory.mktemp("own bundles")

    @functools.cache
    def make(name):
        layout, copied = OWN[name]["layout"], OWN[name]["bundle"]
        kind = segmentation_cohort if copied.endswith("segmentation") else classification_cohort
        size = (16, 18, 20) if kind is segmentation_cohort else (12, 13, 14)
        table = kind(place / f"cohort {name}", patients=12, size=size, layout=layout)
        source = table.parent if layout == "png" else table
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*eval.*", UserWarning)
            return make_bundle(str(place / name), str(source), NewOptions(bundle=copied, measure=False)).folder

    return make


@pytest.fixture(params=FOLDERS)
def bundle(request, made_bundle):
    return made_bundle(request.param) if request.param in OWN else FOLDERS[request.param]


def config(bundle, name):
    return json.loads((bundle / "configs" / f"{name}.json").read_text())


def leaves(node, path=()):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from leaves(value, (*path, str(index)))
    else:
        yield path, node


def references(node):
    return {
        match.split("::")[0].split("#")[0]
        for _, value in leaves(node)
        if isinstance(value, str) and value[:1] in "@$"
        for match in re.findall(r"@([A-Za-z_][\w#:]*)", value)
    }


def merged(bundle, mode):
    parser = ConfigParser()
    files = ["train", mode] if mode in OVERRIDES else [mode]
    parser.read_config([str(bundle / "configs" / f"{name}.json") for name in files])
    return {key: value for key, value in parser.get().items() if key != "_meta_"}


def test_the_folder_is_complete_and_its_name_tells_the_task(bundle):
    assert re.search("classification|segmentation", bundle.name)
    for name in ("LICENSE", "docs/README.md", "configs/logging.conf", *(f"configs/{mode}.json" for mode in MODES)):
        assert (bundle / name).is_file(), name


def test_the_metadata_follow_the_published_schema(bundle):
    jsonschema = pytest.importorskip("jsonschema")
    if not SCHEMA.is_file():
        pytest.skip("the published schema is not beside the checkout")
    jsonschema.validate(config(bundle, "metadata"), json.loads(SCHEMA.read_text()))


def test_the_required_packages_name_our_distribution_and_the_pinned_versions(bundle):
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {name.lower(): version for name, version in pins.items()}
    metadata = config(bundle, "metadata")
    required = metadata["required_packages_version"]
    assert "medvol-monai" in required
    assert "medvol" not in required
    found = {name: version for name, version in required.items() if name != "medvol-monai"}
    assert found == {name: pins[name.lower()] for name in found}
    for name, package in (("monai_version", "monai"), ("pytorch_version", "torch"), ("numpy_version", "numpy")):
        assert metadata[name] == pins[package]


@pytest.mark.parametrize(("bundle", "mode"), CONFIGS, indirect=["bundle"])
def test_every_id_is_public_or_referenced_and_every_reference_is_defined(bundle, mode):
    whole = merged(bundle, mode)
    # An override replaces what training fits; the options of the fit stay legal on its command line.
    used = references(whole) | (references(config(bundle, "train")) if mode in OVERRIDES else set())
    assert not set(whole) - PUBLIC - used, "misspelt or useless ids"
    assert not references(whole) - set(whole), "undefined references"


@pytest.mark.parametrize(("bundle", "mode"), CONFIGS, indirect=["bundle"])
def test_no_number_is_written_as_text_and_no_expression_looks_like_an_import(bundle, mode):
    for path, value in leaves(config(bundle, mode)):
        if not isinstance(value, str):
            continue
        assert not re.fullmatch(r"[-+]?\.?\d[\d.]*(e[-+]?\d+)?", value, re.IGNORECASE), path
        assert path[0].lstrip("+") == "imports" or "import" not in value, path


def test_training_and_inference_agree_on_network_preprocessing_and_what_is_shipped(bundle):
    train, evaluate, inference = (config(bundle, mode) for mode in MODES)
    assert train["network_def"] == inference["network_def"]
    assert train["network"] == inference["network"]
    assert train["inferer"] == inference["inferer"]
    # A segmentation's study is not read with the record's classes, so that it may be opened before weights are needed.
    required = {} if bundle.name.endswith("_segmentation") else {"require_weights": True}
    assert evaluate["record"] == {**inference["record"], **required}
    if bundle.name.endswith("_segmentation"):
        # Patches and whole labelled cases need other steps than prediction; that all three prepare the image alike is
        # tests/transforms/test_masks.py's matter. The network that the planner asks about must be the one trained.
        shared = {key: value for key, value in train["make_network"].items() if not key.startswith("_")}
        assert shared.items() <= train["network_def"].items()
        assert train["make_network"]["_target_"] == train["network_def"]["_target_"]
        assert inference["segment"]["window"] == train["validate"]["segment"]["window"]
        return
    assert train["train"]["preprocessing"] == inference["preprocessing"]
    assert train["validate"]["postprocessing"] == inference["postprocessing"]


def test_the_shipped_facts_are_those_of_the_metadata(bundle):
    shipped = config(bundle, "inference")["record"]["shipped"]
    formats = config(bundle, "metadata")["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    assert image["spatial_shape"] == shipped["spatial_size"]
    facts = Facts.from_dict(shipped)
    assert image["num_channels"] == (facts.in_channels or facts.in_features)
    assert list(pred["channel_def"].values()) == shipped["classes"]


def test_the_network_turns_the_declared_input_into_the_declared_output(bundle, tmp_path):
    from monai.bundle import verify_net_in_out

    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(tmp_path),
    )


def test_the_model_card_says_what_it_is_for_and_how_it_was_measured(bundle):
    card = (bundle / "docs" / "README.md").read_text()
    for heading in ("## Data", "## Training", "## Performance", "## Commands", "## Limits"):
        assert heading in card, heading
    assert "Not for clinical use" in card


def test_the_start_of_an_inference_needs_no_data(bundle):
    """`monai.bundle.load` and servers start a bundle for its network alone, where there is no study."""
    values = config(bundle, "inference")
    open_ids, seen = references(values["initialize"]), set()
    while open_ids:
        name = open_ids.pop()
        seen.add(name)
        open_ids |= references(values.get(name)) - seen
    assert "network_def" in seen
    assert not seen & {"dataset", "study", "dataset_dir"}
