"""Standardised uptake values of a PET, g/ml by body weight, or a refusal that names what the header lacks.

SUV = activity concentration x weight / injected dose, the dose decayed to the time that the scanner corrected the
images to. Follows the "vendor-neutral pseudo-code for SUV calculation" of QIBA (FDG-PET/CT profile):

| Units | what it takes |
|---|---|
| GML | nothing, the values are uptake by body weight already; refused when SUVType says another kind |
| CNTS | Philips' private factor to SUV (7053,xx00), else the one to Bq/ml (7053,xx09) and all that BQML takes |
| BQML | CorrectedImage with ATTN and DECY, DecayCorrection START or ADMIN, weight, dose, half-life, times |

With DecayCorrection ADMIN nothing decays. With START the reference is the start of the scan: the series time where no
image was acquired before it; else a series that was made later, whose scan start follows from the time of an image and
its Frame Reference Time. An injection time of day later than the scan's is one of the day before.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from medvol.errors import MedvolError
from medvol.io.dicom_file import check_inflated_size, dicom_errors
from medvol.io.dicom_header import SliceHeader
from medvol.io.dicom_stored import numbers, words

LEAST_DOSE_BQ = 1e5
"""Smaller doses were meant as megabecquerel: patients get 1e7 to 1e9 Bq, mice no less than 1e6."""

MOST_HALF_LIVES = 20
"""More than these between injection and scan are wrong dates, as anonymisation leaves them."""

_GROUP = 0x7053
_PHILIPS_CREATOR = "Philips PET Private Group"
_TAGS = (
    *("Modality", "Units", "SUVType", "CorrectedImage", "DecayCorrection", "PatientWeight"),
    *("SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime", "TimezoneOffsetFromUTC"),
    *("FrameReferenceTime", "ActualFrameDuration", "RadiopharmaceuticalInformationSequence"),
)


@dataclass(frozen=True)
class _Facts:
    """What a factor follows from, of one file."""

    path: Path
    dataset: Any

    def text(self, keyword: str) -> str:
        return str(self.dataset.get(keyword) or "").strip().upper()

    def number(self, holder: Any, keyword: str) -> float:
        found = numbers(holder, keyword, 1)
        if found is None or found[0] <= 0:
            raise self.refusal(f"no usable {keyword}")
        return found[0]

    def refusal(self, found: str, expected: str = "all that SUV takes, see medvol.io.dicom_suv") -> MedvolError:
        return MedvolError("NO_SUV", file=self.path, found=found, expected=expected, fix="read it without suv")


def suv_slices(slices: Sequence[SliceHeader]) -> tuple[tuple[SliceHeader, ...], str]:
    """Return the slices of a PET with a rescale that gives g/ml, and a note of how.

    Raises:
        MedvolError: `NO_SUV`, or what reading the files finds.
    """
    facts = {path: _read(path) for path in dict.fromkeys(one.path for one in slices)}
    for one in slices:
        if one.is_enhanced or one.has_lut:
            raise facts[one.path].refusal("an enhanced PET, or one with a look-up table", "one plain file per slice")
    earliest = _earliest(facts.values())
    factors = {path: _factor(one, earliest) for path, one in facts.items()}
    settled = []
    for one in slices:
        factor, (slope, intercept) = factors[one.path][0], one.rescale
        settled.append(replace(one, rescale=(slope * factor, intercept * factor)))
    ways = sorted({how for _, how in factors.values()})
    return tuple(settled), f"SUV by body weight, g/ml: {'; '.join(ways)}"


def _read(path: Path) -> _Facts:
    from pydicom import dcmread

    with dicom_errors(path), path.open("rb") as stream:
        check_inflated_size(stream, path)
        dataset: Any = dcmread(stream, force=True, stop_before_pixels=True)
        kept = {keyword: dataset.get(keyword) for keyword in _TAGS}
        # No name, no identifier outlives the reading.
        return _Facts(path, kept | _philips_factors(dataset))


def _philips_factors(dataset: Any) -> dict[str, Any]:
    """Return the factors to SUV and to Bq/ml of the block that Philips' PET scanners reserve."""
    from pydicom.dataset import Dataset

    found: dict[str, Any] = {}
    for block in range(0x10, 0x100):
        creator = dataset.get((_GROUP, block))
        if creator is None or not str(creator.value).strip().startswith(_PHILIPS_CREATOR):
            continue
        for name, element in (("ToSUV", 0x00), ("ToActivity", 0x09)):
            stored = dataset.get((_GROUP, block << 8 | element))
            value = None if stored is None else stored.value
            value = value.decode("ascii", "replace").strip(" \0") if isinstance(value, bytes) else value
            holder = Dataset()
            holder.RescaleSlope = value
            found[name] = numbers(holder, "RescaleSlope", 1)
    return found


def _earliest(facts: Iterable[_Facts]) -> datetime | None:
    """Return when the first image was acquired, None where one does not say."""
    moments = []
    for one in facts:
        with dicom_errors(one.path):
            moments.append(_moment(one, "Acquisition"))
    known = [moment for moment in moments if moment is not None]
    return min(known) if known and len(known) == len(moments) else None


def _factor(one: _Facts, earliest: datetime | None) -> tuple[float, str]:
    """Return what turns rescaled values of a file into g/ml, and how it was found."""
    with dicom_errors(one.path):
        units, kind = one.text("Units"), one.text("SUVType")
        if one.text("Modality") != "PT":
            raise one.refusal(f"modality {one.text('Modality') or 'unknown'}"[:60], "a PET")
        if units == "GML":
            if kind not in ("", "BW"):
                raise one.refusal(f"uptake by {kind}"[:60], "by body weight")
            return 1.0, "the stored values are uptake already"
        if units == "CNTS":
            return _of_counts(one, earliest)
        if units == "BQML":
            return _of_activity(one, earliest)
        raise one.refusal(f"Units {units or 'missing'}"[:60], "BQML, GML, or CNTS of Philips")


def _of_counts(one: _Facts, earliest: datetime | None) -> tuple[float, str]:
    to_suv, to_activity = one.dataset.get("ToSUV"), one.dataset.get("ToActivity")
    if to_suv and to_suv[0] > 0:
        return to_suv[0], "Philips' factor for counts"
    if to_activity and to_activity[0] > 0:
        factor, how = _of_activity(one, earliest)
        return factor * to_activity[0], f"Philips' factor to Bq/ml, {how}"
    raise one.refusal("counts without Philips' factors", "Units BQML")


def _of_activity(one: _Facts, earliest: datetime | None) -> tuple[float, str]:
    corrected = set(words(one.dataset, "CorrectedImage"))
    if not {"ATTN", "DECY"} <= corrected:
        raise one.refusal("no correction of attenuation and decay in CorrectedImage", "ATTN and DECY")
    way = one.text("DecayCorrection")
    if way not in ("START", "ADMIN"):
        raise one.refusal(f"DecayCorrection {way or 'missing'}"[:60], "START or ADMIN")
    items = list(one.dataset.get("RadiopharmaceuticalInformationSequence") or [])
    if len(items) != 1:
        raise one.refusal(f"{len(items)} radiopharmaceuticals", "one")
    weight_g = 1000 * one.number(one.dataset, "PatientWeight")
    dose = one.number(items[0], "RadionuclideTotalDose")
    if dose < LEAST_DOSE_BQ:
        raise one.refusal(f"a dose of {dose:g} Bq, perhaps meant as MBq", "becquerel")
    if way == "ADMIN":
        return weight_g / dose, "decay corrected to the injection"
    half_life = one.number(items[0], "RadionuclideHalfLife")
    scan, how = _scan_start(one, earliest, half_life)
    seconds = (scan - _injection(one, items[0], scan)).total_seconds()
    if not 0 <= seconds <= MOST_HALF_LIVES * half_life:
        raise one.refusal(f"the injection {seconds:.0f} s before the scan", "times of one examination")
    return weight_g / (dose * 2 ** (-seconds / half_life)), how


def _scan_start(one: _Facts, earliest: datetime | None, half_life: float) -> tuple[datetime, str]:
    """Return the time to which decay was corrected."""
    series = _moment(one, "Series")
    if series is None:
        raise one.refusal("no SeriesDate and SeriesTime")
    frame = _moment(one, "Acquisition")
    if frame is None or earliest is None:
        raise one.refusal("no AcquisitionDate and AcquisitionTime in every file")
    if series <= earliest:
        return series, "decay corrected to the series time"
    # The series was made afterwards, so its time says nothing. The mean activity of a frame was measured Frame
    # Reference Time after the scan's start, and a known time after the frame's own.
    seconds = one.number(one.dataset, "ActualFrameDuration") / 1000
    reference = one.number(one.dataset, "FrameReferenceTime") / 1000
    decay = math.log(2) / half_life
    middle = math.log(decay * seconds / -math.expm1(-decay * seconds)) / decay
    return frame + timedelta(seconds=middle - reference), "decay corrected to the scan start by the frame times"


def _injection(one: _Facts, item: Any, scan: datetime) -> datetime:
    """Return when the dose was given; a time of day alone is the last such time before the scan."""
    whole = str(item.get("RadiopharmaceuticalStartDateTime") or "").strip()
    clock = str(item.get("RadiopharmaceuticalStartTime") or "").strip()
    if not whole and not clock:
        raise one.refusal("no RadiopharmaceuticalStartTime")
    by_clock = _parse(one, scan.strftime("%Y%m%d"), clock) if clock else None
    if by_clock is not None and by_clock > scan:
        by_clock -= timedelta(days=1)
    if not whole:
        return by_clock or scan
    text, zone = (whole[:-5], whole[-5:]) if len(whole) > 14 and whole[-5] in "+-" else (whole, "")
    if zone and zone != one.text("TimezoneOffsetFromUTC"):
        raise one.refusal("an injection time of another time zone than the series")
    moment = _parse(one, text[:8], text[8:])
    if by_clock is not None and by_clock.time() != moment.time():
        raise one.refusal("two injection times that differ")
    return moment


def _moment(one: _Facts, of: str) -> datetime | None:
    date, clock = one.text(f"{of}Date"), one.text(f"{of}Time")
    return _parse(one, date, clock) if date and clock else None


def _parse(one: _Facts, date: str, clock: str) -> datetime:
    """Return a date and a time of day; hours alone, which the standard allows, are too coarse."""
    # strptime alone would take fewer digits for other numbers.
    found = re.fullmatch(r"(\d{8}) (\d{6})(?:\.(\d{1,6}))?", f"{date} {clock}")
    try:
        if found is None:
            raise ValueError(date)
        moment = datetime.strptime(found[1] + found[2], "%Y%m%d%H%M%S")
    except ValueError:
        raise one.refusal("a date or time that cannot be read", "YYYYMMDD and HHMMSS") from None
    return moment + timedelta(seconds=float(f"0.{found[3] or 0}"))
