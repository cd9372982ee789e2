"""The end of a bundle's run: temperature, records, tables, exit code."""

from __future__ import annotations

import logging
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer
from torch import nn

from medvol.bundle.explained import Evaluated, case_pictures, column_importances
from medvol.bundle.session import Session
from medvol.data.covariates import items_with_covariates
from medvol.data.facts import Facts
from medvol.data.table import Study, content_hash
from medvol.errors import MedvolError
from medvol.inference.collect import CollectPredictions
from medvol.inference.record import (
    RECORD_FILE,
    WEIGHTS_FILE,
    ModelRecord,
    file_sha256,
    load_record,
    load_weights,
    save_model,
)
from medvol.inference.seen import digests_of, patients_among, warn_of_numbers
from medvol.inference.volumes import VolumesToPredict
from medvol.metrics.calibration import fit_temperature
from medvol.report import pictures
from medvol.report.classification import EvaluatedSplit, can_draw, write_evaluation, write_predictions
from medvol.report.html_report import Shown, write_html_report
from medvol.report.run_record import processor_model, versions, write_run_record
from medvol.training.baselines import covariate_baselines
from medvol.training.checkpoint import count_parameters
from medvol.training.handlers import TrainingHistory, write_history

logger = logging.getLogger(__name__)

SOME_FAILED = 3
"""Exit code of an inference in which some cases could not be read."""


def new_record(
    study: Study,
    facts: Facts,
    *,
    bundle: str,
    seeds: dict[str, int],
    network: dict[str, Any] | None = None,
    mirror: bool = False,
) -> ModelRecord:
    """Return the record of a training that begins.

    Args:
        study: What is trained on.
        facts: What was fitted on its training split.
        bundle: Name of the bundle.
        seeds: Of the run.
        network: Numbers that decide the architecture and that a user may change.
        mirror: Segmentation: whether predictions are averaged over mirror images.
    """
    digests = digests_of(study)
    fitted = {digests[case.patient] for case in study.cases if case.split == "train"}
    seen = fitted | {digests[case.patient] for case in study.cases if case.split == "val"}
    training = {"bundle": bundle, **seeds, "data_sha256": content_hash(study)}
    return ModelRecord(
        facts=facts,
        trained_on=tuple(sorted(seen)),
        fitted_on=tuple(sorted(fitted)),
        training=training,
        network=dict(network or {}),
        mirror=mirror,
        class_counts=_class_counts(study),
    )


def finish_training(
    session: Session,
    history: TrainingHistory,
    validator: SupervisedEvaluator,
    collected: CollectPredictions,
    model_dir: str | Path,
    inferer: Inferer,
) -> None:
    """Fit the temperature of the saved model on validation, write history and run.json, log the summary.

    Args:
        session: From `begin`.
        history: Loss and validation metrics of every epoch.
        validator: Evaluator over the validation split; its network takes the saved weights.
        collected: Collects the validator's logits.
        model_dir: Where the model was saved.
        inferer: How evaluation and inference will run the network.
    """
    network: nn.Module = validator.network
    record = load_record(model_dir, {})
    load_weights(network, model_dir, record)
    validator.inferer = inferer
    validator.run()
    predictions = collected.result()
    if predictions.labels is not None and len(np.unique(predictions.labels)) > 1:
        temperature = float(fit_temperature(predictions.logits, predictions.labels))
        record = save_model(model_dir, network, replace(record, temperature=temperature))
    output = session.output_dir
    files = [Path(model_dir) / WEIGHTS_FILE, Path(model_dir) / RECORD_FILE, _write_history(output, history.rows)]
    if can_draw():
        files.append(pictures.draw_training(output / "training.png", history.rows))
    logger.info(
        "Trained %d parameters for %d epochs; kept epoch %d; temperature %.2f",
        count_parameters(network),
        len(history.rows),
        record.training["epoch"],
        record.temperature,
    )
    write_run(session, "train", {"training": record.training}, files)


def finish_evaluation(
    session: Session,
    evaluated: Evaluated,
    study: Study,
    record: ModelRecord,
    split: str,
    others: Mapping[str, npt.NDArray[np.float64]] | None = None,
    blind: Sequence[str] = (),
) -> None:
    """Write metrics, predictions and pictures of the evaluated split, report.html and run.json.

    Args:
        session: From `begin`.
        evaluated: Predictions of the split and what made them.
        study: What it is a split of.
        record: Of the model.
        split: `val` or `test`.
        others: Class probabilities of other models for the same cases, by name.
        blind: Names of the other models that see no image, so that what the image adds is stated.
    """
    classes = record.facts.classes
    counts = record.class_counts or _class_counts(study)
    if not counts:
        logger.info(
            "No baseline: neither the model's record nor the study tells how common the classes were in training"
        )
    train_labels = tuple(label for label, name in enumerate(classes) for _ in range(counts.get(name, 0)))
    compared = EvaluatedSplit(session.bundle, split, classes, train_labels, others or {}, tuple(blind))
    files = write_evaluation(session.output_dir, evaluated.predictions, compared)
    facts = {"weights_sha256": record.weights_sha256, "training": record.training}
    shown = Shown(
        pictures=case_pictures(evaluated, record),
        notes=study.notes,
        importances=column_importances(evaluated, record),
    )
    write_run(session, "evaluate", facts, [*files, write_report(session, facts, files, shown)])


def baselines_on_covariates(
    study: Study, record: ModelRecord, collected: CollectPredictions
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the class probabilities of the classical models for the cases that were evaluated, in their order.

    They are fitted on the training rows of the study; without any, as in an external validation, there are none, nor
    where the network was trained on none of them: another study's would be compared with it as if they were its own.
    """
    learnt_from = {case.patient for case in study.cases if case.split == "train"}
    if record.trained_on:
        learnt_from &= patients_among(study, record.trained_on)
    if not learnt_from:
        logger.info("No classical models beside the network: the study holds none of the rows that it was trained on")
        return {}
    of_case = {item["case"]: item for item in items_with_covariates(study)}
    evaluated = [of_case[case] for case in collected.result().cases]
    train = items_with_covariates(study, "train")
    return covariate_baselines(record.facts.columns, train, evaluated, record.facts.num_classes)


def finish_inference(
    session: Session,
    collected: CollectPredictions,
    dataset: VolumesToPredict,
    record: ModelRecord,
    *,
    further: Sequence[Path] = (),
) -> None:
    """Write predictions.csv and run.json; end with exit code 3 when some cases failed, 1 when none could be read.

    Args:
        session: From `begin`.
        collected: The predictions.
        dataset: Knows which cases could not be read, and which have no DICOM result.
        record: Of the model.
        further: Files that were written already and belong to the run.

    Raises:
        MedvolError: The first refusal, when every case was refused.
        SystemExit: With code 3.
    """
    predictions, failures = collected.result(), dataset.failures
    if failures and not predictions.cases:
        raise failures[0]
    path = session.output_dir / "predictions.csv"
    refusals = [*failures, *dataset.without_result]
    write_predictions(path, predictions, record.facts.classes, failures=refusals)
    counts = count_predicted("Predicted", len(predictions.cases), dataset)
    write_run(session, "inference", {"weights_sha256": record.weights_sha256, **counts}, [path, *further])
    if refusals:
        raise SystemExit(SOME_FAILED)


def count_predicted(verb: str, predicted: int, dataset: VolumesToPredict) -> dict[str, Any]:
    """Log how many cases an inference predicted, could not read, and wrote no DICOM result of.

    Returned are the numbers and what readers noted, for run.json.

    Args:
        verb: What was done with them.
        predicted: Number of cases that were read.
        dataset: Knows the others.
    """
    counts: dict[str, Any] = {"predicted": predicted, "failed": len(dataset.failures), "notes": dataset.notes.lines()}
    words = f"{verb} {predicted} cases, {counts['failed']} could not be read"
    if dataset.without_result:
        counts["without_dicom_result"] = len(dataset.without_result)
        words += f", {counts['without_dicom_result']} have no DICOM result"
    logger.info("%s", words)
    return counts


def require_unseen(study: Study, record: ModelRecord, split: str, ensemble: Sequence[str | Path] = ()) -> None:
    """Refuse to evaluate on patients that the model, or one of several, was trained or calibrated on.

    Validation cases may be looked at as what they are, `--eval_split val`, where none was a training case: of another
    fold, or of one of the folds that were joined. Who is taken for whom stands in `medvol.inference.seen`.

    Args:
        study: With the split.
        record: Of the model.
        split: Which is evaluated on.
        ensemble: `models` folders of all networks where there are several.

    Raises:
        MedvolError: `LEAK`, with the number of patients.
    """
    records = [load_record(folder, record.facts.as_dict()) for folder in ensemble] or [record]
    if split not in ("val", "test"):
        return
    seen = {patient for one in records for patient in (one.trained_on if split == "test" else one.fitted_on)}
    patients, known = {case.patient for case in study.cases if case.split == split}, patients_among(study, seen)
    if seen and not known:
        warn_of_numbers(study, split)
        asked = sum(case.split == split for case in study.cases)
        if asked < len(study.cases):
            logger.warning(
                "The model was trained on none of these patients, yet only the %d of %d cases in %s are measured: to "
                "measure all, put 'test' into a column 'split'",
                asked,
                len(study.cases),
                split,
            )
    leaked = patients & known
    if leaked:
        place = "training or validation" if split == "test" else "the training of the model or a part of it"
        raise MedvolError(
            "LEAK",
            file=study.source,
            found=f"{len(leaked)} of {len(patients)} {split} patients were in {place}",
            expected="none",
            fix="use the training's --split and --split_seed, or its cases.csv; of folds each by itself; "
            "if others have these names, add a column 'patient'",
        )


def write_report(session: Session, facts: Mapping[str, Any], files: Sequence[Path], shown: Shown) -> Path:
    """Write report.html of an evaluation whose metrics and predictions are there, log the time, return its path.

    Args:
        session: From `begin`.
        facts: What run.json will say of the run beside versions and configuration.
        files: What the run wrote.
        shown: Pictures and what else is in no file.
    """
    began = time.perf_counter()
    record = {
        "command": session.command,
        "config": session.config,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **facts,
        "versions": versions(),
        "machine": {"system": platform.platform(), "processor": processor_model(), "threads": torch.get_num_threads()},
        "outputs": {str(file): file_sha256(file) for file in sorted(files) if file.is_file()},
    }
    path = write_html_report(session.output_dir, record, shown)
    logger.info("Wrote the report in %.1f s", time.perf_counter() - began)
    return path


def _class_counts(study: Study) -> dict[str, int]:
    """Return the training cases of each class; empty where labels are no classes."""
    if study.task != "classification":
        return {}
    return dict(Counter(str(case.label) for case in study.cases if case.split == "train"))


def _write_history(output: Path, rows: Sequence[dict[str, float]]) -> Path:
    write_history(output / "history.csv", rows)
    return output / "history.csv"


def write_run(session: Session, mode: str, facts: dict[str, Any], files: Sequence[Path]) -> None:
    """Write run.json of a session and log what was written where."""
    write_run_record(
        session.output_dir,
        mode=mode,
        started=session.started,
        command=session.command,
        config=session.config,
        facts=facts,
        outputs=files,
    )
