# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own DICOM folder, from scan to prediction
#
# You have a folder as it came from the PACS and a table of diagnoses. This notebook makes such a folder, with the
# faults that real ones have, and goes from there to a trained model and its first prediction. Put your own paths into
# the commands to do the same. Less than a minute; no data needed.

# %%
import shutil
from pathlib import Path

import pandas as pd
import pydicom
from terminal import medvol, use_new_folder

from medvol.io import read_volume
from medvol.phantoms.cohort import classification_cohort
from medvol.report.viewer import view

use_new_folder()

# %% [markdown]
# ## An export with traps in it
#
# Eighty synthetic patients, one or two CT series each, in folders that say nothing. Into three of them a fault is put:
# a file that was exported twice, a slice that got lost, and a localizer beside the series.

# %%
table = classification_cohort("made", patients=80, size=(22, 24, 20), seed=5, layout="dicom")
cases = pd.read_csv(table)
for number, case in enumerate(cases.case):
    shutil.move(table.parent / "images" / case, Path("export", f"ST{number // 40:06d}", f"SE{number:06d}"))

series = sorted(Path("export").glob("*/*"))
shutil.copy(series[0] / "IM0003.dcm", series[0] / "IM0003 (1).dcm")
(series[1] / "IM0008.dcm").unlink()
localizer = pydicom.dcmread(series[2] / "IM0010.dcm")
localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
localizer.SeriesInstanceUID, localizer.SOPInstanceUID = localizer.SeriesInstanceUID + ".1", "2.25.77"
localizer.SeriesNumber, localizer.SeriesDescription = 9, "localizer"
localizer.save_as(series[2] / "scout.dcm")

# %% [markdown]
# The diagnoses come from somewhere else, as they do: a table with the Patient ID as it stands in the files.

# %%
diagnoses = cases.drop_duplicates("patient").rename(columns={"patient": "PatientID", "label": "diagnosis"})
diagnoses = diagnoses[["PatientID", "diagnosis", "age"]]
diagnoses.to_csv("diagnoses.csv", index=False)
diagnoses.head(3)

# %% [markdown]
# ## Scan
#
# `medvol scan` reads the headers of all files below a folder, puts them together by series, sorts the slices by their
# *position* in the patient (file names and instance numbers cannot be trusted), and says for each series whether it is
# a volume. Patients appear as pseudonyms.

# %%
medvol("scan export --csv found.csv --json found.json", lines=2)

# %%
found = pd.read_json("found.json")
rows = pd.DataFrame(found.series.tolist())
rows["verdict"].value_counts()

# %%
rows[(rows.verdict != "ok") | (rows.files != rows["files"].mode()[0])][["description", "size", "files", "verdict"]]

# %%
for reason in rows.reason[rows.verdict != "ok"]:
    print(reason.replace("export/", "").split("; ")[0], "\n")

# %% [markdown]
# Read it so:
#
# - **The lost slice** is refused, with the place of the gap. Other readers stack what is there: the anatomy jumps, and
#   every measurement across the gap is wrong. Export the series again.
# - **The file that is there twice** does no harm: the two files are equal, so one of them is used. Were they different,
#   the series would be refused.
# - **The localizer** is not mixed into the volume: it is a series of its own.
#
# A refusal is a finding about your data, not an obstacle. Fix the export, or leave the series out and say so.
#
# ## Join the labels and make a bundle
#
# `medvol new` finds the patients of the table among the series, infers the task, chooses a network and prints why.
# A series without a row, and a row without a series, are counted: look at these numbers.

# %%
options = "--labels diagnoses.csv --label-column diagnosis --series case --classes vessel aneurysm"
medvol(f"new vessel_classification export {options} --exclude-columns age", lines=40)

# %% [markdown]
# ## Check, train, evaluate

# %%
medvol("check vessel_classification_cases.csv")

# %%
medvol("train vessel_classification -o out --max_epochs 16", only="Trained")
medvol("evaluate vessel_classification -o out", only=" to ")

# %% [markdown]
# Each line holds the value, its 95 % interval, and what the baseline reaches. **Read the interval before the
# number.** With some fifteen test scans the AUC may be anything in a wide range: this says that the pipeline runs,
# not that the model is good. `medvol new` proposed sixty epochs, and a study needs some hundred patients per class.
# What each number means is the matter of `02_classify`.
#
# ## Predict new patients
#
# A folder of series is enough. One of the two has lost a slice; the other is predicted all the same.

# %%
new = classification_cohort("later", patients=6, size=(22, 24, 20), seed=6, layout="dicom").parent / "images"
scans = sorted(new.iterdir())
(scans[1] / "IM0005.dcm").unlink()
for folder in scans[2:]:
    shutil.rmtree(folder)
medvol(f"predict vessel_classification {new} -o predicted --model_dir out/models", lines=6)

# %%
predicted = pd.read_csv("predicted/predictions.csv")
predicted[["case", "pred", "prob_vessel", "prob_aneurysm"]].assign(problem=predicted.error.str.split(":").str[0])

# %%
view(read_volume(str(scans[0])), window=(-100, 500))

# %% [markdown]
# ## What can go wrong
#
# - **The wrong series.** A patient has a plain scan, one with contrast and a dozen reformats. Which one did the label
#   come from? `--series TEXT` keeps those whose description holds a text; look at what is left.
# - **The label is of another date.** Join by patient *and* study where a patient came more than once.
# - **Sick and healthy come from different places.** If one group was scanned elsewhere, the network learns the scanner.
#   Compare manufacturer, spacing and year between the groups before you train.
# - **Names travel.** medvol writes pseudonyms, but the DICOM files keep the names; `medvol deid` makes a copy without.
#   And a pseudonym can be guessed by whoever knows the Patient IDs, unless you pass `--key-file` to `medvol scan`.
# - **New scans differ.** A prediction is made for any series of the right kind, whether or not the model has ever seen
#   its like.
