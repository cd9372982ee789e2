"""Items to JSON-ready content and arrays, and back, with types kept.

Both the first and every later access build the item from the same content, so they cannot differ. Kept exactly:
MetaTensor (affine, metadata, applied operations), tensors, arrays, NumPy numbers, paths, str, int, float, bool, None,
bytes, complex, list, tuple, dict. Within metadata and applied operations NumPy scalars become Python numbers, paths
become text and arrays become tensors, which is what collating, saving and `weights_only` loading accept. Everywhere
enum members become their values, subclasses of dict, list and tuple their base, and the ids of traced MONAI transforms
are reset, without which `Invertd` would refuse an item that another process prepared.
"""

from __future__ import annotations

import base64
import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.utils import TraceKeys

from medvol.errors import MedvolError

INLINE_BYTES = 1024  # arrays up to here (affines, sizes) stand in the header and cost no page of their own

Array = npt.NDArray[Any]
_ATOMS = (type(None), bool, int, float, str)
_FIXED = frozenset({*_ATOMS, bytes, complex})
_TRACE_NAMES = (TraceKeys.ID, TraceKeys.CLASS_NAME, TraceKeys.TRACING, TraceKeys.DO_TRANSFORM)


@dataclass(frozen=True)
class Slot:
    """The place of an array, tensor or MetaTensor in a template.

    Args:
        index: Which of the entry's arrays.
        kind: `ndarray`, `tensor` or `meta_tensor`.
        is_bfloat16: Whether the array holds the bits of bfloat16.
        meta: Template of the metadata, of MetaTensor only.
        operations: Template of the applied operations, of MetaTensor only.
        spatial_ndim: MetaTensor's attribute.
        is_batch: MetaTensor's attribute.
    """

    index: int
    kind: str
    is_bfloat16: bool = False
    meta: Any = None
    operations: Any = None
    spatial_ndim: int = 3
    is_batch: bool = False


@dataclass(frozen=True)
class Inline:
    """A small array that stands in the header."""

    array: Array
    kind: str
    is_bfloat16: bool = False


def encode(item: Any, *, case: str = "") -> tuple[Any, list[Array]]:
    """Return JSON-ready content and the arrays it refers to by number.

    Raises:
        MedvolError: `NOT_CACHEABLE` naming the field and its type.
    """
    arrays: list[Array] = []
    return _encode(item, arrays, (), case, in_meta=False), arrays


def template(content: Any) -> Any:
    """Return content as Python containers, with a `Slot` or `Inline` where an array belongs."""
    if not isinstance(content, list):
        return content
    tag, *values = content
    return _PARSERS[tag](*values)


def build(node: Any, arrays: Sequence[Array]) -> Any:
    """Return a fresh item from its template; nothing in it is shared with the template.

    Args:
        node: What `template` returned.
        arrays: The entry's arrays, owned by the item from here on.
    """
    kind = type(node)
    if kind in _FIXED:
        return node
    if kind is dict:
        return {key: value if type(value) in _FIXED else build(value, arrays) for key, value in node.items()}
    if kind is list:
        return [build(value, arrays) for value in node]
    if kind is tuple:
        return tuple(build(value, arrays) for value in node)
    if kind is Slot:
        return _build_slot(node, arrays)
    if kind is Inline:
        return _as_kind(node.array.copy(), node.kind, node.is_bfloat16)
    return node  # paths and NumPy scalars cannot be changed


def _build_slot(slot: Slot, arrays: Sequence[Array]) -> Any:
    value = _as_kind(arrays[slot.index], slot.kind, slot.is_bfloat16)
    if slot.kind != "meta_tensor":
        return value
    result = MetaTensor(
        value,
        meta=build(slot.meta, arrays),
        applied_operations=build(slot.operations, arrays),
        spatial_ndim=slot.spatial_ndim,
    )
    result.is_batch = slot.is_batch
    return result


def _as_kind(array: Array, kind: str, is_bfloat16: bool) -> Any:
    if kind == "ndarray":
        return array
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor


def _encode(value: Any, arrays: list[Array], trail: tuple[str, ...], case: str, *, in_meta: bool) -> Any:
    if isinstance(value, enum.Enum):
        value = value.value
    if type(value) in _ATOMS:
        return value
    for kinds, encode_kind in _ENCODERS:
        if isinstance(value, kinds):
            return encode_kind(value, arrays, trail, case, in_meta)
    raise _refusal(value, trail, case)


def _encode_meta_tensor(value: MetaTensor, arrays: list[Array], trail: tuple[str, ...], case: str, _: bool) -> Any:
    index, is_bfloat16 = _store(value.as_tensor(), arrays, trail, case)
    meta = _encode(value.meta, arrays, (*trail, "meta"), case, in_meta=True)
    operations = _encode(value.applied_operations, arrays, (*trail, "applied_operations"), case, in_meta=True)
    return ["meta_tensor", index, is_bfloat16, meta, operations, int(value.spatial_ndim), bool(value.is_batch)]


def _encode_tensor(value: torch.Tensor, arrays: list[Array], trail: tuple[str, ...], case: str, _: bool) -> Any:
    array, is_bfloat16 = _carrier(value, trail, case)
    return _place(array, "tensor", is_bfloat16, arrays)


def _encode_array(value: Array, arrays: list[Array], trail: tuple[str, ...], case: str, in_meta: bool) -> Any:
    if value.dtype.hasobject or value.dtype.names is not None or value.dtype.kind not in "biufcSUmM":
        raise _refusal(value, trail, case)
    if not in_meta:
        return _place(np.asarray(value, order="C"), "ndarray", False, arrays)
    if value.ndim == 0 or value.dtype.kind in "SUmM":
        return _encode(value.tolist(), arrays, trail, case, in_meta=True)
    native = value.astype(value.dtype.newbyteorder("="), order="C")
    return _place(native, "tensor", False, arrays)


def _encode_scalar(value: np.generic, arrays: list[Array], trail: tuple[str, ...], case: str, in_meta: bool) -> Any:
    if in_meta:
        return _encode(value.item(), arrays, trail, case, in_meta=True)
    if value.dtype.kind in "SU":
        return _encode(value.item(), arrays, trail, case, in_meta=False)
    if value.dtype.kind not in "biufc":
        raise _refusal(value, trail, case)
    return ["scalar", value.dtype.str, _text(value.tobytes())]


def _encode_mapping(
    value: Mapping[Any, Any], arrays: list[Array], trail: tuple[str, ...], case: str, in_meta: bool
) -> Any:
    pairs = []
    is_trace = all(name in value for name in _TRACE_NAMES)
    for key, item in value.items():
        name = key.value if isinstance(key, enum.Enum) else key
        if type(name) not in _ATOMS:
            raise _refusal(key, (*trail, "key"), case)
        content = TraceKeys.NONE.value if is_trace and name == TraceKeys.ID.value else item
        pairs.append([name, _encode(content, arrays, (*trail, str(name)), case, in_meta=in_meta)])
    return ["dict", pairs]


def _encode_sequence(
    value: Sequence[Any], arrays: list[Array], trail: tuple[str, ...], case: str, in_meta: bool
) -> Any:
    tag = "list" if isinstance(value, list) else "tuple"
    return [tag, [_encode(item, arrays, (*trail, str(i)), case, in_meta=in_meta) for i, item in enumerate(value)]]


def _encode_path(value: PurePath, _: list[Array], __: tuple[str, ...], ___: str, in_meta: bool) -> Any:
    return str(value) if in_meta else ["path", str(value)]


_Encoder = Callable[[Any, list[Array], tuple[str, ...], str, bool], Any]
_ENCODERS: tuple[tuple[Any, _Encoder], ...] = (
    (MetaTensor, _encode_meta_tensor),
    (torch.Tensor, _encode_tensor),
    (np.ndarray, _encode_array),
    (np.generic, _encode_scalar),
    (Mapping, _encode_mapping),
    ((list, tuple), _encode_sequence),
    (PurePath, _encode_path),
    (bytes, lambda value, *_: ["bytes", _text(value)]),
    (complex, lambda value, *_: ["complex", value.real, value.imag]),
    ((torch.dtype, torch.device), lambda value, *_: str(value)),
    (str, lambda value, *_: str(value)),
    (int, lambda value, *_: int(value)),
    (float, lambda value, *_: float(value)),
)

_PARSERS: dict[str, Callable[..., Any]] = {
    "dict": lambda pairs: {key: template(value) for key, value in pairs},
    "list": lambda values: [template(value) for value in values],
    "tuple": lambda values: tuple(template(value) for value in values),
    "array": Slot,
    "inline": lambda dtype, shape, data, kind, is_bfloat16: Inline(_small(dtype, shape, data), kind, is_bfloat16),
    "meta_tensor": lambda index, is_bfloat16, meta, operations, spatial_ndim, is_batch: Slot(
        index, "meta_tensor", is_bfloat16, template(meta), template(operations), spatial_ndim, is_batch
    ),
    "scalar": lambda dtype, data: _small(dtype, (1,), data)[0],
    "path": Path,
    "bytes": base64.b64decode,
    "complex": complex,
}


def _store(value: torch.Tensor, arrays: list[Array], trail: tuple[str, ...], case: str) -> tuple[int, bool]:
    array, is_bfloat16 = _carrier(value, trail, case)
    arrays.append(array)
    return len(arrays) - 1, is_bfloat16


def _carrier(value: torch.Tensor, trail: tuple[str, ...], case: str) -> tuple[Array, bool]:
    """Return a tensor's values, or its bits where NumPy lacks the type."""
    if value.device.type != "cpu" or value.layout is not torch.strided or value.is_quantized:
        raise _refusal(value, trail, case, f"on {value.device}, {value.layout}")
    plain = value.detach().resolve_conj().resolve_neg().contiguous()
    is_bfloat16 = plain.dtype == torch.bfloat16
    try:
        array = plain.view(torch.int16).numpy() if is_bfloat16 else plain.numpy()
    except TypeError as error:
        raise _refusal(value, trail, case, str(value.dtype)) from error
    return np.asarray(array, order="C"), is_bfloat16


def _place(array: Array, kind: str, is_bfloat16: bool, arrays: list[Array]) -> Any:
    if array.nbytes <= INLINE_BYTES:
        return ["inline", array.dtype.str, list(array.shape), _text(array.tobytes()), kind, is_bfloat16]
    arrays.append(array)
    return ["array", len(arrays) - 1, kind, is_bfloat16]


def _small(dtype: str, shape: Sequence[int], data: str) -> Array:
    return np.frombuffer(base64.b64decode(data), np.dtype(dtype)).reshape(shape) if data else np.empty(shape, dtype)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _refusal(value: Any, trail: tuple[str, ...], case: str, detail: str = "") -> MedvolError:
    return MedvolError(
        "NOT_CACHEABLE",
        case=case,
        found=f"'{'.'.join(trail)[-80:]}' is a {type(value).__qualname__} {detail}".rstrip(),
        expected="tensors on the CPU, arrays, numbers, text, lists and dictionaries of these",
        fix="drop or convert it in the chain, or derive the step that makes it from medvol.data.cache.AfterCache",
    )
