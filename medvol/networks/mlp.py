"""The network of the Keras tabular example: two dense layers with dropout, then the output.

Dense 64, dropout 0.2, dense 64, dropout 0.2, output; ReLU. The sigmoid or softmax belongs to the loss. It expects
features at mean 0 and variance 1: what a run learns of them stands beside its weights, not in the network.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from medvol.errors import MedvolError


def mlp(in_features: int, num_outputs: int, *, width: int = 64, dropout: float = 0.2) -> nn.Module:
    """Return the network, (batch, in_features) to (batch, num_outputs) logits.

    Args:
        in_features: Numbers per case, after categories have become columns.
        num_outputs: Logits per case; the example uses one with a sigmoid.
        width: Units of each dense layer.
        dropout: Probability after each dense layer.

    Raises:
        MedvolError: `INPUT_TOO_SMALL` without a feature.
    """
    if in_features < 1:
        raise MedvolError(
            "INPUT_TOO_SMALL",
            found=f"mlp was given {in_features} features",
            expected="at least 1",
            fix="name the columns to learn from",
        )
    return nn.Sequential(
        OrderedDict(
            dense1=nn.Linear(in_features, width),
            relu1=nn.ReLU(inplace=True),
            dropout1=nn.Dropout(dropout),
            dense2=nn.Linear(width, width),
            relu2=nn.ReLU(inplace=True),
            dropout2=nn.Dropout(dropout),
            output=nn.Linear(width, num_outputs),
        )
    )
