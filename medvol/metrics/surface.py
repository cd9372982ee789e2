"""Distances between surfaces: HD95 and normalised surface Dice, in millimetres on any grid.

Words and rules:

* The *surface* of a structure is every voxel of it that has a neighbour across a face outside of it (MONAI's mask minus
  its erosion); outside the image nothing is inside. A distance is measured between voxel centres.
* *HD95* is the larger of the two directed 95th percentiles, interpolated linearly (MONAI's rule). DeepMind's
  surface-distance instead takes the percentile of surface elements weighted by area.
* *NSD* is the share of both surfaces' voxels that lie within a tolerance of the other surface (Nikolov et al., J Med
  Internet Res 2021, with voxels instead of surface elements, as MONAI has it).

Distances come from a k-d tree of the surface's positions. Distance transforms of the bounding box give the same numbers
and take twice as long on 25 organs in 160 x 256 x 256 voxels (`tests/benchmarks/bench_metrics.py`), five times on one
of 120 voxels across; they need memory for the box instead of the surface, and they are wrong on sheared grids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medvol.metrics.masks import Floats, Mask, check_pair, crop_to_foreground, diagonal_mm, grid_steps_mm

TOLERANCE_SLACK = 1e-6
"""Relative; a spacing that went through float32 must not push a neighbour out of a tolerance of one voxel."""


@dataclass(frozen=True)
class SurfaceDistances:
    """Millimetres from each surface voxel to the nearest of the other surface; nan when that one is empty.

    Args:
        of_prediction: From the surface of the prediction to that of the truth, shape (voxels of its surface,).
        of_truth: The other way round.
    """

    of_prediction: Floats
    of_truth: Floats


def hd95_mm(pred: npt.ArrayLike, truth: npt.ArrayLike, affine_or_spacing: npt.ArrayLike) -> float:
    """Return the 95th percentile Hausdorff distance of two masks in millimetres.

    Both empty: 0. One empty: the diagonal of the image, the largest distance there could be (the rule of BraTS).

    Args:
        pred: Shape (x, y, z); whatever is not 0 is inside.
        truth: Same shape.
        affine_or_spacing: 4x4 affine, or three spacings in millimetres.

    Raises:
        MedvolError: See `medvol.metrics.masks.check_pair`, or BAD_ARGUMENT for a bad grid.
    """
    first, second = check_pair(pred, truth)
    distances = surface_distances(first, second, affine_or_spacing)
    return hd95_of_distances(distances, diagonal_mm(first.shape, affine_or_spacing))


def nsd(
    pred: npt.ArrayLike, truth: npt.ArrayLike, affine_or_spacing: npt.ArrayLike, *, tolerance_mm: float = 1.0
) -> float:
    """Return the normalised surface Dice of two masks at a tolerance.

    Both empty: 1. One empty: 0.

    Args:
        pred: Shape (x, y, z); whatever is not 0 is inside.
        truth: Same shape.
        affine_or_spacing: 4x4 affine, or three spacings in millimetres.
        tolerance_mm: How far surfaces may lie apart and still agree, this distance included.

    Raises:
        MedvolError: See `medvol.metrics.masks.check_pair`, or BAD_ARGUMENT for a bad grid.
    """
    return nsd_of_distances(surface_distances(pred, truth, affine_or_spacing), tolerance_mm)


def surface_distances(pred: npt.ArrayLike, truth: npt.ArrayLike, affine_or_spacing: npt.ArrayLike) -> SurfaceDistances:
    """Return the distances between the surfaces of two masks, shape (x, y, z); whatever is not 0 is inside."""
    first, second = crop_to_foreground(*(values != 0 for values in check_pair(pred, truth)))
    narrow = (first.astype(np.uint8), second.astype(np.uint8))
    return label_distances(*narrow, labels=2, steps_mm=grid_steps_mm(affine_or_spacing))[0]


def label_distances(pred: Mask, truth: Mask, *, labels: int, steps_mm: Floats) -> list[SurfaceDistances]:
    """Return the distances of each structure of two label maps, for labels 1, 2, ... `labels` - 1.

    The surfaces of all structures are found in one pass.

    Args:
        pred: Shape (x, y, z), values 0 to labels - 1.
        truth: Same shape.
        labels: Number of labels, background included.
        steps_mm: 3x3, from a step in voxels to one in millimetres.
    """
    first, second = (np.where(surface_voxels(values), values, 0) for values in (pred, truth))
    of_first, of_second = (_indices_by_label(values, labels) for values in (first, second))
    result = []
    for label in range(1, labels):
        result.append(
            SurfaceDistances(
                _distances(of_first[label], of_second[label], second, label, steps_mm),
                _distances(of_second[label], of_first[label], first, label, steps_mm),
            )
        )
    return result


def surface_voxels(labels: Mask) -> npt.NDArray[np.bool_]:
    """Return which voxels of a label map lie on the surface of their structure, shape (x, y, z)."""
    on_surface = np.zeros(labels.shape, dtype=np.bool_)
    for axis in range(labels.ndim):
        along, edge = np.moveaxis(labels, axis, 0), np.moveaxis(on_surface, axis, 0)
        differs = along[1:] != along[:-1]
        edge[1:] |= differs
        edge[:-1] |= differs
        edge[:1] = True
        edge[-1:] = True
    return np.asarray(on_surface & (labels != 0))


def hd95_of_distances(distances: SurfaceDistances, image_diagonal_mm: float) -> float:
    """Return the larger of the two directed 95th percentiles in millimetres; empty masks as in `hd95_mm`."""
    both = (distances.of_prediction, distances.of_truth)
    sizes = [len(values) for values in both]
    if not all(sizes):
        return image_diagonal_mm if any(sizes) else 0.0
    return float(max(np.percentile(values, 95) for values in both))


def nsd_of_distances(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Return the share of surface voxels within the tolerance of the other surface; empty masks as in `nsd`."""
    values = np.concatenate([distances.of_prediction, distances.of_truth])
    if not len(values):
        return 1.0
    # Comparisons with nan, the distance to an empty mask, are false.
    return float(np.count_nonzero(values <= tolerance_mm * (1 + TOLERANCE_SLACK)) / len(values))


def _indices_by_label(surface: Mask, labels: int) -> list[npt.NDArray[np.intp]]:
    """Return for each label the flat indices of its surface voxels."""
    flat = np.flatnonzero(surface)
    label_of = surface.ravel()[flat]
    order = np.argsort(label_of, kind="stable")
    bounds = np.searchsorted(label_of[order], np.arange(labels + 1))
    return [flat[order[bounds[label] : bounds[label + 1]]] for label in range(labels)]


def _distances(
    start: npt.NDArray[np.intp], goal: npt.NDArray[np.intp], goal_surface: Mask, label: int, steps_mm: Floats
) -> Floats:
    from scipy.spatial import KDTree

    if not len(start) or not len(goal):
        return np.full(len(start), np.nan)
    result = np.zeros(len(start))
    # Where the surfaces run together the distance is known; a good prediction spares most of the search.
    apart = np.flatnonzero(goal_surface.ravel()[start] != label)
    if len(apart):
        places, targets = (_positions_mm(flat, goal_surface.shape, steps_mm) for flat in (start[apart], goal))
        # A tree that is queried about once per point is not worth balancing.
        tree = KDTree(targets, leafsize=32, compact_nodes=False, balanced_tree=False)
        result[apart] = tree.query(places)[0]
    return result


def _positions_mm(flat: npt.NDArray[np.intp], shape: tuple[int, ...], steps_mm: Floats) -> Floats:
    return np.stack(np.unravel_index(flat, shape), axis=1) @ steps_mm.T
