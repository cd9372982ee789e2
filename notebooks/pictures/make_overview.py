"""Draw overview.png, the picture at the top of the README, from the output of `make demo`.

.venv/bin/python notebooks/pictures/make_overview.py demo
"""

import csv
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from medvol.io import read_volume

STEPS = [
    ("scans and table", "DICOM, NIfTI, npy\ncase, patient, label"),
    ("checked, split", "every file verified\nby patient"),
    ("prepared once", "RAS, spacing, size\nmemory-mapped cache"),
    ("trained", "MONAI engine\nmeasured precision"),
    ("measured", "intervals by patient\ncalibration, baseline"),
    ("MONAI bundle", "weights and facts\npredict anywhere"),
]


def draw_steps(axes):
    axes.set(xlim=(0, len(STEPS)), ylim=(0, 1))
    axes.axis("off")
    for index, (title, text) in enumerate(STEPS):
        axes.add_patch(plt.Rectangle((index + 0.04, 0.08), 0.84, 0.84, facecolor="#E8F1F8", edgecolor="#0072B2"))
        axes.text(index + 0.46, 0.7, title, ha="center", va="center", weight="bold", fontsize=11)
        axes.text(index + 0.46, 0.36, text, ha="center", va="center", fontsize=9)
        if index:
            axes.annotate("", (index + 0.04, 0.5), (index - 0.12, 0.5), arrowprops={"arrowstyle": "->"})


def draw_case(axes, folder, row):
    volume = read_volume(str(folder / row["image"])).array
    projection = volume.max(axis=1)  # seen from the front: x to the right of the array, z upwards
    axes.imshow(projection.T, cmap="gray", origin="lower", vmin=np.percentile(projection, 5), vmax=volume.max())
    axes.set_title(f"{row['label']}, maximum projection", fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


def main(demo):
    with (demo / "cases.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "test"]
    metrics = json.loads((demo / "metrics.json").read_text())["metrics"]
    figure = plt.figure(figsize=(12, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=(1, 2.3))
    draw_steps(figure.add_subplot(grid[0, :]))
    for column, label in enumerate(("vessel", "aneurysm")):
        draw_case(figure.add_subplot(grid[1, column]), demo, next(row for row in rows if row["label"] == label))
    for column, name in ((2, "roc"), (3, "reliability")):
        axes = figure.add_subplot(grid[1, column])
        axes.imshow(plt.imread(demo / f"{name}.png"))
        axes.axis("off")
    low, high = metrics["auc"]["ci95"]
    figure.suptitle(f"make demo: test AUC {metrics['auc']['value']:.2f} ({low:.2f} to {high:.2f}), ideal observer 0.94")
    figure.savefig(Path(__file__).with_name("overview.png"), dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
