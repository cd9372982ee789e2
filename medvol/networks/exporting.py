"""Whether a network is being written down by an exporter, which follows torch's own operators and nothing else."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Return whether torch.jit.trace, torch.export, its ONNX exporter or torch.compile is following a call."""
    return bool(torch.jit.is_tracing() or torch.compiler.is_compiling())
