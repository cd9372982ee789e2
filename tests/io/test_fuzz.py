"""Damaged bytes: a volume or a refusal, never another exception."""

import io
import warnings

import numpy as np
import pytest

from medvol.errors import MedvolError
from medvol.io import ReadOptions, find_volumes, read_volume

CASES = 300
OPTIONS = ReadOptions(max_bytes=1 << 24)


def _damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip up to 4 bytes, cut, or write a run of one byte; mostly in the first kilobyte, where the headers are."""
    changed = bytearray(data)
    limit = len(data) if rng.random() < 0.3 else min(len(data), 1000)
    kind = rng.integers(4)
    if kind == 0:
        return bytes(changed[: rng.integers(len(data))])
    if kind == 1:
        start = int(rng.integers(limit))
        changed[start : start + 8] = bytes([rng.integers(256)]) * 8
        return bytes(changed[: len(data)])
    for position in rng.integers(limit, size=rng.integers(1, 5)):
        changed[position] = rng.integers(256)
    return bytes(changed)


@pytest.fixture
def originals(tmp_path, voxels, write_nifti, write_series) -> dict[str, bytes]:
    array, archive = io.BytesIO(), io.BytesIO()
    np.save(array, voxels)
    np.savez_compressed(archive, x=voxels)
    return {
        "a.nii": write_nifti(tmp_path / "x.nii", voxels).read_bytes(),
        "a.nii.gz": write_nifti(tmp_path / "x.nii.gz", voxels).read_bytes(),
        "a.npy": array.getvalue(),
        "a.npz": archive.getvalue(),
        "a.dcm": write_series(tmp_path / "series", voxels[..., :1])[0].read_bytes(),
    }


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.npy", "a.npz", "a.dcm"])
def test_only_refusals_escape_from_damaged_files(tmp_path, originals, name):
    rng = np.random.default_rng(20260101)
    path = tmp_path / name
    outcomes = {"read": 0, "refused": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for case in range(CASES):
            path.write_bytes(_damage(originals[name], rng))
            message = ""
            try:
                read_volume(path, options=OPTIONS)
            except MedvolError as error:
                message = str(error)
            except Exception as error:
                pytest.fail(f"case {case}: {type(error).__name__}: {error}")
            outcomes["refused" if message else "read"] += 1
            assert len(message) <= 300, message
    assert outcomes["refused"] > 0, outcomes
    # Checksums leave hardly a damaged byte unnoticed; without them some damage must stay readable.
    assert outcomes["read"] > 0 or name in ("a.nii.gz", "a.npz"), outcomes


def test_finding_volumes_among_damaged_files_only_lists_or_refuses(tmp_path, originals):
    rng = np.random.default_rng(7)
    folder = tmp_path / "many"
    folder.mkdir()
    for case in range(60):
        for name, data in originals.items():
            (folder / f"{case}_{name}").write_bytes(_damage(data, rng))
    found = find_volumes(folder)
    assert len({one.name for one in found}) == len(found) >= 60 * 4
