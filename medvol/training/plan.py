"""The planner of segmentation studies: every number that depends on the data, with its reason.

From the training split alone: spacing, grey-value scheme, classes; from those, the network's demands and a budget of
memory and time: patch, batch and length of the training. The rules are nnU-Net's (Isensee et al., Nature Methods 18,
2021), simplified: one network, no cascade, a batch of 2 to 4. What a user states is taken as it is and checked.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medvol.data.facts import Facts, three_of
from medvol.data.fingerprint import Fingerprint, take_fingerprint
from medvol.data.structures import Structures, find_mirror_pairs, name_structures, require_declared
from medvol.data.study import Study
from medvol.errors import MedvolError, require_choice
from medvol.training.budget import SMALLEST_BATCH, Fit, MakeNetwork, Problem, largest_batch, largest_fit
from medvol.training.plan_rules import plan_flips, plan_intensity, plan_spacing, working_sizes
from medvol.training.plan_time import (
    FEWEST_STEPS,
    STEPS,
    TRAINING_SHARE,
    fit_to_minutes,
    minutes_of,
    seconds_per_step,
    steps_in,
)
from medvol.training.plan_words import absent_structures, why_fit, why_structures
from medvol.training.preflight import PROCESS_GB, available_memory_gb, require_fits

logger = logging.getLogger(__name__)

MEMORY_GB = 8.0  # when none is stated, nnU-Net's own target; the same plan on every machine that has twice as much
MEMORY_SHARE = 0.5  # of what is free, where that is less: cached volumes, validation and other programs want the rest
MOST_VOXELS = {"cpu": 96**3, "cuda": 128**3}  # of a patch when no time is given; beyond, a step takes many seconds
FEWEST_PATCHES = 200  # per epoch, so that an epoch means about the same in a small study


@dataclass(frozen=True)
class Plan:
    """What a training needs to know that depends on the data.

    Args:
        facts: What the network and its preprocessing are built from.
        batch_size: Patches per step.
        patches_per_epoch: Patches per epoch.
        max_epochs: Epochs.
        reasons: Why each number is what it is, by option.
        predicted_memory_gb: Resident memory of the training process at its peak, in GiB, without cached volumes.
        minutes: Predicted time of the training; None when it was not measured.
        notes: What the reader should know, one sentence each.
    """

    facts: Facts
    batch_size: int
    patches_per_epoch: int
    max_epochs: int
    reasons: Mapping[str, str]
    predicted_memory_gb: float
    minutes: float | None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        values = {name: getattr(self, name) for name in ("batch_size", "patches_per_epoch", "max_epochs")}
        return {
            "facts": self.facts.as_dict(),
            **values,
            "predicted_memory_gb": round(self.predicted_memory_gb, 2),
            "minutes": self.minutes,
            "reasons": dict(self.reasons),
            "notes": list(self.notes),
        }

    def options(self) -> dict[str, Any]:
        """Return the plan as options of a bundle; MONAI ignores the reasons under `_desc_`."""
        facts = self.facts
        return {
            "_desc_": dict(self.reasons),
            "spatial_size": list(facts.spatial_size),
            "spacing_mm": "auto" if facts.spacing_mm is None else list(facts.spacing_mm),
            "intensity": facts.intensity,
            "window_hu": list(facts.limits or ()) if facts.intensity == "ct" else None,
            "flip_axes": list(facts.flip_axes or ()),
            "batch_size": self.batch_size,
            "patches_per_epoch": self.patches_per_epoch,
            "max_epochs": self.max_epochs,
        }


@dataclass(frozen=True)
class PlanOptions:
    """What a user states; see `plan_segmentation`."""

    spatial_size: Sequence[int] | str = "auto"
    spacing_mm: Sequence[float] | str = "auto"
    batch_size: int | str = "auto"
    intensity: str = "auto"
    window_hu: Sequence[float] | None = None
    laterality_matters: bool | None = None
    flip_axes: Sequence[int] | str = "auto"
    structures: Structures = ()
    memory_gb: float | str = "auto"
    minutes: float | None = None
    max_epochs: int | str = "auto"
    patches_per_epoch: int | str = "auto"
    measure_time: bool = False
    show_progress: bool = True

    def __post_init__(self) -> None:
        for name in ("spatial_size", "spacing_mm", "batch_size", "memory_gb", "max_epochs", "patches_per_epoch"):
            value = getattr(self, name)
            if isinstance(value, str):
                require_choice(name, value, ("auto",))
            elif not isinstance(value, Sequence):
                _require_positive(name, value)
        if self.minutes is not None:
            _require_positive("minutes", self.minutes)


def plan_segmentation(  # noqa: PLR0913 - one keyword per number that a user may state
    study: Study,
    make_network: MakeNetwork,
    *,
    spatial_size: Sequence[int] | str = "auto",
    spacing_mm: Sequence[float] | str = "auto",
    batch_size: int | str = "auto",
    intensity: str = "auto",
    window_hu: Sequence[float] | None = None,
    laterality_matters: bool | None = None,
    flip_axes: Sequence[int] | str = "auto",
    structures: Structures = (),
    memory_gb: float | str = "auto",
    minutes: float | None = None,
    max_epochs: int | str = "auto",
    patches_per_epoch: int | str = "auto",
    measure_time: bool = False,
    show_progress: bool = True,
) -> Plan:
    """Plan the training of a segmentation from its training split.

    Args:
        study: A segmentation study with a training split.
        make_network: `make_network(in_channels, num_outputs)` returns the network, given `spatial_size` and
            `spacing_mm` as well where it names them; see `medvol.training.budget.build_network`.
        spatial_size: Voxels of a patch along x, y, z; `auto` for the largest up to the median volume that fits.
        spacing_mm: Of the working grid; `auto` for the median.
        batch_size: Patches per step; `auto` for 2 to 4.
        intensity: `auto`, `scaled`, `ct` or `mr`.
        window_hu: Lowest and highest HU of a `ct` scheme.
        laterality_matters: Whether mirroring could change a structure's name; None for what the study says.
        flip_axes: Axes along which patches are mirrored, 0 for x; `auto` for what leaves anatomy in place.
        structures: Names of the structures, in the order of their mask values or by value.
        memory_gb: Budget of the training process; `auto` for 8, or half of what is free if that is less.
        minutes: Budget of the whole training; a step is then measured, and patches shrink until 500 steps fit.
        max_epochs: `auto` for 4000 steps, or what fits into the minutes.
        patches_per_epoch: `auto` for one per case, at least 200.
        measure_time: Measure a step although no minutes are given, to predict the time.
        show_progress: Whether to draw a progress bar.

    Raises:
        MedvolError: What `take_fingerprint` finds; `UNKNOWN_LABEL` for a mask value that the source does not declare;
            `UNKNOWN_OPTION` or `BAD_VALUE` for options; `BAD_PATCH_SIZE` and the like for a size that the network does
            not take; `TOO_LARGE` for a step that does not fit.
    """
    options = PlanOptions(
        spatial_size=spatial_size,
        spacing_mm=spacing_mm,
        batch_size=batch_size,
        intensity=intensity,
        window_hu=window_hu,
        laterality_matters=laterality_matters,
        flip_axes=flip_axes,
        structures=structures,
        memory_gb=memory_gb,
        minutes=minutes,
        max_epochs=max_epochs,
        patches_per_epoch=patches_per_epoch,
        measure_time=measure_time,
        show_progress=show_progress,
    )
    plan = make_segmentation_plan(study, make_network, options)
    log_plan(plan)
    return plan


def log_plan(plan: Plan, *, without: Sequence[str] = ()) -> None:
    """Log every number of a plan with its reason, and warn of its notes.

    Args:
        plan: The plan.
        without: Names that are not to be told of.
    """
    for note in plan.notes:
        logger.warning("%s", note)
    values = {**plan.options(), "memory": f"{plan.predicted_memory_gb:.1f} GB"}
    for name, reason in plan.reasons.items():
        if name not in without:
            logger.info("Plan: %s %s: %s", name, values.get(name, ""), reason)


def make_segmentation_plan(study: Study, make_network: MakeNetwork, options: PlanOptions) -> Plan:
    """Return the plan of `plan_segmentation`, without a word in the log."""
    fingerprint = take_fingerprint(study, show_progress=options.show_progress)
    return make_plan(study, fingerprint, make_network, options)


def make_plan(study: Study, fingerprint: Fingerprint, make_network: MakeNetwork, options: PlanOptions) -> Plan:
    """Return the plan for a training split that was read already; see `plan_segmentation`."""
    spacing, why_spacing = plan_spacing(fingerprint, options.spacing_mm)
    scheme, limits, why_intensity = plan_intensity(fingerprint, options.intensity, options.window_hu)
    # Masks from DICOM name their structures; what the user or the source says comes first.
    named = {} if study.classes else {one.value: one.name for one in fingerprint.labels if one.name}
    structures = options.structures or named
    first_case = {one.value: one.first_case for one in fingerprint.labels}
    require_declared(first_case, study, structures)
    values, classes = name_structures(
        list(first_case), study.classes, structures, mask_values=study.mask_values, file=study.source
    )
    pairs = find_mirror_pairs(classes)
    problem = Problem(make_network, len(study.channels), len(classes), spacing)
    fit, seconds, reasons = _fit(problem, fingerprint, options)
    matters = study.laterality_matters if options.laterality_matters is None else options.laterality_matters
    flips, why_flips = plan_flips(
        options.flip_axes, laterality_matters=matters, has_geometry=fingerprint.has_geometry, paired=bool(pairs)
    )
    facts = Facts(
        classes=classes,
        channels=study.channels,
        spatial_size=fit.size,
        spacing_mm=spacing,
        intensity=scheme,
        limits=limits,
        has_geometry=fingerprint.has_geometry,
        laterality_matters=matters,
        label_values=values,
        mirror_pairs=pairs,
        flip_axes=flips,
    )
    patches, epochs, why_length = _length(fit, seconds, fingerprint.training_cases, options)
    reasons = {
        "structures": why_structures(fingerprint, values, classes, pairs),
        "spacing_mm": why_spacing,
        "intensity": why_intensity,
        "flip_axes": why_flips,
        **reasons,
        **why_length,
    }
    return Plan(
        facts=facts,
        batch_size=fit.batch_size,
        patches_per_epoch=patches,
        max_epochs=epochs,
        reasons=reasons,
        predicted_memory_gb=fit.memory.total_gb,
        minutes=None if seconds is None else minutes_of(epochs * max(1, patches // fit.batch_size), seconds),
        notes=(*fingerprint.notes, *absent_structures(first_case, values, classes)),
    )


def _fit(problem: Problem, fingerprint: Fingerprint, options: PlanOptions) -> tuple[Fit, float | None, dict[str, str]]:
    """Return patch and batch within the budgets, the seconds of a step where it was measured, and the reasons."""
    sizes = working_sizes(fingerprint, problem.spacing_mm)
    median = np.ceil(np.median(sizes, axis=0)).astype(int).tolist()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free_gb = available_memory_gb(device) + PROCESS_GB
    budget_gb = min(MEMORY_GB, MEMORY_SHARE * free_gb)
    if not isinstance(options.memory_gb, str):
        budget_gb = float(options.memory_gb)
    keep_size, keep_batch = not isinstance(options.spatial_size, str), not isinstance(options.batch_size, str)
    batch_size = int(options.batch_size) if keep_batch else SMALLEST_BATCH
    most = math.inf if options.minutes else MOST_VOXELS[device.type]
    if keep_size:
        fit = problem.fit(three_of(options.spatial_size, int), batch_size)
    else:
        fit = largest_fit(problem, median, batch_size=batch_size, memory_gb=budget_gb, most_voxels=most)
    if not keep_batch:
        total_voxels = float(np.prod(median)) * fingerprint.training_cases
        fit = largest_batch(problem, fit, total_voxels=total_voxels, memory_gb=budget_gb)
    # Sizes that are stated may use all that is free.
    limit_gb = free_gb if isinstance(options.memory_gb, str) else budget_gb
    require_fits(fit.memory.total_gb, limit_gb, spatial_size=fit.size, batch_size=fit.batch_size)
    seconds = None
    if options.minutes:
        fit, seconds = fit_to_minutes(problem, fit, options.minutes, device, keep_batch=keep_batch, keep_size=keep_size)
    elif options.measure_time:
        seconds = seconds_per_step(problem, fit, device)
    limit = f"{options.minutes:g} minutes" if options.minutes else f"{most:,} voxels, for want of stated minutes"
    reasons = why_fit(fit, median, memory_gb=budget_gb, limit=limit, stated=(keep_size, keep_batch))
    return fit, seconds, reasons


def _length(fit: Fit, seconds: float | None, cases: int, options: PlanOptions) -> tuple[int, int, dict[str, str]]:
    """Return patches per epoch, epochs and the reasons."""
    if isinstance(options.patches_per_epoch, str):
        patches = max(FEWEST_PATCHES, cases)
        why_patches = f"one for each of {cases} cases" if cases >= FEWEST_PATCHES else f"the least, for {cases} cases"
    else:
        patches, why_patches = int(options.patches_per_epoch), "as given"
    per_epoch = max(1, patches // fit.batch_size)
    if not isinstance(options.max_epochs, str):
        return patches, int(options.max_epochs), {"patches_per_epoch": why_patches, "max_epochs": "as given"}
    if options.minutes is None or seconds is None:
        epochs = math.ceil(STEPS / per_epoch)
        why = f"about {STEPS} steps of the optimiser, {per_epoch} per epoch"
        return patches, epochs, {"patches_per_epoch": why_patches, "max_epochs": why}
    steps = max(1, steps_in(options.minutes, seconds))
    if steps < per_epoch:
        patches, per_epoch, why_patches = steps * fit.batch_size, steps, "as many as there is time for"
    why = f"{steps} steps of {seconds:.2f} s fit into {TRAINING_SHARE:.0%} of {options.minutes:g} minutes"
    if steps < FEWEST_STEPS:
        why += f", less than the {FEWEST_STEPS} that a training should have"
    return patches, steps // per_epoch, {"patches_per_epoch": why_patches, "max_epochs": why}


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise MedvolError("BAD_VALUE", found=f"{name} {value}", expected="a number above 0", fix=f"correct --{name}")
