"""The quick baseline: a frozen encoder, features of every case computed once, logistic regression on them.

The features are what the network's own head reads, so the regression *is* that head: it is written into it, and the
result is an ordinary model that evaluation and inference take.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.inferers import Inferer
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from medvol.bundle.finish import write_run
from medvol.bundle.session import Session
from medvol.data.cache_key import item_keys
from medvol.data.facts import Facts
from medvol.data.study import Study
from medvol.data.table import items
from medvol.errors import MedvolError, require_choice
from medvol.inference.collect import Predictions
from medvol.inference.record import RECORD_FILE, WEIGHTS_FILE, ModelRecord, save_model
from medvol.io.atomic import write_atomically
from medvol.networks.vit_blocks import HEAD, VisionTransformer
from medvol.report.classification import EvaluatedSplit, write_evaluation
from medvol.training.losses import CLASS_WEIGHTS
from medvol.transforms.classes import class_probabilities

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]

FEATURES_FILE = "features.npz"
STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(-8, 5))
"""C of the logistic regression, from 0.0001 to 100: the inverse of the penalty on squared weights."""
FOLDS = 5
NEVER = -1e4  # the logit of a class that no training case has


@dataclass(frozen=True)
class LogisticHead:
    """A logistic regression as weights of a linear layer.

    Args:
        weight: Shape (classes, features).
        bias: Shape (classes,).
        strength: The C that was chosen.
        log_loss: Of cross-validation with it; None where there were too few patients for one.
    """

    weight: Floats
    bias: Floats
    strength: float
    log_loss: float | None


def case_features(
    network: nn.Module,
    loader: DataLoader[Any],
    inferer: Inferer,
    study: Study,
    facts: Facts,
    output_dir: str | Path,
    *,
    show_progress: bool = True,
) -> Floats:
    """Return what the head of the network reads for every case, (case, features), in the order of the study.

    They are kept in `output_dir/features.npz` and taken from there as long as encoder, preprocessing, averaging and
    images are the same, in the same order.

    Args:
        network: From `volume_transformer`; the head's weights do not matter.
        loader: Over all cases in their order.
        inferer: As for evaluation: averaging features over mirror images is averaging the logits of a linear head.
        study: What is loaded.
        facts: How it is preprocessed.
        output_dir: Folder of the run.
        show_progress: Whether to draw a progress bar.
    """
    path = Path(output_dir) / FEATURES_FILE
    encoder = copy.deepcopy(network)
    setattr(encoder, head_name(network), nn.Identity())
    key = _key(encoder, facts, study, getattr(inferer, "mirror_axes", ()))
    kept = _kept(path, key)
    if kept is not None:
        logger.info("Features of %d cases taken from %s", len(kept), path)
        return kept
    encoder.eval()
    device = next(network.parameters()).device
    rows = []
    with torch.no_grad():
        for batch in tqdm(loader, desc="Computing features", unit="batch", disable=not show_progress):
            rows.append(inferer(batch["image"].to(device), encoder).double().cpu().numpy())
    features: Floats = np.concatenate(rows)
    cases = np.array([case.case for case in study.cases])
    write_atomically(path, lambda stream: np.savez(stream, features=features, cases=cases, key=np.array(key)))
    return features


def fit_head(
    features: Floats, labels: Sequence[int], patients: Sequence[str], num_classes: int, *, class_weights: str, seed: int
) -> LogisticHead:
    """Fit a logistic regression on standardised features, its C chosen by cross-validation that splits no patient.

    Args:
        features: Of the training cases, (n, features).
        labels: Class indices.
        patients: Who each case is of.
        num_classes: Of the network; a class without a training case gets probability 0.
        class_weights: `none` or `balanced`.
        seed: Of the folds.

    Raises:
        MedvolError: `ONE_CLASS` when there is nothing to tell apart.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    require_choice("class_weights", class_weights, CLASS_WEIGHTS)
    truth = np.asarray(labels)
    if len(np.unique(truth)) < 2:
        raise MedvolError("ONE_CLASS", found="training cases of one class", expected="two", fix="check the split")
    weights = "balanced" if class_weights == "balanced" else None
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000, class_weight=weights))
    losses = _losses(model, features, truth, patients, seed)
    strength = min(losses, key=losses.__getitem__) if losses else 1.0
    model.set_params(logisticregression__C=strength).fit(features, truth)
    scaler, regression = model.steps[0][1], model.steps[1][1]
    coefficients, offsets = regression.coef_, regression.intercept_
    if len(coefficients) == 1:
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        offsets = np.concatenate([-offsets, offsets]) / 2
    weight, bias = np.zeros((num_classes, features.shape[1])), np.full(num_classes, NEVER)
    weight[regression.classes_] = coefficients / scaler.scale_
    bias[regression.classes_] = offsets - coefficients @ (scaler.mean_ / scaler.scale_)
    return LogisticHead(weight, bias, strength, losses.get(strength))


def _losses(
    model: Any, features: Floats, truth: npt.NDArray[np.int64], patients: Sequence[str], seed: int
) -> dict[float, float]:
    """Return the mean log-loss of each C over the left-out folds together; nothing when a class has one patient."""
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    groups = np.asarray(patients)
    folds = min(FOLDS, *(len(np.unique(groups[truth == label])) for label in np.unique(truth)))
    if folds < 2:
        logger.warning("A class has a single training patient: C of the logistic regression is 1, not chosen")
        return {}
    columns = np.searchsorted(np.unique(truth), truth)
    losses = {}
    for strength in STRENGTHS:
        model.set_params(logisticregression__C=strength)
        split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        found = cross_val_predict(model, features, truth, groups=groups, cv=split, method="predict_proba")
        likely = found[np.arange(len(truth)), columns]
        losses[strength] = -float(np.log(likely.clip(min=1e-7)).mean())
    return losses


def finish_frozen(  # noqa: PLR0913 - all that a training and an evaluation end with
    session: Session,
    network: nn.Module,
    features: Floats,
    study: Study,
    record: ModelRecord,
    model_dir: str | Path,
    *,
    split: str,
    class_weights: str = "none",
) -> None:
    """Fit the head on the training split, save the model, and write metrics, predictions, pictures and run.json.

    Args:
        session: From `begin`.
        network: Whose encoder gave the features; takes the head.
        features: Of all cases, in the order of the study.
        study: The cases.
        record: Of the run, as `new_record` makes it.
        model_dir: Where the model is saved.
        split: `val` or `test`: what is evaluated.
        class_weights: `none` or `balanced`.

    Raises:
        MedvolError: `EMPTY_SPLIT`, or as `fit_head`.
    """
    facts, train, asked = record.facts, items(study, "train"), items(study, split)
    row_of = {case.case: row for case, row in zip(study.cases, features, strict=True)}
    labels = tuple(int(item["label"]) for item in train)
    head = fit_head(
        np.stack([row_of[item["case"]] for item in train]),
        labels,
        [item["patient"] for item in train],
        facts.num_classes,
        class_weights=class_weights,
        seed=int(record.training["seed"]),
    )
    tensors = {"weight": torch.from_numpy(head.weight), "bias": torch.from_numpy(head.bias)}
    network.get_submodule(head_name(network)).load_state_dict(tensors)
    frozen = {"strength": head.strength, "cross_validated_log_loss": head.log_loss, "features": features.shape[1]}
    record = save_model(model_dir, network, replace(record, training={**record.training, "frozen": frozen}))
    logger.info("Frozen encoder, logistic regression on %d features with C %g", features.shape[1], head.strength)
    logits = np.stack([row_of[item["case"]] for item in asked]) @ head.weight.T + head.bias
    predictions = Predictions(
        cases=tuple(item["case"] for item in asked),
        patients=tuple(item["patient"] for item in asked),
        logits=logits,
        probabilities=class_probabilities(torch.from_numpy(logits)).double().numpy(),
        labels=np.array([int(item["label"]) for item in asked]),
    )
    files = write_evaluation(
        session.output_dir, predictions, EvaluatedSplit(session.bundle, split, facts.classes, labels)
    )
    folder = Path(model_dir)
    files = [*files, session.output_dir / FEATURES_FILE, folder / WEIGHTS_FILE, folder / RECORD_FILE]
    write_run(session, "frozen", {"training": record.training}, files)


def head_name(network: nn.Module) -> str:
    """Return the name of the last linear layer of a `volume_transformer`."""
    return HEAD if isinstance(network, VisionTransformer) else "head"


def _key(encoder: nn.Module, facts: Facts, study: Study, mirror_axes: Sequence[int]) -> str:
    """Return a digest of all that the features depend on, the order of the cases included."""
    digest = hashlib.sha256()
    images = item_keys([{"case": case.case, "image": list(case.image)} for case in study.cases], b"")
    settings = [str(encoder), facts.as_dict(), images, list(mirror_axes)]
    digest.update(json.dumps(settings).encode())
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _kept(path: Path, key: str) -> Floats | None:
    """Return the features in a file if they are those of the key; a damaged file counts as none."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return np.asarray(stored["features"]) if str(stored["key"]) == key else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        logger.warning("%s is damaged; computing the features again", path)
        return None
