"""What the files of MedMNIST do not say themselves: names of the classes, and whether left and right matter."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """Class names in index order of a MedMNIST set, and whether mirroring could change them."""

    classes: tuple[str, ...]
    laterality_matters: bool


# Names as in the MedMNIST v2 data card (Scientific Data 10:41, 2023). Left and right are classes of organmnist3d only.
MEDMNIST = {
    "organmnist3d": Known(
        (
            "liver",
            "kidney-right",
            "kidney-left",
            "femur-right",
            "femur-left",
            "bladder",
            "heart",
            "lung-right",
            "lung-left",
            "spleen",
            "pancreas",
        ),
        True,
    ),
    "nodulemnist3d": Known(("benign", "malignant"), False),
    "adrenalmnist3d": Known(("normal", "hyperplasia"), False),
    "fracturemnist3d": Known(("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"), False),
    "vesselmnist3d": Known(("vessel", "aneurysm"), False),
    "synapsemnist3d": Known(("inhibitory synapse", "excitatory synapse"), False),
    "breastmnist": Known(("malignant", "normal, benign"), False),
}


def known_set(stem: str) -> Known | None:
    """Return what is known of a MedMNIST file by its name without ending, such as `adrenalmnist3d_64`."""
    return MEDMNIST.get(re.sub(r"_\d+$", "", stem.lower()))
