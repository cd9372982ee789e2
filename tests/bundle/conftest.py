"""What every test that runs a bundle needs: another working directory, and nothing left behind in the process."""

import csv
import logging
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow, run


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


@pytest.fixture
def missing_properties():
    """Return the ids that MONAI's clients look for in a configuration and do not find."""

    def check(bundle, mode, **options):
        workflow = ConfigWorkflow(
            config_file=str(bundle / "configs" / f"{mode}.json"),
            workflow_type="infer" if mode == "inference" else mode,
            logging_file=False,
            bundle_root=str(bundle),
            show_progress=False,
            **{name: str(value) if isinstance(value, Path) else value for name, value in options.items()},
        )
        workflow.initialize()
        return workflow.check_properties()

    return check
