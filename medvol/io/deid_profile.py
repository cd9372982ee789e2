"""What becomes of each attribute: the table of PS3.15 Annex E as dicom-anonymizer has it, and rules for what it leaves.

The table names what is known to identify. Beyond it medvol removes what it does not know (private blocks, attributes in
no dictionary, overlays, curves), replaces every free text of a kind made for comments, and hashes every UID that DICOM
did not register: a file that states more than the table foresees must not leak for that.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version

from medvol.errors import MedvolError

REMOVE, EMPTY, REPLACE, UID, CLEAN, KEEP = "remove", "empty", "replace", "uid", "clean", "keep"
"""What may become of an attribute; `clean` looks into the items of a sequence."""

# Codes of the table. Where it leaves a choice, a value that stays valid in any object is taken, as the library does.
_OF_CODE = {
    "X_TAGS": REMOVE,
    **dict.fromkeys(("Z_TAGS", "X_Z_TAGS"), EMPTY),
    **dict.fromkeys(("D_TAGS", "Z_D_TAGS", "X_D_TAGS", "X_Z_D_TAGS"), REPLACE),
    "U_TAGS": UID,
    "X_Z_U_STAR_TAGS": CLEAN,
}

_OF_VR = {
    **dict.fromkeys(("LT", "ST", "UC", "UT"), REPLACE),
    **dict.fromkeys(("AE", "DA", "DT", "PN", "TM", "UN", "UR"), REMOVE),
    "UI": UID,
    "SQ": CLEAN,
}

# Not in the table of 2026c: identifiers, network addresses, descriptions of private blocks that are gone.
_FURTHER = {
    **dict.fromkeys((0x00100033, 0x00100034), REMOVE),  # dates of birth and death in another calendar
    **dict.fromkeys((0x00401006, 0x00401007, 0x00402006, 0x00402007), REMOVE),  # order numbers
    **dict.fromkeys((0x00080300, 0x00080310, 0x00080302, 0x00181803, 0x00102295, 0x00880130, 0x00540400), REMOVE),
    0x30020020: EMPTY,  # radiation machine name
    0x00700081: EMPTY,  # content description
    **dict.fromkeys((0x00080119, 0x00080120), KEEP),  # long code value, URN code value
}

_NEWER_SOP_CLASS = re.compile(r"1\.2\.840\.10008(\.\d+)+")
_CODING_SCHEME = re.compile(r"2\.16\.840\.1\.113883\.6(\.\d+)+")


@dataclass(frozen=True)
class Profile:
    """The rules of one edition of the table.

    Args:
        name: Edition of DICOM, as `2026c`.
        library: Version of dicom-anonymizer.
        rules: Rule by tag.
    """

    name: str
    library: str
    rules: Mapping[int, str]

    def rule(self, tag: int, vr: str) -> str:
        """Return what becomes of an attribute; its kind decides where the table does not name it."""
        found = self.rules.get(tag) or _FURTHER.get(tag) or _OF_VR.get(vr, KEEP)
        if vr == "SQ":
            # An item made of dummies says nothing; where the table allows no removal the object is refused.
            return REMOVE if found == REPLACE else found
        return REMOVE if found == CLEAN else found


def load_profile() -> Profile:
    """Return the newest edition that the installed dicom-anonymizer has.

    Raises:
        MedvolError: `NEED_PACKAGE`.
    """
    try:
        editions = import_module("dicomanonymizer.dicom_anonymization_databases")
        selector = import_module("dicomanonymizer.dicomfields_selector")
    except ImportError as error:
        raise MedvolError(
            "NEED_PACKAGE",
            found="dicom-anonymizer is not installed",
            fix="pip install 'medvol-monai[deid]' brings it",
        ) from error
    name = max(one.name for one in pkgutil.iter_modules(editions.__path__) if one.name.startswith("dicomfields_"))
    table = selector.dicom_anonymization_database_selector(name)
    rules = {
        tag[0] << 16 | tag[1]: rule
        for code, rule in _OF_CODE.items()
        for tag in table[code]
        if len(tag) == 2  # repeating groups, overlays and curves, go as a whole
    }
    return Profile(name.removeprefix("dicomfields_"), version("dicom-anonymizer"), rules)


def is_unknown(tag: int) -> bool:
    """Tell whether an attribute has no place in an object: private, in no dictionary, of an overlay or a curve."""
    from pydicom.datadict import dictionary_has_tag

    return tag >> 16 < 8 or not tag & 0xFFFF or not dictionary_has_tag(tag)


def is_registered(uid: str) -> bool:
    """Tell whether a UID names something that everyone shares: a class, a syntax, a coding scheme."""
    return bool(_NEWER_SOP_CLASS.fullmatch(uid) or _CODING_SCHEME.fullmatch(uid))
