"""Segmenting case after case: the iteration of an evaluator, and what it hands on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
from ignite.engine import Engine, Events
from ignite.metrics import Average
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from torch import nn

from medvol.data.facts import Facts
from medvol.errors import require_choices
from medvol.geometry import is_sheared
from medvol.inference.agreement import LabelAgreement, agreement
from medvol.inference.runtime import Runtime
from medvol.inference.segmented import SegmentedVolume, predict_labels
from medvol.inference.sliding_window import SlidingWindow
from medvol.inference.source_grid import label_dtype
from medvol.inference.windows import plan_windows
from medvol.io.write_nifti import mask_paths, write_probabilities
from medvol.metrics.overlap import confusion_counts, dice_of_counts
from medvol.transforms.components import Cleaning, clean_labels

logger = logging.getLogger(__name__)


@final
class SegmentCases:
    """An evaluator's `iteration_update` for one case: predicted on the working grid, labelled on the source's.

    Validation, evaluation and inference all go through it, so that what is measured is what is written. Its output has
    `case`, `patient` and `segmented`; for an item of `evaluation_preprocessing` also `pred` and `label`, label maps in
    RAS order on the source grid, `shown`, the image for pictures, and `dice` by class.

    Args:
        window: How the network is run over the volume.
        facts: Names of the classes.
        scratch: Folder for label maps while they are worked on.
        cleanings: Post-processing by label, as stored with the model.
        probabilities_of: Names of the structures whose probabilities are kept for `WriteMasks`.
        compared: Runtime of the window. When it is not float32, the middle window of the first case is run in both, to
            say how many labels the chosen precision changes; `agreement` has the answer.

    Raises:
        MedvolError: `UNKNOWN_OPTION` for a structure that the model does not know.
    """

    def __init__(
        self,
        window: SlidingWindow,
        facts: Facts,
        *,
        scratch: str | Path,
        cleanings: Mapping[int, Cleaning] | None = None,
        probabilities_of: str | Sequence[str] = (),
        compared: Runtime | None = None,
    ) -> None:
        kept = require_choices("save_probabilities", probabilities_of, facts.classes)
        self.probabilities_of = [facts.classes.index(name) for name in kept]
        self.window = window
        self.classes = facts.classes
        self.scratch = Path(scratch)
        self.cleanings = dict(cleanings or {})
        self.compared = compared
        self.agreement: LabelAgreement | None = None

    def __call__(self, engine: SupervisedEvaluator, item: dict[str, Any]) -> dict[str, Any]:
        """Return the output for an item with `image` and perhaps `label` and `shown`."""
        with engine.mode(engine.network):
            if self.compared is not None and self.compared.dtype != "float32" and self.agreement is None:
                self.agreement = self._compare(item["image"], engine.network, self.compared)
            found = predict_labels(
                item["image"],
                engine.network,
                self.window,
                folder_for_memmap=self.scratch,
                structures=self.probabilities_of,
            )
        segmented = self._cleaned(found)
        output = {"case": item["case"], "patient": item["patient"], "segmented": segmented}
        if "shown" not in item:  # in inference a case may name a mask, which nobody reads
            return output
        pred, truth = segmented.grid.ras_view(segmented.labels), item["label"].as_tensor()[0].numpy()
        dice = self._dice(pred, truth)
        return {**output, "pred": pred, "label": truth, "shown": item["shown"].as_tensor()[0].numpy(), "dice": dice}

    def _compare(self, image: MetaTensor, network: nn.Module, runtime: Runtime) -> LabelAgreement:
        plan = plan_windows(image.as_tensor(), self.window.patch_size, self.window.overlap)
        row = plan.rows[len(plan.rows) // 2]
        first = network[0] if isinstance(network, nn.ModuleList) else network
        device = next(first.parameters()).device
        return agreement(first, plan.cut(row[len(row) // 2])[None].to(device), runtime)

    def _cleaned(self, segmented: SegmentedVolume) -> SegmentedVolume:
        if not self.cleanings:
            return segmented
        labels = clean_labels(segmented.labels, self.cleanings, segmented.grid.voxel_ml)
        counts = np.bincount(labels.ravel(), minlength=len(self.classes))
        return replace(segmented, labels=labels, voxels_per_label=tuple(int(count) for count in counts))

    def _dice(self, pred: npt.NDArray[Any], truth: npt.NDArray[Any]) -> dict[str, float]:
        counts = confusion_counts(pred, truth, len(self.classes))
        sizes = zip(self.classes, counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1), strict=True)
        return {name: dice_of_counts(int(shared), int(found), int(true)) for name, shared, found, true in sizes}


def dice_metrics(facts: Facts, *, key: bool) -> dict[str, Average]:
    """Return ignite metrics over the outputs of `SegmentCases`: the mean over cases of the Dice.

    Args:
        facts: Names of the classes; the background is left out.
        key: Whether to return `dice`, the mean over structures, or one metric `dice_<structure>` for each.
    """
    structures = facts.classes[1:]
    wanted = {"dice": structures} if key else {f"dice_{name}": (name,) for name in structures}
    return {name: Average(output_transform=partial(_mean_dice, chosen)) for name, chosen in wanted.items()}


def _mean_dice(structures: tuple[str, ...], output: Mapping[str, Any]) -> float:
    return float(np.mean([output["dice"][name] for name in structures]))


@final
class WriteMasks:
    """Write the mask of every case of an evaluator's run to `folder/<case>.nii.gz`, in the values of the study's masks.

    Args:
        folder: Where the masks go.
        cases: Names of all cases of the run; files that would overwrite each other are refused before the first.
        facts: Names and mask values of the classes.
        probabilities_of: Names of the structures whose probabilities `SegmentCases` keeps; each gets a file
            `<case>.<structure>.nii.gz`, float32.
        formats: What is written of each case; no mask without `nifti` among them.

    Attributes:
        written: The file that shows each case: its mask, or what a later handler wrote in its place.
        further: Other files of the run.

    Raises:
        MedvolError: `SAME_OUTPUT`.
    """

    def __init__(
        self,
        folder: str | Path,
        cases: Sequence[str],
        facts: Facts,
        *,
        probabilities_of: str | Sequence[str] = (),
        formats: str | Sequence[str] = ("nifti",),
    ) -> None:
        self.folder = Path(folder)
        self.paths = mask_paths(folder, cases)
        self.writes_masks = "nifti" in ((formats,) if isinstance(formats, str) else formats)
        self.probabilities_of = require_choices("save_probabilities", probabilities_of, facts.classes)
        self.values = facts.label_values or tuple(range(len(facts.classes)))
        names = dict(zip(self.values, facts.classes, strict=True))
        self.names = [names.get(value, "") for value in range(max(self.values) + 1)]
        self.written: dict[str, Path] = {}
        self.further: list[Path] = []
        self._has_warned = False

    def attach(self, engine: Engine) -> None:
        """Hook into the end of each iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the case that was just segmented."""
        case, segmented = engine.state.output["case"], engine.state.output["segmented"]
        if self.writes_masks:
            labels = segmented.labels
            if self.values != tuple(range(len(self.values))):
                labels = np.asarray(self.values, dtype=label_dtype(max(self.values) + 1))[labels]
            replace(segmented, labels=labels).write(self.paths[case], self.names)
            self._warn_of_shear(case, segmented)
            self.written[case] = self.paths[case]
        maps = () if segmented.probabilities is None else segmented.probabilities
        for name, probabilities in zip(self.probabilities_of, maps, strict=True):
            # The name of a structure, too, may hold what a file name must not.
            path = mask_paths(self.paths[case].parent, [f"{case}.{name}"])[f"{case}.{name}"]
            write_probabilities(path, probabilities, segmented.affine, has_geometry=segmented.grid.has_geometry)
            self.further.append(path)

    def _warn_of_shear(self, case: str, segmented: SegmentedVolume) -> None:
        """Warn, once, of a mask that viewers built on ITK cannot open; its voxels are where the source's are."""
        if self._has_warned or not segmented.grid.has_geometry or not is_sheared(segmented.affine):
            return
        self._has_warned = True
        logger.warning(
            "case %s: the scan's axes are not at right angles (a tilted gantry), nor are those of its mask, and of all "
            "like it; ITK, 3D Slicer and SimpleITK do not open such NIfTI files. Of DICOM, write --output_formats "
            "\"['dicom-seg']\"",
            case,
        )
