"""Several processes of torchrun: metrics equal to those of one, and files written once.

One call of torchrun does all runs in two processes, since starting Python with MONAI costs more than they do.
"""

import contextlib
import csv
import json
import math
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from monai.bundle import ConfigParser
from torch import nn

from medvol.data.loading import EpochShuffle, OwnShare, training_loader
from medvol.data.processes import Processes, from_first, gathered, in_turn, join_processes
from medvol.errors import MedvolError, find_refusal
from medvol.phantoms.cohort import classification_cohort, segmentation_cohort
from medvol.training.distributed import parallel

ROOT = Path(__file__).parents[2] / "bundles"
BUNDLES = sorted(path.parent.parent for path in ROOT.glob("*/configs/metadata.json"))
SEVERAL = {"multi_process_cpu": "gloo", "multi_gpu_train": "nccl"}
CONV, RESNET, MLP = (ROOT / f"{name}_classification" for name in ("conv3d", "resnet3d", "mlp_tabular"))
UNET = ROOT / "unet_segmentation"
QUIET = {"max_epochs": 2, "val_interval": 1, "precision": "float32"}
# What must be off for a training to be equal: noise and dropout are drawn in each process.
EXACT = {"augmentation#noise": 0.0, "spatial_size": [16, 17, 15], "learning_rate": 1e-4}
TINY = {
    CONV: {**QUIET, **EXACT, "cache_ram_gb": 0.1},
    RESNET: {**QUIET, "spatial_size": [8, 9, 7]},
    UNET: {**QUIET, "width": 4, "patches_per_epoch": 4, "batch_size": 1},
}
# The two processes of these tests are on the processor, so the one must be, where there is a graphics card.
ALONE = {"show_progress": False, "device": "cpu"}
# A meeting point that processes have left cannot be used again: each run has its own port.
DRIVER = """
import json, os, sys
from pathlib import Path
from monai.bundle import run

os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
for port, options in json.loads(Path(sys.argv[1]).read_text()):
    os.environ["MASTER_PORT"] = str(port)
    try:
        run(**options)
    except SystemExit as end:
        if end.code:
            raise
"""

pytestmark = pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning")  # MONAI warns of expressions in any config


def configs(bundle, *modes):
    names = [str(bundle / "configs" / f"{mode}.json") for mode in modes]
    return names if len(names) > 1 else names[0]


def free_ports(count):
    """Return free ports below those that the system hands out, which other tests and Gloo take in the meantime."""
    ports = []
    for port in random.sample(range(20_000, 32_000), 10 * count):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
    return ports[:count]


def torchrun(folder, runs):
    """Run bundles one after the other in two processes, as `torchrun --standalone --nproc_per_node=2` does."""
    (folder / "driver.py").write_text(DRIVER)
    (folder / "runs.json").write_text(json.dumps(list(zip(free_ports(len(runs)), runs, strict=True))))
    words = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, "-W", "ignore", "-m", *words, str(folder / "driver.py"), str(folder / "runs.json")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    place = tmp_path_factory.mktemp("studies")
    volumes = classification_cohort(place / "vessels", patients=16, size=(16, 17, 15))  # 5 to test
    bodies = segmentation_cohort(place / "bodies", patients=10, size=(22, 21, 20))  # 3 to validate
    return {CONV: volumes, RESNET: volumes, UNET: bodies}


@pytest.fixture(scope="module")
def together(tmp_path_factory, studies):
    """Return the folder of each bundle after training and evaluation in two processes, and what was printed."""
    place, runs = tmp_path_factory.mktemp("together"), []
    for bundle, tiny in TINY.items():
        shared = {"bundle_root": str(bundle), "dataset_dir": str(studies[bundle]), **tiny}
        shared |= {"output_dir": str(place / bundle.name), "model_dir": str(place / bundle.name / "models")}
        shared |= {} if bundle == UNET else {"batch_size": 2}
        for modes in (("train", "multi_process_cpu"), ("train", "evaluate", "multi_process_cpu")):
            runs.append({**shared, "config_file": configs(bundle, *modes)})
    # The graphics cards' file does the same with gloo in the place of nccl.
    first = {**runs[2], "config_file": configs(RESNET, "train", "multi_gpu_train"), "backend": "gloo"}
    runs.append({**first, "output_dir": str(place / "gpu"), "model_dir": str(place / "gpu" / "models")})
    result = torchrun(place, runs)
    assert result.returncode == 0, result.stderr[-3000:]
    return place, result.stdout


def history(folder):
    with (folder / "history.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def numbers(node):
    """Yield every number of a JSON file with its place."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from ((f"{key}.{place}", number) for place, number in numbers(value))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from ((f"{index}.{place}", number) for place, number in numbers(value))
    elif isinstance(node, int | float):
        yield "", float(node)


def assert_same_evaluation(one, two):
    ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (one, two))
    assert ours["n_cases"] == theirs["n_cases"]
    found, expected = dict(numbers(ours["metrics"])), dict(numbers(theirs["metrics"]))
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)
    rows = []
    for folder in (one, two):
        with (folder / "predictions.csv").open(newline="") as stream:
            rows.append(list(csv.DictReader(stream)))
    assert [row["case"] for row in rows[0]] == [row["case"] for row in rows[1]]
    for ours, theirs in zip(*rows, strict=True):
        for name, cell in ours.items():
            try:
                assert float(cell) == pytest.approx(float(theirs[name]), abs=1e-6, nan_ok=True), name
            except ValueError:
                assert cell == theirs[name], name


@pytest.mark.slow
def test_a_training_in_two_processes_equals_one_with_the_whole_batch(together, studies, tmp_path, bundle_run):
    options = {**TINY[CONV], **ALONE, "batch_size": 4, "model_dir": str(tmp_path / "models")}
    bundle_run(CONV, ["train"], tmp_path, dataset_dir=str(studies[CONV]), **options)
    alone, shared = history(tmp_path), history(together[0] / CONV.name)
    assert [row["epoch"] for row in alone] == ["1", "2"]
    for one, two in zip(alone, shared, strict=True):
        assert {name: float(cell) for name, cell in two.items()} == pytest.approx(
            {name: float(cell) for name, cell in one.items()}, abs=1e-6
        )
    weights = [
        torch.load(folder / "models/model.pt", weights_only=True) for folder in (tmp_path, together[0] / CONV.name)
    ]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=0)
    temperatures = [
        json.loads((folder / "models/model.json").read_text())["temperature"]
        for folder in (tmp_path, together[0] / CONV.name)
    ]
    assert temperatures[0] == pytest.approx(temperatures[1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("bundle", TINY, ids=lambda path: path.name)
def test_an_evaluation_in_two_processes_equals_one(bundle, together, studies, tmp_path, bundle_run):
    folder = together[0] / bundle.name
    options = {**TINY[bundle], **ALONE, "model_dir": str(folder / "models")}
    options.pop("val_interval")
    bundle_run(bundle, ["train", "evaluate"], tmp_path, dataset_dir=str(studies[bundle]), **options)
    assert_same_evaluation(folder, tmp_path)
    if bundle == UNET:
        masks = {path.name for path in (tmp_path / "predictions").iterdir()}
        assert masks == {path.name for path in (folder / "predictions").iterdir()}


@pytest.mark.slow
def test_two_processes_write_each_file_once_and_one_speaks(together):
    place, printed = together
    for bundle in TINY:
        assert [row["epoch"] for row in history(place / bundle.name)] == ["1", "2"]
        assert (place / bundle.name / "run.json").is_file()
        assert math.isfinite(float(history(place / bundle.name)[-1]["train_loss"]))
    assert printed.count("Trained ") == len(TINY) + 1
    assert printed.count("Study: ") == 2 * len(TINY) + 1


@pytest.mark.slow
def test_the_file_for_graphics_cards_does_what_that_for_processors_does(together):
    place, _ = together
    assert history(place / "gpu") == history(place / RESNET.name)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_bundle_has_both_files_and_they_differ_in_the_backend_alone(bundle):
    own = {name: json.loads((bundle / "configs" / f"{name}.json").read_text()) for name in SEVERAL}
    for name, backend in SEVERAL.items():
        assert own[name].pop("backend") == backend
    assert own["multi_process_cpu"] == own["multi_gpu_train"]
    parser = ConfigParser()
    parser.read_config(configs(bundle, "train", "evaluate", "multi_process_cpu"))
    merged = parser.get()
    for loader in ("train", "validate"):
        assert merged[loader]["dataloader"]["processes"] == "@processes"
    assert merged["session"]["processes"] == "@processes"
    assert merged["train"]["trainer"]["network"] == "@parallel"
    # Not before published weights are in the network, since its wrapper sends the first process's to the others.
    assert merged["parallel"]["network"] == ("@started" if "started" in merged else "@network")
    assert "part_ways" in merged["run"][-1]
    (board,) = (one for one in merged["train"]["handlers"] if one["_target_"] == "TensorBoardStatsHandler")
    assert board["_disabled_"] == "$not @tensorboard or @processes.rank > 0"
    assert sum("_disabled_" in one and "rank" in one["_disabled_"] for one in merged["train"]["handlers"]) == 1


def test_the_file_for_several_processes_must_be_the_last(tmp_path, monkeypatch):
    from medvol.bundle import session

    parser = ConfigParser()
    parser.read_config(configs(MLP, "train", "multi_process_cpu", "evaluate"))
    monkeypatch.setattr(session, "_running_config", parser.get)
    with pytest.raises(MedvolError, match=r"WRONG_ORDER.*\['train.json','evaluate.json','multi_process_cpu.json'\]"):
        session.begin(MLP, tmp_path, Processes(0, 2, torch.device("cpu")))


def test_without_torchrun_a_run_in_several_processes_is_refused(tmp_path, bundle_run, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Exception) as error:  # noqa: PT011 - MONAI wraps what an expression raises
        bundle_run(MLP, ["train", "multi_process_cpu"], tmp_path)
    refusal = find_refusal(error.value)
    assert refusal is not None, error.value
    assert refusal.code == "NO_PROCESSES"
    assert "torchrun" in str(refusal)


def test_graphics_cards_that_are_not_there_are_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a graphics card")
    with pytest.raises(MedvolError, match="NO_DEVICE: 0 graphics cards"):
        join_processes("nccl")
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION"):
        join_processes("glo")


@pytest.mark.parametrize(("length", "count"), [(7, 2), (8, 2), (9, 4), (4, 4), (0, 3)])
def test_shares_hold_every_case_once_in_order(length, count, monkeypatch):
    monkeypatch.setattr("medvol.data.processes.process_count", lambda: count)
    shares = [list(Processes(rank, count, torch.device("cpu")).share(length)) for rank in range(count)]
    assert [index for share in shares for index in share] == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert list(OwnShare(range(length), Processes(0, count, torch.device("cpu")))) == shares[0]


def test_more_processes_than_cases_are_refused(monkeypatch):
    monkeypatch.setattr("medvol.data.processes.process_count", lambda: 4)
    with pytest.raises(MedvolError, match="TOO_FEW_CASES: 3 cases for 4 processes.*start 3 processes"):
        Processes(0, 4, torch.device("cpu")).share(3)


def test_a_share_is_all_after_the_processes_have_parted():
    assert list(Processes(0, 2, torch.device("cpu")).share(7)) == list(range(7))


@pytest.mark.parametrize("epoch", [1, 2])
def test_the_batches_of_two_processes_are_those_of_one_with_the_whole_batch(epoch):
    alone = EpochShuffle(range(11), 5)
    alone.epoch = epoch
    whole = list(alone)
    parts = []
    for rank in range(2):
        own = EpochShuffle(range(11), 5, batch_size=2, processes=Processes(rank, 2, torch.device("cpu")))
        own.epoch = epoch
        parts.append(list(own))
        assert len(own) == len(parts[-1]) == 4
    for step in range(2):
        joined = [index for part in parts for index in part[2 * step : 2 * step + 2]]
        assert joined == whole[4 * step : 4 * step + 4]


def test_a_study_smaller_than_a_batch_of_all_processes_is_one_batch():
    items = [{"image": torch.zeros(1, 2, 2), "label": 0} for _ in range(5)]
    loader = training_loader(items, batch_size=16, seed=0, processes=Processes(0, 2, torch.device("cpu")))
    assert [len(batch["label"]) for batch in loader] == [2]


def test_a_process_alone_is_the_first_and_waits_for_nobody():
    assert gathered("x") == ["x"]
    with in_turn():
        assert from_first(lambda: 3)() == 3


def test_the_network_does_not_hold_the_group_that_ends_with_the_run(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        network = parallel(nn.Linear(2, 1), Processes(0, 1, torch.device("cpu")), seed=0)
        assert network.process_group is not dist.group.WORLD
        network(torch.ones(1, 2)).sum().backward()
        assert network.module.weight.grad.tolist() == [[1.0, 1.0]]
    finally:
        dist.destroy_process_group()
