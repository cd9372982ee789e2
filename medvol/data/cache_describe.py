"""A digest of what a transform would do, taken from its parameters and code.

A cache key made of class names serves old voxels as soon as a parameter changes. So all that a step holds is followed:
attributes, closures, defaults, arrays by their bytes, and code that no version number covers (the user's own) by its
bytecode and by the globals it reads. What cannot be followed is refused by name; it never falls back to a name.

Installed packages stand for their code by name and version. medvol stands for itself by the digest of its source, see
`cache_key.versions`, because following its globals would follow its own in-memory caches too.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import logging
import os
import pickle
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from monai.data import ImageReader, MetaTensor
from monai.transforms import Compose, Randomizable

from medvol.data.cache_code import (
    bytecode,
    closure_of,
    globals_of,
    has_hidden_state,
    members_of,
    package_of,
    package_version,
    qualified_name,
    state_of,
)
from medvol.errors import MedvolError

DIGEST_BYTES = 20

_LOCK_TYPES: tuple[type, ...] = (type(threading.Lock()), type(threading.RLock()), threading.local, logging.Logger)
"""Hold nothing that could change a voxel; MONAI adds a `threading.local` to a transform at its first call."""


_LEFTOVERS = ((Randomizable, "R"), (ImageReader, "filenames"))
"""Attributes that say what a MONAI object did last, not what it will do: its generator, the files it read."""


def describe(value: Any, *, what: str, step: str = "") -> bytes:
    """Return a digest of `value` that is the same in every process and differs when the value would act differently.

    Args:
        value: Transform, function, parameter or item.
        what: Words for the refusal, e.g. `step 2 (Lambdad)`.
        step: Name of the case or step the refusal is filed under.

    Raises:
        MedvolError: `NOT_DESCRIBABLE` naming the attribute that cannot be followed.
    """
    walk = _Walk(what, step)
    try:
        walk.feed(value, ())
    except RecursionError as error:
        raise walk.refusal(value, ("nested too deeply",)) from error
    return walk.digest.digest()


@final
class _Walk:
    """One pass over an object graph; `digest` is fed a type tag, a length and the content of everything met."""

    def __init__(self, what: str, step: str) -> None:
        self.what = what
        self.step = step
        self.digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self.open: list[int] = []  # ids of the containers being walked, to end at a cycle
        # Code walked already; the object is kept with its number so that no other takes its id.
        self.known: dict[int, tuple[int, Any]] = {}

    def feed(self, value: Any, trail: tuple[str, ...]) -> None:
        """Add one value.

        Args:
            value: Anything.
            trail: Names of the attributes that lead to it.
        """
        if _is_plain(value):
            self._put(type(value).__name__, repr(value).encode())
            return
        if id(value) in self.open:
            self._put("cycle", str(len(self.open) - self.open.index(id(value))).encode())
            return
        self.open.append(id(value))
        try:
            for kinds, feed in _HANDLERS:
                if isinstance(value, kinds):
                    feed(self, value, trail)
                    return
            self._object(value, trail)
        finally:
            self.open.pop()

    def _put(self, tag: str, content: bytes = b"") -> None:
        self.digest.update(f"{tag}:{len(content)}:".encode())
        self.digest.update(content)

    def _many(self, tag: str, values: list[tuple[str, Any]], trail: tuple[str, ...]) -> None:
        self._put(tag, str(len(values)).encode())
        for name, value in values:
            self._put("name", name.encode())
            self.feed(value, (*trail, name))

    def _text(self, value: str, trail: tuple[str, ...]) -> None:
        self._put("str", value.encode("utf-8", "surrogatepass"))
        # os.path, because pathlib raises on text that is no path at all, such as a docstring.
        if trail and os.sep in value and os.path.isfile(value):  # noqa: PTH113
            self._file(Path(value))

    def _path(self, value: Path, _: tuple[str, ...]) -> None:
        self._put("path", str(value).encode("utf-8", "surrogatepass"))
        if value.is_file():
            self._file(value)

    def _file(self, path: Path) -> None:
        """A parameter that names a file (an atlas, a histogram) acts by what stands in it."""
        status = path.stat()
        self._put("file", f"{status.st_size} {status.st_mtime_ns}".encode())

    def _sequence(self, value: Any, trail: tuple[str, ...]) -> None:
        self._put(type(value).__qualname__, str(len(value)).encode())
        for position, item in enumerate(value):
            self.feed(item, (*trail, f"[{position}]"))

    def _set(self, value: Any, trail: tuple[str, ...]) -> None:
        # The order of a set changes from process to process.
        parts = sorted(describe(item, what=self.what, step=self.step) for item in value)
        self._put(type(value).__qualname__, b"".join(parts))

    def _mapping(self, value: Mapping[Any, Any], trail: tuple[str, ...]) -> None:
        self._put(type(value).__qualname__, str(len(value)).encode())
        for key, item in value.items():
            self.feed(key, (*trail, "key"))
            self.feed(item, (*trail, str(key)))

    def _enum(self, value: enum.Enum, _: tuple[str, ...]) -> None:
        self._put("enum", f"{qualified_name(type(value))}.{value.name}={value.value!r}".encode())

    def _array(self, value: Any, trail: tuple[str, ...]) -> None:
        array = np.asarray(value)
        if array.dtype.hasobject:
            self._sequence(array.reshape(-1).tolist(), trail)
        self._put("array", f"{array.dtype.descr} {array.shape}".encode())
        if not array.dtype.hasobject:
            self._put("bytes", np.ascontiguousarray(array).tobytes())

    def _tensor(self, value: torch.Tensor, trail: tuple[str, ...]) -> None:
        if isinstance(value, MetaTensor):
            self.feed(value.meta, (*trail, "meta"))
            value = value.as_tensor()
        plain = value.detach().cpu().contiguous()
        self._put("tensor", f"{plain.dtype} {tuple(plain.shape)} {value.device.type}".encode())
        self._put("bytes", plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")

    def _module(self, value: types.ModuleType, _: tuple[str, ...]) -> None:
        top = value.__name__.partition(".")[0]
        self._put("module", f"{value.__name__} {package_version(top)}".encode())

    def _named(self, value: Any, trail: tuple[str, ...]) -> None:
        self._put("builtin", qualified_name(value).encode())
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, (types.ModuleType, type)):
            self.feed(owner, (*trail, "__self__"))

    def _text_of(self, value: Any, _: tuple[str, ...]) -> None:
        self._put(type(value).__name__, str(value).encode())

    def _method(self, value: types.MethodType, trail: tuple[str, ...]) -> None:
        self.feed(value.__func__, trail)
        self.feed(value.__self__, (*trail, "__self__"))

    def _wrapper(self, value: Any, trail: tuple[str, ...]) -> None:
        """A static or class method, a property, or a function behind `functools.cache`."""
        self._put(type(value).__name__)
        if isinstance(value, property):
            self._sequence([value.fget, value.fset, value.fdel], trail)
        else:
            self.feed(value.__wrapped__ if hasattr(value, "__wrapped__") else value.__func__, trail)

    def _partial(self, value: functools.partial[Any], trail: tuple[str, ...]) -> None:
        self._sequence([value.func, value.args, value.keywords], (*trail, "partial"))

    def _name_code(self, value: Any) -> bool:
        """Name code, and tell whether its content is to follow: it is the user's own and met for the first time."""
        package = package_of(value.__module__ or "builtins")
        self._put("code", f"{qualified_name(value)} {package_version(package) if package else ''}".encode())
        if package:
            return False
        count = len(self.known)
        number = self.known.setdefault(id(value), (count, value))[0]
        self._put("number", str(number).encode())
        return number == count

    def _function(self, value: types.FunctionType, trail: tuple[str, ...]) -> None:
        own = self._name_code(value)
        if own or "<locals>" in value.__qualname__:
            # A function that an installed one returned has a name, but acts by the values it closes over.
            self._many("closure", closure_of(value), trail)
            self._many("defaults", [("defaults", value.__defaults__), ("defaults", value.__kwdefaults__)], trail)
        if own:
            self._code(value.__code__, trail)
            self._many("globals", globals_of(value), trail)

    def _code(self, code: types.CodeType, trail: tuple[str, ...]) -> None:
        self._put("bytecode", bytecode(code))
        self._sequence(code.co_consts, (*trail, "constants"))

    def _class(self, value: type, trail: tuple[str, ...]) -> None:
        if not self._name_code(value):
            return
        self._sequence(value.__bases__, (*trail, "bases"))
        self._many("members", members_of(value), trail)

    def _compose(self, value: Compose, trail: tuple[str, ...]) -> None:
        # Its generator is seeded from the clock and never drawn from by deterministic steps.
        names = ("transforms", "map_items", "unpack_items", "lazy", "overrides")
        self.feed(type(value), trail)
        self._many("compose", [(name, getattr(value, name)) for name in names], trail)

    def _object(self, value: Any, trail: tuple[str, ...]) -> None:
        self.feed(type(value), trail)
        state = state_of(value)
        if state is not None:
            for kind, name in _LEFTOVERS:
                if isinstance(value, kind):
                    state.pop(name, None)
            kept = [(name, item) for name, item in sorted(state.items()) if not isinstance(item, _LOCK_TYPES)]
            self._many("object", kept, trail)
            if not has_hidden_state(value):
                return
        try:
            reduced = value.__reduce_ex__(2)
        except (TypeError, RuntimeError, AttributeError, pickle.PicklingError) as error:
            raise self.refusal(value, trail) from error
        if isinstance(reduced, str):  # pickle's way to say: a global of that name, such as a compiled function
            package = package_of(value.__module__ or "builtins")
            self._put("global", f"{value.__module__}.{reduced} {package_version(package)}".encode())
            return
        if isinstance(value, Iterator):
            raise self.refusal(value, trail)
        self._sequence(reduced[:3], trail)

    def refusal(self, value: Any, trail: tuple[str, ...]) -> MedvolError:
        where = ".".join(trail).replace(".[", "[")[-80:]
        return MedvolError(
            "NOT_DESCRIBABLE",
            case=self.step,
            found=f"{self.what}: {where or 'value'} is a {type(value).__qualname__}, which no cache key can tell apart",
            expected="plain values, arrays, functions or objects of these",
            fix="create it inside the call, or derive the step from medvol.data.cache.AfterCache",
        )


_Feeder = Callable[[_Walk, Any, tuple[str, ...]], None]
_HANDLERS: tuple[tuple[Any, _Feeder], ...] = (
    (_LOCK_TYPES, lambda walk, _, __: walk._put("lock")),
    (enum.Enum, _Walk._enum),
    (str, _Walk._text),
    (torch.Tensor, _Walk._tensor),
    ((np.ndarray, np.generic), _Walk._array),
    (np.ufunc, lambda walk, value, _: walk._put("ufunc", value.__name__.encode())),
    (
        (np.dtype, torch.dtype, torch.device, torch.layout, torch.memory_format, types.GenericAlias, types.UnionType),
        _Walk._text_of,
    ),
    (Path, _Walk._path),
    ((list, tuple), _Walk._sequence),
    ((set, frozenset), _Walk._set),
    ((dict, types.MappingProxyType), _Walk._mapping),
    (types.ModuleType, _Walk._module),
    (types.FunctionType, _Walk._function),
    (types.MethodType, _Walk._method),
    (functools.partial, _Walk._partial),
    ((staticmethod, classmethod, property, functools._lru_cache_wrapper), _Walk._wrapper),
    ((types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType), _Walk._named),
    (types.MethodDescriptorType, _Walk._named),
    (types.CodeType, _Walk._code),
    (type, _Walk._class),
    (Compose, _Walk._compose),
)


def _is_plain(value: Any) -> bool:
    return value is None or value is Ellipsis or type(value) in (bool, int, float, complex, bytes, slice, range)
