# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Segment, measure in millimetres and millilitres, write DICOM
#
# From DICOM series with masks to volumes per organ, and back into DICOM where a viewer and a report system can read
# them. The bodies are synthetic: the volume of each organ is known exactly. Less than a minute; no data needed.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image
from terminal import medvol, use_new_folder

from medvol.io import read_volume
from medvol.metrics.segmentation import score_case
from medvol.phantoms.cohort import segmentation_cohort
from medvol.report.viewer import view

use_new_folder()
table = segmentation_cohort("study", patients=18, layout="dicom", seed=1)
cases = pd.read_csv(table)
cases.head(3)

# %% [markdown]
# `image` is a folder with a DICOM series, `label` its mask: one file per case, 0 for the background and a whole number
# per organ. The names of the numbers stand beside the table, in `cases.study.json`.
#
# **Look first.** Mask and image must lie on each other in every plane. R is the patient's right: there is the liver.

# %%
structures = {"liver": 1, "spleen": 2, "heart": 3, "spine": 4}
first = cases.iloc[0]
image, mask = (read_volume(str(table.parent / name)) for name in (first["image"], first.label))
print("millimetres per voxel:", np.round(image.spacing_mm, 2))
view(image, mask, structures=structures, window=(-160, 240))

# %% [markdown]
# ## Count a volume by hand
#
# Voxels inside, times the volume of a voxel. This is all that a "volumetry" is, and its usual error is the spacing: a
# mask that was saved without it counts every voxel as 1 mm.

# %%
voxels = int((mask.array == structures["liver"]).sum())
voxel_ml = float(np.prod(image.spacing_mm)) / 1000
truth = json.loads((table.parent / "cohort.json").read_text())["truth"][first.case]["volume_ml"]["liver"]
print(f"{voxels} voxels of {voxel_ml:.5f} ml: {voxels * voxel_ml:.2f} ml; exactly: {truth:.2f} ml")
print(f"with the spacing lost: {voxels / 1000:.2f} ml")

# %% [markdown]
# The small rest is the edge: a voxel is in or out. It grows with the size of the voxels, and it is larger for small or
# thin organs.
#
# ## What the scores mean
#
# Take the true mask, move it by one voxel, and score it. One and the same mistake, four organs:

# %%
moved = np.roll(mask.array, 1, axis=0)
scores = pd.DataFrame(score_case(moved, mask.array, structures, mask.affine)).T
scores[["dice", "hd95_mm", "nsd", "true_volume_ml", "volume_difference_ml"]].round(3)

# %% [markdown]
# | score | what it says | mind |
# |---|---|---|
# | dice | overlap: 1 is perfect, 0 is none | the same shift costs a small or thin organ more |
# | hd95_mm | 95 % of the surface lies within so many millimetres | in mm: needs the true spacing |
# | nsd | share of the surface that lies within 1 mm | the tolerance should be what two readers differ by |
# | volume difference | by how much a volumetry would be off | 0 here, although the mask is in the wrong place |
#
# So no single one of them will do. An organ that is absent in both masks has a Dice of 1 by convention, which flatters
# the mean; medvol reports how often that was so.
#
# ## Train
#
# A few epochs of a narrow network, enough for phantoms. A real study needs hours: `medvol plan` tells how many.

# %%
options = "--max_epochs 5 --patches_per_epoch 72 --width 8"
medvol(f"train unet_segmentation study/cases.csv -o out {options}", lines=7)

# %%
medvol("evaluate unet_segmentation study/cases.csv -o out", 25, only=" to ")

# %% [markdown]
# Each line holds the mean over the test cases and its 95 % interval, over patients, as always: with a handful of test
# patients they are wide. And the worst case says more than the mean. Prediction solid, truth dashed:

# %%
Image("out/overlays.png", width=760)

# %% [markdown]
# ## Do the volumes agree?
#
# Against each other, and the difference against the size (Bland and Altman). A shift of all points is a bias: it can be
# corrected. The spread cannot, and it is what a change in one patient must exceed to be believed.

# %%
found = pd.read_csv("out/predictions.csv")
known = json.loads((table.parent / "cohort.json").read_text())["truth"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3), layout="constrained")
for name in structures:
    true_ml = np.array([known[case]["volume_ml"][name] for case in found.case])
    found_ml = found[f"volume_ml_{name}"]
    left.plot(true_ml, found_ml, ".", label=name)
    right.plot((true_ml + found_ml) / 2, found_ml - true_ml, ".")
    print(f"{name:7} bias {np.mean(found_ml - true_ml):+6.2f} ml, spread {np.std(found_ml - true_ml):5.2f} ml")
left.axline((0, 0), slope=1, color="grey", linestyle=":")
right.axhline(0, color="grey", linestyle=":")
left.set(xlabel="exact volume (ml)", ylabel="predicted (ml)")
right.set(xlabel="mean of both (ml)", ylabel="predicted - exact (ml)")
left.legend()
plt.show()

# %% [markdown]
# ## Back into DICOM
#
# A mask in NIfTI is of no use to a PACS. From a DICOM series `medvol predict` also writes a **segmentation** (SEG),
# which a viewer lays over the series, and a **structured report** (SR) with the measurements, in standard codes. Both
# belong to the patient and study of their source, and say which program made them.

# %%
series = table.parent / cases.image[cases.split == "test"].iloc[0]
formats = "\"['nifti','dicom-seg','dicom-sr']\""
medvol(f"predict unet_segmentation {series} -o new --model_dir out/models --output_formats {formats}", lines=8)

# %%
import pydicom

folder = Path("new/predictions")
seg_file = next(file for file in folder.glob("*.dcm") if "_sr" not in file.name)
report_file = next(folder.glob("*_sr.dcm"))
seg = pydicom.dcmread(seg_file)
source = pydicom.dcmread(next(series.glob("*.dcm")))
print(seg.Modality, seg.SegmentationType, "of", [one.SegmentLabel for one in seg.SegmentSequence])
print(
    "same patient:", seg.PatientID == source.PatientID, "| same study:", seg.StudyInstanceUID == source.StudyInstanceUID
)
print("same space:", seg.FrameOfReferenceUID == source.FrameOfReferenceUID)

# %% [markdown]
# **Read it back**, voxel by voxel: what the PACS gets must be what was measured, in the same place.

# %%
from medvol.io.labels import read_label

back = read_label(str(seg_file), str(series)).volume
nifti = read_volume(str(next(folder.glob("*.nii.gz"))))
print("equal to the NIfTI mask:", bool(np.array_equal(back.array, nifti.array)))
view(read_volume(str(series)), back, structures=structures, window=(-160, 240))


# %%
def measurements(item):
    """Yield what a structured report measures: name, value and unit, of each group of its tree."""
    for child in item.get("ContentSequence", []):
        name = child.ConceptNameCodeSequence[0].CodeMeaning
        if child.ValueType == "NUM":
            value = child.MeasuredValueSequence[0]
            yield name, float(value.NumericValue), value.MeasurementUnitsCodeSequence[0].CodeMeaning
        elif child.ValueType == "CODE" and name == "Finding":
            yield name, child.ConceptCodeSequence[0].CodeMeaning, ""
        yield from measurements(child)


for name, value, unit in measurements(pydicom.dcmread(report_file)):
    print(f"{name:23}", value if name == "Finding" else f"{value:6.2f} {unit}")

# %% [markdown]
# ## What can go wrong
#
# - **The grid.** A mask drawn on a resampled image lies beside the original. medvol refuses a mask on another grid,
#   unless you say `--resample_labels True`.
# - **Left and right.** If an axis is turned, the liver is on the left and Dice does not notice, for mask and image
#   are turned together. Look at the letters.
# - **Thick slices.** With 5 mm between slices no volume of a small structure is better than that, whatever the
#   network.
# - **The truth is a reader.** Two readers differ, too. A Dice above their agreement means that the network copies one
#   of them.
# - **A rare structure.** It is empty in most cases; count the cases in which it was found, not only the mean Dice.
#
# Not for clinical use.
