"""`report.html`: everything a reader of the results needs, in one file that can be mailed, printed and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvol import __version__
from medvol.io.atomic import write_text
from medvol.report import html_classes, html_structures
from medvol.report.html_cohort import cohort
from medvol.report.html_environment import checksums, environment, training
from medvol.report.html_metrics import headline, metrics
from medvol.report.html_page import Section, note, page, paragraph
from medvol.report.html_pictures import CasePicture
from medvol.report.html_run import RunFiles, read_run

REPORT_FILE = "report.html"
LARGEST_BYTES = 5_000_000
NOT_FOR_CLINICAL_USE = "Research use only. Not for clinical use: no diagnosis or treatment may rest on these numbers."


@dataclass(frozen=True)
class Shown:
    """What a report shows that is in no file of the run.

    Args:
        pictures: Cases with their slices.
        notes: What was assumed or left out when the study was opened.
        structures: Name to label of what the pictures outline.
        importances: From `medvol.explain.permutation.auc_drops`, of a model of table rows.
    """

    pictures: Sequence[CasePicture] = ()
    notes: Sequence[str] = ()
    structures: Mapping[str, int] = field(default_factory=dict)
    importances: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def write_html_report(output_dir: str | Path, record: Mapping[str, Any], shown: Shown | None = None) -> Path:
    """Write `report.html` from the files that an evaluation has left and return its path.

    Pictures are left out from the end where the file would grow over `LARGEST_BYTES`.

    Args:
        output_dir: Folder with metrics.json and predictions.csv; cases.csv, history.csv and run.json are used if there.
        record: Of the run as in run.json: `command`, `config`, `versions`, `machine`, `outputs`.
        shown: Pictures and what else is in no file.
    """
    shown = shown or Shown()
    run, pictures = read_run(output_dir), list(shown.pictures)
    document = _document(run, record, shown, pictures)
    while pictures and len(document.encode()) > LARGEST_BYTES:
        pictures.pop()
        document = _document(run, record, shown, pictures)
    path = Path(output_dir) / REPORT_FILE
    write_text(path, document)
    return path


def _document(run: RunFiles, record: Mapping[str, Any], shown: Shown, pictures: Sequence[CasePicture]) -> str:
    result = run.metrics
    if "structures" in result:
        chapters = [
            Section("Structures", html_structures.by_structure(run)),
            Section("Volumes", html_structures.volumes(run)),
            Section("Cases", html_structures.cases(run, pictures, shown.structures)),
        ]
    else:
        chapters = [
            Section("Curves", html_classes.curves(run)),
            Section("Confusion", html_classes.confusion(run)),
            Section("Columns", html_classes.importances(shown.importances)),
            Section("Cases", html_classes.cases(run, pictures)),
        ]
    sections = [
        Section("Metrics", metrics(result)),
        *chapters,
        Section("Cohort", cohort(run, shown.notes)),
        Section("Training", training(run)),
        Section("Environment", environment(record, run.training)),
        Section("Checksums", checksums(record["outputs"], run.folder)),
    ]
    head = note(NOT_FOR_CLINICAL_USE) + headline(result)
    foot = paragraph(f"Written by medvol {__version__}. {NOT_FOR_CLINICAL_USE}", "soft")
    return page(f"{result['bundle']}, {result['split']} split", head, sections, foot)
