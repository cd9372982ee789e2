"""Which column of a table plays which role: image, label, patient, split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

from medvol.data.build import SPLIT_WORDS
from medvol.data.columns import Table
from medvol.data.labels import is_missing
from medvol.errors import MedvolError, nearest

_ENDINGS = ("ids", "id", "names", "name", "paths", "path", "files", "file", "s")
_NUMBER_ENDINGS = ("numbers", "number", "num", "nr", "no", "code", "key")
"""Further endings of a patient's column alone: `image_no` is not an image."""

_PATIENTS = ("subject", "subj", "usubj", "participant", "person", "pat", "pid", "mrn")  # (u)subjid: as CDISC has it
_SPLITS = ("subset", "set", "partition")
"""Other names of the split; too common a word to go by without a look at the cells."""


def find_column(
    table: Table, wanted: str, default: str, *, optional: bool = True
) -> tuple[str | None, tuple[str, ...]]:
    """Return the column that a role is read from, and a note where its name differs from the one looked for.

    A name that the user gave must be there exactly. The default name is also recognised with other capitals, spaces,
    underscores or an ending (`Patient ID` for `patient`), a `subject` is a patient, and a `subset` of nothing but words
    for splits is the split, unless there is a column `split`. A near miss is refused, for a `pateint` column that is
    taken for a feature leaks patients across splits. An empty name means none.

    Raises:
        MedvolError: `MISSING_COLUMN` with the nearest name, `AMBIGUOUS_COLUMN`.
    """
    if not wanted:
        return None, ()
    if wanted in table.columns:
        return wanted, ()
    if wanted != default:
        raise missing_column(table, wanted)
    loose = _candidates(table, default)
    if len(loose) > 1:
        raise MedvolError(
            "AMBIGUOUS_COLUMN",
            file=table.file,
            found=f"columns {', '.join(loose)} could all be the {default}",
            expected=f"one column '{default}'",
            fix="rename one" + (", or name the other by --label-column" if default == "label" else ""),
        )
    if loose:
        return loose[0], (f"column '{loose[0]}' read as the {default}",)
    if not optional or get_close_matches(wanted, [name.lower() for name in table.columns], cutoff=0.8):
        raise missing_column(table, wanted)
    return None, ()


def missing_column(table: Table, wanted: str) -> MedvolError:
    """Return the refusal of a column that is not there, with the nearest one."""
    shown = ", ".join(name[:25] for name in table.columns[:6]) + (" ..." if len(table.columns) > 6 else "")
    by_lower = {name.lower(): name for name in reversed(table.columns)}
    match = get_close_matches(wanted.lower(), list(by_lower), n=1)
    hint = nearest(match[0], [match[0]]).replace(match[0], by_lower[match[0]]) if match else ""
    rename = f"rename the column to '{wanted}'" if wanted in ("label", "image", "patient", "split") else ""
    other = "or name another by --label-column" if wanted == "label" else ""
    return MedvolError(
        "MISSING_COLUMN",
        file=table.file,
        found=f"no column '{wanted[:40]}' among {len(table.columns)}: {shown}",
        fix=" ".join(part for part in (hint, rename, other) if part) or "check the name",
        details=table.columns,
    )


def require_no_hidden_split(table: Table, names: Sequence[str], split_column: str) -> None:
    """Raise `AMBIGUOUS_COLUMN` when a column that would be no split holds training and test rows in words.

    Args:
        table: The table, in which no split column was found.
        names: The columns that have no role of their own.
        split_column: What the user calls the split; empty where there shall be none.
    """
    for name in split_like(table, names) if split_column else ():
        raise MedvolError(
            "AMBIGUOUS_COLUMN",
            file=table.file,
            found=f"column '{name[:40]}' holds only words for splits, such as train and test, but is not named so",
            expected="the split in a column 'split'",
            fix="rename it to 'split', or remove it to have medvol split",
        )


def split_like(table: Table, names: Sequence[str]) -> list[str]:
    """Return those columns whose filled cells are all words for splits, for train and for another one."""
    found = []
    for name in names:
        splits = {SPLIT_WORDS.get(word) for word in _words(table, name)}
        if None not in splits and "train" in splits and len(splits) > 1:
            found.append(name)
    return found


def patient_columns(table: Table) -> list[str]:
    """Return the columns that seem to name patients."""
    return _candidates(table, "patient")


def _candidates(table: Table, role: str) -> list[str]:
    """Return the columns that may be meant by a role's default name, spelt otherwise or by a synonym."""
    own = [name for name in table.columns if _plain(name) == role]
    if role == "patient":
        return [name for name in table.columns if _plain(name, _NUMBER_ENDINGS) in (role, *_PATIENTS)]
    if role == "split" and not own:
        return [name for name in table.columns if _plain(name) in _SPLITS and _holds_splits(table, name)]
    return own


def _holds_splits(table: Table, name: str) -> bool:
    words = _words(table, name)
    return bool(words) and words <= set(SPLIT_WORDS)


def _words(table: Table, name: str) -> set[str]:
    return {str(cell).strip().lower() for cell in table.column(name) if not is_missing(cell)}


def _plain(name: str, further: tuple[str, ...] = ()) -> str:
    text = re.sub(r"[^a-z0-9]", "", name.lower())
    for ending in (*further, *_ENDINGS):
        if text.endswith(ending) and len(text) > len(ending) + 2:
            return text.removesuffix(ending)
    return text
