"""What the training split of a segmentation says: grids, grey values inside the structures, what the masks hold.

Images are sampled as in `medvol.data.facts`; every training mask is read, since a value that one mask alone holds is a
class as well. Nothing of val or test is opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from medvol.data.facts import Sampled, measured, read_3d, require_one_kind, spread, training_cases
from medvol.data.mask_values import MOST_VALUES, bad_mask, has_rounding_errors, value_counts
from medvol.data.sampling import thinned
from medvol.data.study import Case, Study
from medvol.data.table import require_images, require_task
from medvol.errors import MedvolError
from medvol.geometry import Volume, share_geometry, voxel_ml
from medvol.io.labels import LabelMap, find_label, read_label

Array = npt.NDArray[Any]

PERCENT = (0.5, 50.0, 99.5)  # nnU-Net's limits of a CT window, and the median for the reader
FOREGROUND_VOXELS = 10_000  # per case, as nnU-Net takes them: large structures and cases do not outweigh the others

EMPTY = "{} hold nothing but 0, first in case {}: no grey values taken inside"
ELSEWHERE = "{} are on another grid than their image, first in case {}: no grey values taken inside"
ROUNDED = "{} hold values a little off whole numbers, first in case {}: they are rounded"


@dataclass(frozen=True)
class SampledCase:
    """What one training image says.

    Args:
        volumes: Size, spacing and range of each channel.
        foreground: The same inside the structures; None where the mask is empty or on another grid.
    """

    volumes: tuple[Sampled, ...]
    foreground: tuple[float, ...] | None


@dataclass(frozen=True)
class LabelFacts:
    """How often the training masks hold a value.

    Args:
        value: The mask value.
        voxels: In all masks together.
        cases: Masks that hold it.
        volume_ml: In all masks together, millilitres; None without a geometry.
        name: As masks from DICOM name it; empty for other masks.
        first_case: The first case whose mask holds it, for messages.
    """

    value: int
    voxels: int
    cases: int
    volume_ml: float | None
    name: str = ""
    first_case: str = ""


@dataclass(frozen=True)
class Fingerprint:
    """The training split as the planner sees it.

    Args:
        training_cases: How many cases train.
        sampled: The images that were looked at.
        foreground: The `PERCENT` percentiles of grey values inside the structures, pooled over the sampled cases;
            None where no sampled mask lies on its image.
        labels: The values of all training masks, ascending.
        has_geometry: Whether the volumes carry an affine.
        notes: What was left out, one sentence each.
    """

    training_cases: int
    sampled: tuple[SampledCase, ...]
    foreground: tuple[float, ...] | None
    labels: tuple[LabelFacts, ...]
    has_geometry: bool
    notes: tuple[str, ...] = ()

    @property
    def volumes(self) -> list[Sampled]:
        """Every sampled volume, channel after channel."""
        return [volume for one in self.sampled for volume in one.volumes]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Voxels along R A S, (case, 3)."""
        return np.array([one.volumes[0].size for one in self.sampled])

    @property
    def spacings_mm(self) -> npt.NDArray[np.float64]:
        """Millimetres per voxel along R A S, (case, 3); only with a geometry."""
        return np.array([one.volumes[0].spacing_mm for one in self.sampled])

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def take_fingerprint(study: Study, *, show_progress: bool = True) -> Fingerprint:
    """Read the training split of a segmentation study once.

    Args:
        study: A segmentation study with a training split.
        show_progress: Whether to draw a progress bar.

    Raises:
        MedvolError: `WRONG_KIND`, `NO_TRAINING_CASES`, `MIXED_GEOMETRY`, `WRONG_DIMS`, `BAD_LABEL` for
            masks without whole numbers from 0 on, with more than 255 values or without any structure, or what reading
            finds, with the case named.
    """
    require_task(study, "segmentation")
    require_images(study)
    cases = [case for case in training_cases(study) if case.label is not None]
    chosen = {case.case for case in spread(cases)}
    counts: Counter[int] = Counter()
    holding: Counter[int] = Counter()
    volumes_ml: Counter[int] = Counter()
    names: dict[int, str] = {}
    first_case: dict[int, str] = {}
    noted: dict[str, list[str]] = {EMPTY: [], ELSEWHERE: [], ROUNDED: []}
    sampled, pooled = [], []
    for case in tqdm(cases, desc="Reading the training split", unit="case", disable=not show_progress):
        in_file = len(case.image) < len(study.channels)
        label = _read_mask(case, channels=in_file)
        _require_one_name(names, label.names, case.case)
        mask = label.volume
        found = value_counts(mask.array, case=case.case, file=str(case.label))
        if has_rounding_errors(mask.array):
            noted[ROUNDED].append(case.case)
        counts.update(found)
        holding.update(found.keys())
        first_case = dict.fromkeys(found, case.case) | first_case
        volumes_ml.update({value: number * voxel_ml(mask.affine) for value, number in found.items()})
        _require_few(counts, case.case)
        if case.case in chosen:
            one, inside = _sample(case, mask, channels=in_file)
            sampled.append(one)
            pooled.append(inside)
            if one.foreground is None:
                noted[ELSEWHERE if found.keys() - {0} else EMPTY].append(case.case)
    has_geometry = require_one_kind([volume for one in sampled for volume in one.volumes])
    require_any_structure(counts, study)
    inside = np.concatenate(pooled)
    return Fingerprint(
        training_cases=len(cases),
        sampled=tuple(sampled),
        foreground=_percentiles(inside) if len(inside) else None,
        labels=tuple(
            LabelFacts(
                value,
                counts[value],
                holding[value],
                float(volumes_ml[value]) if has_geometry else None,
                names.get(value, ""),
                first_case[value],
            )
            for value in sorted(counts)
        ),
        has_geometry=has_geometry,
        notes=tuple(_notes(noted, len(sampled), len(cases))),
    )


def _read_mask(case: Case, *, channels: bool) -> LabelMap:
    """Return a mask with three spatial axes, where its image is, and the names of its structures where it has any."""
    reference = str(case.label)
    try:
        if find_label(reference) is not None:
            # Whether a mask may be resampled is decided where cases are loaded; here its voxels are counted.
            return read_label(reference, case.image[0], resample=True)
    except MedvolError as error:
        raise error.for_case(case.case) from error
    mask = read_3d(case.case, reference)
    return LabelMap(
        mask if mask.has_geometry else share_geometry(mask, read_3d(case.case, case.image[0], channels=channels))
    )


def _require_one_name(names: dict[int, str], found: Mapping[int, str], case: str) -> None:
    """Add names to those of the masks before; a structure must have the same value in all of them."""
    known = {name.casefold(): value for value, name in names.items()}
    for value, name in found.items():
        other = names.setdefault(value, name)
        if other.casefold() != name.casefold() or known.get(name.casefold(), value) != value:
            number = known.get(name.casefold(), value)
            before = f"value {number}" if number != value else f"'{other[:40]}' had it"
            raise MedvolError(
                "BAD_LABEL",
                case=case,
                found=f"'{name[:40]}' as value {value}; in cases before {before}",
                expected="one value for each structure",
                fix="list the structures behind every label in one order, as in seg.dcm#liver;tumour?",
            )


def _sample(case: Case, mask: Volume, *, channels: bool) -> tuple[SampledCase, Array]:
    """Return what the images of a case say, and up to `FOREGROUND_VOXELS` grey values inside its structures."""
    images = [read_3d(case.case, reference, channels=channels) for reference in case.image]
    inside = _in_ras_order(share_geometry(mask, images[0]))[0] > 0.5  # 0 and a rounding error is background
    alike = [channel for image in images for channel in _in_ras_order(image) if channel.shape == inside.shape]
    pooled = np.concatenate([np.zeros(0), *(thinned(channel[inside], FOREGROUND_VOXELS) for channel in alike)])
    foreground = _percentiles(pooled) if len(pooled) else None
    return SampledCase(tuple(measured(case.case, image) for image in images), foreground), pooled


def _in_ras_order(volume: Volume) -> list[Array]:
    """Return each channel with its axes along R, A and S, as the training chain sees it."""
    array = volume.array
    channels = [array] if volume.channel_axis is None else list(np.moveaxis(array, volume.channel_axis, 0))
    if not volume.has_geometry:
        return channels
    orientation = nib.orientations.io_orientation(volume.affine)
    return [nib.orientations.apply_orientation(channel, orientation) for channel in channels]


def _percentiles(values: Array) -> tuple[float, ...]:
    return tuple(float(value) for value in np.percentile(values.astype(np.float64), PERCENT))


def _require_few(counts: Counter[int], case: str) -> None:
    if len(counts) > MOST_VALUES:
        raise bad_mask(case, f"{len(counts)} distinct values in the masks up to this one", "is it an image?")


def require_any_structure(counts: Counter[int], study: Study) -> None:
    """Refuse training masks, given how often each value is in them, that hold nothing but 0.

    Raises:
        MedvolError: `BAD_LABEL`.
    """
    if not any(counts.keys() - {0}):
        raise MedvolError(
            "BAD_LABEL",
            file=study.source,
            found="training masks that hold nothing but 0",
            expected="a structure in at least one of them",
            fix="check the label column",
        )


def _notes(noted: Mapping[str, Sequence[str]], sampled: int, masks: int) -> Iterator[str]:
    """Yield a sentence for each kind of mask that was noted, given the cases of each."""
    for kind, cases in noted.items():
        if cases:
            of = f"{masks} masks" if kind == ROUNDED else f"{sampled} sampled masks"
            yield kind.format(f"{len(cases)} of {of}", cases[0])
