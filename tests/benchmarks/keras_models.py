"""The models of the Keras examples, of Keras layers. Shapes are those of a case, channels last.

Keras is an argument: whoever imports it chooses its backend first.
"""

from __future__ import annotations

from typing import Any


def keras_conv3d(keras: Any, shape: tuple[int, ...]) -> Any:
    """Return the model of the Keras 3D classification example."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input(shape),
            layers.Conv3D(32, 3, activation="relu"),
            layers.MaxPooling3D(2),
            layers.Conv3D(64, 3, activation="relu"),
            layers.MaxPooling3D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(1, activation="sigmoid"),
        ]
    )


def keras_cnn2d(keras: Any, shape: tuple[int, ...]) -> Any:
    """Return the model of the Keras 2D classification example."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input(shape),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(1, activation="sigmoid"),
        ]
    )


def keras_mlp(keras: Any, shape: tuple[int, ...], dropout: float = 0.2) -> Any:
    """Return the model of the Keras tabular example."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input(shape),
            layers.Dense(64, activation="relu"),
            layers.Dropout(dropout),
            layers.Dense(64, activation="relu"),
            layers.Dropout(dropout),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
