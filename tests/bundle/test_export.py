"""`medvol export`: files that answer as the network does, or none."""

import json
from dataclasses import replace

import pytest
import torch
from monai.bundle import ConfigParser

from medvol.bundle import export
from medvol.bundle.export import FORMATS, export_bundle
from medvol.bundle.export_source import Source, compare, load_source
from medvol.bundle.new import NewOptions, make_bundle
from medvol.cli import main
from medvol.errors import MedvolError
from medvol.inference.record import load_record, save_model, write_record
from medvol.phantoms.cohort import classification_cohort, segmentation_cohort

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning"),  # MONAI warns of expressions in any config
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own, of TorchScript and within its exporters
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def untrained(place, copied, layout="nifti", **network):
    """Make a bundle for a tiny study and give it random weights."""
    if copied.endswith("segmentation"):
        table = segmentation_cohort(place / "c", patients=9, size=(32, 34, 36) if "swin" in copied else (16, 18, 20))
    else:
        table = classification_cohort(place / "c", patients=12, size=(12, 13, 14), layout=layout)
    own = make_bundle(str(place / "own"), str(table), NewOptions(bundle=copied, measure=False)).folder
    file = own / "configs" / "inference.json"
    config = json.loads(file.read_text())
    config["record"].get("shipped_network", {}).update(network)
    file.write_text(json.dumps(config))
    config.update(bundle_root=str(own), model_dir=str(own / "models"))
    torch.manual_seed(0)
    made = ConfigParser(config).get_parsed_content("network_def")
    record = load_record(own / "models", config["record"]["shipped"], config["record"].get("shipped_network"))
    save_model(own / "models", made, record)
    return own


@pytest.fixture(scope="module")
def tabular(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("tabular"), "mlp_tabular_classification", "csv")


@pytest.mark.slow
def test_every_format_answers_as_the_network_does_for_any_batch_and_tells_its_facts(tabular, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    exported = {one.format: one for one in export_bundle(str(tabular), str(tmp_path))}
    assert set(exported) == set(FORMATS)
    assert {path.name for path in tmp_path.iterdir()} >= set(FORMATS.values())
    source = load_source(str(tabular))
    inputs = source.draw(5, seed=9)
    expected = source.network(*inputs).detach()
    session = onnxruntime.InferenceSession(str(exported["onnx"].file), providers=["CPUExecutionProvider"])
    found = [
        torch.from_numpy(session.run(None, {"image": inputs[0].numpy()})[0]),
        torch.export.load(str(exported["torch-export"].file)).module()(*inputs),
        torch.jit.load(str(exported["torchscript"].file))(*inputs),
    ]
    for one in found:
        torch.testing.assert_close(one.detach(), expected, rtol=1e-5, atol=1e-5)
    props = {one.key: one.value for one in onnx.load(str(exported["onnx"].file)).metadata_props}
    facts = json.loads(props["medvol"])
    assert facts["facts"]["classes"] == list(source.record.facts.classes)
    assert facts["output"] == "logits"
    extra = {"medvol": ""}
    torch.export.load(str(exported["torch-export"].file), extra_files=extra)
    assert json.loads(extra["medvol"]) == facts
    assert all(one.size == one.file.stat().st_size for one in exported.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("copied", "network"),
    [
        ("unet_segmentation", {"width": 8}),
        ("swin_unetr_segmentation", {"feature_size": 12}),
        ("fusion_classification", {}),
        ("vit3d_classification", {}),
    ],
)
def test_torch_follows_the_networks_that_are_computed_by_our_own_kernels(copied, network, tmp_path):
    own = untrained(tmp_path, copied, **network)
    for one in export_bundle(str(own), str(tmp_path / "out"), formats=["torch-export", "torchscript"]):
        assert one.reason == ""
        assert one.difference < 1e-4
        assert (one.agreement is None) == copied.endswith("classification")


def test_a_torchscript_file_holds_the_record_that_its_folder_held(tabular, tmp_path):
    """MONAI Deploy reads the configuration in the file, where there is no `models` folder."""
    record = replace(load_record(tabular / "models", {}), temperature=1.75, trained_on=("a patient",))
    write_record(tabular / "models", record)
    (one,) = export_bundle(str(tabular), str(tmp_path), formats=["torchscript"])
    extra = {"inference.json": ""}
    torch.jit.load(str(one.file), _extra_files=extra)
    config = json.loads(extra["inference.json"])
    found = ConfigParser(config).get_parsed_content("record")
    assert found == replace(record, trained_on=(), training={})
    assert config["bundle_root"] == "."
    assert str(tabular) not in json.dumps(config)


def test_a_file_that_answers_otherwise_is_refused_and_not_left_behind(tabular, tmp_path, monkeypatch, capsys):
    def write_wrong(source, path):
        path.write_bytes(b"wrong")
        return "any batch", lambda inputs: source.network(*inputs) + 0.01, (1, 3)

    def write_none(source, path):
        path.write_bytes(b"half of it")
        raise RuntimeError("unsupported operator\nand a long trace")

    monkeypatch.setattr(export, "_write_pt2", write_wrong)
    monkeypatch.setattr(export, "_write_torchscript", write_none)
    (tmp_path / "model.pt2").write_bytes(b"from before")
    words = ["export", str(tabular), "-o", str(tmp_path), "--formats", "torch-export,torchscript"]
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "answers differ from the network's by more than 0.0001" in said
    assert "RuntimeError: unsupported operator" in said
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"model.pt2": b"from before"}


def test_the_largest_difference_and_the_share_of_equal_labels_are_measured(tmp_path, tabular):
    source = load_source(str(tabular))

    def shifted(inputs):
        answer = source.network(*inputs).detach().clone()
        answer[0] += 2.5e-5
        return answer

    difference, agreement = compare(source, shifted, (2,))
    assert difference == pytest.approx(2.5e-5, rel=0.1)
    assert agreement is None
    assert compare(source, lambda inputs: source.network(*inputs) * float("nan"))[0] == float("inf")
    assert compare(source, lambda inputs: source.network(*inputs)[:, :0])[0] == float("inf")

    class Structures(torch.nn.Module):
        def forward(self, volume):
            return torch.cat([torch.zeros_like(volume), torch.ones_like(volume)], dim=1)

    def one_voxel_off(inputs):
        answer = Structures()(inputs[0]).clone()
        answer[:, 0, 0, 0, 0] = 2.0
        return answer

    facts = {**source.record.facts.as_dict(), "label_values": [0, 1], "columns": []}
    record = type(source.record)(facts=type(source.record.facts).from_dict(facts))
    of_voxels = Source(tmp_path, tmp_path, Structures(), record, ("image",), ((1, 2, 4, 5),))
    difference, agreement = compare(of_voxels, one_voxel_off)
    assert (difference, agreement) == (2.0, pytest.approx(1 - 1 / 40))


def test_a_disk_without_room_is_refused_before_torch_ends_the_process_on_it(tabular, tmp_path, monkeypatch):
    usage = export.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(export.shutil, "disk_usage", lambda folder: usage._replace(free=2**20))
    with pytest.raises(MedvolError, match=r"DISK_FULL: .*1\.0 MiB free; expected 4\.\d MiB for a format"):
        export_bundle(str(tabular), str(tmp_path), formats=["torchscript"])


def test_a_disk_that_fills_meanwhile_is_no_fault_of_the_format(tabular, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(MedvolError, match="DISK_FULL"):
        export_bundle(str(tabular), str(tmp_path), formats=["torch-export"])
    assert not list(tmp_path.iterdir())


def test_missing_weights_packages_and_formats_are_named(tabular, tmp_path, monkeypatch):
    with pytest.raises(MedvolError, match=r"UNKNOWN_OPTION.*did you mean 'onnx'"):
        export_bundle(str(tabular), formats=["onxx"])
    with pytest.raises(MedvolError, match="NO_WEIGHTS"):
        export_bundle(str(tabular), formats=["torch-export"], model_dir=str(tmp_path))
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(MedvolError, match=r"MISSING_PACKAGE.*pip install 'medvol-monai\[export\]'"):
        export_bundle(str(tabular), formats=["onnx"])
