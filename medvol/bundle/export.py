"""A trained bundle as a file that runs without medvol: ONNX, torch.export, TorchScript, each compared with its source.

What is written is the network alone: from a preprocessed batch to logits. What stands around it (preprocessing, sliding
window, temperature, class names) is facts, which are stored inside the file as JSON under `medvol`. A file whose
answers differ from the network's by more than rounding is not left behind.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ckpt_export
from torch import Tensor

from medvol.bundle.export_source import Answer, Source, Tensors, compare, load_source
from medvol.errors import MedvolError, find_refusal, require_choice
from medvol.inference.record import WEIGHTS_FILE, record_fields

FORMATS = {"onnx": "model.onnx", "torch-export": "model.pt2", "torchscript": "model.ts"}

LARGEST_DIFFERENCE = 1e-4
"""Of a logit, as a share of the largest one (at least 1): float32 sums in another order differ by 1e-6 to 1e-5."""

LEAST_AGREEMENT = 0.999
"""Share of voxels with the same label in both: of random input, where many voxels are undecided."""

FACTS_KEY = "medvol"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """One format of a bundle's network.

    Args:
        format: One of `FORMATS`.
        file: Where it was written; None when it was refused.
        size: Bytes.
        how: Of what kind the file is: whether the batch is free, scripted or traced.
        difference: Largest difference of a logit, as a share of the largest one.
        agreement: Share of voxels with the same label; None for a classification.
        reason: Why it was refused, empty otherwise.
    """

    format: str
    file: Path | None
    size: int = 0
    how: str = ""
    difference: float = float("nan")
    agreement: float | None = None
    reason: str = ""


def export_bundle(
    bundle: str, output: str = "", *, formats: Sequence[str] = tuple(FORMATS), model_dir: str = ""
) -> list[Exported]:
    """Write a bundle's network in other formats and return how each compares with it.

    Args:
        bundle: Folder or name of a bundle.
        output: Folder to write to; empty for the folder of the weights.
        formats: Of `FORMATS`.
        model_dir: Folder of the weights; empty for the bundle's `models`.

    Raises:
        MedvolError: `NO_WEIGHTS` and the like for the weights, `UNKNOWN_OPTION`, `MISSING_PACKAGE`, `DISK_FULL`.
    """
    for name in formats:
        require_choice("formats", name, FORMATS)
    if "onnx" in formats:
        _require_onnx()
    source = load_source(bundle, model_dir)
    folder = Path(output) if output else source.model_dir
    folder.mkdir(parents=True, exist_ok=True)
    _require_room(folder, source.network)
    return [_export(source, name, folder / FORMATS[name]) for name in formats]


def _export(source: Source, name: str, path: Path) -> Exported:
    """Write one format beside its place, compare it there, and move it in place if it answers as its source does."""
    writers = {"onnx": _write_onnx, "torch-export": _write_pt2, "torchscript": _write_torchscript}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as place:
        draft = Path(place) / path.name
        try:
            with _quiet(), torch.no_grad():
                how, answer, batches = writers[name](source, draft)
                difference, agreement = compare(source, answer, batches)
        except Exception as error:  # whatever an exporter says of a network that it cannot follow
            refusal = find_refusal(error)
            if refusal is not None:
                raise refusal from error
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            return Exported(name, None, reason=f"{type(error).__name__}: {reason[:160]}")
        low = agreement is not None and agreement < LEAST_AGREEMENT
        if not difference <= LARGEST_DIFFERENCE or low:
            reason = f"answers differ from the network's by more than {LARGEST_DIFFERENCE:g}"
            return Exported(name, None, how=how, difference=difference, agreement=agreement, reason=reason)
        size = draft.stat().st_size
        os.chmod(draft, 0o644)  # noqa: PTH101
        os.replace(draft, path)  # noqa: PTH105
    return Exported(name, path, size, how, difference, agreement)


def _write_onnx(source: Source, path: Path) -> tuple[str, Answer, Sequence[int]]:
    import onnx

    onnxruntime: Any = import_module("onnxruntime")  # it has no types

    def write(inputs: Tensors, dynamic: Any) -> Answer:
        torch.onnx.export(
            source.network,
            inputs,
            str(path),
            dynamo=True,
            dynamic_shapes=dynamic,
            external_data=False,
            verbose=False,
            input_names=list(source.names),
            output_names=["pred"],
        )
        model = onnx.load(str(path))
        onnx.helper.set_model_props(model, {FACTS_KEY: source.facts})
        onnx.save(model, str(path))
        quiet = onnxruntime.SessionOptions()
        quiet.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"])

        def answer(inputs: Tensors) -> Tensor:
            given = {name: one.numpy() for name, one in zip(source.names, inputs, strict=True)}
            return torch.from_numpy(session.run(None, given)[0])

        return answer

    answer, batches, how = _any_batch(source, write)
    return f"opset {onnx.load(str(path)).opset_import[0].version}, {how}", answer, batches


def _write_pt2(source: Source, path: Path) -> tuple[str, Answer, Sequence[int]]:
    def write(inputs: Tensors, dynamic: Any) -> Answer:
        program = torch.export.export(source.network, inputs, dynamic_shapes=dynamic)
        torch.export.save(program, str(path), extra_files={FACTS_KEY: source.facts})
        module = torch.export.load(str(path)).module()
        return lambda inputs: module(*inputs)

    answer, batches, how = _any_batch(source, write)
    return how, answer, batches


def _write_torchscript(source: Source, path: Path) -> tuple[str, Answer, Sequence[int]]:
    """Write by MONAI's `ckpt_export`, which puts metadata and configuration into the file; traced where need be."""
    options = {
        "net_id": "network_def",
        "filepath": str(path),
        "ckpt_file": str(source.model_dir / WEIGHTS_FILE),
        "meta_file": str(source.folder / "configs" / "metadata.json"),
        "config_file": str(_with_record(source, path.parent / "inference.json")),
        "bundle_root": str(source.folder),
        "model_dir": str(source.model_dir),
    }
    how = "scripted"
    try:
        ckpt_export(**options)
    except Exception:  # of the many ways in which TorchScript says no; tracing has the last word
        how = "traced, batch of 1"
        if len(source.shapes) > 1:  # of which MONAI traces only the first
            traced = torch.jit.trace(source.network, source.draw(1, 0))
            torch.jit.save(traced, str(path), _extra_files={f"{FACTS_KEY}.json": source.facts})
        else:
            ckpt_export(**options, use_trace=True, input_shape=[1, *source.shapes[0]])
    module = torch.jit.load(str(path))
    return how, lambda inputs: module(*inputs), (1,) if "traced" in how else (1, 2)


def _with_record(source: Source, path: Path) -> Path:
    """Write the configuration of inference with the record in it, as the file that it goes into has no `models` folder.

    Whom the model was trained on stays behind.
    """
    config = json.loads((source.folder / "configs" / "inference.json").read_text())
    fields = record_fields(replace(source.record, trained_on=(), fitted_on=(), training={}))
    config["record"] = {"_target_": "medvol.inference.record.record_of", "values": fields}
    path.write_text(json.dumps(config, indent=4))
    return path


def _any_batch(source: Source, write: Callable[[Tensors, Any], Answer]) -> tuple[Answer, Sequence[int], str]:
    """Write with a batch of any size where the exporter can follow one; else for a batch of 1."""
    batches = (1, 3)
    try:
        answer = write(source.draw(2, 0), tuple({0: torch.export.Dim("batch")} for _ in source.shapes))
        # An exporter may say that it followed the batch and have fixed it all the same.
        if all(len(answer(source.draw(batch, 0))) == batch for batch in batches):
            return answer, batches, "any batch"
    except Exception as error:  # exporters have no common error
        logger.debug("No free batch: %s", error)
    return write(source.draw(1, 0), None), (1,), "batch of 1"


def _require_room(folder: Path, network: torch.nn.Module) -> None:
    """Refuse a disk without room beforehand: torch ends the process when one fills under a TorchScript file."""
    weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    needed = 2 * weights + 2**22  # a file is written beside the one that it replaces, and its graph takes room too
    free = shutil.disk_usage(folder).free
    if free < needed:
        found = f"{free / 2**20:.1f} MiB free"
        expected = f"{needed / 2**20:.1f} MiB for a format"
        raise MedvolError(
            "DISK_FULL", file=folder, found=found, expected=expected, fix="free space, or give another -o"
        )


def _require_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise MedvolError(
            "MISSING_PACKAGE",
            found=f"no package {', '.join(missing)}",
            expected="what ONNX files are written and compared with",
            fix="pip install 'medvol-monai[export]', or leave onnx out of --formats",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters' progress and their own deprecations from the user, who can do nothing about either."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "monai.bundle", "py.warnings")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
