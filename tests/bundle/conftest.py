"""What every test that runs a bundle needs: another working directory, and nothing left behind in the process."""

import csv
import logging
import sys

import pytest
import torch
from monai.bundle import run


@pytest.fixture(autouse=True)
def leave_no_trace(monkeypatch, tmp_path):
    """Run elsewhere, and undo what a bundle's logging.conf and `begin` set for the process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    yield
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def bundle_run():
    """Run modes of a bundle with options, as the command line does."""

    def run_modes(bundle, modes, output, **options):
        files = [str(bundle / "configs" / f"{mode}.json") for mode in modes]
        run(
            config_file=files if len(files) > 1 else files[0],
            bundle_root=str(bundle),
            output_dir=str(output),
            **options,
        )

    return run_modes


@pytest.fixture
def rows_of():
    """Read a CSV file as dictionaries."""

    def read(path):
        with path.open(newline="") as stream:
            return list(csv.DictReader(stream))

    return read
