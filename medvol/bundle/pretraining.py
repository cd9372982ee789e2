"""Self-supervised pretraining as a mode of a bundle: unlabelled cases in, an encoder for `--pretrained` out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.engines import SupervisedEvaluator

from medvol.bundle.finish import write_run
from medvol.bundle.session import Session
from medvol.bundle.study import classification_study, describe, segmentation_study
from medvol.data.facts import measured, read_3d, require_one_kind, spread, training_cases
from medvol.data.fingerprint import Fingerprint, SampledCase
from medvol.data.sources import open_study
from medvol.data.splits import assign_splits
from medvol.data.structures import BACKGROUND
from medvol.data.study import Study
from medvol.data.table import require_images, write_table
from medvol.errors import MedvolError
from medvol.inference.record import ModelRecord, file_sha256
from medvol.inference.seen import patients_among
from medvol.io.atomic import write_atomically, write_text
from medvol.networks.masked import settle_norms
from medvol.report import reconstruction
from medvol.report.classification import can_draw
from medvol.training.budget import MakeNetwork
from medvol.training.checkpoint import count_parameters
from medvol.training.earlier import set_aside
from medvol.training.handlers import TrainingHistory
from medvol.training.plan import Plan, PlanOptions, log_plan, make_plan

logger = logging.getLogger(__name__)

ENCODER_FILE = "encoder.pt"
ENCODER_RECORD = "encoder.json"
TABLE_FILE = "pretraining_cases.csv"  # not cases.csv: that is the table of a training in the same folder
FORMAT = 1
CASES_DRAWN = 4
SAME_FACTS = ("channels", "intensity", "limits", "spacing_mm")
"""What the volumes of pretraining and training should have in common, else the encoder meets another kind of image."""


def unlabelled_study(
    dataset_dir: str,
    output_dir: str | Path,
    *,
    split_seed: int = 0,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    label_column: str = "label",
    task: str = "classification",
) -> Study:
    """Return the cases to pretrain on, in train and val, and write them to `output_dir/pretraining_cases.csv`.

    Labels are forgotten. A test split is left out: that of the source, or of a labelled study without one the split
    that a training with the same seed and fractions would make, so that its test stays unseen. Of unlabelled volumes
    none are set aside for a test.

    Args:
        dataset_dir: Any source that `open_study` reads. Empty: a synthetic cohort is made in `output_dir`.
        output_dir: Where the table, and the cohort if one is made, are written.
        split_seed: Seed of the split, where the source brings none.
        fractions: Shares of train, val and test in a training on the same cases.
        label_column: Column that holds the labels, if there are any.
        task: Which cohort.

    Raises:
        MedvolError: Whatever is wrong with the source; `WRONG_KIND` for features without images.
    """
    if not dataset_dir:
        make = segmentation_study if task == "segmentation" else classification_study
        study = make("", output_dir, split_seed=split_seed, fractions=fractions)
    else:
        study = open_study(str(dataset_dir), label_column=label_column, require_label=False)
        require_images(study)
        study = _split_as_for_training(study, str(dataset_dir), label_column, fractions, split_seed)
    kept = tuple(replace(case, label=None) for case in study.cases if case.split != "test")
    left_out = len(study.cases) - len(kept)
    study = replace(study, cases=kept, task="unlabelled", classes=(), mask_values=())
    for note in study.notes:
        logger.info("%s", note)
    if left_out:
        logger.info("%d cases of the test split are left out of the pretraining", left_out)
    write_table(study, Path(output_dir) / TABLE_FILE)
    logger.info("%s", describe(study))
    return study


def _split_as_for_training(
    study: Study, source: str, label_column: str, fractions: Sequence[float], seed: int
) -> Study:
    """Return the study with the split of a training on its labelled cases; where there are none, train and val only.

    A source may list further cases without a label, as a challenge its test images. They keep the split that it gives
    them, or join train.
    """
    try:
        trained = assign_splits(open_study(source, label_column=label_column), fractions=fractions, seed=seed)
    except MedvolError as error:  # no labels, or not for all cases: nothing that a training would take as it is
        logger.info("Taken as unlabelled (%s): no case is set aside for a test", error.code)
        train, val, test = fractions
        return assign_splits(study, fractions=(train + test, val, 0.0), seed=seed)
    side_of = {case.patient: case.split for case in trained.cases}
    cases = (replace(case, split=side_of.get(case.patient) or case.split or "train") for case in study.cases)
    return replace(study, cases=tuple(cases), notes=trained.notes)


def plan_unlabelled(study: Study, make_network: MakeNetwork, **stated: Any) -> Plan:
    """Plan patches, batch and length as `plan_segmentation` does, from images alone.

    CT takes the soft-tissue window unless `window_hu` says otherwise: there are no structures to take one from. The
    network asked about is the segmentation's, which takes more memory and time than its encoder with a small decoder.

    Args:
        study: With a training split.
        make_network: See `plan_segmentation`.
        stated: What a user states, see `PlanOptions`.

    Raises:
        MedvolError: As `plan_segmentation`.
    """
    cases = training_cases(study)
    sampled = []
    for case in spread(cases):
        images = [read_3d(case.case, one, channels=len(case.image) < len(study.channels)) for one in case.image]
        volumes = tuple(measured(case.case, image) for image in images)
        sampled.append(SampledCase(volumes, foreground=None))
    has_geometry = require_one_kind([volume for one in sampled for volume in one.volumes])
    fingerprint = Fingerprint(len(cases), tuple(sampled), None, (), has_geometry)
    # Two classes, the fewest that a segmentation has, for the network that is asked about.
    labelled = replace(study, classes=(BACKGROUND, "structure"))
    plan = make_plan(labelled, fingerprint, make_network, PlanOptions(**stated))
    plan = replace(plan, facts=replace(plan.facts, classes=(), label_values=()))
    log_plan(plan, without=["structures"])
    return plan


def finish_pretraining(
    session: Session,
    history: TrainingHistory,
    validator: SupervisedEvaluator,
    loader: Iterable[dict[str, Any]],
    record: ModelRecord,
    model_dir: str | Path,
) -> None:
    """Write encoder, provenance, history, pictures and run.json, and log how to go on.

    Args:
        session: From `begin`.
        history: Losses of every epoch.
        validator: Evaluator over the validation split; its network holds the averaged weights.
        loader: Batches of the training split, on whose whole volumes the encoder's batch norms are measured.
        record: Of the run, as `new_record` makes it.
        model_dir: Where the encoder is written.
    """
    folder, output = Path(model_dir), session.output_dir
    network = validator.network
    rows = reconstructed(validator, CASES_DRAWN)  # as validation saw them, before the norms change
    settle_norms(network, (batch["image"].to(validator.state.device) for batch in loader))
    state = {name: value.detach().cpu().contiguous() for name, value in network.encoder_state().items()}
    set_aside(folder / ENCODER_FILE, folder / ENCODER_RECORD)
    write_atomically(folder / ENCODER_FILE, lambda stream: torch.save(state, stream))
    last = history.rows[-1]
    training = {**record.training, "epoch": int(last["epoch"]), "train_loss": last["train_loss"]}
    losses = [row["val_loss"] for row in history.rows if "val_loss" in row]
    training |= {"val_loss": losses[-1] if losses else None, "mask_ratio": network.mask_ratio}
    record = replace(record, training=training, weights_sha256=file_sha256(folder / ENCODER_FILE))
    files = [folder / ENCODER_FILE, write_encoder_record(folder / ENCODER_RECORD, record), output / "history.csv"]
    if can_draw():
        files.append(reconstruction.draw_losses(output / "pretraining.png", history.rows))
        geometry = record.facts.has_geometry
        files.append(reconstruction.draw_reconstructions(output / "reconstruction.png", rows, has_geometry=geometry))
    logger.info("Pretrained %d parameters for %d epochs", count_parameters(network), training["epoch"])
    write_run(session, "pretrain", {"training": training}, files)
    logger.info("Start a training from it: --pretrained %s", folder / ENCODER_FILE)


def reconstructed(validator: SupervisedEvaluator, most: int) -> list[reconstruction.Reconstruction]:
    """Return the first channel of the first validation volumes with what the network makes of them."""
    batch = next(iter(validator.data_loader))
    volumes = batch["image"][:most].to(validator.state.device)
    network = validator.network.eval()
    with torch.no_grad():
        outputs = network(volumes).float().cpu().numpy()
    shown = volumes.cpu().numpy()
    return [
        reconstruction.Reconstruction(case, shown[index, 0], outputs[index, -1].astype(np.bool_), outputs[index, 0])
        for index, case in enumerate(batch["case"][:most])
    ]


def write_encoder_record(path: Path, record: ModelRecord) -> Path:
    """Write what a later training should know of an encoder."""
    values = {
        "format": FORMAT,
        "facts": record.facts.as_dict(),
        "network": record.network,
        "weights_sha256": record.weights_sha256,
        "trained_on": list(record.trained_on),
        "training": record.training,
    }
    write_text(path, json.dumps(values, indent=4))
    return path


def started_record(record: ModelRecord, study: Study, pretrained: str | Path) -> ModelRecord:
    """Return the record of a training with where its encoder comes from, under `training.pretrained`.

    For an encoder of medvol's pretraining, which has `encoder.json` beside it: on how many patients, and how many of
    each split of this study had been seen there, without their labels. Test patients among them are warned of: what a
    network saw of them is no leak of labels, but a purist leaves them out.

    Args:
        record: Of the training that begins.
        study: What it trains and will be measured on.
        pretrained: File of `--pretrained`; empty leaves the record as it is.
    """
    if not pretrained or not Path(pretrained).is_file():  # a missing file is refused by whoever loads it
        return record
    origin: dict[str, Any] = {"file": Path(pretrained).name, "sha256": file_sha256(pretrained)}
    beside = Path(pretrained).parent / ENCODER_RECORD
    known = json.loads(beside.read_text()) if beside.is_file() else {}
    if known.get("weights_sha256") == origin["sha256"]:
        seen = set(known["trained_on"])
        again = patients_among(study, seen)
        overlap = {
            split: len({case.patient for case in study.cases if case.split == split} & again)
            for split in ("train", "val", "test")
        }
        origin |= {"training": known["training"], "patients": len(seen), "seen_unlabelled": overlap}
        logger.info("Encoder pretrained on %d patients for %d epochs", len(seen), known["training"]["epoch"])
        if overlap["test"]:
            logger.warning("%d test patients were seen, unlabelled, in the encoder's pretraining", overlap["test"])
        ours = record.facts.as_dict()
        differing = [name for name in SAME_FACTS if ours[name] != known["facts"][name]]
        if differing:
            logger.warning("The encoder was pretrained on volumes with other %s", ", ".join(differing))
    return replace(record, training={**record.training, "pretrained": origin})
