"""Every block of the README runs as it stands, on small studies under the names that the README uses."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medvol import cli
from medvol.bundle.short import find_bundle, split_options
from medvol.commands import short
from medvol.phantoms.cohort import classification_cohort, segmentation_cohort

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = [block.group().replace("\n    ", "\n").strip() for block in re.finditer(r"(?:^    \S.*\n)+", README, re.M)]
COMMANDS = [text for text in re.findall(r"`(medvol [^`]+)`", README) if " " in text.removeprefix("medvol ")]

QUICK = "--max_epochs 1 --precision float32 --show_progress False"
"""One epoch instead of those of the README; what else it says is run as it stands."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Return a folder that looks as the README supposes, with a shell's environment."""
    place = tmp_path_factory.mktemp("desk")
    shutil.copytree(
        ROOT / "bundles", place / "bundles", ignore=shutil.ignore_patterns("model.pt", "model.json", "eval")
    )
    (place / ".venv" / "bin").mkdir(parents=True)
    (place / ".venv" / "bin" / "activate").write_text(
        f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    )
    table = classification_cohort(place / "cohort", patients=20, size=(12, 12, 14), layout="nifti", splits=None)
    images = [row.split(",") for row in table.read_text().splitlines()]
    column = images[0].index("image")
    (place / "new_scans").mkdir()
    for row in images[1:]:
        row[column] = f"cohort/{row[column]}"
    for row in images[1:4]:
        shutil.copy(place / row[column], place / "new_scans")
    (place / "my_study.csv").write_text("\n".join(map(",".join, images)) + "\n")
    write_medmnist(place / "adrenalmnist3d.npz")
    write_decathlon(place / "Task04_Hippocampus")
    return place


def write_medmnist(path):
    rng = np.random.default_rng(0)
    sizes = {"train": 16, "val": 6, "test": 6}
    arrays = {
        f"{split}_images": rng.integers(0, 255, (size, 12, 13, 14), dtype=np.uint8) for split, size in sizes.items()
    }
    arrays |= {f"{split}_labels": (np.arange(size) % 2)[:, None].astype(np.uint8) for split, size in sizes.items()}
    np.savez(path, **arrays)


def write_decathlon(folder):
    table = segmentation_cohort(folder.with_name("bodies"), patients=8, size=(20, 18, 22), splits=None)
    rows = [dict(zip(*pair, strict=True)) for pair in cells(table)]
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
    for row in rows:
        shutil.copy(table.parent / row["image"], folder / "imagesTr" / f"{row['case']}.nii.gz")
        shutil.copy(table.parent / row["label"], folder / "labelsTr" / f"{row['case']}.nii.gz")
    pairs = [{"image": f"./imagesTr/{row['case']}.nii.gz", "label": f"./labelsTr/{row['case']}.nii.gz"} for row in rows]
    labels = {"0": "background", "1": "liver", "2": "spleen", "3": "kidney_left", "4": "kidney_right"}
    facts = {"name": "bodies", "modality": {"0": "CT"}, "labels": labels, "training": pairs, "test": []}
    (folder / "dataset.json").write_text(json.dumps(facts | {"numTraining": len(pairs)}))


def cells(table):
    header, *lines = (line.split(",") for line in table.read_text().splitlines())
    return [(header, line) for line in lines]


def quick(block):
    """Return a block with placeholders filled in and one epoch per training."""
    lines = []
    for line in block.splitlines():
        text = line.split(" #")[0].rstrip()
        bundle = "unet_segmentation" if "Hippocampus" in text else "resnet3d_classification"
        text = re.sub(r"(?<![\w$])B(?=[ /])", f"bundles/{bundle}", text).replace("--seed S", "--seed 1")
        text = re.sub(r"(?<=_dir )O\b", f"by_{bundle}", text)
        if "train.json --" in text or text.startswith("medvol train"):
            text = re.sub(r" --max_epochs \d+", "", text) + f" {QUICK}"
        lines.append(text)
    return "\n".join(lines)


def run(block, desk):
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f". .venv/bin/activate\n{block}"],
        cwd=desk,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_the_readme_has_blocks_and_commands():
    assert len(BLOCKS) >= 5
    assert len(COMMANDS) >= 10
    assert len(README.splitlines()) <= 150


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in BLOCKS if "make " not in block], ids=lambda block: block[:40])
def test_a_block_runs_as_it_stands(block, desk):
    result = run(quick(block), desk)
    assert result.returncode == 0, result.stdout[-1500:] + result.stderr[-1500:]
    assert "Written:" in result.stdout


@pytest.mark.parametrize("target", re.findall(r"^    make (\w+)", README, re.M))
def test_a_target_of_the_readme_is_one_of_the_makefile(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_in_the_text_is_one_that_the_command_line_takes(command):
    _, *words = shlex.split(command)
    if words[0] in short.MODES:
        words, further = split_options(words)
        assert all(word.startswith("--") for word in further[::2])
    options = cli.parser().parse_args(words)
    named = getattr(options, "bundle", None)
    if words[0] in short.MODES and "_" in str(named) and not str(named).startswith("my_"):
        assert find_bundle(named)
