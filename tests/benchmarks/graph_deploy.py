"""A whole MONAI Deploy application around a segmentation bundle: a DICOM series in, a DICOM segmentation out."""

import json
from types import SimpleNamespace

from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application, Image, IOType
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_seg_writer_operator import DICOMSegmentationWriterOperator, SegmentDescription
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from monai.deploy.operators.dicom_series_to_volume_operator import DICOMSeriesToVolumeOperator
from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator
from pydicom.sr.codedict import codes


class SegmentationGraph(Application):
    """Loader, selector, volume, bundle and SEG writer in a row.

    Args:
        bundle: Folder of a trained segmentation bundle.
        series: Folder of the DICOM series.
        output: Folder for the SEG.
    """

    def __init__(self, bundle, series, output):
        self.bundle, self.series, self.output = bundle, series, output
        super().__init__([])  # no arguments of the command line

    def compose(self):
        record = json.loads((self.bundle / "models" / "model.json").read_text())
        loader = DICOMDataLoaderOperator(self, CountCondition(self, 1), input_folder=self.series, name="loader")
        selector = DICOMSeriesSelectorOperator(self, rules="", name="selector")
        volume = DICOMSeriesToVolumeOperator(self, name="volume")
        bundle = MonaiBundleInferenceOperator(
            self,
            app_context=SimpleNamespace(models=None),
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=str(self.bundle),
            name="bundle",
        )
        described = [
            SegmentDescription(name, codes.SCT.Organ, codes.SCT.Brain, algorithm_name="medvol", algorithm_version="0")
            for name in record["facts"]["classes"][1:]
        ]
        writer = DICOMSegmentationWriterOperator(
            self, segment_descriptions=described, output_folder=self.output, name="writer"
        )
        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        for taker in (volume, writer):
            self.add_flow(selector, taker, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(volume, bundle, {("image", "image")})
        self.add_flow(bundle, writer, {("pred", "seg_image")})
