# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Look at volumes and their geometry
#
# A volume is more than an array: its *affine* says where in the patient each voxel lies. This notebook shows what
# medvol makes of it, on synthetic volumes whose answers are known. It takes less than a minute and needs no data.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib

from medvol.errors import MedvolError
from medvol.geometry import affine_from
from medvol.io import read_volume
from medvol.phantoms.body import STRUCTURES, body
from medvol.phantoms.grid import Grid
from medvol.phantoms.shapes import ball
from medvol.phantoms.writers import write_nifti
from medvol.report.viewer import view

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A ball on a grid that is not cubic
#
# The voxels measure 1 x 1.5 x 3 mm. Drawn voxel by voxel the ball looks squeezed; drawn in millimetres it is round. A
# network that is fed voxels as they come sees the squeezed one, which is why medvol resamples to one spacing.

# %%
shape, spacing_mm = (40, 28, 14), (1.0, 1.5, 3.0)
grid = Grid(shape, affine_from(spacing_mm, origin=[-19.5, -20.25, -19.5]))
phantom = ball(12.0, grid=grid)
coronal = phantom.image.array[:, 14, :].T

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4))
left.imshow(coronal, cmap="gray", origin="lower")
left.set(title="voxels as they come", xlabel="x (voxel)", ylabel="z (voxel)")
right.imshow(coronal, cmap="gray", origin="lower", aspect=spacing_mm[2] / spacing_mm[0])
right.set(title="in millimetres", xlabel="L  -  x  -  R", ylabel="I  -  z  -  S")
plt.show()

# %% [markdown]
# Volumes are counted in millilitres with the true spacing: voxels inside, times the volume of a voxel.

# %%
voxel_ml = spacing_mm[0] * spacing_mm[1] * spacing_mm[2] / 1000
print(f"counted {phantom.mask.array.sum() * voxel_ml:.2f} ml, 4/3 pi r^3 = {phantom.answer['volume_ml']:.2f} ml")

# %% [markdown]
# ## Left and right
#
# The body phantom is not symmetric. medvol's world is RAS+: x grows to the patient's right, y to the front, z upwards.
# Radiologists look from the feet, so that the patient's right is on the left of the picture.

# %%
patient = body()
print("orientation of the voxel axes:", nib.aff2axcodes(patient.image.affine))
for organ, side in patient.answer["side"].items():
    print(f"{organ:7}{patient.answer['volume_ml'][organ]:6.2f} ml, {side}")

# %% [markdown]
# `view` turns any volume so that this holds, in millimetres, with the letters of the patient's sides. In Jupyter its
# three sliders go through the slices; on a web page you see the middle ones.

# %%
view(patient.image, patient.mask, structures=STRUCTURES, window=(-160, 240))

# %% [markdown]
# What goes wrong elsewhere: the affine is dropped on the way (`npy` has none), and the sides are a matter of luck; or
# the image is right and the mask was saved with its axes in another order. Look at the liver: it belongs on the left
# of the picture.
#
# The window matters as well. The same slice, twice:

# %%
slice_hu = view(patient.image, window=(-1000, 1000)), view(patient.image, window=(-50, 100))
figure, panes = plt.subplots(1, 2, figsize=(7, 2.6))
for pane, viewer, name in zip(panes, slice_hu, ("-1000 to 1000 HU", "-50 to 100 HU"), strict=True):
    shown = viewer.view("axial", viewer.middle[2])
    pane.imshow(shown.grey, cmap="gray", aspect=shown.row_mm / shown.column_mm)
    pane.set(title=name, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## A damaged file is refused, not guessed
#
# Most readers open a NIfTI that was cut off while copying. medvol says what is wrong, and where.

# %%
whole = write_nifti(patient.image, folder / "case.nii.gz")
print("read:", read_volume(str(whole)).array.shape)
cut = folder / "cut.nii.gz"
cut.write_bytes(whole.read_bytes()[:-2000])
try:
    read_volume(str(cut))
except MedvolError as refusal:
    print(refusal.code, "|", refusal.found, "|", refusal.fix)
