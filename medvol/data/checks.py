"""Checks of a study at the border: names, channels, labels, splits, files. Each refusal has its code.

Messages name cases and files, never the content of the patient column: it may hold names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from medvol.data.labels import require_class
from medvol.data.paths import existence, file_of
from medvol.data.study import SPLITS, Case, Study, raise_refusal
from medvol.errors import MedvolError, nearest

Report = Callable[[MedvolError], None]

SHOWN = 10  # findings listed in `details` before the rest is only counted

_BAD_NAME = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]|^\.|^\s|[\s.]$|^$')
_LONGEST_NAME = 180  # bytes; file systems allow 255, and endings and folders are added


def check_study(
    study: Study,
    *,
    require_label: bool = True,
    require_image: bool = True,
    for_prediction: bool = False,
    report: Report = raise_refusal,
) -> None:
    """Raise at the first thing that would make results from this study wrong, or report one after the other.

    Args:
        study: What was read.
        require_label: Whether every case must have a label.
        require_image: Whether a case may not lack the images that others have.
        for_prediction: Whether each case stands for itself: no split divides anything, and a missing file is for its
            reader to refuse, unless all are missing.
        report: Takes each refusal; by default the first is raised.

    Raises:
        MedvolError: `EMPTY_DATASET`, `BAD_CASE_NAME`, `DUPLICATE_CASE`, `CHANNEL_MISMATCH`, `NO_LABEL`, `BAD_LABEL`,
            `UNKNOWN_LABEL`, `ONE_CLASS`, `BAD_SPLIT`, `SPLIT_LEAK` or `MISSING_FILE`.
    """
    if not study.cases:
        raise MedvolError(
            "EMPTY_DATASET", file=study.source, found="no case", expected="at least one", fix="check the source"
        )
    attempt(report, check_names, study)
    attempt(report, _check_channels, study, require_image)
    if require_label:
        attempt(report, check_labels_present, study)
    attempt(report, _check_labels, study, require_label)
    if not for_prediction:
        check_splits(study, report)
    attempt(report, _check_files, study, for_prediction)


def attempt(report: Report, check: Callable[..., None], *arguments: Any) -> None:
    """Call a check and pass its refusal on."""
    try:
        check(*arguments)
    except MedvolError as refusal:
        report(refusal)


def check_names(study: Study) -> None:
    """Raise `BAD_CASE_NAME` or `DUPLICATE_CASE`; names that differ only in capitals share one file on many disks."""
    seen: dict[str, str] = {}
    for case in study.cases:
        name = case.case
        if _BAD_NAME.search(name) or len(name.encode()) > _LONGEST_NAME:
            raise MedvolError(
                "BAD_CASE_NAME",
                case=repr(name[:60]),
                file=study.source,
                found="a name that cannot be a file name",
                expected=f'at most {_LONGEST_NAME} bytes, no / \\ : * ? " < > |, no leading or trailing dot or space',
                fix="rename the case",
            )
        other = seen.get(name.casefold())
        seen[name.casefold()] = name
        if other is not None:
            times = sum(1 for one in study.cases if one.case == name)
            raise MedvolError(
                "DUPLICATE_CASE",
                case=name,
                file=study.source,
                found=f"{times} cases of this name" if times > 1 else f"it differs from '{other}' only in capitals",
                expected="unique names",
                fix="rename one; to group the images of one patient use the column 'patient'",
            )


def check_labels_present(study: Study) -> None:
    """Raise `NO_LABEL` when a case has no label."""
    without = [case.case for case in study.cases if case.label is None]
    if without:
        raise MedvolError(
            "NO_LABEL",
            case=without[0],
            file=study.source,
            found=f"{len(without)} of {len(study.cases)} cases have no label",
            expected="a label for each",
            fix="add it, or remove the case",
            details=without[:SHOWN],
        )


def check_splits(study: Study, report: Report = raise_refusal) -> None:
    """Raise `BAD_SPLIT` for another word than train, val, test, and `SPLIT_LEAK` when a split divides a patient.

    One image under two patients is a leak as well, whatever the splits are now: they are drawn by patient.
    """
    for case in study.cases:
        if case.split is not None and case.split not in SPLITS:
            report(bad_split(case.split, case=case.case, file=study.source))
    leaks: tuple[tuple[Callable[[Case], Iterable[str]], Callable[[Case], str | None], str], ...] = (
        (lambda case: [case.patient], lambda case: case.split, "one patient has cases in two splits"),
        (lambda case: case.image, lambda case: case.patient, "one image belongs to two patients"),
    )
    for keys, side, found in leaks:
        attempt(report, _check_leak, study, keys, side, found)


def bad_split(value: str, *, case: str, file: str) -> MedvolError:
    """Return the refusal of a split that is none of train, val, test."""
    return MedvolError(
        "BAD_SPLIT",
        case=case,
        file=file,
        found=f"split '{value[:40]}'",
        expected=", ".join(SPLITS),
        fix=nearest(value.lower(), SPLITS) or "correct the column, or leave it empty",
    )


def _check_leak(
    study: Study, keys: Callable[[Case], Iterable[str]], side: Callable[[Case], str | None], found: str
) -> None:
    first: dict[str, Case] = {}
    leaks: list[tuple[Case, Case]] = []
    for case in study.cases:
        if side(case) is None:
            continue
        for key in keys(case):
            other = first.setdefault(key, case)
            if side(other) != side(case):
                leaks.append((other, case))
    if not leaks:
        return
    other, case = leaks[0]
    raise MedvolError(
        "SPLIT_LEAK",
        case=case.case,
        file=study.source,
        found=f"{found}: here and case {other.case[:60]} ({len(leaks)} such cases)",
        expected="each patient on one side",
        fix="correct patients or splits, or leave the splits out to have medvol draw them",
        details=[f"{one.case} ({one.split}) and {two.case} ({two.split})" for one, two in leaks[:SHOWN]],
    )


def _check_channels(study: Study, require_image: bool) -> None:
    first = next((case for case in study.cases if case.image or require_image), study.cases[0])
    expected = len(first.image)
    for case in study.cases:
        if len(case.image) != expected and (case.image or require_image):
            raise MedvolError(
                "CHANNEL_MISMATCH",
                case=case.case,
                file=study.source,
                found=f"{len(case.image)} images",
                expected=f"{expected}, as in case {first.case}",
                fix="give every case the same images",
            )


def _check_labels(study: Study, require_label: bool) -> None:
    if study.task == "classification":
        for case in study.cases:
            if case.label is not None:
                require_class(str(case.label), study.classes, case=case.case, file=study.source)
        counts = Counter(str(case.label) for case in study.cases if case.label is not None)
        if require_label and len(study.classes) < 2:
            raise MedvolError(
                "ONE_CLASS",
                file=study.source,
                found=f"all {sum(counts.values())} labels are '{'/'.join(study.classes)[:40]}'",
                expected="at least two classes",
                fix="check the label column",
            )
        return
    wanted = {"regression": float, "segmentation": str}.get(study.task)
    for case in study.cases:
        if wanted and case.label is not None and not isinstance(case.label, wanted):
            raise MedvolError(
                "BAD_LABEL",
                case=case.case,
                file=study.source,
                found=f"label {str(case.label)[:40]!r}",
                expected="a number" if wanted is float else "the path of a mask",
                fix=f"correct the label, or the task '{study.task}'",
            )


def _check_files(study: Study, for_prediction: bool) -> None:
    exists = existence()
    missing: list[tuple[str, str]] = []
    total = 0
    for case in study.cases:
        reads_mask = study.task == "segmentation" and not for_prediction
        masks = [str(case.label)] if reads_mask and case.label is not None else []
        for reference in [*case.image, *masks]:
            total += 1
            if not exists(reference):
                missing.append((case.case, reference))
    failed = {name for name, _ in missing}
    if not missing or (for_prediction and len(failed) < len(study.cases)):
        return
    name, reference = missing[0]
    raise MedvolError(
        "MISSING_FILE",
        case=name,
        file=file_of(reference) if "#" in reference else reference,
        found=f"{len(missing)} of {total} files do not exist, this is the first",
        expected="every file",
        fix=_nearest_file(reference) or "check the paths; they are relative to the table",
        details=[f"{case}: {path}" for case, path in missing[:SHOWN]],
    )


def _nearest_file(reference: str) -> str:
    path = Path(file_of(reference))
    while not path.parent.exists():
        path = path.parent
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return ""
    return nearest(path.name, names[:20_000])
