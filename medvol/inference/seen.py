"""Whom a model has seen: digests under which patients are remembered without their names.

A patient column is an identity, and so is the name of a file where there is no such column: `hippocampus_001` in two
studies is taken for one patient, and who refuses that can name the patients. The numbers that medvol gives to rows of
a table or an array without names, as `row_0000` or `test_0000`, are none: any other source's first row has the same.
Such a number is digested together with what tells its source from others: the size and both ends of the array's file,
or all covariates of the table. So the very source is known again, also as the `cases.csv` of a run, under any split,
and another one is not taken for it. A part of a source, or a changed one, is not known again, which is said.

Rejected: to digest a row's own values, as rows of age and sex are equal by chance.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Collection
from pathlib import Path

from medvol.data.cache_key import ends_of
from medvol.data.study import Case, Study
from medvol.errors import MedvolError
from medvol.inference.record import patient_digest
from medvol.io.reference import Reference, parse_reference

logger = logging.getLogger(__name__)

_ROW = re.compile(r"row_\d{4,}")
_ARRAY_ROW = re.compile(r"(?:train|val|test|case)_(\d{4,})")


def digests_of(study: Study) -> dict[str, str]:
    """Return the digest of each patient of a study."""
    numbered = _numbered(study)
    return {case.patient: patient_digest(numbered.get(case.patient, case.patient)) for case in study.cases}


def patients_among(study: Study, seen: Collection[str]) -> set[str]:
    """Return the patients of a study whose digests are among those of a record."""
    return {patient for patient, digest in digests_of(study).items() if digest in seen}


def warn_of_numbers(study: Study, split: str) -> None:
    """Log a warning where patients of a split, of whom none is known, have numbers for names."""
    asked = {case.patient for case in study.cases if case.split == split}
    numbers = asked & _numbered(study).keys()
    if numbers:
        logger.warning(
            "%d of %d %s patients have no names but numbers of rows: whether the model was trained on them is known of "
            "the very table or array of its training only; a column 'patient' with names in both studies would tell",
            len(numbers),
            len(asked),
            split,
        )


def _numbered(study: Study) -> dict[str, str]:
    """Return the patients that have a number for a name, each with what tells its source from others."""
    table = ""
    arrays: dict[Path, str] = {}
    numbered = {}
    for case in study.cases:
        array = _array_row(case)
        if array is not None:
            if array.path not in arrays:
                arrays[array.path] = _content(array.path)
            numbered[case.patient] = f"{arrays[array.path]} {array.key} {array.index}"
        elif case.patient == case.case and _ROW.fullmatch(case.case):
            table = table or _values(study)
            numbered[case.patient] = f"{table} {case.case}"
    return numbered


def _array_row(case: Case) -> Reference | None:
    """Return the row of an array that a case is named after, or None."""
    number = _ARRAY_ROW.fullmatch(case.case)
    if number is None or case.patient != case.case or len(case.image) != 1:
        return None
    try:
        reference = parse_reference(case.image[0])
    except MedvolError:  # whoever reads it refuses it, with its case
        return None
    return reference if reference.index == int(number[1]) else None


def _content(path: Path) -> str:
    try:
        return f"{path.stat().st_size} {ends_of(path).hex()}"
    except OSError:  # whoever reads it refuses it, with its case
        return str(path)


def _values(study: Study) -> str:
    rows = [list(case.covariates.values()) for case in study.cases]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
