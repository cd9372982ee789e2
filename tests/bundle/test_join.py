"""`medvol join`: one model that answers with the mean of several, and only what belongs together."""

import json
from dataclasses import replace

import pytest
import torch

from medvol.bundle.join import join_models
from medvol.cli import main
from medvol.data.facts import Facts
from medvol.errors import MedvolError
from medvol.inference.record import ModelRecord, load_networks, load_record, save_model
from medvol.networks.unet import unet

SIZE = (8, 12, 8)
FACTS = Facts(
    classes=("background", "liver"),
    channels=("image",),
    spatial_size=SIZE,
    spacing_mm=(1.0, 1.5, 3.0),
    intensity="mr",
    limits=None,
    has_geometry=True,
    laterality_matters=True,
    label_values=(0, 1),
)


def network_of(width, levels=2):
    return unet(1, 2, spatial_size=SIZE, spacing_mm=FACTS.spacing_mm, width=width, levels=levels)


def model(folder, width=4, levels=2, seed=0, **fields):
    """Write random weights with a record and return their folder and network."""
    torch.manual_seed(seed)
    network = network_of(width, levels)
    record = ModelRecord(FACTS, network={"width": width, "levels": levels}, **fields)
    save_model(folder, network, record, dtype=torch.float16)
    return folder, load_networks(network, [folder], FACTS).eval()


def joined_network(folder):
    record = load_record(folder, {})
    return load_networks(network_of(**record.network), [folder], FACTS).eval()


def test_a_joined_model_answers_with_the_mean_and_remembers_all_patients(tmp_path):
    patients = [{"trained_on": ("p1", "p2"), "fitted_on": ("p1",)}, {"trained_on": ("p2", "p3"), "fitted_on": ("p3",)}]
    first, one = model(tmp_path / "a", 4, training={"seed": 0, "bundle": "b"}, **patients[0])
    second, other = model(tmp_path / "b", 6, seed=1, training={"seed": 1, "bundle": "b"}, **patients[1])
    record = join_models([first, second], tmp_path / "joined")
    assert record.network == {"width": [4, 6], "levels": 2}
    assert (record.trained_on, record.fitted_on) == (("p1", "p2", "p3"), ("p1", "p3"))
    assert [(part["seed"], part["width"]) for part in record.training["joined"]] == [(0, 4), (1, 6)]
    image = torch.randn(1, 1, *SIZE)
    assert torch.allclose(joined_network(tmp_path / "joined")(image), (one(image) + other(image)) / 2, atol=1e-6)
    stored = torch.load(tmp_path / "joined" / "model.pt", weights_only=True)
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float16}


def test_a_joined_model_can_be_joined_again_and_may_replace_one_of_its_parts(tmp_path):
    models = [
        model(tmp_path / name, width, seed=seed) for seed, (name, width) in enumerate([("a", 4), ("b", 6), ("c", 5)])
    ]
    join_models([models[0][0], models[1][0]], tmp_path / "pair")
    join_models([tmp_path / "pair", models[2][0]], tmp_path / "pair")
    image = torch.randn(1, 1, *SIZE)
    expected = torch.stack([one(image) for _, one in models]).mean(dim=0)
    assert torch.allclose(joined_network(tmp_path / "pair")(image), expected, atol=1e-6)


def test_cleaning_is_kept_only_where_all_chose_the_same(tmp_path):
    largest = {"liver": {"largest": True}}
    folders = [model(tmp_path / name, cleaning=steps)[0] for name, steps in [("a", largest), ("b", largest), ("c", {})]]
    assert join_models(folders[:2], tmp_path / "same").cleaning == largest
    assert join_models(folders, tmp_path / "other").cleaning == {}


def test_what_does_not_belong_together_is_refused(tmp_path):
    first, _ = model(tmp_path / "a")
    deeper, _ = model(tmp_path / "b", levels=3)
    with pytest.raises(MedvolError, match="OTHER_NETWORK: .*levels 3; expected levels 2"):
        join_models([first, deeper], tmp_path / "out")
    mirrored, _ = model(tmp_path / "c", mirror=True)
    with pytest.raises(MedvolError, match="OTHER_STUDY"):
        join_models([first, mirrored], tmp_path / "out")
    other = tmp_path / "d"
    save_model(other, network_of(4), ModelRecord(replace(FACTS, intensity="ct"), network={"width": 4, "levels": 2}))
    with pytest.raises(MedvolError, match="OTHER_STUDY"):
        join_models([first, other], tmp_path / "out")
    with pytest.raises(MedvolError, match="TOO_FEW: 1 models"):
        join_models([first], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_trained_unet_is_refused(tmp_path):
    first, _ = model(tmp_path / "a")
    with pytest.raises(MedvolError, match="NO_WEIGHTS: .*nothing: no model.json"):
        join_models([first, tmp_path / "nothing"], tmp_path / "out")
    swin = tmp_path / "swin"
    save_model(swin, torch.nn.Linear(2, 2), ModelRecord(FACTS, network={"feature_size": 12}))
    with pytest.raises(MedvolError, match="OTHER_NETWORK: .*swin: .*expected models of unet_segmentation"):
        join_models([first, swin], tmp_path / "out")
    torn, _ = model(tmp_path / "torn")
    (torn / "model.pt").write_bytes((torn / "model.pt").read_bytes()[:-7])
    with pytest.raises(MedvolError, match="WEIGHTS_MISMATCH"):
        join_models([first, torn], tmp_path / "out")


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    folders = [str(model(tmp_path / name, width)[0]) for name, width in (("a", 4), ("b", 6))]
    assert main(["join", *folders, "-o", str(tmp_path / "joined")]) == 0
    assert "the mean of 2 models, networks of width 4, 6" in capsys.readouterr().out
    assert json.loads((tmp_path / "joined" / "model.json").read_text())["network"]["width"] == [4, 6]
    assert main(["join", folders[0], "-o", str(tmp_path / "joined")]) == 1
    assert "TOO_FEW" in capsys.readouterr().err
