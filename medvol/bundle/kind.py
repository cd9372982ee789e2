"""What the cases of a study hold."""

from __future__ import annotations

from medvol.data.image_facts import read_case
from medvol.data.study import Study
from medvol.errors import MedvolError

TRIED = 8  # cases looked at to tell images from volumes; one readable case decides


def kind_of(study: Study) -> str:
    """Return whether the cases hold volumes, 2D images or nothing but features, as the first readable case says."""
    shown = [case for case in study.cases if case.image]
    if not shown:
        return "features"
    if study.task == "segmentation":
        return "volumes"
    for case in shown[:TRIED]:
        try:
            read_case(case.case, case.image[0])
        except MedvolError as refusal:
            if refusal.code == "WRONG_DIMS":
                return "volumes"
        else:
            return "images"
    return "volumes"
