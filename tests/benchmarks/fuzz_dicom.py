"""Flip bytes of every file that the tests of DICOM traps generate: a volume or a refusal, never anything else.

    python tests/benchmarks/fuzz_dicom.py [--seconds 60] [--seed 0]

Exits with 1 when another exception than MedvolError escapes, a file takes 5 s of processor time or more, or the process
grows beyond 2 GiB. Reading happens in a child, so that a crash of a decoder is found too; the parent then names the
file that was being read, which it keeps.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np

SECONDS, GIBIBYTES = 5.0, 2.0
TESTS = Path(__file__).resolve().parents[1] / "io"


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    loaded = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def originals(folder: Path) -> list[bytes]:
    """Return the bytes of every different file that the traps write."""
    fixtures, traps = module("conftest"), module("test_dicom_traps")

    def fixture(name: str, *values: Any) -> Any:
        return getattr(fixtures, name)._get_wrapped_function()(*values)

    affine = fixture("right_affine", fixture("affine"))
    write = fixture("write_series", affine)
    found: set[bytes] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (function, *_) in traps.TRAPS.items():
            function(traps.Maker(folder / name, fixture("voxels"), affine, write))
            files = sorted(path for path in (folder / name).rglob("*") if path.is_file())
            found |= {path.read_bytes() for path in files[::4]}
    return sorted(one for one in found if one)


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip up to 8 bytes, write a run of one byte, or cut; mostly in the first or last kilobyte."""
    changed = bytearray(data)
    start = int(rng.choice([0, max(0, len(data) - 400), int(rng.integers(len(data)))]))
    stop = min(len(data), start + 1000)
    kind = rng.integers(6)
    if kind == 0:
        return bytes(changed[: rng.integers(len(data))])
    if kind == 1:
        at = int(rng.integers(start, stop))
        changed[at : at + 4] = bytes([rng.choice([0, 255, 127, 128])]) * len(changed[at : at + 4])
        return bytes(changed)
    for at in rng.integers(start, stop, size=rng.integers(1, 9)):
        changed[at] = rng.integers(256)
    return bytes(changed)


def child(folder: Path, seconds: float, seed: int) -> int:
    from medvol.errors import MedvolError
    from medvol.io import read_volume
    from medvol.io.dicom_series import list_series

    files = originals(folder / "originals")
    rng = np.random.default_rng(seed)
    outcomes: collections.Counter[str] = collections.Counter()
    place = folder / "now"
    place.mkdir()
    path, slowest, escaped, until = place / "a.dcm", 0.0, 0, time.monotonic() + seconds
    while time.monotonic() < until:
        data = damage(files[rng.integers(len(files))], rng)
        path.write_bytes(data)
        start = time.process_time()
        try:
            if rng.random() < 0.3:
                list_series(place)
            read_volume(path if rng.random() < 0.7 else f"{place}#suv=bw")
            outcomes["read"] += 1
        except MedvolError as error:
            outcomes[error.code] += 1
            escaped += len(str(error)) > 300
        except Exception:
            escaped += 1
            kept = folder.parent / f"escaped_{seed}_{escaped}.dcm"
            kept.write_bytes(data)
            print(f"{kept}: {traceback.format_exc()}", flush=True)
        slowest = max(slowest, time.process_time() - start)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 2**20
    print(f"{sum(outcomes.values()):,} damaged copies of {len(files)} files: {dict(outcomes.most_common())}")
    print(f"{escaped} escaped, slowest {slowest:.2f} s of processor time, peak {peak:.2f} GiB")
    return int(escaped > 0 or slowest >= SECONDS or peak >= GIBIBYTES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        sys.exit(child(options.child, options.seconds, options.seed))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "fuzz"
        folder.mkdir()
        command = [sys.executable, __file__, "--seconds", str(options.seconds), "--seed", str(options.seed)]
        code = subprocess.run([*command, "--child", str(folder)], check=False).returncode
        for kept in [*Path(temporary).glob("escaped_*"), *([folder / "now" / "a.dcm"] if code < 0 else [])]:
            target = Path(tempfile.gettempdir()) / kept.name
            target.write_bytes(kept.read_bytes())
            print(f"kept as {target}")
        if code < 0:
            print(f"the reader crashed with signal {-code}")
        sys.exit(1 if code else 0)


if __name__ == "__main__":
    main()
