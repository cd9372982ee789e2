"""Importing medvol is quick, and says so when PyPI's other medvol is in its place."""

import subprocess
import sys

import medvol


def imported(extra_path):
    code = f"import sys; sys.path.insert(0, {str(extra_path)!r}); import medvol; print(medvol.__version__)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_the_namesake_is_pointed_out_with_the_fix(tmp_path):
    info = tmp_path / "medvol-0.0.20.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: medvol\nVersion: 0.0.20\n")
    result = imported(tmp_path)
    assert "Another package called 'medvol' (0.0.20)" in result.stderr
    assert "pip uninstall medvol" in result.stderr


def test_without_it_nothing_is_said(tmp_path):
    result = imported(tmp_path)
    assert (result.stdout.strip(), result.stderr) == (medvol.__version__, "")


def test_help_names_the_commands_and_the_way_to_train():
    result = subprocess.run([sys.executable, "-m", "medvol.cli", "--help"], capture_output=True, text=True, check=True)
    assert "table" in result.stdout
    assert "python -m monai.bundle run" in result.stdout
    assert "Not for clinical use" in result.stdout


def test_a_refusal_on_the_command_line_is_one_line_and_exit_code_1(tmp_path):
    command = [
        sys.executable,
        "-m",
        "medvol.cli",
        "table",
        str(tmp_path / "nowhere.csv"),
        "-o",
        str(tmp_path / "o.csv"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("medvol: NOT_FOUND")
    assert "Traceback" not in result.stderr
