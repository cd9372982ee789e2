"""What is particular to the run of a segmentation bundle: cases collected, post-processing chosen, results written."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from tqdm import tqdm

from medvol.bundle.explained import REPORT_CASES
from medvol.bundle.finish import SOME_FAILED, count_predicted, write_report, write_run
from medvol.bundle.session import Session
from medvol.data.cache import CachedVolumes
from medvol.data.facts import Facts
from medvol.errors import require_choices
from medvol.inference.choose_cleaning import Case, choose_cleaning, cleaning_table
from medvol.inference.record import RECORD_FILE, WEIGHTS_FILE, ModelRecord, load_record, load_weights, write_record
from medvol.inference.segment import SegmentCases, WriteMasks
from medvol.inference.volumes import VolumesToPredict
from medvol.metrics.segmentation import NSD_TOLERANCE_MM
from medvol.report import pictures
from medvol.report.classification import can_draw
from medvol.report.html_report import Shown
from medvol.report.html_structures import segmented_pictures
from medvol.report.segmentation import write_evaluation, write_predictions
from medvol.report.segmented_cases import SegmentedCases
from medvol.training.checkpoint import count_parameters
from medvol.training.handlers import TrainingHistory

logger = logging.getLogger(__name__)


def finish_training(
    session: Session,
    history: TrainingHistory,
    validator: SupervisedEvaluator,
    segment: SegmentCases,
    cases: CachedVolumes,
    model_dir: str | Path,
    *,
    show_progress: bool = True,
) -> None:
    """Choose the post-processing of the saved model on validation, write run.json and the curve, log the summary.

    Args:
        session: From `begin`.
        history: Loss and validation metrics of every epoch.
        validator: Holds the network, which takes the saved weights.
        segment: How a case is predicted.
        cases: The validation split, empty when all cases were trained on.
        model_dir: Where the model was saved.
        show_progress: Whether to draw a progress bar.
    """
    record = load_record(model_dir, {})
    load_weights(validator.network, model_dir, record)
    indices = tqdm(range(len(cases)), desc="Trying post-processing", unit="case", disable=not (show_progress and cases))
    cleanings, tried = choose_cleaning(_predicted(validator, segment, cases, indices), _structures(record.facts))
    if tried:
        logger.info("Post-processing, tried on validation:")
        for line in cleaning_table(tried):
            logger.info("%s", line)
        cleaning = {record.facts.classes[label]: cleaning.as_dict() for label, cleaning in cleanings.items()}
        record = write_record(model_dir, replace(record, cleaning=cleaning))
    output = session.output_dir
    files = [Path(model_dir) / WEIGHTS_FILE, Path(model_dir) / RECORD_FILE, output / "history.csv"]
    if can_draw():
        files.append(pictures.draw_training(output / "training.png", history.rows, metric="dice"))
    logger.info(
        "Trained %d parameters for %d epochs; kept epoch %d; post-processing of %d structures",
        count_parameters(validator.network),
        len(history.rows),
        record.training["epoch"],
        len(record.cleaning),
    )
    facts = {"training": record.training, "cleaning_tried": [row.as_dict() for row in tried]}
    write_run(session, "train", facts, files)


@final
class CollectCases:
    """Handler that adds each segmented case to `cases`: scored where it has a truth, measured in millilitres anyhow.

    Args:
        masks: Handler that writes the masks, earlier in the list.
        facts: Names of the classes.
        output_dir: Folder that the table of cases gives the masks' files relative to.
        nsd_tolerance_mm: How far surfaces may lie apart and still agree.
        lesion_structures: Names of the structures whose components are counted as lesions.
    """

    def __init__(
        self,
        masks: WriteMasks,
        facts: Facts,
        output_dir: str | Path,
        *,
        nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
        lesion_structures: str | Sequence[str] = (),
    ) -> None:
        lesions = require_choices("lesion_structures", lesion_structures, facts.classes[1:])
        self.masks = masks
        self.output_dir = Path(output_dir)
        self.cases = SegmentedCases(_structures(facts), nsd_tolerance_mm=nsd_tolerance_mm, lesion_structures=lesions)

    def attach(self, engine: Engine) -> None:
        """Hook into the end of each iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Add the case that was just segmented."""
        output = engine.state.output
        grid = output["segmented"].grid
        pred = output.get("pred", grid.ras_view(output["segmented"].labels))
        written = self.masks.written.get(output["case"])  # none where only DICOM was asked for and could not be written
        self.cases.add(
            output["case"],
            output["patient"],
            output.get("shown"),
            pred,
            output.get("label"),
            grid.working_affine(grid.ras_shape) if grid.has_geometry else None,
            output="" if written is None else os.path.relpath(written, self.output_dir),
        )


def finish_evaluation(
    session: Session,
    collected: CollectCases,
    segment: SegmentCases,
    record: ModelRecord,
    split: str,
    *,
    report_cases: int = REPORT_CASES,
) -> None:
    """Write metrics, the table of cases and pictures of the evaluated split, report.html and run.json.

    Args:
        session: From `begin`.
        collected: The cases.
        segment: How they were predicted.
        record: Of the model.
        split: `val` or `test`.
        report_cases: Cases to show in the report, at most the best, the median and the worst; 0 shows none.
    """
    files = write_evaluation(session.output_dir, collected.cases, bundle=session.bundle, split=split)
    facts = {"weights_sha256": record.weights_sha256, "training": record.training, **_agreement(segment)}
    files = [*files, *collected.masks.written.values(), *collected.masks.further]
    pictures = segmented_pictures(collected.cases)[:report_cases]
    report = write_report(session, facts, files, Shown(pictures=pictures, structures=collected.cases.structures))
    write_run(session, "evaluate", facts, [*files, report])


def finish_inference(
    session: Session, collected: CollectCases, segment: SegmentCases, dataset: VolumesToPredict, record: ModelRecord
) -> None:
    """Write predictions.csv and run.json; end with exit code 3 when some cases failed, 1 when all did.

    Raises:
        MedvolError: The first refusal, when every case was refused.
        SystemExit: With code 3.
    """
    refusals, written = [*dataset.failures, *dataset.without_result], collected.masks.written
    if refusals and not written:
        raise refusals[0]
    for refusal in refusals:
        collected.cases.add_failure(refusal)
    path = write_predictions(session.output_dir / "predictions.csv", collected.cases)
    counts = count_predicted("Segmented", len(collected.cases.rows), dataset)
    summary = {"weights_sha256": record.weights_sha256, **counts, **_agreement(segment)}
    write_run(session, "inference", summary, [path, *{*written.values(), *collected.masks.further}])
    if refusals:
        raise SystemExit(SOME_FAILED)


def _agreement(segment: SegmentCases) -> dict[str, Any]:
    return {} if segment.agreement is None else {"against_float32": asdict(segment.agreement)}


def _structures(facts: Facts) -> dict[str, int]:
    return {name: label for label, name in enumerate(facts.classes) if label > 0}


def _predicted(
    validator: SupervisedEvaluator, segment: SegmentCases, cases: CachedVolumes, indices: Iterable[int]
) -> Iterator[Case]:
    """Yield prediction, truth, voxel volume and patient of the validation cases, one by one."""
    for index in indices:
        output = segment(validator, cases[index])
        yield output["pred"], output["label"], output["segmented"].grid.voxel_ml, output["patient"]
