"""What the bundle vit2d adds to the others: the likeliest classes of an image, by rank."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from medvol.bundle.finish import finish_inference
from medvol.bundle.session import Session
from medvol.inference.collect import CollectPredictions
from medvol.inference.record import ModelRecord
from medvol.inference.volumes import VolumesToPredict
from medvol.report.ranked import ranked_table, write_ranked

logger = logging.getLogger(__name__)

TOP_FILE = "top5.csv"


def finish_ranked_inference(
    session: Session,
    collected: CollectPredictions,
    dataset: VolumesToPredict,
    record: ModelRecord,
    *,
    top: int = 5,
    further: Sequence[Path] = (),
) -> None:
    """Write and log the likeliest classes of each image, then end as every classification bundle does.

    Args:
        session: From `begin`.
        collected: The predictions.
        dataset: Knows which images could not be read.
        record: Of the model.
        top: Classes listed of each image.
        further: Files that were written already and belong to the run.

    Raises:
        MedvolError: The first refusal, when every image was refused.
        SystemExit: With code 3, when some images could not be read.
    """
    predictions, classes = collected.result(), record.facts.classes
    written = [session.output_dir / TOP_FILE] if predictions.cases else []
    if written:
        write_ranked(written[0], predictions, classes, top)
        for line in ranked_table(predictions, classes, top):
            logger.info("%s", line)
    finish_inference(session, collected, dataset, record, further=[*written, *further])
