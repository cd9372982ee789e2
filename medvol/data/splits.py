"""Splits by patient: no patient on two sides, each class with its share, the same for any order of the rows.

Patients are ordered by a SHA-256 of seed and patient, so that a split depends on nothing but the table's content and
the seed: neither on the order of its rows, nor on the platform, nor on a random generator's version.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace

from medvol.data.allocation import Group, allocate
from medvol.data.build import class_gaps
from medvol.data.checks import check_splits
from medvol.data.study import SPLITS, Case, Study
from medvol.errors import MedvolError

FRACTIONS = (0.7, 0.15, 0.15)
TRAIN, VAL, TEST = range(3)

DRAWN = "split by patient"
"""How the note of a split begins that medvol drew itself."""

MOST_BINS = 10
"""Quantile bins of a number to regress; ten cases or more in each."""


def assign_splits(study: Study, *, fractions: Sequence[float] = FRACTIONS, seed: int = 0) -> Study:
    """Return the study with a split for every case.

    A split that is complete is kept. Where every row is train or test, val is taken out of train in the proportion of
    the fractions, never out of test. Where some rows have no split, a val or test that others have is complete: the
    rest is divided among train and what is missing, and a row follows its patient's other rows.

    Strata are the classes, or quantile bins of the number to regress; masks and unlabelled cases are grouped only. A
    class with at least as many patients as there are splits is in each of them, unless patients with cases of several
    classes make that impossible; the notes name any class that a split lacks.

    Args:
        study: The study.
        fractions: Share of cases in train, val and test, summing to one; train must be above zero.
        seed: Any integer; another one gives another split.

    Raises:
        MedvolError: `BAD_FRACTIONS`, `TOO_FEW_PATIENTS`, `SPLIT_LEAK`.
    """
    shares = _checked_fractions(fractions)
    check_splits(study)
    given = {case.split for case in study.cases}
    opened: list[int] = []
    if None in given:
        opened = [TRAIN, *(part for part in (TEST, VAL) if SPLITS[part] not in given and shares[part])]
    elif given in ({"train"}, {"train", "test"}) and shares[VAL]:
        opened = [TRAIN, VAL]
    if not opened:
        return replace(study, notes=(*study.notes, f"split kept as given: {_counts(study.cases)}"))
    side_of = {case.patient: case.split for case in study.cases if case.split is not None}
    free = [case for case in study.cases if side_of.get(case.patient, "train") == "train"]
    pinned = {patient: 0 for patient, side in side_of.items() if side == "train"} if None in given else {}
    groups = _groups(study, free, seed, pinned)
    _require_patients(study, len(groups), len(opened))
    whole = sum(shares[part] for part in opened)
    # In the order train, test, val: a class with two patients is learnt and tested; tuning can do without it.
    parts = allocate(groups, [shares[part] / whole for part in opened], range(len(opened)))
    split_of = {group.patient: SPLITS[opened[part]] for group, part in zip(groups, parts, strict=True)}
    cases = tuple(replace(case, split=split_of.get(case.patient) or side_of[case.patient]) for case in study.cases)
    changed = replace(study, cases=cases)
    taken = "" if None in given else "val taken out of train, "
    note = f"{DRAWN}, {taken}seed {seed}: {_counts(cases)}"
    return replace(changed, notes=(*study.notes, note, *class_gaps(changed)))


def fold_splits(study: Study, folds: int, *, seed: int = 0) -> tuple[Study, ...]:
    """Return one study per fold, its fold in `val` and the others in `train`; cases of the split `test` stay there.

    Where the source numbers exactly that many folds itself (covariate `fold`, as in a MONAI datalist), those are kept.

    Raises:
        MedvolError: `UNKNOWN_OPTION` for less than two folds, `TOO_FEW_PATIENTS`, `SPLIT_LEAK`.
    """
    if folds < 2:
        raise MedvolError(
            "UNKNOWN_OPTION", found=f"{folds} folds", expected="at least 2", fix="for one split use assign_splits"
        )
    check_splits(study)
    cases = [case for case in study.cases if case.split != "test"]
    fold_of, origin = _given_folds(cases, folds), "the source's own"
    if not fold_of:
        groups = _groups(study, cases, seed, {})
        _require_patients(study, len(groups), folds)
        parts = allocate(groups, [1 / folds] * folds, range(folds))
        fold_of = {group.patient: part for group, part in zip(groups, parts, strict=True)}
        origin = f"seed {seed}"
    return tuple(_fold(study, fold_of, fold, f"fold {fold + 1} of {folds}, {origin}") for fold in range(folds))


def _fold(study: Study, fold_of: dict[str, int], fold: int, title: str) -> Study:
    cases = tuple(
        case if case.split == "test" else replace(case, split="val" if fold_of[case.patient] == fold else "train")
        for case in study.cases
    )
    changed = replace(study, cases=cases)
    return replace(changed, notes=(*study.notes, f"{title}, by patient: {_counts(cases)}", *class_gaps(changed)))


def _given_folds(cases: Sequence[Case], folds: int) -> dict[str, int]:
    """Return the fold of each patient as the source numbers them, or nothing when that is not `folds` whole folds."""
    values = sorted({value for case in cases if (value := case.covariates.get("fold")) is not None}, key=str)
    if len(values) != folds or any(case.covariates.get("fold") is None for case in cases):
        return {}
    fold_of: dict[str, int] = {}
    for case in cases:
        fold = values.index(case.covariates["fold"] or 0.0)
        if fold_of.setdefault(case.patient, fold) != fold:
            raise MedvolError(
                "SPLIT_LEAK",
                case=case.case,
                found="the source's folds put one patient into two folds",
                expected="each patient in one",
                fix="correct the folds, or remove them to have medvol split by patient",
            )
    return fold_of


def _groups(study: Study, cases: Sequence[Case], seed: int, pinned: dict[str, int]) -> list[Group]:
    """Return the patients of some cases with what they bring, in the order that patient and seed give."""
    stratum_of = _strata(study, cases)
    strata: dict[str, Counter[Hashable]] = {}
    for case, stratum in zip(cases, stratum_of, strict=True):
        strata.setdefault(case.patient, Counter())[stratum] += 1
    ordered = sorted(strata, key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
    return [Group(patient, strata[patient], pinned.get(patient)) for patient in ordered]


def _strata(study: Study, cases: Sequence[Case]) -> list[Hashable]:
    if study.task == "classification":
        return [case.label for case in cases]
    numbers = (
        sorted(float(case.label) for case in cases if case.label is not None) if study.task == "regression" else []
    )
    if not numbers:
        return [None] * len(cases)
    bins = min(MOST_BINS, max(1, len(numbers) // 10))
    # Equal numbers fall into one bin, whatever their rank.
    edges = [numbers[position * len(numbers) // bins] for position in range(1, bins)]
    return [None if case.label is None else sum(edge <= float(case.label) for edge in edges) for case in cases]


def _checked_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    shares = tuple(float(fraction) for fraction in fractions)
    good = len(shares) == 3 and all(math.isfinite(share) and share >= 0 for share in shares)
    if not good or abs(sum(shares) - 1) > 1e-6 or not shares[TRAIN]:
        raise MedvolError(
            "BAD_FRACTIONS",
            found=f"fractions {shares}, sum {sum(shares):g}",
            expected="three shares for train, val, test that sum to 1, train above 0",
            fix="for example (0.7, 0.15, 0.15)",
        )
    return shares


def _require_patients(study: Study, patients: int, parts: int) -> None:
    if patients < parts:
        raise MedvolError(
            "TOO_FEW_PATIENTS",
            file=study.source,
            found=f"{patients} patients for {parts} parts",
            expected="at least one patient in each",
            fix="add cases, or ask for fewer parts",
        )


def _counts(cases: Sequence[Case]) -> str:
    texts = []
    for split in SPLITS:
        chosen = [case for case in cases if case.split == split]
        if chosen:
            texts.append(f"{split} {len(chosen)} cases of {len({case.patient for case in chosen})} patients")
    return ", ".join(texts)
