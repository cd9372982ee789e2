"""Files of an earlier training, moved aside and never lost."""

import os

import pytest

from medvol.errors import MedvolError
from medvol.training.earlier import set_aside


def write(path, text, seconds=0):
    path.write_text(text)
    os.utime(path, (seconds, seconds))
    return path


def kept(folder):
    return sorted(path.read_text() for path in (folder / "earlier").rglob("model.pt"))


def test_models_of_one_second_are_both_kept(tmp_path):
    for text in ("first", "second"):
        set_aside(write(tmp_path / "model.pt", text), tmp_path / "model.json")
    assert kept(tmp_path) == ["first", "second"]
    assert len({path.parent for path in (tmp_path / "earlier").rglob("model.pt")}) == 2


def test_files_that_belong_together_stay_together(tmp_path):
    set_aside(write(tmp_path / "model.pt", "weights", 0), write(tmp_path / "model.json", "record", 99))
    (folder,) = (tmp_path / "earlier").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.pt"]
    assert not (tmp_path / "model.pt").exists()


def test_where_nothing_is_nothing_is_made(tmp_path):
    set_aside(tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_refused_and_the_model_stays(tmp_path):
    (tmp_path / "earlier").write_text("a file of that name")
    with pytest.raises(MedvolError, match="CANNOT_WRITE.*earlier"):
        set_aside(write(tmp_path / "model.pt", "weights"))
    assert (tmp_path / "model.pt").read_text() == "weights"
