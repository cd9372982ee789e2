"""Classical models beside a network: what the columns of a table alone are worth.

Logistic regression and gradient boosting from scikit-learn, fitted on the training rows that the network was trained
on, encoded as they were for it. A network that does not beat them has learnt nothing that needs a network.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.data.column_facts import ColumnFacts, encode_row

logger = logging.getLogger(__name__)

LOGISTIC_REGRESSION = "logistic regression"
GRADIENT_BOOSTING = "gradient boosting"


def covariate_baselines(
    columns: Sequence[ColumnFacts],
    train: Sequence[Mapping[str, Any]],
    evaluated: Sequence[Mapping[str, Any]],
    num_classes: int,
) -> dict[str, npt.NDArray[np.float64]]:
    """Return class probabilities of each baseline for the evaluated rows, shape (n, classes).

    Both keep scikit-learn's defaults; the regression is allowed more iterations. Nothing is tuned, as nothing of the
    network is. A class without a training row has probability 0.

    Args:
        columns: As fitted on the training split.
        train: Items with `case`, `covariates` and `label`.
        evaluated: Items with `case` and `covariates`.
        num_classes: Number of classes.

    Returns:
        Name to probabilities; nothing, with a warning, when training knows one class only.

    Raises:
        MedvolError: What encoding a row finds.
    """
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    labels = np.array([int(item["label"]) for item in train])
    if len(np.unique(labels)) < 2:
        logger.warning("No baselines: training holds one class only")
        return {}
    known, asked = _encoded(columns, train), _encoded(columns, evaluated)
    models = {
        LOGISTIC_REGRESSION: LogisticRegression(max_iter=5000),
        GRADIENT_BOOSTING: GradientBoostingClassifier(random_state=0),
    }
    result = {}
    for name, model in models.items():
        model.fit(known, labels)
        probabilities = np.zeros((len(asked), num_classes))
        probabilities[:, model.classes_] = model.predict_proba(asked)
        result[name] = probabilities
    return result


def _encoded(columns: Sequence[ColumnFacts], items: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float64]:
    rows = [encode_row(columns, item["covariates"], item["case"]) for item in items]
    return np.stack(rows).astype(np.float64)
