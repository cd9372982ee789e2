"""From the draft that a reader made to a checked study: names, patients, splits, labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from medvol.data.checks import attempt, bad_split, check_names, check_study
from medvol.data.labels import Labels, class_name, is_missing, settle_labels
from medvol.data.paths import derive_names, existence
from medvol.data.study import SPLITS, Case, Draft, Options, Row, Study
from medvol.errors import MedvolError

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Spellings of the three splits that other tools write."""


def build_study(draft: Draft, options: Options) -> Study:
    """Settle names, patients, splits and labels of a draft and check the result.

    Raises:
        MedvolError: As `medvol.data.checks.check_study` and `medvol.data.labels.settle_labels`.
    """
    draft, dropped = _drop_unlabelled(draft, options)
    if not draft.rows:
        raise MedvolError(
            "EMPTY_DATASET", file=draft.source, found="no case", expected="at least one", fix="check the source"
        )
    names = _names(draft, options)
    splits, spelt = _splits(draft.rows, names, draft.source, options.report)
    attempt(options.report, _require_labels, draft, names, options)
    labels, settled = _labels(draft, names, options)
    cases = tuple(
        Case(name, _patient(row, name), row.image, label, split, row.covariates)
        for name, row, label, split in zip(names, draft.rows, labels.values, splits, strict=True)
    )
    laterality = (options.laterality_matters, draft.laterality_matters, True)
    study = Study(
        cases=cases,
        task=labels.task,
        classes=labels.classes,
        channels=draft.channels,
        laterality_matters=next(value for value in laterality if value is not None),
        source=draft.source,
        notes=(*draft.notes, *dropped, *spelt, *labels.notes, *_patient_note(draft.rows, options)),
        mask_values=draft.mask_values if labels.task == "segmentation" and not options.classes else (),
    )
    check_study(
        study,
        require_label=settled and options.require_label and options.task != "unlabelled",
        require_image=options.require_image,
        for_prediction=options.for_prediction,
        report=options.report,
    )
    return replace(study, notes=(*study.notes, *class_gaps(study)))


def class_gaps(study: Study) -> tuple[str, ...]:
    """Return a sentence for each class without a case in a split: it can be neither learnt nor measured there."""
    if study.task != "classification":
        return ()
    counts = Counter((case.split, case.label) for case in study.cases)
    splits = [split for split in SPLITS if any(case.split == split for case in study.cases)]
    return tuple(
        f"class '{name}' has no case in {split}"
        for split in splits
        for name in study.classes
        if not counts[split, name]
    )


def lists_to_splits(names: Sequence[str]) -> dict[str, str | None]:
    """Return the split that each of a source's own lists stands for.

    A source with one list (`training` alone) has not been split, so its list gives no split.
    """
    return {name: SPLIT_WORDS[name.lower()] if len(names) > 1 else None for name in names}


def _drop_unlabelled(draft: Draft, options: Options) -> tuple[Draft, tuple[str, ...]]:
    if not (draft.drop_unlabelled and options.require_label):
        return draft, ()
    kept = tuple(row for row in draft.rows if not is_missing(row.label))
    left_out = len(draft.rows) - len(kept)
    if not left_out or not kept:
        return draft, ()
    if len({row.split for row in kept}) == 1:  # the one list that is left is not a split
        kept = tuple(replace(row, split=None) for row in kept)
    return replace(draft, rows=kept), (f"{left_out} rows without a label were left out",)


def _labels(draft: Draft, names: Sequence[str], options: Options) -> tuple[Labels, bool]:
    """Return the labels, and whether they could be settled; none where the refusal was only reported."""
    try:
        return settle_labels(draft, names, options, existence()), True
    except MedvolError as refusal:
        options.report(refusal)
        return Labels("unlabelled", (None,) * len(names), ()), False


def _names(draft: Draft, options: Options) -> list[str]:
    if not any(row.case for row in draft.rows):
        names = derive_names([row.image for row in draft.rows])
        if len({name.casefold() for name in names}) == len(names):
            return names
        first = next(name for name, times in Counter(name.casefold() for name in names).items() if times > 1)
        where = [
            row.where or row.image[0] for name, row in zip(names, draft.rows, strict=True) if name.casefold() == first
        ]
        raise MedvolError(
            "DUPLICATE_CASE",
            case=first,
            file=draft.source,
            found=f"{len(where)} rows would get this name from their image",
            expected="unique names",
            fix="add a column 'case'; to group the images of one patient use 'patient'",
            details=where[:10],
        )
    for row in draft.rows:
        if not row.case:
            raise MedvolError(
                "BAD_CASE_NAME",
                file=draft.source,
                found=f"{row.where or 'a row'} has no case name",
                expected="a name in every row, or none at all",
                fix="fill the column 'case'",
            )
    names = [row.case or "" for row in draft.rows]
    study = Study(tuple(Case(name, name) for name in names), "unlabelled", source=draft.source)
    attempt(options.report, check_names, study)
    return names


def _splits(
    rows: Sequence[Row], names: Sequence[str], source: str, report: Callable[[MedvolError], None]
) -> tuple[list[str | None], tuple[str, ...]]:
    splits: list[str | None] = []
    respelt: dict[str, str] = {}
    for row, name in zip(rows, names, strict=True):
        text = "" if is_missing(row.split) else str(row.split).strip()
        split = SPLIT_WORDS.get(text.lower())
        if text and split is None:
            report(bad_split(text, case=name, file=source))
        if split is not None and text != split:
            respelt[text] = split
        splits.append(split)
    notes = [f"split '{text}' read as '{split}'" for text, split in sorted(respelt.items())]
    blank = splits.count(None)
    if 0 < blank < len(splits):
        notes.append(f"{blank} of {len(splits)} cases have no split yet")
    return splits, tuple(notes)


def _require_labels(draft: Draft, names: Sequence[str], options: Options) -> None:
    if options.task == "unlabelled" or not options.require_label:
        return
    without = [name for name, row in zip(names, draft.rows, strict=True) if is_missing(row.label)]
    if without:
        row = next(row for row in draft.rows if is_missing(row.label))
        shown = "" if row.label is None or not class_name(row.label) else f", this one '{row.label}'"
        raise MedvolError(
            "NO_LABEL",
            case=without[0],
            file=draft.source,
            found=f"{len(without)} of {len(names)} cases have no label{shown}",
            expected="a label for each",
            fix="add it, or remove the case",
            details=without[:10],
        )


def _patient(row: Row, name: str) -> str:
    return name if is_missing(row.patient) else str(row.patient)


def _patient_note(rows: Sequence[Row], options: Options) -> tuple[str, ...]:
    if options.for_prediction:
        return ()
    without = sum(is_missing(row.patient) for row in rows)
    if without == len(rows):
        return ("no patient column: every case counts as a patient of its own",)
    return (f"{without} cases without a patient count as patients of their own",) if without else ()
