"""Structure sets as the labels of a study: from the table over the plan to class indices on the image's grid."""

import csv
from functools import partial

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from medvol.data.fingerprint import take_fingerprint
from medvol.data.sources import open_study
from medvol.data.table import items
from medvol.errors import MedvolError, find_refusal
from medvol.geometry import Volume, apply_affine
from medvol.networks.unet import unet
from medvol.phantoms.dicom import Identity, write_dicom_series
from medvol.training.plan import PlanOptions, make_plan
from medvol.transforms.segmentation import evaluation_preprocessing

SHAPE = (7, 8, 9)
AFFINE = np.array([[-0.94, -0.51, 0.0, 12.0], [-0.34, 1.41, 0.0, 33.0], [0.0, 0.0, 3.0, 7.0], [0, 0, 0, 1.0]])
AFFINE[:3, 1] = np.array([-AFFINE[1, 0], AFFINE[0, 0], 0]) * -1.5  # at a right angle to x
BOXES = {"liver": ((1, 2, 2), (4, 5, 5)), "tumour": ((5, 1, 3), (7, 4, 6))}


def item(**values):
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def write_rt(path, frame_uid, names):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, "1.2.8.1"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = RTStructureSetStorage, "1.2.8.1", "RTSTRUCT"
    dataset.ReferencedFrameOfReferenceSequence = [item(FrameOfReferenceUID=frame_uid)]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, name in enumerate(names, start=4):
        low, high = (np.array(corner) - 0.5 for corner in BOXES[name])
        drawn = []
        for level in range(BOXES[name][0][2], BOXES[name][1][2]):
            flat = [(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])]
            points = apply_affine(AFFINE, [(*one, level) for one in flat]) * (-1, -1, 1)
            data = [float(f"{value:.9g}") for value in points.ravel()]
            drawn.append(item(ContourGeometricType="CLOSED_PLANAR", NumberOfContourPoints=4, ContourData=data))
        dataset.StructureSetROISequence.append(item(ROINumber=number, ROIName=name))
        dataset.ROIContourSequence.append(item(ReferencedROINumber=number, ContourSequence=drawn))
    dataset.save_as(path, enforce_file_format=True)


@pytest.fixture
def make_study(tmp_path):
    """Write a case for each entry: the structures of its file, and what stands behind the file in the table."""

    def make(*cases):
        rng = np.random.default_rng(0)
        rows = []
        for number, (names, fragment) in enumerate(cases):
            who = Identity(patient=f"p{number}")
            voxels = rng.integers(0, 900, SHAPE, dtype=np.int16)
            files = write_dicom_series(Volume(voxels, AFFINE), tmp_path / f"ct{number}", identity=who)
            write_rt(tmp_path / f"rt{number}.dcm", str(dcmread(files[0]).FrameOfReferenceUID), names)
            rows.append([f"c{number}", f"p{number}", f"ct{number}", f"rt{number}.dcm{fragment}", "train"])
        with (tmp_path / "study.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["case", "patient", "image", "label", "split"], *rows])
        return open_study(str(tmp_path / "study.csv"))

    return make


def planned(study):
    options = PlanOptions(spatial_size=(16, 16, 16), batch_size=2, show_progress=False)
    return make_plan(study, take_fingerprint(study, show_progress=False), partial(unet, width=8), options).facts


def truth(*names):
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for value, name in enumerate(names, start=1):
        low, high = BOXES[name]
        labels[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = value
    return labels


def test_names_of_structures_become_classes_and_masks_lie_on_the_image(make_study):
    study = make_study((["tumour", "liver"], "#liver;tumour?"), (["liver"], "#liver;tumour?"))
    assert study.task == "segmentation"
    facts = planned(study)
    assert facts.classes == ("background", "liver", "tumour")
    chain = evaluation_preprocessing(facts)
    for case, expected in zip(items(study, "train"), (truth("liver", "tumour"), truth("liver")), strict=True):
        result = chain(case)
        mask = result["label"]
        assert mask.shape == result["shown"].shape
        # In RAS order x runs against the file's first axis.
        index = np.argwhere(mask[0].numpy() > 0)
        back = apply_affine(np.linalg.inv(AFFINE), apply_affine(mask.affine.numpy(), index))
        places = np.rint(back).astype(int)
        assert np.abs(back - places).max() < 1e-3
        assert (expected[tuple(places.T)] == mask[0].numpy()[tuple(index.T)]).all()
        assert len(index) == (expected > 0).sum()


def test_a_structure_with_two_values_in_the_training_masks_is_refused_with_the_case(make_study):
    study = make_study((["liver", "tumour"], ""), (["tumour", "liver"], ""))
    with pytest.raises(MedvolError) as caught:
        take_fingerprint(study, show_progress=False)
    assert caught.value.code == "BAD_LABEL"
    assert caught.value.case == "c1"
    assert "'tumour' as value 1; in cases before value 2" in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_a_mask_whose_names_are_in_another_order_than_in_training_is_refused(make_study):
    facts = planned(make_study((["liver", "tumour"], "")))
    other = make_study((["tumour", "liver"], ""))
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps what a transform raises
        evaluation_preprocessing(facts)(items(other, "train")[0])
    refusal = find_refusal(caught.value)
    assert refusal is not None
    assert refusal.code == "BAD_LABEL"
    assert refusal.case == "c0"
    assert "'tumour' as value 1" in str(refusal)


def test_names_that_the_user_gives_are_not_compared(make_study):
    study = make_study((["liver", "tumour"], ""))
    found = take_fingerprint(study, show_progress=False)
    options = PlanOptions(spatial_size=(16, 16, 16), batch_size=2, structures=["Leber", "Herd"])
    facts = make_plan(study, found, partial(unet, width=8), options).facts
    assert facts.classes == ("background", "Leber", "Herd")
    mask = evaluation_preprocessing(facts)(items(study, "train")[0])["label"]
    assert int((mask == 2).sum()) == (truth("liver", "tumour") == 2).sum()
