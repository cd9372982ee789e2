"""`run.json`: enough to know later what was run, on what, with what, and what came out."""

from __future__ import annotations

import json
import logging
import platform
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from medvol import __version__
from medvol.inference.record import file_sha256
from medvol.io.atomic import write_text
from medvol.report.outdated import RUN_FILE, mark_outdated

logger = logging.getLogger(__name__)

PACKAGES = ("monai", "torch", "numpy", "nibabel", "pydicom", "SimpleITK", "scikit-learn", "scipy", "pandas")


def write_run_record(
    output_dir: str | Path,
    *,
    mode: str,
    started: float,
    command: str,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    outputs: Iterable[Path],
) -> Path:
    """Write `run.json` and log what was written where.

    Args:
        output_dir: Folder of the run.
        mode: `train`, `evaluate` or `inference`; a later run in the same folder keeps the records of the others.
        started: Seconds since the epoch.
        command: Command line.
        config: Unevaluated configuration with overrides.
        facts: Seeds, data hash and whatever else belongs to this run.
        outputs: Files that the run wrote.
    """
    folder = Path(output_dir)
    path = folder / RUN_FILE
    files = sorted(file for file in outputs if file.is_file())
    record = {
        "command": command,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "wall_time_s": round(time.time() - started, 1),
        "peak_memory_mb": round(peak_memory_mb()),
        **facts,
        "versions": versions(),
        "machine": {"system": platform.platform(), "processor": processor_model()},
        "outputs": {str(file): file_sha256(file) for file in files},
        "config": config,
    }
    runs = {}
    if path.is_file():
        try:
            runs = json.loads(path.read_text())
        except ValueError:
            logger.warning("%s was damaged and is written anew", path)
    mark_outdated(runs, folder, mode, record["finished"])
    write_text(path, json.dumps({**runs, mode: record}, indent=4, default=str))
    _log_written([*files, path])
    return path


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in megabytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage, on Linux, begins with the peak of the process that started this one.
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def processor_model() -> str:
    """Return the model of the processor, or its architecture where the system does not say more."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of Python, medvol and the packages that decide the numbers."""
    found = {"python": platform.python_version(), "medvol": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _log_written(files: Iterable[Path]) -> None:
    logger.info("Written:")
    for file in files:
        logger.info("  %-58s %8.1f kB", file, file.stat().st_size / 1024)
