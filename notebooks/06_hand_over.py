# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Make a bundle and hand it over
#
# A model is of use when somebody else can run it, knows what it was made for, and can check that it is the same
# model. MONAI's bundle is the common form for that: a folder with weights, configuration, facts and a card. Less than
# a minute; no data needed.

# %%
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from terminal import medvol, use_new_folder

from medvol.phantoms.cohort import classification_cohort

use_new_folder()
cases = pd.read_csv(classification_cohort("slices", patients=90, seed=3, layout="png"))
cases.head(3)

# %%
import matplotlib.pyplot as plt

figure, panes = plt.subplots(1, 6, figsize=(9, 1.9))
for pane, (_, row) in zip(panes, cases.groupby("label").head(3).sort_values("label").iterrows(), strict=True):
    pane.imshow(Image.open(f"slices/{row['image']}"), cmap="gray")
    pane.set(title=row.label, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Make it
#
# `medvol new` looks at the study, chooses a network or takes the one you name, and writes a folder of your own. It
# prints what it inferred: read it, this is where a wrong column or a wrong class is noticed.
#
# `--relative` keeps the place of the study relative to the bundle; without it the configuration shows a path of your
# disk to whoever gets it.

# %%
options = "--bundle cnn2d_classification --classes vessel aneurysm --authors 'Department of Radiology' --relative"
medvol(f"new aneurysm_classification slices/cases.csv {options}", lines=30)

# %% [markdown]
# ## Train and measure it
#
# `--model_dir` puts the weights into the bundle, where whoever gets it looks for them. After seconds of training the
# model is weak; here it is about handing it over, and its numbers, good or bad, belong to it.

# %%
weights = "--model_dir aneurysm_classification/models"
medvol(f"train aneurysm_classification -o run {weights} --max_epochs 20", lines=7)
medvol(f"evaluate aneurysm_classification -o run {weights}", lines=20)

# %% [markdown]
# ## What is in the folder

# %%
bundle = Path("aneurysm_classification")
for file in sorted(path for path in bundle.rglob("*") if path.is_file()):
    print(f"{file.relative_to(bundle)!s:40} {file.stat().st_size / 1000:8.1f} kB")

# %% [markdown]
# - `configs/`: the training, evaluation and prediction as they ran, and `metadata.json`: what goes in, what comes
#   out;
# - `models/model.pt`: the weights, numbers only, no code that could run on loading;
# - `models/model.json`: what the model must know beside them: classes, size, grey values, and a checksum of the
#   weights;
# - `docs/README.md`: the card. **The part that nobody can generate is yours**: for whom is it, on whom was it
#   trained, where does it fail? Put the table of `metrics.json` there, with the intervals.

# %%
record = json.loads((bundle / "models" / "model.json").read_text())
print("classes:", record["facts"]["classes"], "| size:", record["facts"]["spatial_size"])
print("trained with:", {key: record["training"][key] for key in ("bundle", "seed", "split_seed", "epoch")})
print("patients seen:", len(record["trained_on"]), "as digests, for example", record["trained_on"][0])

# %% [markdown]
# **What leaves the house?** No image, no name, no row of your table. The patients that were trained on are kept as
# digests, so that an evaluation on them is refused. Someone who has a list of your Patient IDs could test which of them
# are among these. If that matters, train on pseudonyms.
#
# ## Test it as MONAI would
#
# MONAI checks that the network takes what the metadata promise, and returns it.

# %%
from monai.bundle import verify_net_in_out

verify_net_in_out(
    net_id="network_def",
    meta_file=str(bundle / "configs" / "metadata.json"),
    config_file=str(bundle / "configs" / "inference.json"),
    device="cpu",
    bundle_root=str(bundle),
)
print("the network fits its metadata")

# %% [markdown]
# ## Other forms of it
#
# Some programs take no bundle but a single file. `medvol export` writes ONNX and others, runs each beside the
# network, and keeps only what gives the same answers.

# %%
medvol("export aneurysm_classification -o exported --formats onnx,torch-export", lines=6)

# %% [markdown]
# ## Hand it over

# %%
archive = Path(shutil.make_archive("aneurysm_classification", "zip", ".", bundle.name))
digest = hashlib.sha256(bundle.joinpath("models", "model.pt").read_bytes()).hexdigest()
print(archive.name, f"{archive.stat().st_size / 1e6:.1f} MB; SHA-256 of the weights {digest[:16]}...")

# %% [markdown]
# ## On the other side
#
# Unpack it, compare the checksum, and predict. The same images must give the same probabilities as at home: send
# along a few cases and what you got, it is the best test there is.

# %%
shutil.unpack_archive(archive, "elsewhere")
theirs = Path("elsewhere") / bundle.name
received = json.loads((theirs / "models" / "model.json").read_text())["weights_sha256"]
print("the weights are those of the record:", received == digest)

medvol(f"predict {theirs} slices/test/aneurysm -o theirs", lines=8)

# %%
home = pd.read_csv("run/predictions.csv", index_col="case").prob_aneurysm
away = pd.read_csv("theirs/predictions.csv", index_col="case").prob_aneurysm
both = pd.concat([home, away], axis=1, keys=["home", "elsewhere"], join="inner")
print(f"{len(both)} cases, largest difference {np.abs(both.home - both.elsewhere).max():.0e}")
both.head(4)

# %% [markdown]
# Who works with MONAI in Python takes the network from the bundle's configuration and lets MONAI load its weights.

# %%
from monai.bundle import ConfigParser, load

parser = ConfigParser()
parser.read_config(str(theirs / "configs" / "inference.json"))
parser["bundle_root"] = str(theirs)
network = load(bundle.name, model=parser.get_parsed_content("network_def"), bundle_dir="elsewhere", device="cpu")
print(type(network).__name__, f"{sum(values.numel() for values in network.parameters()):,} parameters")

# %% [markdown]
# ## What can go wrong
#
# - **Other images.** Another scanner, another window, PNG instead of DICOM: the network answers all the same. Measure
#   it on cases of the new place before anyone looks at its answers.
# - **The card is empty.** Then nobody knows for whom it is meant. Not for clinical use, whoever says otherwise.
# - **The weights alone.** Without `model.json` the size, the grey values and the order of the classes are guesses.
# - **Only the mean is handed on.** Give the intervals, and the cases on which it failed.
