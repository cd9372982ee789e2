"""Everything that training would refuse of a study, found before it: every file opened, no stop at the first finding.

No rule stands here: the checks are those of the case table, of the readers, and of the steps that training loads
with. What depends on a network, as its smallest image, is left to the bundle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import EnsureChannelFirstd, Orientationd, Transform
from tqdm import tqdm

from medvol.bundle.check_whole import (
    class_and_structure_gaps,
    columns_to_mend,
    empty_splits,
    no_contrast,
    noted,
    odd_spacings,
    single_slices,
    structures_to_mend,
)
from medvol.bundle.kind import kind_of
from medvol.bundle.new_choice import require_trainable
from medvol.bundle.study import TABULAR_FRACTIONS, TABULAR_SEED
from medvol.data.facts import Facts, Sampled, measured, read_3d, require_one_kind
from medvol.data.fingerprint import require_any_structure
from medvol.data.image_facts import COLOURS, read_case
from medvol.data.mask_values import value_counts
from medvol.data.same_scans import Scan, same_scans, scan_of
from medvol.data.sources import open_study
from medvol.data.splits import FRACTIONS, assign_splits
from medvol.data.study import SPLITS, Case, Study
from medvol.errors import MedvolError, find_refusal
from medvol.geometry import Volume, share_geometry
from medvol.io.labels import LabelMap, find_label, read_label
from medvol.io.monai_readers import VolumeReader
from medvol.transforms.images import RequireImaged
from medvol.transforms.load import LoadVolumed
from medvol.transforms.masks import OntoImaged, class_indices, require_structures
from medvol.transforms.preprocess import RequireVolumed

REFUSED, WARNING = "refused", "warning"

IMAGE, MASK = "image", "label"


@dataclass(frozen=True)
class Finding:
    """Something found in a study.

    Args:
        severity: `refused` when training or evaluation would refuse it, `warning` when it only takes something away.
        refusal: Code, case, file, what was found and the way out.
    """

    severity: str
    refusal: MedvolError

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"severity": self.severity, **self.refusal.as_dict()}


@dataclass(frozen=True)
class CheckedStudy:
    """A study and everything found in it.

    Args:
        source: What was checked.
        study: The split study; None when the source could not be read as one.
        kind: `volumes`, `images` or `features`.
        opened: References that were read or tried.
        findings: In the order of the checks: the table, the files, the study as a whole.
    """

    source: str
    study: Study | None
    kind: str
    opened: int
    findings: tuple[Finding, ...]

    def count(self, severity: str) -> int:
        """Return the number of findings of a severity."""
        return sum(one.severity == severity for one in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        study = self.study or Study((), "unlabelled")
        return {
            "source": self.source,
            "task": study.task if self.study else None,
            "kind": self.kind,
            "classes": list(study.classes),
            "cases": {split: sum(case.split == split for case in study.cases) for split in SPLITS},
            "patients": len({case.patient for case in study.cases}),
            "opened": self.opened,
            REFUSED: self.count(REFUSED),
            f"{WARNING}s": self.count(WARNING),
            "notes": list(study.notes),
            "findings": [one.as_dict() for one in self.findings],
        }


@dataclass
class _Found:
    """What has been found so far; a check that finds the same twice is counted once."""

    findings: list[Finding] = field(default_factory=list)
    sampled: list[Sampled] = field(default_factory=list)
    scans: list[Scan] = field(default_factory=list)
    values: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of the mask of each case
    names: dict[str, dict[int, str]] = field(default_factory=dict)  # of its structures, where the mask tells them
    opened: int = 0

    def refuse(self, refusal: MedvolError) -> None:
        def key(one: MedvolError) -> tuple[str, str, str]:
            return one.code, one.case, one.file

        if all(key(one.refusal) != key(refusal) for one in self.findings):
            self.findings.append(Finding(REFUSED, refusal))

    def warn(self, refusal: MedvolError) -> None:
        self.findings.append(Finding(WARNING, refusal))

    def warn_of(self, refusals: Iterable[MedvolError]) -> None:
        for one in refusals:
            self.warn(one)

    def attempt(self, check: Callable[[], Any], case: str = "") -> Any:
        """Return what a check returns, or None after its refusal was noted."""
        try:
            return check()
        except Exception as error:
            refusal = find_refusal(error)
            if refusal is None:
                raise
            self.refuse(refusal.for_case(case))
            return None


def check_table(
    source: str, *, label_column: str = "label", resample_labels: bool = False, show_progress: bool = True
) -> CheckedStudy:
    """Read a study and every file of it, and return all findings.

    Args:
        source: Any source that `open_study` reads.
        label_column: Column of the label.
        resample_labels: Whether training will be told to resample masks that lie on another grid than their image.
        show_progress: Whether to draw a progress bar.
    """
    found = _Found()
    study: Study | None = found.attempt(
        lambda: open_study(source, label_column=label_column, require_image=False, report=found.refuse)
    )
    if study is None:
        return CheckedStudy(source, None, "features", 0, tuple(found.findings))
    # Each missing file is named below, when it is opened.
    found.findings = [one for one in found.findings if one.refusal.code != "MISSING_FILE"]
    kind = kind_of(study)
    shares, seed = (TABULAR_FRACTIONS, TABULAR_SEED) if kind == "features" else (FRACTIONS, 0)  # as their bundles do
    study = found.attempt(partial(assign_splits, study, fractions=shares, seed=seed)) or study
    if study.task == "regression":
        found.attempt(partial(require_trainable, study))
    steps = _steps(study, kind, resample_labels)
    for case in tqdm(study.cases, desc="Checking", unit="case", disable=not show_progress or kind == "features"):
        _check_case(case, study, kind, steps, found)
    if kind == "volumes" and found.sampled:
        found.attempt(lambda: require_one_kind(found.sampled))
        found.warn_of([*odd_spacings(found.sampled), *single_slices(found.sampled)])
    leaks, told = same_scans(found.scans)
    for refusal in leaks:
        found.refuse(refusal)
    found.warn_of(told)
    _check_values(study, found)
    if kind == "features":
        refused, idle = columns_to_mend(study)
        found.findings += [Finding(REFUSED, one) for one in refused]  # of one table, without a case: not the same twice
        found.warn_of(idle)
    needed, wanted = empty_splits(study)
    for refusal in needed:
        found.refuse(refusal)
    found.warn_of(wanted)
    found.warn_of(class_and_structure_gaps(study, {split: _values(study, found, split) for split in SPLITS}))
    return CheckedStudy(source, study, kind, found.opened, tuple(found.findings))


def finding_rows(checked: CheckedStudy) -> list[tuple[str, ...]]:
    """Return a row per finding: code, severity, case and what it is; headings first."""
    place = Path.cwd() / Path(checked.source).expanduser()
    folder = place if place.is_dir() else place.parent
    rows: list[tuple[str, ...]] = [("code", "severity", "case", "finding")]
    for one in checked.findings:
        refusal = one.refusal
        file = refusal.file.removeprefix(f"{folder}/")
        file = "" if file in (str(place), place.name, checked.source, ".") else file
        parts = [refusal.found, f"expected {refusal.expected}" if refusal.expected else "", refusal.fix]
        text = "; ".join(part for part in parts if part)
        rows.append((refusal.code, one.severity, refusal.case, f"{file}: {text}" if file else text))
    return rows


def summary(checked: CheckedStudy) -> list[str]:
    """Return lines that say what the study is and what was assumed of it."""
    study = checked.study
    if study is None:
        return [f"{checked.source}: could not be read as a study, so that no file was opened"]
    found = {one.refusal.found for one in checked.findings}
    counts = ", ".join(f"{split} {sum(case.split == split for case in study.cases)}" for split in SPLITS)
    patients = len({case.patient for case in study.cases})
    return [
        *(f"note: {note}" for note in study.notes if note not in found),
        f"{checked.source}: {study.task}, {checked.kind}, {len(study.cases)} cases of {patients} patients ({counts})",
        f"{checked.opened} files opened",
    ]


def _steps(study: Study, kind: str, resample_labels: bool) -> list[Transform]:
    """Return the checking steps of the chain that training loads with, for items whose images are read already."""
    channels = COLOURS if kind == "images" and len(study.channels) == 1 else study.channels
    facts = Facts(study.classes, channels, (), None, "mr", None, False, study.laterality_matters)
    if kind == "images":
        return [RequireImaged(IMAGE, facts)]
    if study.task != "segmentation":
        return [RequireVolumed(IMAGE, facts)]
    orient = Orientationd(keys=(IMAGE, MASK), axcodes="RAS", labels=None)
    return [RequireVolumed(IMAGE, facts), orient, OntoImaged(MASK, IMAGE, resample=resample_labels)]


def _check_case(case: Case, study: Study, kind: str, steps: Sequence[Transform], found: _Found) -> None:
    """Read the images and the mask of a case, each by itself, then what they must be together."""
    if not case.image:
        if kind != "features":
            found.warn(_without_image(case, study))
        return
    read = {one: found.attempt(partial(_image, case, one, study, kind), case.case) for one in case.image}
    images = [volume for volume in read.values() if volume is not None]
    for one, volume in read.items():
        scan = volume and scan_of(case, one, volume.array)
        if scan:
            found.scans.append(scan)
        elif volume is not None:
            found.warn(no_contrast(case.case, one, volume.array))
        found.warn_of(noted(case.case, one, () if volume is None else volume.notes))
    item: dict[str, Any] = {"case": case.case, IMAGE: list(case.image)}
    keys, steps = [IMAGE], list(steps)
    if study.task == "segmentation" and case.label is not None:
        item[MASK], keys = str(case.label), [IMAGE, MASK]
        label: LabelMap | None = found.attempt(partial(_mask, case, steps), case.case)
        found.warn_of(noted(case.case, item[MASK], label.volume.notes if label else ()))
        mask = label and (share_geometry(label.volume, images[0]) if images else label.volume)
        read[item[MASK]] = mask
        counts = mask and found.attempt(partial(value_counts, mask.array, case=case.case, file=item[MASK]), case.case)
        found.values[case.case] = tuple(sorted(counts or ()))
        found.names[case.case] = dict(label.names) if label else {}
    elif study.task == "segmentation":
        steps = steps[:1]  # a case without its mask, which was refused already
    found.opened += len(read)
    if kind == "volumes":
        found.sampled += [measured(case.case, volume) for volume in images]
    if any(volume is None for volume in read.values()):
        return
    at = {str(Path(one).expanduser()): volume for one, volume in read.items()}  # as MONAI's loader names them
    load = LoadVolumed(keys, VolumeReader(read=lambda one: at[str(Path(one).expanduser())]))
    found.attempt(partial(_run, item, [load, EnsureChannelFirstd(keys), *steps]), case.case)


def _run(item: dict[str, Any], steps: Sequence[Transform]) -> None:
    for step in steps:
        item = step(item)


def _image(case: Case, reference: str, study: Study, kind: str) -> Volume:
    if kind == "images":
        return read_case(case.case, reference)
    return read_3d(case.case, reference, channels=len(case.image) < len(study.channels))


def _mask(case: Case, steps: Sequence[Transform]) -> LabelMap:
    reference = str(case.label)
    if find_label(reference) is None:
        return LabelMap(read_3d(case.case, reference))
    resample = any(step.resample for step in steps if isinstance(step, OntoImaged))
    return read_label(reference, case.image[0], resample=resample)


def _check_values(study: Study, found: _Found) -> None:
    """Refuse masks of val and test with values that no training mask has, and structures with two values."""
    train = [found.names.get(case.case, {}) for case in study.cases if case.split == "train"]
    named = {value: name for names in reversed(train) for value, name in names.items()}
    refused, idle = structures_to_mend(study, found.values, named)
    for refusal in refused:
        found.refuse(refusal)
    found.warn_of(idle)
    undeclared = {one.case for one in refused}
    known = _values(study, found, "train")
    if known:
        found.attempt(partial(require_any_structure, known, study))
    for case in study.cases:
        values = found.values.get(case.case, ())
        if known and values and case.split != "train" and case.case not in undeclared:
            known_values = sorted({0, *known, *study.mask_values})
            found.attempt(partial(class_indices, np.array(values), known_values, case=case.case))
    value_of = {name.casefold(): value for names in reversed(train) for value, name in names.items()}
    for name, names in found.names.items():
        found.attempt(partial(require_structures, names, np.array(found.values[name]), value_of), name)


def _values(study: Study, found: _Found, split: str) -> Counter[int]:
    cases = [case.case for case in study.cases if case.split == split]
    return Counter(value for case in cases for value in found.values.get(case, ()))


def _without_image(case: Case, study: Study) -> MedvolError:
    return MedvolError(
        "NO_IMAGE", case=case.case, file=study.source, found="no image", fix="only a fusion bundle takes such a case"
    )
