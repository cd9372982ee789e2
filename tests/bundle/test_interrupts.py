"""A training that is told to end: by Ctrl-C, by a batch system, by either of MONAI's and medvol's commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from medvol.bundle.interrupts import end_at_once_on_sigterm, end_politely_on_sigterm
from medvol.bundle.session import _short_errors
from medvol.cli import main
from medvol.errors import INTERRUPTED, interruption_code
from medvol.phantoms.cohort import classification_cohort

ROOT = Path(__file__).parents[2]
RESNET = ROOT / "bundles" / "resnet3d_classification"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return classification_cohort(tmp_path_factory.mktemp("study") / "cohort", patients=12, size=(14, 13, 12))


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """Processes that a shell starts in the background ignore SIGINT, and so would the trainings of this file."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def monai_command(cohort, output):
    config = ["--bundle_root", RESNET, "--config_file", RESNET / "configs" / "train.json"]
    return [sys.executable, "-m", "monai.bundle", "run", *config, "--dataset_dir", cohort, "--output_dir", output]


def medvol_command(cohort, output):
    return [Path(sys.executable).with_name("medvol"), "train", RESNET, cohort, "-o", output]


@pytest.mark.parametrize(
    ("command", "number", "codes"),
    [
        (monai_command, signal.SIGINT, (-signal.SIGINT, 130)),  # a shell shows both as 130
        (monai_command, signal.SIGTERM, (143,)),
        (medvol_command, signal.SIGINT, (130,)),
    ],
    ids=["monai-SIGINT", "monai-SIGTERM", "medvol-SIGINT"],
)
def test_a_training_that_is_interrupted_says_so_in_a_line_and_leaves_whole_files(
    cohort, tmp_path, command, number, codes
):
    options = ["--model_dir", tmp_path / "models", "--max_epochs", "9999", "--precision", "float32"]
    words = [str(word) for word in [*command(cohort, tmp_path), *options]]
    with (tmp_path / "said.txt").open("w") as said:
        training = subprocess.Popen(
            words,
            stdout=said,
            stderr=said,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        until = time.monotonic() + 300
        while not (tmp_path / "checkpoint.pt").is_file() and training.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        training.send_signal(number)
        assert training.wait(timeout=120) in codes
    said = (tmp_path / "said.txt").read_text()
    assert INTERRUPTED in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.part"))
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize(("interruption", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_an_interruption_that_torch_hides_behind_an_error_of_its_own_is_found(interruption, code, monkeypatch, capsys):
    def save(*_):
        try:
            raise interruption
        finally:
            raise RuntimeError("unexpected pos 4557760 vs 4557656")  # of an archive that torch closes nevertheless

    with pytest.raises(RuntimeError) as caught:
        save()
    assert interruption_code(caught.value) == code
    with pytest.raises(SystemExit) as ended:
        _short_errors(caught.type, caught.value, caught.tb)
    assert ended.value.code == code
    assert capsys.readouterr().err.strip() == (INTERRUPTED if code == 130 else "")  # SIGTERM has said so at once
    monkeypatch.setattr("medvol.cli.parser", lambda: SimpleNamespace(parse_args=lambda _: SimpleNamespace(run=save)))
    assert main(["check"]) == code
    assert interruption_code(RuntimeError()) is None


def test_what_an_interruption_says_fits_a_run_that_cannot_be_resumed():
    assert "The same command begins again; a training goes on" in INTERRUPTED


def test_an_exception_hook_that_ends_the_process_sets_its_exit_code():
    script = """
import sys
from medvol.bundle.session import _short_errors
sys.excepthook = _short_errors
try:
    raise SystemExit(143)
finally:
    raise RuntimeError("as torch does")
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (143, "")


def test_a_process_that_lives_on_after_a_run_handles_sigterm_as_before():
    end_politely_on_sigterm()
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    end_at_once_on_sigterm()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # somebody else's wish is left alone
        end_politely_on_sigterm()
        end_at_once_on_sigterm()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
