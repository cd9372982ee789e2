"""How the numbers came about: training curves, the machine and versions, and the checksums of every file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from medvol.report.html_charts import Axis, Series, axis_over, chart
from medvol.report.html_page import paragraph, table, text
from medvol.report.html_run import RunFiles

FEW_FILES = 12
_NO_METRIC = ("epoch", "train_loss", "learning_rate", "log_likelihood", "val_loss")


def training(run: RunFiles) -> str:
    """Return the chapter of the training curves; nothing where the model was trained elsewhere."""
    history = run.history
    if len(history) < 2:
        return ""

    def points(name: str, sign: float = 1.0) -> list[tuple[float, float]]:
        return [(row["epoch"], sign * row[name]) for row in history if name in row]

    losses = [Series("training", points("train_loss"), 0), Series("validation", points("log_likelihood", -1.0), 1)]
    losses = [one for one in losses if one.points]
    names = [name for name in dict.fromkeys(key for row in history for key in row) if name not in _NO_METRIC]
    scores = [Series(name, points(name), index) for index, name in enumerate(names[:6])]
    epochs = Axis("epoch", history[0]["epoch"], history[-1]["epoch"], whole=True)
    values = sorted(value for one in losses for _, value in one.points)
    # The first epochs of the averaged weights are far off and would hide the rest.
    top = min(values[-1], 1.5 * max(row["train_loss"] for row in history))
    inside = [Series(one.label, [(x, min(y, top)) for x, y in one.points], one.colour) for one in losses]
    says = (
        "The validation loss rising while the training loss falls is overfitting: the model learns its cases by heart."
    )
    figures = [chart("Loss", inside, epochs, axis_over("loss", [*values[:1], top]), says=says)]
    if scores:
        spread = [value for one in scores for _, value in one.points]
        figures.append(chart("Validation", scores, epochs, axis_over("metric", spread)))
    return f'{_trained(run.training)}<div class="grid">{"".join(figures)}</div>'


def environment(record: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """Return the chapter of how the run can be repeated.

    Args:
        record: Of this run, as in run.json: `command`, `config`, `versions`, `machine` and further facts.
        training: Of the training, as in run.json; empty where it ran elsewhere.
    """
    config = record["config"]
    facts = {
        "Finished": record.get("finished"),
        "Seeds": _seeds(record),
        "Precision": record.get("precision") or config.get("precision"),
        "Machine": ", ".join(str(value) for value in record["machine"].values()),
        "Weights, SHA-256": record.get("weights_sha256"),
        "Cases, labels, file names and sizes, SHA-256": (record.get("training") or {}).get("data_sha256"),
        "Versions": ", ".join(f"{name} {found}" for name, found in record["versions"].items()),
    }
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts.items() if value)
    body = f"<dl>{rows}</dl><h3>Command</h3><pre>{text(record['command'])}</pre>"
    if training.get("command"):
        body += f"<h3>Command of the training</h3><pre>{text(training['command'])}</pre>"
    return body


def checksums(outputs: Mapping[str, str], folder: Path) -> str:
    """Return the chapter of the files that the run wrote, linked where they lie beside the report.

    Args:
        outputs: File to SHA-256.
        folder: Where the report lies.
    """
    rows = [[_file(name, folder), f"<code>{text(digest)}</code>"] for name, digest in outputs.items()]
    listed = table(["File", "SHA-256"], rows)
    if len(rows) > FEW_FILES:
        listed = f"<details><summary>{len(rows)} files</summary>{listed}</details>"
    return paragraph("A file whose checksum differs was changed after the run. The same are in run.json.") + listed


def link(path: str, words: str) -> str:
    """Return a link to a file beside the report."""
    return f'<a href="{text(quote(Path(path).as_posix()))}">{text(words)}</a>'


def _file(name: str, folder: Path) -> str:
    relative = os.path.relpath(name, folder)
    return text(Path(name).name) if relative.startswith("..") else link(relative, relative)


def _seeds(record: Mapping[str, Any]) -> str:
    trained = record.get("training") or {}
    seeds: Sequence[str] = [f"{name} {trained[name]}" for name in ("seed", "split_seed") if name in trained]
    return ", ".join(seeds)


def _trained(record: Mapping[str, Any]) -> str:
    facts = record.get("training") or {}
    if "epoch" not in facts:
        return ""
    took = record.get("wall_time_s")
    time = f" Training took {float(took) / 60:.0f} minutes." if isinstance(took, (int, float)) and took >= 90 else ""
    return paragraph(f"The weights of epoch {facts['epoch']} were kept.{time}")
