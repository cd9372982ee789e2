# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train a 3D classifier and read its report
#
# A small study, from the first look to the last number. The scans are synthetic: a vessel in soft tissue, in some
# patients with an aneurysm. So the truth is known, and the best that any reader could reach: an **AUC of 0.94**.
#
# Each step is the command that you would type in a terminal. Less than a minute; no data needed.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Image
from terminal import medvol, use_new_folder

from medvol.io import read_volume
from medvol.phantoms.cohort import classification_cohort
from medvol.report.viewer import view

use_new_folder()
table = classification_cohort("study", patients=90, size=(22, 24, 20), seed=3)
cases = pd.read_csv(table)
cases.head()

# %% [markdown]
# A row per scan. `patient` matters most: some patients have two scans, and both must lie on the same side of the
# split. Otherwise the network is tested on patients that it has seen, and the numbers are too good. medvol refuses
# such a split.

# %%
cases.groupby(["split", "label"]).agg(scans=("case", "count"), patients=("patient", "nunique"))

# %% [markdown]
# **Look before you train.** One scan with an aneurysm. The letters are the patient's sides: R is the patient's right.
# In Jupyter there are sliders; on a web page you see the middle slices.

# %%
sick = cases[cases.label == "aneurysm"].iloc[0]
view(read_volume(str(table.parent / sick.image)), window=(-100, 500))

# %% [markdown]
# ## Check every file
#
# `medvol check` opens every file of the study and lists all that a training would refuse, before hours are spent.

# %%
medvol("check study/cases.csv")

# %% [markdown]
# ## Train
#
# `--classes` gives the order of the classes. **The last of two is the positive one**, the finding that sensitivity is
# about. Left out, the order is the alphabet's, and sensitivity would be that of "vessel". Real studies need more
# epochs than these few.

# %%
options = "--max_epochs 16 --classes \"['vessel','aneurysm']\""
medvol(f"train resnet3d_classification study/cases.csv -o out {options}", lines=8)

# %%
Image("out/training.png", width=520)

# %% [markdown]
# Read it so:
#
# - both losses fall: it learns; the training loss alone falls: it learns the training scans by heart;
# - the validation curve jumps: the split is small, and so early in a training the weights change fast. A single good
#   epoch is luck.
#
# ## Evaluate
#
# The test split was not touched so far, neither for training nor to choose anything. It is measured **once**. If you
# change something and measure again until the number is good, it is no longer a test.

# %%
medvol("evaluate resnet3d_classification study/cases.csv -o out", lines=17)

# %%
report = json.loads(Path("out/metrics.json").read_text())
rows = {
    name: {
        "value": entry["value"],
        "from": entry["ci95"][0],
        "to": entry["ci95"][1],
        "baseline": report["baseline"]["metrics"][name]["value"],
    }
    for name, entry in report["metrics"].items()
}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# | number | what it says | mind |
# |---|---|---|
# | auc | how often the sick one of a pair gets the higher score | says nothing of a threshold |
# | accuracy | share of right answers | high where one class is rare: see the baseline |
# | balanced accuracy | mean of sensitivity and specificity | |
# | sensitivity, specificity | share found right among the sick, the healthy | at 0.5; both move with the threshold |
# | f1 | sensitivity and precision in one | changes with the prevalence |
# | brier, ece | errors of the probabilities | **lower is better** |
#
# **from, to** is the 95 % interval: patients were drawn anew 2000 times. It says how much of the number is the luck of
# these patients. With some thirty patients it is wide, and a difference of 0.05 between two models means nothing.
#
# **baseline** always answers with what was most frequent in training. A model that is not clearly above it is no model.

# %%
Image("out/confusion.png", width=380)

# %% [markdown]
# Rows are the truth. Count the two kinds of error apart: a missed aneurysm and a false alarm do not cost the same.
#
# ## Can the probabilities be believed?

# %%
Image("out/reliability.png", width=380)

# %% [markdown]
# Of all scans for which the model says 80 %, four in five should be right: then the points lie on the line. Below it
# the model is too sure, above it too cautious. The size of a point is its number of scans; a small point says little.
# medvol scales the logits by one number, the *temperature*, fitted on validation. It changes no ranking and no AUC.
#
# ## The cases behind the numbers
#
# `predictions.csv` has a row per scan. Two questions: where was the model sure and wrong, and where did it not know?

# %%
predicted = pd.read_csv("out/predictions.csv", index_col="case")
predicted["true_class"] = [row[f"prob_{row.label}"] for _, row in predicted.iterrows()]
worst = predicted.true_class.idxmin()
unsure = (predicted.true_class - 0.5).abs().idxmin()
predicted.loc[[worst, unsure], ["patient", "label", "pred", "prob_aneurysm"]].rename(
    {worst: f"{worst}, worst", unsure: f"{unsure}, most uncertain"}
)

# %%
images = cases.set_index("case").image
view(read_volume(str(table.parent / images[worst])), window=(-100, 500))

# %%
view(read_volume(str(table.parent / images[unsure])), window=(-100, 500))

# %% [markdown]
# Ask of each: could a reader tell? Is the label right? Is something else in the picture that others do not have?
# Here we know: the true radius of the bulge. The errors should lie where both classes overlap.

# %%
truth = json.loads((table.parent / "cohort.json").read_text())["truth"]
predicted["bulge_mm"] = [truth[case]["aneurysm_radius_mm"] for case in predicted.index]
axes = predicted[predicted.label == "vessel"].plot.scatter("bulge_mm", "prob_aneurysm", label="vessel", figsize=(6, 3))
sick = predicted[predicted.label == "aneurysm"]
sick.plot.scatter("bulge_mm", "prob_aneurysm", label="aneurysm", color="C1", marker="^", ax=axes)
axes.axhline(0.5, color="grey", linestyle=":")
axes.set(xlabel="true radius of the bulge (mm)", ylabel="probability of aneurysm", ylim=(-0.03, 1.03))
axes.legend(loc="lower right")
plt.show()

# %% [markdown]
# ## Where did it look?
#
# A heat map shows which region raised the score of a class. HiResCAM, a form of Grad-CAM, weighs the network's own
# features, which is fast and coarse. Occlusion hides one patch after the other and watches the score. Both are hints,
# not proofs: they show association only, they need not agree, and a map on the right spot does not make the answer
# right. But a map on a ruler, a tube or a marker in the corner is a warning.

# %%
from medvol.explain.heat_maps import heat_map, occlusion
from medvol.inference.record import load_record, load_weights
from medvol.networks.resnet3d import resnet3d
from medvol.transforms.preprocess import volume_preprocessing

record = load_record("out/models", {})
network = load_weights(resnet3d(1, 2), "out/models", record)
best = predicted[predicted.label == "aneurysm"].true_class.idxmax()
prepared = volume_preprocessing(record.facts)({"image": str(table.parent / images[best])})["image"]
heat = heat_map(network, prepared, label=1)
maps = {heat.method: heat.values, "occlusion": occlusion(network, prepared, label=1)}

# %%
from medvol.report.views import upright

grey = prepared[0].numpy()
figure, rows = plt.subplots(2, 3, figsize=(7.5, 5), layout="constrained")
for panes, (method, values) in zip(rows, maps.items(), strict=True):
    for pane, (plane, axis) in zip(panes, {"axial": 2, "coronal": 1, "sagittal": 0}.items(), strict=True):
        middle = grey.shape[axis] // 2
        pane.imshow(upright(grey, axis, middle), cmap="gray", vmin=grey.min(), vmax=grey.max())
        pane.imshow(upright(values.numpy(), axis, middle), cmap="inferno", alpha=0.45, vmin=0, vmax=float(values.max()))
        pane.set(title=f"{plane}, {method}", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# Read no more into it than its coarseness allows. If the two disagree, believe neither. The black rim was added to
# bring the scan to the network's size.
#
# All of this stands in one file, `out/report.html`, which opens in any browser and can be sent by mail.
#
# ## What can go wrong
#
# - **The label leaks.** Sick patients from one scanner, healthy ones from another: the network reads the scanner.
# - **The test is not independent.** Scans of one patient on both sides; thresholds or epochs chosen on the test split.
# - **The prevalence is another one.** Sensitivity may carry over to your ward; accuracy, F1 and the calibration do not.
# - **One seed.** Train with `--seed 1` and `--seed 2` as well and report all three.
#
# A model says nothing about scanners, protocols or patients that its study does not contain. Not for clinical use.
