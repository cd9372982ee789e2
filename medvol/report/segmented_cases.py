"""The cases of a segmentation run, added one by one: numbers are kept, volumes are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.geometry import Affine
from medvol.metrics.lesions import LesionCounts, count_lesions
from medvol.metrics.masks import voxel_volume_ml
from medvol.metrics.segmentation import NSD_TOLERANCE_MM, mean_of_structures, score_case
from medvol.report.views import CaseViews, cut_views

CASES_KEPT = 18
"""Slices held at once, a few hundred kilobytes each; see `SegmentedCases.shown`."""


@dataclass(frozen=True)
class CaseRow:
    """The numbers of one case.

    Args:
        case: Name.
        patient: Patient.
        scores: By structure, from `score_case`; only `volume_ml` for a case without truth.
        output: File of the mask, relative to the output folder; empty when none was written.
        lesions: Counts by structure, of the structures that are lesions.
    """

    case: str
    patient: str
    scores: Mapping[str, Mapping[str, float]]
    output: str = ""
    lesions: Mapping[str, LesionCounts] = field(default_factory=dict)


@final
class SegmentedCases:
    """Score each case as it comes, and keep the slices of those that will be shown.

    Args:
        structures: Name to label.
        nsd_tolerance_mm: Tolerance of the surface Dice.
        lesion_structures: Names of the structures whose components are counted as lesions.

    Attributes:
        rows: Numbers of the cases so far.
        failures: Refusals of the cases that could not be read or predicted.
        without_geometry: Number of cases of which the millimetres are voxels.
    """

    def __init__(
        self,
        structures: Mapping[str, int],
        *,
        nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
        lesion_structures: Sequence[str] = (),
    ) -> None:
        self.structures = dict(structures)
        self.nsd_tolerance_mm = nsd_tolerance_mm
        self.lesion_structures = tuple(lesion_structures)
        self.rows: list[CaseRow] = []
        self.failures: list[MedvolError] = []
        self.without_geometry = 0
        self._dice: list[float] = []
        self._views: dict[int, CaseViews] = {}

    def add(
        self,
        case: str,
        patient: str,
        image: Any,
        pred: Any,
        truth: Any,
        affine: Affine | None,
        *,
        output: str = "",
    ) -> CaseRow:
        """Score a case and forget its volumes.

        Args:
            case: Name.
            patient: Patient.
            image: Shape (x, y, z) or (channel, x, y, z), of which the first channel is shown; None shows nothing.
            pred: Label map, shape (x, y, z) or (1, x, y, z): array or tensor, on the grid of `truth`.
            truth: Label map of the same shape; None for a case without truth, which only gets volumes.
            affine: Voxel index to RAS+ millimetres; None when the volume has no geometry and a voxel counts as 1 mm.
            output: File of the mask, relative to the output folder.

        Raises:
            MedvolError: As `score_case`, with the case named.
        """
        grid = np.ones(3) if affine is None else np.asarray(affine, dtype=np.float64)
        self.without_geometry += affine is None
        predicted = _spatial(pred)
        if truth is None:
            voxels = np.bincount(predicted.ravel().astype(np.int64), minlength=1 + max(self.structures.values()))
            voxel_ml = voxel_volume_ml(grid)
            scores = {name: {"volume_ml": int(voxels[label]) * voxel_ml} for name, label in self.structures.items()}
            row = CaseRow(case, patient, scores, output)
            self.rows.append(row)
            return row
        true = _spatial(truth)
        try:
            measured = score_case(predicted, true, self.structures, grid, nsd_tolerance_mm=self.nsd_tolerance_mm)
        except MedvolError as error:
            raise error.for_case(case) from error
        labels = {name: self.structures[name] for name in self.lesion_structures}
        lesions = {name: count_lesions(predicted == label, true == label) for name, label in labels.items()}
        row = CaseRow(case, patient, measured, output, lesions)
        self.rows.append(row)
        if image is not None:
            place = None if affine is None else grid
            self._keep(measured, cut_views(case, _spatial(image), predicted, true, place, self.structures))
        return row

    def add_failure(self, refusal: MedvolError) -> None:
        """Note a case that could not be read or predicted."""
        self.failures.append(refusal)

    def absorb(self, others: Sequence[SegmentedCases]) -> None:
        """Add the cases of other processes, after the own."""
        for other in others:
            self.rows += other.rows
            self.failures += other.failures
            self.without_geometry += other.without_geometry
            self._views |= {len(self._dice) + index: views for index, views in other._views.items()}
            self._dice += other._dice

    def shown(self) -> list[tuple[str, CaseViews]]:
        """Return heading and slices of the best, the median and the worst case by mean Dice; fewer of fewer cases.

        Which case is the median is known at the end only. Of `CASES_KEPT` slices kept, those nearest to the median so
        far, the nearest is shown: the median itself, unless the cases come sorted by Dice.
        """
        if not self._views:
            return []
        best, worst = int(np.argmax(self._dice)), int(np.argmin(self._dice))
        others = [index for index in self._views if index not in (best, worst)]
        middle = float(np.median(self._dice))
        chosen = {"best" if best != worst else "case": best}
        if others:
            chosen["median"] = min(others, key=lambda index: abs(self._dice[index] - middle))
        if worst != best:
            chosen["worst"] = worst
        return [
            (f"{word}: {self._views[index].case}, Dice {self._dice[index]:.3f}", self._views[index])
            for word, index in chosen.items()
        ]

    def _keep(self, scores: Mapping[str, Mapping[str, float]], views: CaseViews) -> None:
        self._dice.append(mean_of_structures(scores, "dice"))
        self._views[len(self._dice) - 1] = views
        if len(self._views) > CASES_KEPT:
            ends = {int(np.argmax(self._dice)), int(np.argmin(self._dice))}
            middle = float(np.median(self._dice))
            inner = [index for index in self._views if index not in ends]
            del self._views[max(inner, key=lambda index: abs(self._dice[index] - middle))]


def _spatial(volume: Any) -> npt.NDArray[Any]:
    array = np.asarray(volume.detach().cpu() if hasattr(volume, "detach") else volume)
    return array[0] if array.ndim == 4 else array
