# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A slice, a table, a volume, or both: four models on one split
#
# Does a 3D network pay off? Would a single slice do? Do age and sex add something? Such questions are answered by
# models that were trained and measured on **the same patients**, and by the difference of their numbers, with an
# interval. Less than a minute; no data needed.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from terminal import medvol, use_new_folder

from medvol.io import read_volume
from medvol.metrics.paired import paired_differences
from medvol.phantoms.cohort import classification_cohort
from medvol.report.viewer import view

use_new_folder()

# %% [markdown]
# ## One study in three forms
#
# The same synthetic patients, vessels with and without an aneurysm: as volumes with age and sex, as the one slice
# through the middle of the bulge, and as a table of what a careful reader measured.

# %%
forms = {"volumes": "nifti", "slices": "png", "measurements": "csv"}
tables = {
    name: pd.read_csv(classification_cohort(name, patients=90, size=(22, 24, 20), seed=3, layout=layout))
    for name, layout in forms.items()
}
tables["measurements"].head(4).round(2)

# %% [markdown]
# **First the split.** If it differed between the forms, a model could win because its test patients are easier. Each
# table has a column `split`, so medvol keeps it; without that column, give every command the same `--split_seed`.

# %%
splits = pd.DataFrame({name: table.set_index("case").split for name, table in tables.items()})
print("the same split in all three forms:", bool((splits.nunique(axis=1) == 1).all()))
print(splits.volumes.value_counts().to_dict(), "scans")

# %% [markdown]
# ## Train and measure four models
#
# `--classes` puts the finding last, which makes it the positive class, in all four alike.

# %%
classes = "--classes \"['vessel','aneurysm']\""
medvol(
    f"train cnn2d_classification slices/cases.csv -o slice {classes} --spatial_size [32,32] --max_epochs 30",
    only="Trained",
)
medvol("evaluate cnn2d_classification slices/cases.csv -o slice --spatial_size [32,32]", only=" auc ")

# %%
medvol(f"train mlp_tabular_classification measurements/cases.csv -o table {classes} --max_epochs 60", only="Trained")
medvol("evaluate mlp_tabular_classification measurements/cases.csv -o table", only=" auc ")

# %%
medvol(f"train resnet3d_classification volumes/cases.csv -o volume {classes} --max_epochs 16", only="Trained")
medvol("evaluate resnet3d_classification volumes/cases.csv -o volume", only=" auc ")

# %%
medvol(f"train fusion_classification volumes/cases.csv -o fusion {classes} --max_epochs 16", only="Trained")
medvol("evaluate fusion_classification volumes/cases.csv -o fusion", only=" auc ")

# %% [markdown]
# ## The table of results
#
# Each interval says how far the AUC moves with the luck of the test patients. They overlap widely.

# %%
models = {
    "slice": "2D network, one slice",
    "table": "dense network, measurements",
    "volume": "3D network, volume",
    "fusion": "fusion, volume with age and sex",
}
measured = {name: json.loads(Path(name, "metrics.json").read_text()) for name in models}
rows = {}
for name, words in models.items():
    entry = measured[name]["metrics"]["auc"]
    rows[words] = [entry["value"], *entry["ci95"]]
auc = pd.DataFrame(rows, index=["AUC", "from", "to"]).T
auc.round(3)

# %% [markdown]
# ## The difference, in pairs
#
# Two overlapping intervals do **not** say that two models are equal: what is hard for one of them is mostly hard for
# the other, too. So both are measured on the same resampled patients, and the difference gets its own interval.
# Zero inside it: not shown to differ. That is not the same as equal: the study may be too small to tell.

# %%
predicted = {name: pd.read_csv(f"{name}/predictions.csv", index_col="case") for name in models}
order = predicted["volume"].index
columns = ["prob_vessel", "prob_aneurysm"]
scores = {name: table.loc[order, columns].to_numpy() for name, table in predicted.items()}
labels = (predicted["volume"].label == "aneurysm").astype(int).to_numpy()
patients = predicted["volume"].patient.to_numpy()

rows = {}
for name in ("slice", "table", "fusion"):
    difference = paired_differences(labels, scores[name], scores["volume"], patients)["auc"]
    rows[models[name]] = [difference["value"], *difference["ci95"]]
differences = pd.DataFrame(rows, index=["AUC minus that of the 3D network", "from", "to"]).T
differences.round(3)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.4), layout="constrained", width_ratios=[1, 1])
for pane, table in ((left, auc), (right, differences)):
    values = table.to_numpy().T
    place = -np.arange(len(table))
    pane.hlines(place, values[1], values[2], color="C0")
    pane.plot(values[0], place, "o", color="C0")
    pane.set_ylim(-len(table) + 0.4, 0.6)
left.set_yticks(-np.arange(len(auc)), list(models))
right.set_yticks(-np.arange(len(differences)), ["slice", "table", "fusion"])
left.axvline(0.5, color="grey", linestyle=":")
right.axvline(0, color="grey", linestyle=":")
left.set(title="AUC, 95 % interval", xlim=(0.4, 1.02))
right.set(title="AUC minus that of the 3D network")
plt.show()
# %% [markdown]
# How to read it here:
#
# - **The table** holds the diameter of the bulge, the very number that decides the label. A careful measurement of
#   the right thing is hard to beat; the network has to find out from some fifty scans what to measure.
# - **The slice** was chosen through the middle of the bulge: someone had to find the bulge first. In real data that
#   choice costs time and may leak the label.
# - **Age and sex** hardly tell the classes apart here. If the fusion looks better all the same, ask why. Its
#   evaluation has a line `network without the covariates`: the same network with age and sex withheld. A difference
#   near zero says that the gain is not theirs; it is that of another training. **No interval over patients shows the
#   luck of a seed.**
#
# The evaluation of a fusion also says in one sentence whether the image is worth more than the covariates alone:

# %%
print(measured["fusion"]["image_value"]["sentence"])

# %% [markdown]
# ## Where they disagree
#
# Look at the scan on which slice and volume differ most.

# %%
gap = np.abs(scores["slice"][:, 1] - scores["volume"][:, 1])
case = order[gap.argmax()]
row = int(gap.argmax())
print(f"{case}, {predicted['volume'].label[case]}: probability of an aneurysm", end=" ")
print(f"{scores['slice'][row, 1]:.2f} from the slice, {scores['volume'][row, 1]:.2f} from the volume")
image = tables["volumes"].set_index("case").image[case]
view(read_volume(f"volumes/{image}"), window=(-100, 500))

# %% [markdown]
# ## What can go wrong
#
# - **The best of four.** Whoever reports only the winner on the test split reports luck, too. Name all that were tried.
# - **Unequal effort.** One model tuned for weeks, the other run at its defaults: the difference is that of the effort.
# - **A covariate from the future.** A drug given after the diagnosis, a stage from the operation: leave it out with
#   `--exclude_columns`. A measurement by a reader who knew the diagnosis leaks it as well.
# - **One seed.** Repeat with `--seed 1` and `--seed 2`; differences smaller than those between seeds are noise.
