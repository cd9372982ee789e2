"""The weights that unet_segmentation ships work on the day of download, and on cases that they were not trained on."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medvol.data.sources import open_study
from medvol.errors import find_refusal

ROOT = Path(__file__).parents[2]
UNET = ROOT / "bundles" / "unet_segmentation"
HIPPOCAMPUS = ROOT.parent / "shared" / "data" / "msd_hippocampus"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning"),
    pytest.mark.realdata,
    pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="shared/data/msd_hippocampus is not beside the checkout"),
]


def test_they_find_the_hippocampus_and_report_millilitres(tmp_path, bundle_run):
    study = open_study(str(HIPPOCAMPUS))
    for case in study.cases[:3]:
        shutil.copy(case.image[0], tmp_path)
    bundle_run(UNET, ["inference"], tmp_path / "o", dataset_dir=str(tmp_path), show_progress=False, precision="float32")
    with (tmp_path / "o" / "predictions.csv").open(newline="") as stream:
        rows = {row["case"]: row for row in csv.DictReader(stream)}
    for case in study.cases[:3]:
        mask = np.asarray(nib.load(tmp_path / "o" / rows[case.case]["output"]).dataobj)
        truth = np.asarray(nib.load(str(case.label)).dataobj)
        for label, name in enumerate(("Anterior", "Posterior"), start=1):
            shared = 2 * ((mask == label) & (truth == label)).sum() / ((mask == label).sum() + (truth == label).sum())
            assert shared > 0.8, (case.case, name)
            assert float(rows[case.case][f"volume_ml_{name}"]) == pytest.approx((mask == label).sum() / 1000, rel=1e-3)


def test_evaluation_on_the_cases_that_they_were_trained_on_is_refused(tmp_path, bundle_run):
    record = json.loads((UNET / "models" / "model.json").read_text())
    assert len(record["trained_on"]) == 208
    with pytest.raises(Exception) as wrapped:  # noqa: PT011 - MONAI wraps what an expression raises
        bundle_run(
            UNET,
            ["train", "evaluate"],
            tmp_path / "o",
            dataset_dir=str(HIPPOCAMPUS),
            show_progress=False,
            precision="float32",
        )
    assert find_refusal(wrapped.value).code == "LEAK"
