"""The rules of the planner that need no network: spacing, sizes and grey values, after nnU-Net.

Each returns what it decided and why, in words for the person who reads the plan. Source: Isensee et al., "nnU-Net: a
self-configuring method for deep learning-based biomedical image segmentation", Nature Methods 18, 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medvol.data.facts import CT_WINDOW_HU, INTENSITY_SCHEMES, limits_of, scheme_of, three_of
from medvol.data.fingerprint import Fingerprint
from medvol.data.window import given_window
from medvol.errors import MedvolError, require_choice
from medvol.transforms.augment import flip_axes_for

Triple = tuple[float, float, float]

ANISOTROPIC = 3.0  # a coarse axis is at least that much coarser than the next, as in nnU-Net
COARSE_PERCENT = 10.0  # the percentile that the coarse axis takes then: the median would blur the finer scans
SMALLEST_WINDOW_HU = 10.0


def plan_spacing(fingerprint: Fingerprint, given: Sequence[float] | str) -> tuple[Triple | None, str]:
    """Return the working grid's spacing along x, y, z; None in voxel space.

    Raises:
        MedvolError: `UNKNOWN_OPTION`, or `NO_GEOMETRY` for a spacing of volumes that have none.
    """
    if not fingerprint.has_geometry:
        if not isinstance(given, str):
            raise MedvolError(
                "NO_GEOMETRY",
                found=f"a spacing of {list(given)} mm for volumes without spacing",
                expected="spacing_mm 'auto'",
                fix="leave --spacing_mm out, or convert the volumes to NIfTI",
            )
        return None, "the volumes have no geometry: their voxels are taken as they are"
    spacings = fingerprint.spacings_mm
    if not isinstance(given, str):
        return three_of(given, float), "as given"
    require_choice("spacing_mm", given, ("auto",))
    spacing = np.median(spacings, axis=0)
    reason = f"median of {len(spacings)} training volumes"
    coarse = int(np.argmax(spacing))
    others = float(np.delete(spacing, coarse).max())
    if spacing[coarse] >= ANISOTROPIC * others:
        spacing[coarse] = max(others, float(np.percentile(spacings[:, coarse], COARSE_PERCENT)))
        reason += (
            f"; along {'xyz'[coarse]}, which is {ANISOTROPIC:g} times coarser, the {COARSE_PERCENT:g}th percentile"
        )
    return three_of(spacing.round(4), float), reason


def plan_flips(
    given: Sequence[int] | str, *, laterality_matters: bool, has_geometry: bool, paired: bool
) -> tuple[tuple[int, ...], str]:
    """Return the axes, 0 for x, along which training patches are mirrored, and why.

    Volumes are in RAS+ order, and a body is about symmetric in left and right alone: what is above, below, before or
    behind what tells structures apart. Mirrored front to back and head to foot as well, as nnU-Net does, a hippocampus'
    two parts were found with a Dice of .848 instead of .873 (fold 1 of MSD Task04, 14 epochs); after 90 it is the same.

    Raises:
        MedvolError: `UNKNOWN_OPTION`, or `BAD_VALUE` for an axis whose mirroring would make a label wrong.
    """
    allowed = flip_axes_for(laterality_matters=laterality_matters, has_geometry=has_geometry, paired=paired)
    if isinstance(given, str):
        require_choice("flip_axes", given, ("auto",))
        if not has_geometry:
            return allowed, "laterality does not matter" if allowed else "without a geometry no axis is known to be x"
        if 0 not in allowed:
            return (), "left and right differ, and so do front and back, head and foot"
        why = "paired structures are exchanged" if laterality_matters else "left and right may be exchanged"
        return (0,), f"{why}; front and back, head and foot differ"
    if not isinstance(given, list | tuple) or not set(given) <= set(allowed):
        raise MedvolError(
            "BAD_VALUE",
            found=f"flip_axes {given}",
            expected=f"a list of axes among {list(allowed)} (0 is left/right, 1 front/back, 2 head/foot)",
            fix=f"write --flip_axes '{list(allowed)}'; --laterality_matters False lets left and right be exchanged",
        )
    return tuple(sorted(set(given))), "as given"


def working_sizes(fingerprint: Fingerprint, spacing_mm: Triple | None) -> npt.NDArray[np.int64]:
    """Return the voxels along x, y, z of each sampled case on the working grid, (case, 3)."""
    if spacing_mm is None:
        return fingerprint.sizes
    sizes = (fingerprint.sizes * fingerprint.spacings_mm / np.array(spacing_mm)).round()
    return np.maximum(sizes, 1).astype(np.int64)


def plan_intensity(
    fingerprint: Fingerprint, given: str, window_hu: Sequence[float] | None
) -> tuple[str, tuple[float, float] | None, str]:
    """Return scheme, limits and the reason.

    A window that is given makes the scheme `ct`. Without one, CT takes the 0.5th to the 99.5th percentile inside the
    training split's structures.

    Raises:
        MedvolError: `UNKNOWN_OPTION`, or `BAD_VALUE` for a window that is none or beside a scheme without one.
    """
    require_choice("intensity", given, INTENSITY_SCHEMES)
    window = given_window(window_hu, given)
    if window is not None:
        return "ct", window, "as given"
    volumes = fingerprint.volumes
    scheme = scheme_of(volumes) if given == "auto" else given
    lows, highs = [one.low for one in volumes], [one.high for one in volumes]
    seen = f"grey values from {min(lows):g} to {max(highs):g}" if given == "auto" else "as given"
    if scheme == "mr":
        return scheme, None, f"{seen}: no fixed scale, robust z-score of each volume"
    if scheme == "scaled":
        limits = limits_of(volumes, scheme)
        return scheme, limits, f"{seen}: a fixed range, mapped to 0..1"
    if fingerprint.foreground is None:
        return scheme, CT_WINDOW_HU, f"{seen}: Hounsfield units; soft tissue, since no mask lies on its image"
    low, _, high = fingerprint.foreground
    high = max(high, low + SMALLEST_WINDOW_HU)
    reason = f"{seen}: Hounsfield units; 0.5th to 99.5th percentile inside the structures"
    return scheme, (round(low, 1), round(high, 1)), reason
