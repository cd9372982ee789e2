"""The attributes of one object, cleaned in place at every depth.

The table's rules come first. What they leave is then searched for the names and numbers that the file itself gave its
patient, physicians and orders: a patient's name that someone typed into the label of a coil goes too. Of coded strings
only the value that holds one goes, and a value that is a term of the standard stays: a patient may be called Head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

from medvol.io.deid_dates import moved
from medvol.io.deid_key import hashed_uid
from medvol.io.deid_profile import CLEAN, EMPTY, KEEP, REPLACE, UID, Profile, is_registered, is_unknown

_DATES = ("DA", "DT", "TM")
_TEXTS = ("AE", "LO", "LT", "SH", "ST", "UC", "UR", "UT")
_WORDS = (
    "ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER SCOUT VOLUME OTHER NONE YES NO MPR MIP NORM STATIC DYNAMIC "
    "WHOLE BODY GATED SPIN HFS HFP HFDR HFDL FFS FFP FFDR FFDL MONOCHROME1 MONOCHROME2 RGB YBR_FULL YBR_FULL_422 "
    "SEG REG RTSTRUCT RTPLAN RTDOSE RTIMAGE RTRECORD IDENTITY INVERSE LIN LOG RESAMPLED ADDITION MAGNITUDE PHASE "
    "ABDOMEN ANKLE AORTA ARM BACK BLADDER BRAIN BREAST CHEST COLON EAR ELBOW EYE FACE FINGER FOOT HAND HEAD "
    "HEADNECK HEART HIP JAW KIDNEY KNEE LEG LIVER LUNG NECK NOSE ORBIT PELVIS PROSTATE RIB SHOULDER SKULL SPINE "
    "CSPINE TSPINE LSPINE SPLEEN STERNUM STOMACH THIGH THORAX THUMB TOE TONGUE UTERUS WHOLEBODY WRIST"
)
_TERMS = frozenset(_WORDS.split())
"""Defined terms of PS3.3 and PS3.16 that are words, as names are, or that a reader of the pixels needs."""

_BIRTH = (0x00100030, 0x00100032)
_ROI_NAME = 0x30060026
_CHARSET = 0x00080005
_PIXELS = (0x7FE00001, 0x7FE00002, 0x7FE00003, 0x7FE00008, 0x7FE00009, 0x7FE00010)

# What the patient and the orders are called; all person names count as well.
_IDENTIFIERS = (
    *(0x00100020, 0x00100021, 0x00101000, 0x00101090, 0x00101040, 0x00102154, 0x00080050, 0x00080080, 0x00080081),
    *(0x00380010, 0x00401001, 0x00402016, 0x00402017, 0x00401006, 0x00401007, 0x00120040, 0x00120042),
)
_SHORTEST_WORD, _SHORTEST_NUMBER = 3, 5
_SHORTEST_PART = 6  # letters from which on a name is also found within longer words


@dataclass(frozen=True)
class Cleaning:
    """How the objects of one patient are cleaned.

    Args:
        profile: Rules by attribute.
        key: Secret of the UIDs.
        days: Days by which dates move back; None when they are removed.
        keep_structure_names: Whether names of regions of interest stay, unless they hold an identifier.
    """

    profile: Profile
    key: bytes
    days: int | None = None
    keep_structure_names: bool = False


def clean(dataset: Any, how: Cleaning) -> int:
    """Clean a dataset in place, with the items of its sequences; return how many texts held an identifier.

    Every text is decoded, so that the object can be written in UTF-8.
    """
    words = set(_identifying_words(dataset))
    _clean_level(dataset, how, is_root=True)
    return _sweep(dataset, _pattern(frozenset(words)))


def _clean_level(dataset: Any, how: Cleaning, *, is_root: bool) -> None:
    for tag in list(dataset.keys()):
        if is_root and tag in _PIXELS:
            continue
        if is_unknown(tag) or tag in _PIXELS or (tag == _CHARSET and not is_root):
            del dataset[tag]
            continue
        element = dataset[tag]
        if element.VR in _DATES and how.days is not None and tag not in _BIRTH and _move(element, how.days):
            continue
        if tag == _ROI_NAME:
            _rename_region(dataset, element, how)
            continue
        _apply(dataset, element, how)


def _apply(dataset: Any, element: Any, how: Cleaning) -> None:
    rule = how.profile.rule(int(element.tag), element.VR)
    if rule == UID and element.VR == "UI":
        texts = _values(element)
        element.value = [one if not one or is_registered(one) else hashed_uid(one, how.key) for one in texts]
    elif rule == CLEAN:
        for item in element.value:
            _clean_level(item, how, is_root=False)
    elif rule == EMPTY:
        element.value = [] if element.VR == "SQ" else None
    elif rule == REPLACE and _has_dummy(element.VR):
        _replace(element)
    elif rule != KEEP:
        del dataset[element.tag]


def _has_dummy(vr: str) -> bool:
    return vr not in ("SQ", "UI", "AT", "OD", "OF", "OL", "OV", "OW", "SV", "UV")


def _replace(element: Any) -> None:
    import_module("dicomanonymizer.simpledicomanonymizer").replace_element(element)


def _move(element: Any, days: int) -> bool:
    """Move the dates of an element; return False, and leave it to the table, when one is no plain date."""
    texts = [moved(one, element.VR, days) for one in _values(element) if one]
    if None in texts:
        return False
    element.value = texts or None
    return True


def _rename_region(dataset: Any, element: Any, how: Cleaning) -> None:
    """Number a region of interest; an empty name, as the table has it, would make several regions one."""
    if not how.keep_structure_names:
        number = _values(dataset["ROINumber"])[0] if "ROINumber" in dataset else ""
        element.value = f"ROI {int(number)}" if number else None


def _values(element: Any) -> list[str]:
    value = element.value
    if value is None:
        return []
    return [str(one).strip(" \0") for one in (value if hasattr(value, "append") else [value])]


def _identifying_words(dataset: Any) -> Iterator[str]:
    """Yield names of persons, identifiers and the date of birth, at every depth."""
    for tag in list(dataset.keys()):
        if tag.is_private or tag in _PIXELS or is_unknown(tag):
            continue
        element = dataset[tag]
        if element.VR == "SQ":
            for item in element.value:
                yield from _identifying_words(item)
        elif element.VR == "PN":
            for text in _values(element):
                yield from re.split(r"[\^=\s,.]+", text)
        elif tag in _IDENTIFIERS or tag == _BIRTH[0]:
            yield from _values(element)


@lru_cache(maxsize=64)
def _pattern(words: frozenset[str]) -> re.Pattern[str] | None:
    """Return what finds one of the words, whatever its case; short ones only as whole words."""
    texts = sorted({one.strip() for one in words if _is_telling(one.strip())})
    if not texts:
        return None
    whole = "|".join(map(re.escape, texts))
    parts = [re.escape(one) for one in texts if len(one) >= _SHORTEST_PART]
    return re.compile("|".join([rf"(?<![^\W_])(?:{whole})(?![^\W_])", *parts]), re.IGNORECASE)


def _is_telling(word: str) -> bool:
    if word.isdigit():
        return len(word) >= _SHORTEST_NUMBER
    return len(word) >= (_SHORTEST_WORD if word.isascii() else 2)


def _sweep(dataset: Any, pattern: re.Pattern[str] | None) -> int:
    """Replace the texts that hold an identifier; remove bytes that do."""
    if pattern is None:
        return 0
    count = 0
    for element in list(_kept(dataset)):
        if element.VR == "SQ":
            count += sum(_sweep(item, pattern) for item in element.value)
        elif element.VR == "CS":
            count += _sweep_codes(element, pattern)
        elif element.VR in _TEXTS and any(map(pattern.search, _values(element))):
            _replace(element)
            count += 1
        elif isinstance(element.value, bytes) and pattern.search(element.value.decode("latin-1")):
            del dataset[element.tag]
            count += 1
    return count


def _sweep_codes(element: Any, pattern: re.Pattern[str]) -> int:
    """Replace the values of a coded string that hold an identifier and are no defined term; tell whether any did."""
    values = _values(element)
    kept = [one if one in _TERMS or not pattern.search(one) else "ANONYMIZED" for one in values]
    if kept != values:
        element.value = kept
    return int(kept != values)


def _kept(dataset: Any) -> Iterable[Any]:
    return (dataset[tag] for tag in list(dataset.keys()) if tag not in _PIXELS)
