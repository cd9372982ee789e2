"""Results of an inference as DICOM: which are asked for, that the sources allow them, and writing them case by case.

`output_formats` of an inference.json lists what is written of each case into `predictions`:

| format | file | what |
|---|---|---|
| `nifti` | `<case>.nii.gz` | the mask |
| `dicom-seg` | `<case>.dcm` | the mask as a segmentation, a label map |
| `dicom-seg-binary` | `<case>.dcm` | the same for viewers from before 2024 |
| `dicom-sr` | `<case>_sr.dcm` | volumes and mean intensities, or class probabilities, as a structured report |
| `dicom-sc` | `<case>_sc.dcm` | a page with outlines on three slices |

All but the first need sources that are DICOM. That one is, is checked before the first case, and so are the structures'
codes; a case that is not, or whose file is damaged, stops no other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
from ignite.engine import Engine, Events

from medvol import __version__
from medvol.bundle.session import Session
from medvol.errors import MedvolError, find_refusal, require_choices
from medvol.inference.collect import CollectPredictions
from medvol.inference.record import ModelRecord
from medvol.inference.segment import WriteMasks
from medvol.inference.segmented import SegmentedVolume
from medvol.inference.volumes import VolumesToPredict
from medvol.io.dicom_source import dicom_source, is_dicom_reference, not_dicom
from medvol.io.dicom_write_sc import write_picture
from medvol.io.dicom_write_seg import Algorithm, WrittenObject, write_segmentation
from medvol.io.dicom_write_sr import Measured, write_class_report, write_structure_report
from medvol.io.read import DICOM, read_volume, suffix_kind
from medvol.io.reference import parse_reference
from medvol.io.segment_codes import SegmentCodes, coded_structures
from medvol.io.write_nifti import mask_paths
from medvol.report.page import segmentation_page

logger = logging.getLogger(__name__)

NIFTI, REPORT, PAGE = "nifti", "dicom-sr", "dicom-sc"
SEGMENTATIONS = {"dicom-seg": "labelmap", "dicom-seg-binary": "binary"}
SEGMENTATION_FORMATS = (NIFTI, *SEGMENTATIONS, REPORT, PAGE)
CLASSIFICATION_FORMATS = (REPORT,)

_TAILS = {**dict.fromkeys(SEGMENTATIONS, ""), REPORT: "_sr", PAGE: "_sc"}


@final
class DicomResults:
    """Write the DICOM results of every case of a segmenting evaluator's run, after `WriteMasks`.

    A case whose source does not allow a result is listed in the dataset's `without_result`; the others go on.

    Args:
        session: Of the run; names what made the results.
        masks: Handler that writes NIfTI masks, and knows all files of the run.
        dataset: Cases and their references.
        record: Of the model.
        formats: See `SEGMENTATION_FORMATS`; one may be a plain word.
        segment_codes: See `medvol.io.segment_codes`.

    Raises:
        MedvolError: `UNKNOWN_OPTION`, `NOT_DICOM` where no case is, `UNKNOWN_STRUCTURE`, `NEED_PACKAGE`,
            `SAME_OUTPUT`; all before the first case.
    """

    def __init__(
        self,
        session: Session,
        masks: WriteMasks,
        dataset: VolumesToPredict,
        record: ModelRecord,
        *,
        formats: str | Sequence[str],
        segment_codes: SegmentCodes = (),
    ) -> None:
        if not formats:
            raise MedvolError("UNKNOWN_OPTION", found="no output format", expected=" or ".join(SEGMENTATION_FORMATS))
        self.formats = require_choices("output_formats", formats, SEGMENTATION_FORMATS)
        self.references, self.paths = _prepare(dataset, masks.folder, self.formats)
        self.masks, self.dataset = masks, dataset
        self.algorithm = algorithm_of(session, record)
        coded = any(one in (*SEGMENTATIONS, REPORT) for one in self.formats)
        self.names = record.facts.classes[1:]
        self.structures = coded_structures(self.names, segment_codes) if coded else ()
        for one in self.structures:
            logger.info("Structure %s is coded as %s", one.name, one.meaning)

    def attach(self, engine: Engine) -> None:
        """Hook into the end of each iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the case that was just segmented."""
        case, segmented = engine.state.output["case"], engine.state.output["segmented"]
        if case not in self.references:
            return
        try:
            files = self._write(case, segmented)
        except MedvolError as refusal:
            _leave_out(refusal, case, self.dataset)
            return
        self.masks.written.setdefault(case, files[0])
        self.masks.further.extend(files)

    def _write(self, case: str, segmented: SegmentedVolume) -> list[Path]:
        """Write all formats of a case and return the files, the mask first."""
        source = dicom_source(self.references[case])
        files: list[Path] = []
        written: WrittenObject | None = None
        for name in [one for one in self.formats if one in SEGMENTATIONS]:
            written = write_segmentation(
                self.paths[case, name],
                segmented.labels,
                segmented.affine,
                source,
                self.structures,
                algorithm=self.algorithm,
                kind=SEGMENTATIONS[name],
            )
            files.append(written.path)
        volumes_ml = [count * segmented.grid.voxel_ml for count in segmented.voxels_per_label[1:]]
        if not {REPORT, PAGE} & set(self.formats):
            return files
        image = read_volume(self.references[case]).array
        if REPORT in self.formats:
            means = mean_by_label(image, segmented.labels, len(self.names))
            measured = [
                Measured(structure, volume, mean)
                for structure, volume, mean in zip(self.structures, volumes_ml, means, strict=True)
            ]
            path = self.paths[case, REPORT]
            write_structure_report(path, measured, source, algorithm=self.algorithm, segmentation=written)
            files.append(path)
        if PAGE in self.formats:
            grid = segmented.grid
            page = segmentation_page(
                f"{self.algorithm.name} {self.algorithm.version}",
                grid.ras_view(image),
                grid.ras_view(segmented.labels),
                grid.working_affine(grid.ras_shape),
                dict(zip(self.names, volumes_ml, strict=True)),
            )
            path = self.paths[case, PAGE]
            write_picture(path, page, source, algorithm=self.algorithm, names_the_patient=False)
            files.append(path)
        return files


@final
class ClassReports:
    """Write the class probabilities of every case of a classification as structured reports, at the end of the run.

    Args:
        session: Of the run; names what made the results.
        dataset: Cases and their references.
        record: Of the model.
        formats: See `CLASSIFICATION_FORMATS`; one may be a plain word, none writes nothing.

    Raises:
        MedvolError: `UNKNOWN_OPTION`, `NOT_DICOM` where no case is, `NEED_PACKAGE`, `SAME_OUTPUT`; all before the first
            case.
    """

    def __init__(
        self, session: Session, dataset: VolumesToPredict, record: ModelRecord, *, formats: str | Sequence[str]
    ) -> None:
        chosen = require_choices("output_formats", formats, CLASSIFICATION_FORMATS)
        self.references, self.paths = _prepare(dataset, session.output_dir / "predictions", chosen)
        self.dataset, self.classes = dataset, record.facts.classes
        self.algorithm = algorithm_of(session, record)

    def write(self, collected: CollectPredictions) -> list[Path]:
        """Return the files written; a case whose source does not allow one is listed in `without_result`."""
        predictions, files = collected.result(), []
        for case, row in zip(predictions.cases, predictions.probabilities, strict=True):
            if case not in self.references:
                continue
            path = self.paths[case, REPORT]
            probabilities = dict(zip(self.classes, row.tolist(), strict=True))
            try:
                source = dicom_source(self.references[case])
                write_class_report(path, probabilities, source, algorithm=self.algorithm)
            except MedvolError as refusal:
                _leave_out(refusal, case, self.dataset)
            else:
                files.append(path)
        return files


def algorithm_of(session: Session, record: ModelRecord) -> Algorithm:
    """Return what a bundle's results name as their maker: bundle, version of medvol, digest of the weights."""
    weights = f" weights {record.weights_sha256[:12]}" if record.weights_sha256 else ""
    return Algorithm(f"medvol {session.bundle}", f"{__version__}{weights}")


def mean_by_label(image: npt.NDArray[Any], labels: npt.NDArray[Any], count: int) -> list[float | None]:
    """Return the mean of an image within each label from 1 to `count`; None for a label without a voxel.

    Args:
        image: Shape (x, y, z).
        labels: Same shape.
        count: Number of labels.
    """
    voxels, sums = np.zeros(count + 1), np.zeros(count + 1)
    for plane, marked in zip(image.T, labels.T, strict=True):  # the order of both in memory
        flat = marked.ravel()
        voxels += np.bincount(flat, minlength=count + 1)
        sums += np.bincount(flat, weights=plane.ravel(), minlength=count + 1)
    return [float(total / number) if number else None for total, number in zip(sums[1:], voxels[1:], strict=True)]


def _prepare(
    dataset: VolumesToPredict, folder: Path, formats: Sequence[str]
) -> tuple[dict[str, str], dict[tuple[str, str], Path]]:
    """Return the reference of each case, and the file of each case and DICOM format; none where no format is DICOM."""
    wanted = [name for name in formats if name != NIFTI]
    if not wanted:
        return {}, {}
    for package, extra in (("highdicom", "dicom"), *((("matplotlib", "plot"),) if PAGE in wanted else ())):
        if find_spec(package) is None:
            fix = f"pip install 'medvol-monai[{extra}]' brings it"
            raise MedvolError("NEED_PACKAGE", found=f"{package} is not installed", fix=fix)
    if len(set(wanted) & set(SEGMENTATIONS)) > 1:
        raise MedvolError("UNKNOWN_OPTION", found="two kinds of segmentation", expected=" or ".join(SEGMENTATIONS))
    references = {item["case"]: _first(item.get("image")) for item in dataset.data}
    references = {case: reference for case, reference in references.items() if reference}
    _require_dicom(references)
    names = {(case, name): f"{case}{_TAILS[name]}" for case in references for name in wanted}
    paths = mask_paths(folder, names.values(), ".dcm")
    return references, {key: paths[name] for key, name in names.items()}


def _first(reference: str | Sequence[str] | None) -> str:
    """Return the reference of the first channel; empty for a case without an image."""
    if reference is None or isinstance(reference, str):
        return reference or ""
    return str(reference[0]) if reference else ""


def _require_dicom(references: Mapping[str, str]) -> None:
    """Refuse sources of which none is DICOM; where some are, the others are told now and listed after their turn."""
    others = [case for case, reference in references.items() if not _may_be_dicom(reference)]
    if not others:
        return
    if len(others) == len(references):
        raise not_dicom(references[others[0]], others[0])
    logger.warning(
        "%d of %d cases are not DICOM and get no DICOM result, such as %s", len(others), len(references), others[0]
    )


def _may_be_dicom(reference: str) -> bool:
    """Tell whether a reference names DICOM; one that is damaged, or cannot be opened, is left to reading."""
    try:
        return is_dicom_reference(reference) or suffix_kind(parse_reference(reference).path.name) == DICOM
    except (MedvolError, OSError):
        return True


def _leave_out(refusal: MedvolError, case: str, dataset: VolumesToPredict) -> None:
    named = (find_refusal(refusal) or refusal).for_case(case)
    logger.warning("No DICOM result: %s", named)
    dataset.without_result.append(named)
