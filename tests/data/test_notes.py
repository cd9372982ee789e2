"""What readers note is told once for each kind, with the first case and the number of the others."""

import logging

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd

from medvol.bundle.finish import count_predicted
from medvol.data.cache import CachedVolumes
from medvol.data.notes import ReaderNotes
from medvol.inference.volumes import VolumesToPredict
from medvol.transforms.load import LoadVolumed


@pytest.fixture
def items(tmp_path):
    """A case whose two transforms agree, and two in which they are 50 mm apart."""
    for name, shift in (("a", 0.0), ("b", 50.0), ("c", 51.5)):
        affine = np.diag([-1.0, 1.5, 3.0, 1.0])
        image = nib.Nifti1Image(np.arange(7 * 8 * 9, dtype=np.float64).reshape(7, 8, 9), None)
        image.set_sform(affine, 1)
        affine[0, 3] = shift
        image.set_qform(affine, 1)
        nib.save(image, tmp_path / f"{name}.nii.gz")
    return [{"case": name, "patient": name, "image": str(tmp_path / f"{name}.nii.gz")} for name in "abc"]


def chain():
    return Compose([LoadVolumed(keys="image"), EnsureChannelFirstd(keys="image")])


def told(caplog):
    return [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]


EXPECTED = [
    "Read with a note: case b: qform and sform disagree by 50 mm and 0 degrees; the sform was used (and 1 more cases)"
]


def test_a_prediction_tells_what_was_noted_and_keeps_it_for_its_record(items, caplog):
    volumes = VolumesToPredict(items, chain(), show_progress=False)
    list(volumes)
    assert told(caplog) == EXPECTED
    assert [f"Read with a note: {line}" for line in count_predicted("Segmented", 3, volumes)["notes"]] == EXPECTED


def test_a_training_tells_it_again_when_volumes_come_from_the_cache(items, tmp_path, caplog):
    for _ in range(2):
        caplog.clear()
        CachedVolumes(items, chain(), cache_dir=tmp_path / "cache", progress=False).fill()
        assert told(caplog) == EXPECTED


def test_notes_that_differ_by_numbers_or_names_are_of_one_kind():
    notes = ReaderNotes()
    notes.add("a", ["1 files dropped, same image at the same position: 001.dcm", "gantry tilt 13.5 deg"])
    notes.add("b", ["2 files dropped, same image at the same position: 002.dcm, 003.dcm"])
    notes.add("b", ["2 files dropped, same image at the same position: 002.dcm, 003.dcm"])
    assert notes.lines() == [
        "case a: 1 files dropped, same image at the same position: 001.dcm (and 1 more cases)",
        "case a: gantry tilt 13.5 deg",
    ]
