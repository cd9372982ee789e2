"""Which quantity a DICOM volume holds, and options that a reference carries: asked for, noted, or refused by name."""

from datetime import datetime, timedelta

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medvol.errors import MedvolError
from medvol.geometry import apply_affine
from medvol.io import ReadOptions, read_volume
from medvol.io.dicom_target import target_of
from medvol.io.reference import source_files

SUV = ReadOptions(suv=True)
HALF_LIFE = 6586.2  # seconds, of fluorine 18
DOSE, WEIGHT = 370e6, 70.0


def _without(dataset, *keywords):
    for keyword in keywords:
        delattr(dataset, keyword)


def _pet(change=None, *, injected="100000", scanned=("20240105", "110000")):
    """Return an edit that makes a slice of a PET: Bq/ml, decay corrected to the start of the scan."""

    def edit(dataset, index):
        dataset.Modality, dataset.Units, dataset.PatientWeight = "PT", "BQML", WEIGHT
        dataset.CorrectedImage, dataset.DecayCorrection = ["DECY", "ATTN", "SCAT"], "START"
        dataset.SeriesDate, dataset.SeriesTime = scanned
        begin = datetime.strptime("".join(scanned), "%Y%m%d%H%M%S") + timedelta(seconds=120 * index)
        dataset.AcquisitionDate, dataset.AcquisitionTime = begin.strftime("%Y%m%d"), begin.strftime("%H%M%S.%f")
        drug = Dataset()
        drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = DOSE, HALF_LIFE
        drug.RadiopharmaceuticalStartTime = injected
        dataset.RadiopharmaceuticalInformationSequence = Sequence([drug])
        dataset.RescaleSlope = 1 + index  # each slice has its own, as GE writes it
        if change is not None:
            change(dataset, drug)

    return edit


def _factor(seconds):
    return WEIGHT * 1000 / (DOSE * 2 ** (-seconds / HALF_LIFE))


def _series(voxels):
    return voxels * (1.0 + np.arange(9))


def test_uptake_is_activity_times_weight_over_the_decayed_dose(tmp_path, voxels, write_series):
    write_series(tmp_path, voxels, edit=_pet())
    plain, suv = read_volume(tmp_path), read_volume(tmp_path, options=SUV)
    np.testing.assert_allclose(plain.array, _series(voxels))
    np.testing.assert_allclose(suv.array, _series(voxels) * _factor(3600), rtol=1e-6)
    assert suv.notes[-1] == "SUV by body weight, g/ml: decay corrected to the series time"
    np.testing.assert_array_equal(read_volume(f"{tmp_path}#suv=bw").array, suv.array)
    # By hand: one half-life after 370 MBq a uniform patient of 70 kg, 1 g/ml, holds 185e6 / 70e3 Bq/ml, which is SUV 1.
    assert _factor(HALF_LIFE) * 185e6 / 70e3 == pytest.approx(1)


def test_an_injection_before_midnight_is_one_of_the_day_before(tmp_path, voxels, write_series):
    edit = _pet(injected="233000.5", scanned=("20240106", "003000"))
    write_series(tmp_path, voxels, edit=edit)
    np.testing.assert_allclose(read_volume(tmp_path, options=SUV).array, _series(voxels) * _factor(3599.5), rtol=1e-6)


def test_an_injection_with_its_date_counts_by_it(tmp_path, voxels, write_series):
    def change(dataset, drug):
        drug.RadiopharmaceuticalStartDateTime = "20240104100000.00"

    write_series(tmp_path, voxels, edit=_pet(change))
    seconds = 25 * 3600
    np.testing.assert_allclose(read_volume(tmp_path, options=SUV).array, _series(voxels) * _factor(seconds), rtol=1e-6)


def test_decay_corrected_to_the_injection_needs_no_times(tmp_path, voxels, write_series):
    def change(dataset, drug):
        dataset.DecayCorrection = "ADMIN"
        _without(drug, "RadiopharmaceuticalStartTime", "RadionuclideHalfLife")

    write_series(tmp_path, voxels, edit=_pet(change))
    np.testing.assert_allclose(read_volume(tmp_path, options=SUV).array, _series(voxels) * _factor(0), rtol=1e-6)


def test_a_series_made_afterwards_takes_the_scan_start_from_its_frames(tmp_path, voxels, write_series):
    # Frames of 120 s; the mean activity of a decaying frame is that of a moment a little before its middle.
    decay = np.log(2) / HALF_LIFE
    moment = np.log(decay * 120 / (1 - np.exp(-decay * 120))) / decay
    assert 59.7 < moment < 60

    def change(dataset, drug):
        begin = datetime.strptime(dataset.AcquisitionDate + dataset.AcquisitionTime, "%Y%m%d%H%M%S.%f")
        offset = (begin - datetime(2024, 1, 5, 11)).total_seconds()
        dataset.ActualFrameDuration, dataset.FrameReferenceTime = 120000, round(1000 * (offset + moment), 6)
        dataset.SeriesDate, dataset.SeriesTime = "20240105", "153000"

    write_series(tmp_path, voxels, edit=_pet(change))
    volume = read_volume(tmp_path, options=SUV)
    np.testing.assert_allclose(volume.array, _series(voxels) * _factor(3600), rtol=1e-6)
    assert "by the frame times" in volume.notes[-1]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
@pytest.mark.parametrize("block", [0x10, 0x42])
def test_counts_become_uptake_by_the_factors_of_philips(tmp_path, voxels, write_series, syntax, block):
    def change(dataset, drug):
        dataset.Units = "CNTS"
        dataset.add_new((0x7053, block), "LO", "Philips PET Private Group")
        dataset.add_new((0x7053, block << 8), "DS", "0.00025")

    write_series(tmp_path, voxels, edit=_pet(change), syntax=syntax)
    np.testing.assert_allclose(read_volume(tmp_path, options=SUV).array, _series(voxels) * 0.00025, rtol=1e-6)

    def without_uptake(dataset, drug):
        change(dataset, drug)
        del dataset[0x7053, block << 8]
        dataset.add_new((0x7053, block << 8 | 9), "DS", "1.5")

    write_series(tmp_path, voxels, edit=_pet(without_uptake), syntax=syntax)
    np.testing.assert_allclose(
        read_volume(tmp_path, options=SUV).array, _series(voxels) * 1.5 * _factor(3600), rtol=1e-6
    )


def test_what_is_uptake_already_stays(tmp_path, voxels, write_series):
    write_series(tmp_path, voxels, edit=_pet(lambda dataset, drug: setattr(dataset, "Units", "GML")))
    np.testing.assert_allclose(read_volume(tmp_path, options=SUV).array, _series(voxels))


def _set(**values):
    return lambda dataset, drug: [setattr(dataset, keyword, value) for keyword, value in values.items()]


def _drug(**values):
    return lambda dataset, drug: [setattr(drug, keyword, value) for keyword, value in values.items()]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set(Modality="CT"), "modality CT"),
        (_set(Units="PROPCNT"), "Units PROPCNT"),
        (_set(Units=""), "Units missing"),
        (_set(Units="CNTS"), "counts without Philips' factors"),
        (_set(Units="GML", SUVType="LBM"), "uptake by LBM"),
        (_set(CorrectedImage=["ATTN"]), "no correction of attenuation and decay"),
        (_set(CorrectedImage="DECY"), "no correction of attenuation and decay"),
        (_set(DecayCorrection="NONE"), "DecayCorrection NONE"),
        (_set(PatientWeight=None), "PatientWeight"),
        (_set(PatientWeight=0), "PatientWeight"),
        (_set(RadiopharmaceuticalInformationSequence=Sequence([])), "0 radiopharmaceuticals"),
        (_drug(RadionuclideTotalDose=370), "perhaps meant as MBq"),
        (_drug(RadionuclideTotalDose=None), "RadionuclideTotalDose"),
        (_drug(RadionuclideHalfLife=0), "RadionuclideHalfLife"),
        (_drug(RadiopharmaceuticalStartTime=""), "RadiopharmaceuticalStartTime"),
        (_drug(RadiopharmaceuticalStartTime="1000"), "cannot be read"),
        (_drug(RadiopharmaceuticalStartDateTime="20240105100100"), "two injection times"),
        (_drug(RadiopharmaceuticalStartDateTime="20240106100000"), "before the scan"),
        (_drug(RadiopharmaceuticalStartDateTime="20230105100000"), "before the scan"),
        (_drug(RadiopharmaceuticalStartDateTime="20240105100000+0100"), "time zone"),
        (_set(SeriesTime=""), "SeriesTime"),
        (_set(AcquisitionDate=""), "AcquisitionDate"),
        (_set(SeriesTime="140000"), "ActualFrameDuration"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_uptake_is_refused_where_the_header_lacks_something(tmp_path, voxels, write_series, refused, change, words):
    write_series(tmp_path, voxels, edit=_pet(change))
    with refused("NO_SUV", words, "without suv"):
        read_volume(tmp_path, options=SUV)


def _philips(scale=0.25, creator="Philips MR Imaging DD 001"):
    def edit(dataset, index):
        dataset.RescaleSlope, dataset.RescaleIntercept = 2.5, -5
        dataset.add_new(0x20050010, "LO", creator)
        dataset.add_new(0x2005100E, "FL", scale * (1 + index % 2))

    return edit


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
def test_the_scale_of_philips_is_noted_and_applied_on_request(tmp_path, voxels, write_series, syntax):
    write_series(tmp_path, voxels, edit=_philips(), syntax=syntax)
    display = read_volume(tmp_path)
    np.testing.assert_allclose(display.array, voxels * 2.5 - 5)
    assert "philips='float' applies it" in display.notes[-1]
    scale = 0.25 * (1 + np.arange(9) % 2)
    for volume in (
        read_volume(tmp_path, options=ReadOptions(philips="float")),
        read_volume(f"{tmp_path}#philips=float"),
    ):
        np.testing.assert_allclose(volume.array, (voxels * 2.5 - 5) / (2.5 * scale), rtol=1e-6)
        assert volume.notes == ("Philips scale slope applied, values in the scanner's unit",)


def test_a_scale_of_another_program_is_none(tmp_path, voxels, write_series, refused):
    write_series(tmp_path, voxels, edit=_philips(creator="SOMEBODY ELSE"))
    assert read_volume(tmp_path).notes == ()
    with refused("NO_SCALE", "2005,100E", "philips='display'"):
        read_volume(f"{tmp_path}#philips=float")


def test_a_real_world_map_is_noted_and_not_applied(tmp_path, voxels, write_series):
    def edit(dataset, index):
        item = Dataset()
        item.RealWorldValueSlope, item.RealWorldValueIntercept = 7.0, 1.0
        dataset.RealWorldValueMappingSequence = Sequence([item])

    write_series(tmp_path, voxels, edit=edit)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, voxels)
    assert "real world value map" in volume.notes[-1]


# Options of a reference


def test_missing_slices_are_filled_on_request_with_the_value_named(
    tmp_path, voxels, right_affine, write_series, refused
):
    files = write_series(tmp_path, voxels)
    for index in (3, 4, 6):
        files[index].unlink()
    truth = voxels.copy()
    truth[..., [3, 4, 6]] = -1024
    reference = f"{tmp_path}#1.2.3.4;uneven_spacing=fill;pad_to=-1024"
    volume = read_volume(reference)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, truth)
    np.testing.assert_allclose(volume.affine, right_affine, atol=1e-4)
    assert "3 of 9 slices filled with -1024" in volume.notes[0]
    assert target_of(reference).shape == volume.array.shape
    assert len(source_files(reference)) == 6
    floating = read_volume(tmp_path, options=ReadOptions(uneven_spacing="fill", pad_to=0.5))
    np.testing.assert_array_equal(floating.array[..., 3], 0.5)
    with refused("UNKNOWN_OPTION", "pad_to as well"):
        read_volume(f"{tmp_path}#uneven_spacing=fill")


def test_uneven_steps_are_not_filled(tmp_path, voxels, write_series, refused):
    def edit(dataset, index):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, z + 2.0 * (index > 4)]

    write_series(tmp_path, voxels, edit=edit, matrix=np.diag([1.0, 1.5, 3.0, 1.0]))
    with refused("UNEVEN_SPACING"):
        read_volume(f"{tmp_path}#uneven_spacing=fill;pad_to=0")


def test_the_spacing_of_the_detector_is_taken_on_request(tmp_path, voxels, right_affine, write_series, refused):
    def edit(dataset, index):
        del dataset.PixelSpacing
        dataset.ImagerPixelSpacing = [1.5, 1.0]

    files = write_series(tmp_path, voxels, edit=edit)
    volume = read_volume(f"{tmp_path}#assume=ImagerPixelSpacing")
    np.testing.assert_array_equal(volume.array, voxels)
    np.testing.assert_allclose(volume.affine, right_affine, atol=1e-4)
    assert volume.notes == ("no PixelSpacing: 1 x 1.5 mm assumed as asked for",)
    other = pydicom.dcmread(files[3])
    other.ImagerPixelSpacing = [1.5, 1.1]
    other.save_as(files[3])
    with refused("NO_GEOMETRY", "at the detector as the others"):
        read_volume(f"{tmp_path}#assume=ImagerPixelSpacing")


def test_a_radiograph_is_read_on_request(tmp_path, voxels, write_series, refused):
    def edit(dataset, index):
        dataset.ImagerPixelSpacing = [0.2, 0.1]
        _without(dataset, "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness")

    (path,) = write_series(tmp_path, voxels[..., :1], edit=edit)
    with refused("NO_GEOMETRY"):
        read_volume(path)
    volume = read_volume(f"{path}#assume=ImagerPixelSpacing")
    assert volume.spacing_mm == (0.1, 0.2, 1.0)
    assert read_volume(f"{path}#assume_spacing_mm=1,2,4").spacing_mm == (1.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("fragment", "code", "words"),
    [
        ("suv=lbm", "UNKNOWN_OPTION", "suv='lbm'"),
        ("philips=flaot", "UNKNOWN_OPTION", "did you mean 'float'?"),
        ("pad_to=air", "UNKNOWN_OPTION", "pad_to=air"),
        ("assume_spacing_mm=1,2", "UNKNOWN_OPTION", "three positive numbers"),
        ("assume_spacing_mm=a,b,c", "UNKNOWN_OPTION", "three numbers"),
        ("assume=PixelSpacing", "UNKNOWN_OPTION", "did you mean 'ImagerPixelSpacing'?"),
        ("uneven_spacin=resample", "BAD_REFERENCE", "did you mean 'uneven_spacing'?"),
    ],
)
def test_mistyped_options_of_a_reference_are_refused(tmp_path, voxels, write_series, refused, fragment, code, words):
    write_series(tmp_path, voxels)
    with refused(code, words):
        read_volume(f"{tmp_path}#{fragment}")


def test_options_stand_beside_what_chooses_a_volume(tmp_path, voxels, write_series):
    write_series(tmp_path / "a", voxels, edit=_pet())
    write_series(tmp_path / "b", voxels, series="1.2.3.5")
    volume = read_volume(f"{tmp_path}#1.2.3.4;suv=bw")
    np.testing.assert_allclose(volume.array, _series(voxels) * _factor(3600), rtol=1e-6)
    with pytest.raises(MedvolError, match="NO_SUV"):
        read_volume(f"{tmp_path}#1.2.3.5;suv=bw")


def test_a_file_takes_options_too(tmp_path, voxels, right_affine, write_series, refused):
    path = write_series(tmp_path, voxels, edit=_philips())[2]
    volume = read_volume(f"{path}#philips=float")
    np.testing.assert_allclose(volume.array[..., 0], (voxels[..., 2] * 2.5 - 5) / (2.5 * 0.25))
    np.testing.assert_allclose(volume.affine[:3, 3], apply_affine(right_affine, (0, 0, 2)), atol=1e-5)
    with refused("BAD_REFERENCE", "[3]"):
        read_volume(f"{path}#1.2.3.4[3]")
