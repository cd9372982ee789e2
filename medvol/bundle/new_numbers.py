"""The numbers of a new bundle: what its own configuration fits on the training split, with the reasons.

Size, spacing and grey values come from the very expressions in the bundle's train.json that a training evaluates, so
that a new bundle trains on what was printed. Batch and epochs of a classification are settled here; those of a
segmentation by `medvol.training.plan`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from medvol.bundle.plan_file import plan_rows
from medvol.data.facts import LARGEST_SIZE, Facts
from medvol.data.image_facts import COLOURS
from medvol.data.study import Study
from medvol.errors import MedvolError
from medvol.inference.runtime import Probe, measure_runtimes
from medvol.training.plan import PlanOptions, make_segmentation_plan
from medvol.training.plan_time import TRAINING_SHARE, minutes_of

FEWEST_STEPS_PER_EPOCH = 8  # below it, the batch is halved: a step for every few cases says more than their mean
SMALLEST_BATCH = 4  # batch normalisation needs some cases to estimate its statistics from
FEWEST_STEPS = 150  # of the whole training; a schedule that warms up and anneals needs so many
MEASURED_SECONDS = 6.0  # for all precisions and layouts together

Row = tuple[str, str, str]


@dataclass(frozen=True)
class Numbers:
    """What is written into the configuration of a new bundle.

    Args:
        study: The study as the bundle splits it.
        facts: What the network and its preprocessing are built from.
        options: Values by the ids at the top of train.json.
        rows: Name, value and reason of each, for people.
        outputs: Channels of the network's output.
        parameters: Of the network.
        notes: What the reader should know.
    """

    study: Study
    facts: Facts
    options: Mapping[str, Any]
    rows: tuple[Row, ...]
    outputs: int
    parameters: int
    notes: tuple[str, ...] = ()


def fit_numbers(
    config: Mapping[str, Any], *, minutes: float | None = None, memory_gb: float | None = None, measure: bool = True
) -> Numbers:
    """Return the numbers for the study that a configuration names.

    Args:
        config: A bundle's train.json with `dataset_dir`, `output_dir` and whatever else the user stated.
        minutes: Budget of the whole training.
        memory_gb: Budget of the training process; for a segmentation.
        measure: Whether a training step is timed where no minutes are given, to predict the time.

    Raises:
        MedvolError: Whatever training would refuse of the study, or the network of its size.
    """
    if minutes is not None and not minutes > 0:
        raise MedvolError("BAD_VALUE", found=f"{minutes} minutes", expected="above 0", fix="correct --minutes")
    parser = ConfigParser(dict(config))
    study: Study = parser.get_parsed_content("study")
    if "make_network" in config:
        return _segmentation(parser, study, minutes, memory_gb, measure)
    return _classification(parser, study, minutes, measure)


def _segmentation(
    parser: ConfigParser, study: Study, minutes: float | None, memory_gb: float | None, measure: bool
) -> Numbers:
    stated = PlanOptions(
        structures=parser["structures"],
        memory_gb="auto" if memory_gb is None else memory_gb,
        minutes=minutes,
        measure_time=measure,
    )
    make_network = parser.get_parsed_content("make_network")
    plan = make_segmentation_plan(study, make_network, stated)
    facts = plan.facts
    network = make_network(facts.in_channels, facts.num_classes, **_sizes_for(parser, facts))
    options = {name: value for name, value in plan.options().items() if name != "_desc_"}
    return Numbers(
        study=study,
        facts=facts,
        options=options,
        rows=tuple(plan_rows(plan)),
        outputs=_outputs(network, facts),
        parameters=_parameters(network),
        notes=tuple(plan.notes),
    )


def _sizes_for(parser: ConfigParser, facts: Facts) -> dict[str, Any]:
    known = {"spatial_size": facts.spatial_size, "spacing_mm": facts.spacing_mm}
    return {name: value for name, value in known.items() if name in parser["network_def"]}


def _classification(parser: ConfigParser, study: Study, minutes: float | None, measure: bool) -> Numbers:
    facts: Facts = parser.get_parsed_content("facts")
    network: nn.Module = parser.get_parsed_content("network_def")
    cases = sum(case.split == "train" for case in study.cases)
    rows = list(_rows_of_facts(facts))
    options = _options_of_facts(facts)
    options["batch_size"], why = _batch(int(parser["batch_size"]), cases)
    rows.append(("batch_size", str(options["batch_size"]), why))
    steps = max(1, cases // options["batch_size"])
    seconds = None
    if minutes is not None or measure:
        shape = (facts.in_channels, *facts.spatial_size) if facts.spatial_size else (facts.in_features,)
        probe = Probe("train", options["batch_size"], seconds=MEASURED_SECONDS)
        with torch.random.fork_rng(devices=[]):
            seconds = min(measure_runtimes(network, shape, probe).values())
    options["max_epochs"], why = _epochs(int(parser["max_epochs"]), steps, seconds, minutes)
    rows.append(("max_epochs", str(options["max_epochs"]), why))
    if seconds is not None:
        taken = minutes_of(options["max_epochs"] * steps, seconds)
        rows.append(("time", f"{max(taken, 0.1):g} min", "predicted from one measured step on this machine"))
    known = {name: value for name, value in options.items() if name in parser.get()}
    return Numbers(
        study=study,
        facts=facts,
        options=known,
        rows=tuple(row for row in rows if row[0] in known or row[0] in ("columns", "time")),
        outputs=_outputs(network, facts),
        parameters=_parameters(network),
    )


def _options_of_facts(facts: Facts) -> dict[str, Any]:
    """Return the options that make a training fit the same facts again; what the network does not take is left out."""
    options: dict[str, Any] = {"classes": list(facts.classes)}
    if facts.spatial_size:
        options["spatial_size"] = list(facts.spatial_size)
        options["spacing_mm"] = "auto" if facts.spacing_mm is None else list(facts.spacing_mm)
        options["intensity"] = facts.intensity
        options["window_hu"] = list(facts.limits or ()) if facts.intensity == "ct" else None
        options["in_channels"] = facts.in_channels
    return options


def _rows_of_facts(facts: Facts) -> list[Row]:
    rows: list[Row] = []
    if facts.spatial_size:
        size = " ".join(map(str, facts.spatial_size))
        if facts.has_geometry:
            spacing = " ".join(f"{step:g}" for step in facts.spacing_mm or ())
            why = f"median of the training volumes, coarser where their field of view needs over {LARGEST_SIZE} voxels"
            rows.append(("spacing_mm", spacing, why))
            rows.append(("spatial_size", size, "covers the field of view of 95 % of the training volumes"))
        elif len(facts.spatial_size) == 3:
            why = f"without geometry: the median size, at most {LARGEST_SIZE} along an axis; others are resized"
            rows.append(("spatial_size", size, why))
        else:
            rows.append(("spatial_size", size, "what this network is meant for; images of any shape are resized"))
        rows.append(("intensity", facts.intensity, _why_intensity(facts)))
        if facts.intensity == "ct":
            rows.append(("window_hu", " ".join(f"{one:g}" for one in facts.limits or ()), "what 0 and 1 stand for"))
        repeated = "; grey images are repeated" if facts.channels == COLOURS else ""
        rows.append(("in_channels", str(facts.in_channels), ", ".join(facts.channels) + repeated))
    if facts.columns:
        names = ", ".join(f"{one.name} ({one.kind})" for one in facts.columns)
        rows.append(("columns", f"{len(facts.columns)}", f"{names}; name codes in categorical_columns"))
    return rows


def _why_intensity(facts: Facts) -> str:
    reasons = {
        "scaled": "the training split lies in a fixed range, mapped to 0..1",
        "ct": "Hounsfield units, by the air in the training split; set the window for your organ",
        "mr": "grey values without a fixed scale: robust z-score of each volume",
    }
    return reasons.get(facts.intensity, "how colours are shifted and scaled")


def _batch(largest: int, cases: int) -> tuple[int, str]:
    batch = largest
    while batch > SMALLEST_BATCH and cases < FEWEST_STEPS_PER_EPOCH * batch:
        batch //= 2
    return batch, "the bundle's" if batch == largest else f"for {cases} training cases, so that an epoch has some steps"


def _epochs(usual: int, steps: int, seconds: float | None, minutes: float | None) -> tuple[int, str]:
    """Return the epochs of a training, and why: the bundle's own, more in a small study, fewer in a short time."""
    epochs = max(usual, math.ceil(FEWEST_STEPS / steps))
    why = f"the bundle's, {steps} steps each" if epochs == usual else f"{FEWEST_STEPS} steps of the optimiser at least"
    if minutes is None or seconds is None:
        return epochs, why
    budget = f"{minutes:g} minute{'' if minutes == 1 else 's'}"
    fitting = max(1, int(minutes * 60 * TRAINING_SHARE / (seconds * steps)))
    if fitting >= epochs:
        return epochs, f"{why}; fits into {budget}"
    short = "" if fitting * steps >= FEWEST_STEPS else f", less than the {FEWEST_STEPS} steps that it should have"
    return fitting, f"what fits into {budget}, {usual} would be the bundle's{short}"


def _outputs(network: nn.Module, facts: Facts) -> int:
    """Return the channels that the network answers with, by asking it once."""
    shape = (facts.in_channels, *facts.spatial_size) if facts.spatial_size else (facts.in_features,)
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        answer = network.eval()(torch.zeros(1, *shape))
    output: Tensor = answer if isinstance(answer, Tensor) else answer[0]
    return int(output.shape[1])


def _parameters(network: nn.Module) -> int:
    return sum(one.numel() for one in network.parameters())
