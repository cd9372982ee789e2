"""What a model must know of the study it was trained on, and how that is read off the training split.

The facts are fitted once, on training cases only, stored beside the weights in `models/model.json`, and read from there
by evaluation and inference, so that one bundle serves any study without an edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medvol.data.column_facts import ColumnFacts
from medvol.data.study import Case, Study
from medvol.data.window import given_window
from medvol.errors import MedvolError, require_choice
from medvol.geometry import Volume
from medvol.io import read_volume
from medvol.io.read import read_channels

INTENSITY_SCHEMES = ("auto", "scaled", "ct", "mr")
SAMPLE_CASES = 48  # training volumes read to fit the facts; their median moves little after that
LARGEST_SIZE = 64  # voxels per axis chosen without being asked: 96 cubed costs three times as much per step
CT_WINDOW_HU = (-160.0, 240.0)  # soft tissue, the window of the MONAI spleen and liver tutorials
AIR_HU = -500.0  # a scan with voxels below this and no 8-bit range is in Hounsfield units


@dataclass(frozen=True)
class Facts:
    """The study as the network and its preprocessing see it.

    Args:
        classes: Class names in the order of the labels.
        channels: Names of the images that are stacked as channels.
        spatial_size: Voxels along x, y, z (pixels along x, y) that the network is given; () without an image.
        spacing_mm: Millimetres per voxel along x, y, z after resampling; None in voxel space.
        intensity: `scaled` (limits to 0..1), `ct` (HU window to 0..1) or `mr` (robust z-score per volume).
        limits: Lowest and highest grey value that `scaled` and `ct` map to 0 and 1; None for `mr`.
        has_geometry: Whether the volumes carry an affine.
        laterality_matters: Whether mirroring left and right could change the label.
        label_values: Segmentation: the mask value of each class, background first; () for classification.
        mirror_pairs: Segmentation: pairs of classes that are each other's mirror image, as left and right kidney.
        flip_axes: Segmentation: axes (0 = x) along which training patches were mirrored; None in a model that does
            not say: all that laterality allows.
        columns: Covariates that the network is given, in the order of its input.
    """

    classes: tuple[str, ...]
    channels: tuple[str, ...]
    spatial_size: tuple[int, ...]
    spacing_mm: tuple[float, float, float] | None
    intensity: str
    limits: tuple[float, float] | None
    has_geometry: bool
    laterality_matters: bool
    label_values: tuple[int, ...] = ()
    mirror_pairs: tuple[tuple[int, int], ...] = ()
    flip_axes: tuple[int, ...] | None = None
    columns: tuple[ColumnFacts, ...] = ()

    @property
    def in_features(self) -> int:
        """Numbers that the covariates of a case become."""
        return sum(len(column.features) for column in self.columns)

    @property
    def in_channels(self) -> int:
        """Channels of the network's input."""
        return len(self.channels)

    @property
    def num_classes(self) -> int:
        """Logits of a network with a softmax."""
        return len(self.classes)

    @property
    def num_logits(self) -> int:
        """Logits of a network that answers a two-class question with one sigmoid."""
        return 1 if len(self.classes) == 2 else len(self.classes)

    @property
    def extent_mm(self) -> tuple[float, ...]:
        """Field of view along x, y, z: millimetres, or voxels where there is no geometry."""
        steps = self.spacing_mm or (1.0,) * len(self.spatial_size)
        return tuple(size * step for size, step in zip(self.spatial_size, steps, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Facts:
        """Return the facts that `as_dict` wrote."""
        columns = tuple(ColumnFacts.from_dict(column) for column in values.get("columns", ()))
        return cls(**{**{name: _frozen(value) for name, value in values.items()}, "columns": columns})


def _frozen(value: Any) -> Any:
    """Return JSON lists as tuples, at every level."""
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Sampled:
    """What one training volume says: size and spacing along R A S, grey values."""

    case: str
    size: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    low: float
    high: float
    is_8bit: bool


def fit_facts(
    study: Study,
    *,
    spatial_size: Sequence[int] | str = "auto",
    spacing_mm: Sequence[float] | str = "auto",
    intensity: str = "auto",
    window_hu: Sequence[float] | None = None,
    laterality_matters: bool | None = None,
) -> Facts:
    """Read the facts off up to 48 training volumes; whatever is given is taken as it is.

    Without a geometry every volume is resized to the median size, at most 64 voxels along an axis. With one, the
    spacing is the median, coarsened where the 95th percentile of the field of view would need more than 64 voxels, and
    volumes are centred and cropped or padded. Grey values within 0..255 are `scaled`, values below -500 with a wider
    range are taken as HU (`ct`), anything else is `mr`; a window that is given makes the scheme `ct`.

    Raises:
        MedvolError: `NO_TRAINING_CASES`, `MIXED_GEOMETRY`, `UNKNOWN_OPTION`, `BAD_VALUE` for a window that is none,
            `WRONG_DIMS`, or what reading finds.
    """
    require_choice("intensity", intensity, INTENSITY_SCHEMES)
    window = given_window(window_hu, intensity)
    sampled = [
        measured(case.case, read_3d(case.case, reference, channels=len(case.image) < len(study.channels)))
        for case in spread([case for case in training_cases(study) if case.image])
        for reference in case.image
    ]
    has_geometry = require_one_kind(sampled)
    size, spacing = _grid(sampled, spatial_size, spacing_mm)
    scheme = "ct" if window else scheme_of(sampled) if intensity == "auto" else intensity
    return Facts(
        classes=study.classes,
        channels=study.channels,
        spatial_size=size,
        spacing_mm=spacing,
        intensity=scheme,
        limits=window or limits_of(sampled, scheme),
        has_geometry=has_geometry,
        laterality_matters=study.laterality_matters if laterality_matters is None else laterality_matters,
    )


def training_cases(study: Study) -> list[Case]:
    """Return the cases of the training split, sorted by name.

    Raises:
        MedvolError: `NO_TRAINING_CASES`.
    """
    cases = sorted((case for case in study.cases if case.split == "train"), key=lambda case: case.case)
    if not cases:
        raise MedvolError(
            "NO_TRAINING_CASES",
            file=study.source,
            found="no case in the split 'train'",
            expected="at least one",
            fix="remove the split column and medvol splits by patient",
        )
    return cases


def spread(cases: Sequence[Case], most: int = SAMPLE_CASES) -> list[Case]:
    """Return at most `most` cases, spread evenly from the first to the last."""
    chosen = np.unique(np.linspace(0, len(cases) - 1, min(most, len(cases))).round().astype(int))
    return [cases[index] for index in chosen]


def read_3d(case: str, reference: str, *, channels: bool = False) -> Volume:
    """Read a volume with three spatial axes.

    Args:
        case: For messages.
        reference: What to read.
        channels: Whether a fourth axis holds the channels of an image, as in studies of several channels.

    Raises:
        MedvolError: `WRONG_DIMS`, or what reading finds, with the case named.
    """
    try:
        volume = read_channels(reference) if channels else read_volume(reference)
    except MedvolError as error:
        raise error.for_case(case) from error
    if volume.array.ndim - (volume.channel_axis is not None) != 3:
        raise MedvolError(
            "WRONG_DIMS",
            case=case,
            file=reference,
            found=f"an array of shape {volume.array.shape}",
            expected="a volume with three spatial axes",
            fix="use a 2D bundle for images",
        )
    return volume


def measured(case: str, volume: Volume) -> Sampled:
    """Return size, spacing and grey values of a volume with three spatial axes."""
    spatial = [length for axis, length in enumerate(volume.array.shape) if axis != volume.channel_axis]
    order = _ras_order(volume)
    low, high = float(volume.array.min()), float(volume.array.max())
    return Sampled(
        case=case,
        size=tuple(spatial[axis] for axis in order),
        spacing_mm=tuple(volume.spacing_mm[axis] for axis in order) if volume.has_geometry else None,
        low=low,
        high=high,
        is_8bit=volume.array.dtype == np.uint8 or (low >= 0 and high <= 255 and _whole(volume.array)),
    )


def require_one_kind(sampled: Sequence[Sampled]) -> bool:
    """Return whether the volumes have a geometry; refuse a study in which only some do.

    Raises:
        MedvolError: `MIXED_GEOMETRY`.
    """
    with_geometry = [one for one in sampled if one.spacing_mm is not None]
    if with_geometry and len(with_geometry) != len(sampled):
        bare = next(one for one in sampled if one.spacing_mm is None)
        raise MedvolError(
            "MIXED_GEOMETRY",
            case=bare.case,
            found=f"no geometry, while {len(with_geometry)} of {len(sampled)} sampled volumes have one",
            expected="one kind of volume in a study",
            fix="convert all volumes to NIfTI, or all to npy",
        )
    return bool(with_geometry)


def _whole(array: npt.NDArray[Any]) -> bool:
    return bool(np.issubdtype(array.dtype, np.integer) or np.equal(np.mod(array, 1), 0).all())


def _ras_order(volume: Volume) -> list[int]:
    """Return which array axis runs mostly along R, A and S."""
    if not volume.has_geometry:
        return [0, 1, 2]
    orientation = nib.orientations.io_orientation(volume.affine)
    return [int(np.flatnonzero(orientation[:, 0] == world)[0]) for world in range(3)]


def _grid(
    sampled: Sequence[Sampled], spatial_size: Sequence[int] | str, spacing_mm: Sequence[float] | str
) -> tuple[Any, Any]:
    """Return the size and spacing that the network is given, each along x y z; no spacing in voxel space."""
    size = None if isinstance(spatial_size, str) else three_of(spatial_size, int)
    step = None if isinstance(spacing_mm, str) else three_of(spacing_mm, float)
    sizes = np.array([one.size for one in sampled])
    if sampled[0].spacing_mm is None:
        return size or three_of(np.minimum(np.median(sizes, axis=0), LARGEST_SIZE), int), None
    spacings = np.array([one.spacing_mm for one in sampled])
    fov_mm = np.percentile(sizes * spacings, 95, axis=0)
    if step is None:
        most = np.array(size or (LARGEST_SIZE,) * 3)
        step = three_of(np.maximum(np.median(spacings, axis=0), fov_mm / most).round(4), float)
    if size is None:
        # A multiple of 4 keeps both halvings of a small network exact; a rounding residue must not add a voxel.
        size = three_of(np.minimum(np.ceil(fov_mm / np.array(step) / 4 - 1e-3) * 4, LARGEST_SIZE), int)
    return size, step


def three_of(values: Any, kind: type) -> Any:
    """Return a size in voxels (int) or a spacing in mm (float) for x y z; one number stands for three equal ones.

    Raises:
        MedvolError: `UNKNOWN_OPTION`.
    """
    numbers = [kind(value) for value in np.atleast_1d(values)]
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or min(numbers) <= 0:
        name, example = ("spatial_size", "[64, 64, 64]") if kind is int else ("spacing_mm", "[1, 1, 1.5]")
        raise MedvolError(
            "UNKNOWN_OPTION",
            found=f"{name} {numbers}",
            expected="three positive numbers, for x y z",
            fix=f"write --{name} '{example}'",
        )
    return tuple(numbers)


def scheme_of(sampled: Sequence[Sampled]) -> str:
    """Return `scaled`, `ct` or `mr` by the grey values."""
    if all(one.is_8bit or (one.low >= 0 and one.high <= 1) for one in sampled):
        return "scaled"
    return "ct" if np.median([one.low for one in sampled]) < AIR_HU else "mr"


def limits_of(sampled: Sequence[Sampled], scheme: str) -> tuple[float, float] | None:
    """Return the grey values that a scheme maps to 0 and 1 where nothing else is said; None for `mr`."""
    if scheme == "mr":
        return None
    if scheme == "ct":
        return CT_WINDOW_HU
    highest = max(one.high for one in sampled)
    return (0.0, 1.0) if highest <= 1 else (0.0, 255.0) if highest <= 255 else (0.0, float(highest))
