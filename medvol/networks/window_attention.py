"""Attention in shifted windows with the relative bias and the shift mask built once.

Every window of a Swin block adds the same relative position bias; a shifted block's windows differ in their mask only
by whether they are the last along each shifted axis: at most eight classes. MONAI expands both to every window (484 MB
of float32 at 96 cubed and three heads) and sends tokens through pad, roll and partition, a copy each. Here tokens are
moved into windows by one gather, sorted by class, and attention runs per class on as many windows as keep their scores
in the processor's cache; the backward pass computes the scores again instead of storing them.

Rejected: `scaled_dot_product_attention` on a processor: its fused kernel gives the bias no gradient, and is slower at
the small heads of a Swin network (bfloat16, 343 windows, 3 heads of 8, two cores: 155 ms; matrix products and softmax
103 ms; as here, with powers of two, about 70 ms).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from medvol.networks.exporting import is_exporting

SCORE_BYTES = 4 * 2**20  # scores of the windows handled at once: larger falls out of the cache, smaller starves a core
LARGEST_POWER = 64.0  # 2 to the power of it, summed over a window and its values, stays far below float32's 2 ** 127
MASKED = -100.0  # what MONAI adds to the score of two voxels that the shift brought together


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """How the tokens of one size go into windows and come back.

    Args:
        voxels: Tokens per window.
        source: Token of every window row, (windows * voxels); rows of padding point at token 0.
        padding: Rows that are padding; None when none are, for torch.export cannot store an empty constant.
        target: Window row of every token, (batch * tokens).
        classes: First window, end, and mask (voxels, voxels) or None of each class of windows.
    """

    voxels: int
    source: Tensor
    padding: Tensor | None
    target: Tensor
    classes: tuple[tuple[int, int, Tensor | None], ...]


def window_plan(
    batch: int, size: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...], device: torch.device
) -> WindowPlan:
    """Return how (batch, *size) tokens go into shifted windows, as MONAI places them.

    Args:
        batch: Number of volumes.
        size: Tokens along x, y, z; padded at the end to a multiple of the window.
        window: Tokens of a window along each axis. An axis no longer than it becomes one window, unshifted.
        shift: Tokens by which the windows are moved.
        device: Where the plan is used.
    """
    # What an exporter makes of a tensor is of no use to anyone else, so that it must not be remembered.
    make = _window_plan.__wrapped__ if is_exporting() else _window_plan
    plan: WindowPlan = make(batch, size, window, shift, device)
    return plan


@lru_cache(maxsize=64)
def _window_plan(
    batch: int, size: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...], device: torch.device
) -> WindowPlan:
    shift = tuple(0 if length <= edge else step for length, edge, step in zip(size, window, shift, strict=True))
    window = tuple(min(length, edge) for length, edge in zip(size, window, strict=True))
    counts = [math.ceil(length / edge) for length, edge in zip(size, window, strict=True)]
    tokens, voxels = math.prod(size), math.prod(window)
    behind = [(0, count * edge - length) for count, edge, length in zip(counts, window, size, strict=True)]
    # In numpy, for an exporter would follow torch's operators, whose results it does not know.
    grid = np.pad(np.arange(tokens).reshape(size), behind, constant_values=-1)
    grid = np.roll(grid, [-step for step in shift], (0, 1, 2))
    rows = grid.reshape([part for pair in zip(counts, window, strict=True) for part in pair])
    rows = rows.transpose(0, 2, 4, 1, 3, 5).reshape(-1, 1, voxels)  # -1 where padded

    last = [(np.arange(count) == count - 1) & (step > 0) for count, step in zip(counts, shift, strict=True)]
    kind = (last[0][:, None, None] * 4 + last[1][:, None] * 2 + last[2] * 1).ravel()
    order = np.argsort(kind, kind="stable")
    # Windows of one class lie together, over all volumes: (window, volume, voxel).
    inside = np.broadcast_to(rows[order] >= 0, (len(rows), batch, voxels)).ravel()
    rows = (rows[order] + np.arange(batch)[:, None] * tokens).ravel()
    target = np.empty(batch * tokens, dtype=np.int64)
    target[rows[inside]] = inside.nonzero()[0]
    classes, start = [], 0
    for number, count in zip(*(part.tolist() for part in np.unique(kind, return_counts=True)), strict=True):
        mask = _mask(window, shift, (number & 4, number & 2, number & 1)) if number else None
        classes.append((start, start + count * batch, None if mask is None else torch.from_numpy(mask).to(device)))
        start += count * batch
    return WindowPlan(
        voxels=voxels,
        source=torch.from_numpy(np.where(inside, rows, 0)).to(device),
        padding=None if inside.all() else torch.from_numpy((~inside).nonzero()[0]).to(device),
        target=torch.from_numpy(target).to(device),
        classes=tuple(classes),
    )


def _mask(window: Sequence[int], shift: Sequence[int], last: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return what is added to the scores of a window that is the last along some axes, (voxels, voxels)."""
    wrapped = [
        (np.arange(edge) >= edge - step) & bool(is_last)
        for edge, step, is_last in zip(window, shift, last, strict=True)
    ]
    region = (wrapped[0][:, None, None] * 4 + wrapped[1][:, None] * 2 + wrapped[2] * 1).ravel()
    return np.where(region[:, None] == region, np.float32(0), np.float32(MASKED))


@final
class FastWindowAttention(nn.Module):
    """MONAI's `WindowAttention` with its parameters by its names, on all windows of a plan at once.

    Args:
        stock: Module whose parameters are taken over; its attention dropout must be 0.
    """

    relative_position_index: Tensor

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.num_heads: int = stock.num_heads
        self.relative_position_bias_table: nn.Parameter = stock.relative_position_bias_table
        self.register_buffer("relative_position_index", stock.relative_position_index)
        self.qkv: nn.Module = stock.qkv
        self.proj: nn.Module = stock.proj
        self.proj_drop: nn.Module = stock.proj_drop

    def forward(self, tokens: Tensor, plan: WindowPlan) -> Tensor:
        """Return (batch * tokens, channel) after attention within the windows of `plan`."""
        plain = is_exporting() and not torch.is_grad_enabled()
        rows = _moved(tokens, plan) if plain else _Move.apply(tokens, plan)
        index = self.relative_position_index[: plan.voxels, : plan.voxels].reshape(-1)
        bias = self.relative_position_bias_table.index_select(0, index)
        bias = bias.view(plan.voxels, plan.voxels, self.num_heads).permute(2, 0, 1)
        mixed = self.proj(attend(self.qkv(rows), bias, plan))
        back = mixed.index_select(0, plan.target) if plain else _MoveBack.apply(mixed, plan)
        result: Tensor = self.proj_drop(back)
        return result


def attend(qkv: Tensor, bias: Tensor, plan: WindowPlan) -> Tensor:
    """Return the values mixed within each window, (rows, channel).

    Args:
        qkv: Query, key and value of every window row, (windows * voxels, 3 * channel), each split into heads.
        bias: Relative position bias, (heads, voxels, voxels).
        plan: Which windows share a mask.
    """
    if qkv.device.type in ("cpu", "meta") and not is_exporting():
        result: Tensor = _Attend.apply(qkv, bias, plan)
        return result
    heads = bias.shape[0]
    windows = qkv.view(-1, plan.voxels, 3, heads, qkv.shape[1] // (3 * heads)).permute(2, 0, 3, 1, 4)
    parts = []
    for start, end, mask in plan.classes:
        query, key, value = windows[:, start:end].unbind()
        added = _with_mask(bias, mask, qkv.dtype).unsqueeze(0)
        parts.append(functional.scaled_dot_product_attention(query, key, value, attn_mask=added))
    return torch.cat(parts).transpose(1, 2).reshape(len(qkv), -1)


def _with_mask(bias: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (bias if mask is None else bias + mask).to(dtype)


def _moved(tokens: Tensor, plan: WindowPlan) -> Tensor:
    rows = tokens.index_select(0, plan.source)
    return rows if plan.padding is None else rows.index_fill_(0, plan.padding, 0)


class _Move(torch.autograd.Function):
    """Tokens to window rows; each token has one row, so the way back is a gather too."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, plan: WindowPlan) -> Tensor:
        ctx.plan = plan
        return _moved(tokens, plan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.index_select(0, ctx.plan.target), None


class _MoveBack(torch.autograd.Function):
    """Window rows to tokens."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, plan: WindowPlan) -> Tensor:
        ctx.plan = plan
        return rows.index_select(0, plan.target)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _moved(gradient, ctx.plan), None


class _Attend(torch.autograd.Function):
    """Attention by parts that fit the cache."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, plan: WindowPlan) -> Tensor:
        channels, heads = qkv.shape[1] // 3, bias.shape[0]
        result = qkv.new_empty(len(qkv) // plan.voxels, plan.voxels, heads, channels // heads)
        for part in _parts(qkv, bias, plan):
            query, key, value = _heads(qkv, part, heads, plan.voxels)
            weights, total = _weights(query, key, part)
            mixed = torch.bmm(weights, value).div_(total)
            result[part.start : part.end] = mixed.view(-1, heads, *mixed.shape[1:]).transpose(1, 2)
        result = result.view(len(qkv), channels)
        ctx.save_for_backward(qkv, bias, result)
        ctx.plan = plan
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        qkv, bias, result = ctx.saved_tensors
        voxels, heads = ctx.plan.voxels, bias.shape[0]
        for_qkv = torch.empty_like(qkv)
        for_bias = torch.zeros_like(bias, memory_format=torch.contiguous_format)
        for part in _parts(qkv, bias, ctx.plan):
            rows = slice(part.start * voxels, part.end * voxels)
            query, key, value = _heads(qkv, part, heads, voxels)
            weights, total = _weights(query, key, part)
            weights.div_(total)
            upstream, mixed = (
                tensor[rows].view(-1, voxels, heads, value.shape[-1]).transpose(1, 2).reshape(value.shape)
                for tensor in (gradient, result)
            )
            # Derivative of a softmax: the row's weights times what each differs from their weighted mean.
            mean = (upstream * mixed).sum(-1, keepdim=True)
            for_scores = torch.bmm(upstream, value.mT).sub_(mean).mul_(weights)
            for_bias += for_scores.view(-1, *bias.shape).sum(0, dtype=bias.dtype)
            place = for_qkv[rows].view(-1, voxels, 3, heads, value.shape[-1])
            for_query = torch.bmm(for_scores, key).mul_(query.shape[-1] ** -0.5)
            for_key = torch.bmm(for_scores.mT, query).mul_(math.log(2))  # the query carries scale and log2(e)
            for number, found in enumerate((for_query, for_key, torch.bmm(weights.mT, upstream))):
                place[:, :, number] = found.view(-1, heads, voxels, value.shape[-1]).transpose(1, 2)
        return for_qkv, for_bias, None


@dataclass(frozen=True, eq=False)
class _Part:
    """Windows handled at once, and what is added to their scores, times log2(e).

    `added` is (heads, voxels, voxels), or repeated for every window (windows * heads, voxels, voxels).
    """

    start: int
    end: int
    added: Tensor
    largest: float


def _parts(qkv: Tensor, bias: Tensor, plan: WindowPlan) -> list[_Part]:
    at_once = max(1, SCORE_BYTES // (bias.numel() * qkv.element_size()))
    bias = bias * math.log2(math.e)
    # Tensors without numbers, on which memory is counted, take the path that needs no bound.
    largest = math.inf if bias.is_meta else bias.abs().max().item()
    parts = []
    for start, end, mask in plan.classes:
        added = _with_mask(bias, mask if mask is None else mask * math.log2(math.e), qkv.dtype).contiguous()
        # Added within the matrix product, which saves a pass in bfloat16 and costs one in float32.
        added = added.repeat(min(at_once, end - start), 1, 1) if qkv.dtype == torch.bfloat16 else added
        for first in range(start, end, at_once):
            windows = min(at_once, end - first)
            parts.append(_Part(first, first + windows, added[: windows * len(bias)], largest))
    return parts


def _heads(qkv: Tensor, part: _Part, heads: int, voxels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return query times scale and log2(e), key and value, each (windows * heads, voxels, channels per head)."""
    rows = qkv[part.start * voxels : part.end * voxels].view(-1, voxels, 3, heads, qkv.shape[1] // (3 * heads))
    query, key, value = rows.permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2).unbind()
    return query * (query.shape[-1] ** -0.5 * math.log2(math.e)), key, value


def _weights(query: Tensor, key: Tensor, part: _Part) -> tuple[Tensor, Tensor]:
    """Return the attention weights before their division, (windows * heads, voxels, voxels), and their row sums.

    A softmax subtracts the row's maximum because the exponential could overflow. Where no score can be that large
    (query and key bound it) that pass is left out, and powers of two are torch's fastest: a third of `softmax`'s time.
    """
    if len(part.added) == len(query):
        scores = torch.baddbmm(part.added, query, key.mT)
    else:
        scores = torch.bmm(query, key.mT)
        scores.view(-1, *part.added.shape).add_(part.added)
    exact = torch.promote_types(query.dtype, torch.float32)
    longest = [torch.linalg.vector_norm(vectors, dim=-1, dtype=exact).max() for vectors in (query, key)]
    bound = longest[0] * longest[1] + part.largest
    if math.isinf(part.largest) or not bound < LARGEST_POWER:
        scores -= scores.amax(-1, keepdim=True)
    weights = scores.exp2_()
    return weights, weights.sum(-1, keepdim=True)
