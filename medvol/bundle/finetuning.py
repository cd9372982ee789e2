"""The record of a training that starts from a model: where it comes from, and whom that model has seen."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from medvol.bundle.finish import new_record
from medvol.bundle.pretraining import SAME_FACTS
from medvol.data.facts import Facts
from medvol.data.study import Study
from medvol.inference.record import ModelRecord, file_sha256, union
from medvol.inference.seen import patients_among
from medvol.training.finetune import record_beside, weights_file

logger = logging.getLogger(__name__)


def fine_tuned_record(
    study: Study,
    facts: Facts,
    *,
    bundle: str,
    seeds: dict[str, int],
    pretrained: str | Path,
    network: dict[str, Any] | None = None,
    mirror: bool = False,
) -> ModelRecord:
    """Return the record of a fine-tuning that begins, with its origin under `training.fine_tuned_from`.

    Patients that the model was trained on count as trained on here too, so that an evaluation on them is refused.

    Args:
        study: What is trained on.
        facts: What was fitted on its training split.
        bundle: Name of the bundle.
        seeds: Of the run.
        pretrained: The model that is started from.
        network: Numbers that decide the architecture and that a user may change.
        mirror: Segmentation: whether predictions are averaged over mirror images.

    Raises:
        MedvolError: `NO_WEIGHTS`, `NOT_FOUND`, `BAD_RECORD`.
    """
    record = new_record(study, facts, bundle=bundle, seeds=seeds, network=network, mirror=mirror)
    file = weights_file(pretrained)
    origin: dict[str, Any] = {"file": file.name, "sha256": file_sha256(file)}
    before = record_beside(file)
    if before is None:
        logger.warning("%s has no record beside it: whom that model was trained on is not known", file)
        return replace(record, training={**record.training, "fine_tuned_from": origin})
    origin |= {"classes": list(before.facts.classes), "training": before.training}
    known = patients_among(study, set(before.trained_on))
    leaked = {case.patient for case in study.cases if case.split == "test"} & known
    if leaked:
        logger.warning("%d test patients were in the training of %s; evaluation will refuse them", len(leaked), file)
    ours, theirs = facts.as_dict(), before.facts.as_dict()
    differing = [name for name in SAME_FACTS if ours[name] != theirs[name]]
    if differing:
        logger.warning("The model was trained on images with other %s", ", ".join(differing))
    return replace(
        record,
        trained_on=union([record.trained_on, before.trained_on]),
        fitted_on=union([record.fitted_on, before.fitted_on]),
        training={**record.training, "fine_tuned_from": origin},
    )
