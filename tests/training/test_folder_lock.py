"""Two trainings into one folder: the second is refused, whatever became of earlier ones."""

import signal
import subprocess
import sys

import pytest

from medvol.errors import MedvolError
from medvol.training import folder_lock
from medvol.training.folder_lock import LOCK_FILE, lock_folder, unlock_folder

HOLD = """
import sys
from pathlib import Path
from medvol.training.folder_lock import lock_folder
lock = lock_folder(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_training_is_refused_with_the_process_of_the_first(tmp_path, holder):
    with pytest.raises(MedvolError, match=f"BUSY: .*process {holder.pid} on .*--output_dir"):
        lock_folder(tmp_path)


def test_a_killed_training_leaves_the_folder_free(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK_FILE).is_file()
    unlock_folder(tmp_path, lock_folder(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_process_may_train_again_where_a_run_of_its_own_was_interrupted(tmp_path):
    first = lock_folder(tmp_path)
    unlock_folder(tmp_path, lock_folder(tmp_path))
    unlock_folder(tmp_path, first)


@pytest.mark.parametrize("error", [OSError(95, "Operation not supported"), OSError(37, "No locks available")])
def test_where_there_are_no_locks_a_training_goes_on(tmp_path, monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(folder_lock.fcntl, "lockf", refuse)
    assert lock_folder(tmp_path) is None


def test_a_folder_that_cannot_be_is_left_to_those_who_write(tmp_path):
    (tmp_path / "file").write_text("")
    assert lock_folder(tmp_path / "file" / "folder") is None
