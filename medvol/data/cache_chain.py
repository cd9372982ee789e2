"""The chain of transforms around the cache: which steps run once, running them, and seeding the random ones."""

from __future__ import annotations

import hashlib
import random
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Randomizable, RandomizableTrait, Transform

from medvol.data.cache_key import references
from medvol.errors import MedvolError


class AfterCache:
    """Trait of a transform that runs on each access although it draws nothing, because its result is not worth keeping.

    Intensity normalisation is one: it is cheap, and before it voxels are integers, after it four bytes each.
    """


def as_chain(transform: Sequence[Callable[..., Any]] | Callable[..., Any] | None) -> Compose:
    """Return one flat `Compose`; a `Compose` within is dissolved where that changes nothing.

    Raises:
        MedvolError: `BAD_TRANSFORM` for something that cannot be called.
    """
    outer: Any = transform if type(transform) is Compose else Compose(transform)
    steps = list(_flat(outer, outer))
    for number, step in enumerate(steps):
        if not callable(step):
            raise MedvolError(
                "BAD_TRANSFORM",
                found=f"step {number + 1} is a {type(step).__qualname__}",
                expected="something that can be called with an item",
            )
    flat = Compose(
        [],
        map_items=outer.map_items,
        unpack_items=outer.unpack_items,
        log_stats=outer.log_stats,
        lazy=outer.lazy,
        overrides=outer.overrides,
    )
    flat.transforms = tuple(steps)  # given to the constructor, they would be seeded anew
    return flat


def count_cached(chain: Compose) -> int:
    """Return how many steps from the start run once: all before the first random or `AfterCache` step.

    A step that holds a random one, as a wrapper does, counts as random. A plain function counts as deterministic; see
    `run_cached` for what happens when it is not.
    """
    steps = chain.transforms
    return next((number for number, step in enumerate(steps) if _runs_each_time(step)), len(steps))


def run_cached(chain: Compose, count: int, item: Any, *, case: str) -> Any:
    """Run the first `count` steps.

    Raises:
        MedvolError: What a step raises, with the case named; `RANDOM_STEP` when a step drew from a global generator,
            whose result would be frozen into the cache.
    """
    before = _global_generators()
    result = run(chain, item, start=0, end=count, case=case)
    if before is not None and before != _global_generators():
        raise MedvolError(
            "RANDOM_STEP",
            case=case,
            found=f"one of the first {count} steps drew random numbers, which would be the same in every epoch",
            expected="deterministic steps before the cache",
            fix="derive it from monai.transforms.RandomizableTrait, or give it a seeded generator of its own",
        )
    return result


def run(chain: Compose, item: Any, *, start: int, end: int | None = None, case: str) -> Any:
    """Run steps `start` to `end`.

    Raises:
        MedvolError: What a step raises, with the case named.
    """
    try:
        return chain(item, start=start, end=end, threading=end is not None)
    except MemoryError:
        raise
    except Exception as error:
        raise _named(error, item, case) from error


def seed_item(steps: Sequence[Any], generator: np.random.RandomState, numbers: tuple[int, int, int, int]) -> None:
    """Let the random steps draw from `generator`, seeded for one access of one item.

    MONAI gives each worker a stream, so what an item gets depends on how many workers there are. Here it depends on
    nothing but the numbers.

    Args:
        steps: Steps that run on each access.
        generator: Reused, because making one costs a hundred times as much as seeding it.
        numbers: Seed, epoch, index of the item, and how many times it was accessed in this epoch.
    """
    digest = hashlib.blake2b(struct.pack("<4q", *numbers), digest_size=4).digest()
    generator.seed(int.from_bytes(digest, "little"))
    for step in steps:
        for one in _randomizable(step):
            one.set_random_state(state=generator)


def _flat(compose: Compose, outer: Compose) -> Iterator[Any]:
    for step in compose.transforms:
        if type(step) is Compose and _same_settings(step, outer):
            yield from _flat(step, outer)
        else:
            yield step


def _same_settings(one: Compose, other: Compose) -> bool:
    names = ("map_items", "unpack_items", "lazy", "overrides", "log_stats")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _runs_each_time(step: Any) -> bool:
    if isinstance(step, AfterCache):
        return True
    if type(step) is not Compose and isinstance(step, RandomizableTrait):
        return True
    return any(_runs_each_time(inner) for inner in _held_by(step))


def _randomizable(step: Any) -> Iterator[Randomizable]:
    if type(step) is not Compose and isinstance(step, Randomizable):
        yield step
        return
    for inner in _held_by(step):
        yield from _randomizable(inner)


def _held_by(step: Any) -> Iterator[Any]:
    """Yield the transforms that a transform holds."""
    for value in getattr(step, "__dict__", {}).values():
        for inner in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(inner, Transform):
                yield inner


def _global_generators() -> tuple[Any, ...] | None:
    """Return the states of the global generators; None in a thread, where others may draw from them meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        return None
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - the global state is what is asked about
    words = (state["state"]["key"].tobytes(), state["state"]["pos"], state["has_gauss"], state["gauss"])
    return random.getstate(), words, torch.get_rng_state().numpy().tobytes()


def _named(error: Exception, item: Any, case: str) -> MedvolError:
    """Return the error as a refusal that names the case; MONAI wraps what a step raised once per level."""
    root: BaseException = error
    while root.__cause__ is not None and not isinstance(root, MedvolError):
        root = root.__cause__
    if isinstance(root, MedvolError):
        return root.for_case(case)
    file = next((str(path) for path in references(item)), "")
    text = (str(root).splitlines() or [""])[0][:120]
    return MedvolError(
        "STEP_FAILED",
        case=case,
        file=file,
        found=f"{type(root).__qualname__}: {text}",
        fix="the traceback above names the step",
        details=[str(error)[:1000]],
    )
