"""What MONAI Label and MONAI Deploy make of bundles, compared with `medvol predict`: a table.

    python tests/benchmarks/clients_label_deploy.py label|deploy [--only NAME ...] [--hippocampus FOLDER]

Each client lives in an environment of its own; README.md beside this file says how to make them. Each bundle is a small
copy, trained for an epoch on phantoms, as clients.py makes it; with `--hippocampus` also the shipped unet_segmentation
on the first case of the Decathlon's Task04. The work is done in an empty folder, away from every bundle.

Label: `BundleInferTask` on a case and, for segmentations, `BundleTrainTask` for an epoch on a `LocalDatastore`. Deploy:
the compute of `MonaiBundleInferenceOperator` on an image in memory, with the bundle's folder and with the TorchScript
file of `medvol export`; and of `MonaiSegInferenceOperator` with the file and the bundle's chains. For segmentations
also a whole graph on a DICOM series: loader, selector, volume, the bundle's folder, SEG writer.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
from clients import outcome, small_copy
from monai.bundle import ConfigParser, run

from medvol.bundle.export import export_bundle
from medvol.bundle.short import shipped_bundles
from medvol.data.sources import open_study
from medvol.geometry import Volume
from medvol.io import read_volume
from medvol.phantoms.dicom import Identity, write_dicom_series

NAMES = (
    *("unet_segmentation", "swin_unetr_segmentation", "resnet3d_classification", "densenet3d_classification"),
    *("conv3d_classification", "vit3d_classification"),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("client", choices=("label", "deploy"))
    parser.add_argument("--only", nargs="+", default=NAMES)
    parser.add_argument("--hippocampus", type=Path, help="folder of Task04, with imagesTr")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    tried = {"label": by_label, "deploy": by_deploy}[options.client]
    bundles = {bundle.name: bundle for bundle in shipped_bundles()}
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        if options.hippocampus:
            copied = Path(shutil.copytree(bundles["unet_segmentation"], Path("shipped_segmentation").resolve()))
            case = min((options.hippocampus / "imagesTr").glob("hip*.nii.gz"))
            shown("unet_segmentation, shipped", tried(copied, case, None))
        for name in options.only:
            own, case, table = instance(bundles[name], Path(place) / name)
            shown(name, tried(own, case, table))
        left = [path.name for path in Path().iterdir() if path.name not in (*NAMES, "shipped_segmentation", "eval")]
        print(f"left in the working folder: {left}")


def shown(name, row):
    print(json.dumps({"bundle": name, **row}), flush=True)


def instance(bundle, place):
    """Return a small bundle after an epoch of training, a case and the table of its study."""
    place.mkdir()
    own = small_copy(bundle, place)
    train = own / "configs" / "train.json"
    if own.name.endswith("segmentation"):  # for Label's epoch too
        train.write_text(json.dumps({**json.loads(train.read_text()), "patches_per_epoch": 4}))
    run(config_file=str(train), bundle_root=str(own), max_epochs=1, val_interval=1, show_progress=False)
    table = place / "cohort" / "cases.csv"
    return own, Path(open_study(str(table)).cases[0].image[0]), table


def predicted(own, case):
    """Return what `medvol predict` says: labels, or probabilities in the order of the classes."""
    output = own.parent / f"predicted_{own.name}_{case.name}"
    config = str(own / "configs" / "inference.json")
    try:
        run(
            config_file=config, bundle_root=str(own), dataset_dir=str(case), output_dir=str(output), show_progress=False
        )
    except SystemExit as end:
        if end.code:
            raise
    masks = list((output / "predictions").glob("*.nii*"))
    if masks:
        return np.asarray(nib.load(masks[0]).dataobj)
    head, row = (line.split(",") for line in (output / "predictions.csv").read_text().splitlines()[:2])
    return np.array([float(value) for name, value in zip(head, row, strict=True) if name.startswith("prob_")])


def compared(found, expected):
    """Return the share of voxels with the same label, or the largest difference of a probability."""
    if expected.ndim == 1:
        return f"probabilities within {float(np.abs(np.asarray(found) - expected).max()):.0e}"
    if found.shape != expected.shape:
        return f"shape {found.shape} for {expected.shape}"
    return f"labels agree {float((found == expected).mean()):.5f}"


def by_label(own, case, table):
    from monailabel.tasks.infer.bundle import BundleInferTask

    expected = predicted(own, case)

    def infer(**options):
        file, told = BundleInferTask(str(own), {}, **options)({"image": str(case), "device": "cpu"})
        found = np.asarray(nib.load(file).dataobj) if file else [one["score"] for one in told["prediction"]]
        return compared(found, expected)

    row = {"infer, as the app asks": outcome(infer)}
    if expected.ndim == 1:
        row["infer, add_post_restore=False"] = outcome(lambda: infer(add_post_restore=False))
    elif table is not None:
        row["train"] = outcome(lambda: trained_by_label(own, table))
        expected = predicted(own, case)
        row["infer after training"] = outcome(infer)
    return row


def trained_by_label(own, table):
    """Train the bundle for an epoch, from the model that is there, on a folder as Label keeps it."""
    from monailabel.datastore.local import LocalDatastore
    from monailabel.tasks.train.bundle import BundleTrainTask

    store = own.parent / "store"
    (store / "labels" / "final").mkdir(parents=True)
    for case in open_study(str(table)).cases:
        shutil.copy(case.image[0], store / f"{case.case}.nii.gz")
        shutil.copy(case.label, store / "labels" / "final" / f"{case.case}.nii.gz")
    before = (own / "models" / "model.pt").read_bytes()
    request = {"model": own.name, "max_epochs": 1, "val_split": 0.3, "device": "cpu", "pretrained": True}
    BundleTrainTask(str(own), {})(request, LocalDatastore(str(store), extensions=["*.nii.gz"], auto_reload=False))
    if (own / "models" / "model.pt").read_bytes() == before:
        raise RuntimeError("the model is the one from before")


def by_deploy(own, case, table):
    expected = predicted(own, case)
    (exported,) = export_bundle(str(own), str(own.parent / "exported"), formats=["torchscript"])
    row = {"folder": outcome(lambda: compared(computed(own, own, case), expected))}
    row["TorchScript"] = outcome(lambda: compared(computed(own, exported.file, case), expected))
    if expected.ndim > 1:
        row["MonaiSegInferenceOperator"] = outcome(lambda: compared(segmented(own, exported.file, case), expected))
        row["DICOM to SEG"] = outcome(lambda: compared(*through_graph(own, as_dicom(own, case))))
    return row


def in_memory(case):
    """Return a case as Deploy's operators hand it on: array (z, y, x) and the affine in RAS order."""
    from monai.deploy.core import Image

    volume = nib.load(case)
    names = ("row_pixel_spacing", "col_pixel_spacing", "depth_pixel_spacing")
    meta = dict(zip(names, map(float, volume.header.get_zooms()), strict=True))
    return Image(np.swapaxes(np.asarray(volume.dataobj), 0, 2), {**meta, "nifti_affine_transform": volume.affine})


class Ports:
    """The ends of an operator: what it receives and what it emits."""

    def __init__(self, value):
        self.value = value

    def receive(self, name):
        return self.value

    def get(self, name):
        raise KeyError(name)

    def emit(self, value, name):
        self.value = value


def computed(own, path, case):
    from monai.deploy.core import Application, Image, IOType
    from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator

    kind = Image if own.name.endswith("segmentation") else dict
    operator = MonaiBundleInferenceOperator(
        Application(),
        app_context=SimpleNamespace(models=None),
        input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
        output_mapping=[IOMapping("pred", kind, IOType.IN_MEMORY)],
        bundle_path=str(path),
        name="bundle",
    )
    output = Ports(None)
    operator.compute(Ports(in_memory(case)), output, None)
    # `result` beside the probabilities is the client's: it turns probabilities, not their order, into class numbers.
    return output.value["probabilities"] if kind is dict else np.swapaxes(output.value.asnumpy(), 0, 2)


def segmented(own, file, case):
    from monai.deploy.core import Application
    from monai.deploy.operators.monai_seg_inference_operator import InMemImageReader, MonaiSegInferenceOperator
    from monai.transforms import Compose, LoadImaged

    parser = ConfigParser()
    parser.read_config(str(own / "configs" / "inference.json"))
    parser["bundle_root"] = str(own)
    image = in_memory(case)
    load = LoadImaged(keys="image", reader=InMemImageReader(image))
    operator = MonaiSegInferenceOperator(
        Application(),
        roi_size=tuple(parser.get_parsed_content("facts").spatial_size),
        pre_transforms=Compose([load, *parser.get_parsed_content("preprocessing").transforms]),
        post_transforms=parser.get_parsed_content("postprocessing"),
        app_context=SimpleNamespace(models=None),
        overlap=0.5,
        sw_batch_size=1,  # a traced network takes no other
        mode="gaussian",
        model_path=file,
        name="segmentation",
    )
    return np.swapaxes(operator.compute_impl(image, None).asnumpy(), 0, 2)


def as_dicom(own, case):
    """Write a case as a DICOM series and return its folder."""
    volume = read_volume(case)
    grey = (volume.array / volume.array.max() * 2000).round().astype(np.int16)
    folder = own.parent / f"series_{own.name}" / "series"
    who = Identity(patient="phantom", series_number=1, description="series", modality="MR")
    write_dicom_series(Volume(grey, volume.affine), folder, identity=who)
    return folder


def through_graph(own, series):
    """Return the labels in the SEG that Deploy's graph writes, and those of `medvol predict`, on the latter's grid."""
    import highdicom
    from graph_deploy import SegmentationGraph

    output = own.parent / f"graph_{own.name}"
    SegmentationGraph(own, series, output).run()
    written = highdicom.seg.segread(next(output.glob("*.dcm"))).get_volume(combine_segments=True)
    expected = predicted(own, series)
    (made,) = (own.parent / f"predicted_{own.name}_{series.name}" / "predictions").glob("*.nii.gz")
    to_grid = np.linalg.inv(nib.load(made).affine) @ np.diag([-1, -1, 1, 1]) @ written.affine  # DICOM's axes are LPS
    places = np.stack([*np.indices(written.array.shape).reshape(3, -1), np.ones(written.array.size)])
    found = np.zeros(expected.shape, expected.dtype)
    found[tuple((to_grid @ places)[:3].round().astype(int))] = written.array.ravel()
    return found, expected


if __name__ == "__main__":
    sys.exit(main())
