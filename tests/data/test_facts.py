"""What is read off the training split: sizes, spacing, grey-value scheme, by hand."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from medvol.data.facts import Facts, fit_facts
from medvol.data.study import Case, Study
from medvol.errors import MedvolError


def study_of(paths, split="train"):
    cases = tuple(
        Case(case=f"c{i}", patient=f"p{i}", image=(str(path),), label="no", split=split) for i, path in enumerate(paths)
    )
    return Study(cases=cases, task="classification", classes=("no", "yes"), source="here")


def npy(folder, *arrays):
    paths = []
    for index, array in enumerate(arrays):
        paths.append(folder / f"v{index}.npy")
        np.save(paths[-1], array)
    return paths


def nifti(folder, shape, affine, low=-1000, high=1000, name="v.nii.gz"):
    array = np.linspace(low, high, int(np.prod(shape))).reshape(shape).astype(np.int16)
    nib.save(nib.Nifti1Image(array, affine), folder / name)
    return folder / name


def test_8_bit_arrays_keep_their_size_and_are_scaled(tmp_path):
    volumes = [np.full((7, 8, 9), 200 + i, np.uint8) for i in range(3)]
    facts = fit_facts(study_of(npy(tmp_path, *volumes)))
    assert facts == Facts(("no", "yes"), ("image",), (7, 8, 9), None, "scaled", (0.0, 255.0), False, True)
    assert facts.extent_mm == (7.0, 8.0, 9.0)


def test_arrays_of_different_sizes_take_the_median_and_at_most_64(tmp_path):
    sizes = [(70, 6, 9), (80, 8, 9), (90, 12, 9)]
    facts = fit_facts(study_of(npy(tmp_path, *[np.zeros(size, np.uint8) for size in sizes])))
    assert facts.spatial_size == (64, 8, 9)


def test_an_oblique_volume_is_measured_along_right_anterior_superior(tmp_path):
    # Array axes run S, R, A: the RAS size is the array's (1, 2, 0), the spacing likewise.
    affine = np.array([[0, -1.5, 0, 5], [0, 0, 3.0, 6], [1.0, 0, 0, 7], [0, 0, 0, 1]])
    facts = fit_facts(study_of([nifti(tmp_path, (8, 12, 16), affine)]))
    assert facts.spatial_size == (12, 16, 8)
    assert facts.spacing_mm == (1.5, 3.0, 1.0)
    assert facts.has_geometry
    assert (facts.intensity, facts.limits) == ("ct", (-160.0, 240.0))


def test_a_large_field_of_view_is_coarsened_until_it_fits(tmp_path):
    facts = fit_facts(study_of([nifti(tmp_path, (128, 20, 10), np.diag([1.0, 1.0, 5.0, 1.0]))]))
    assert facts.spacing_mm == (2.0, 1.0, 5.0)
    assert facts.spatial_size == (64, 20, 12)


def test_what_is_given_is_taken(tmp_path):
    path = nifti(tmp_path, (20, 20, 10), np.diag([1.0, 1.0, 2.0, 1.0]))
    facts = fit_facts(
        study_of([path]),
        spatial_size=[10, 12, 14],
        spacing_mm=[2, 2, 2],
        intensity="ct",
        window_hu=[-1000, 400],
        laterality_matters=False,
    )
    assert (facts.spatial_size, facts.spacing_mm, facts.limits) == ((10, 12, 14), (2.0, 2.0, 2.0), (-1000.0, 400.0))
    assert not facts.laterality_matters


def test_a_window_makes_the_scheme_ct_and_one_that_is_none_is_refused(tmp_path):
    study = study_of([nifti(tmp_path, (7, 8, 9), np.eye(4), low=0, high=1500)])  # `mr` by its grey values
    for intensity in ("auto", "ct"):
        facts = fit_facts(study, intensity=intensity, window_hu=[-1000, 400])
        assert (facts.intensity, facts.limits) == ("ct", (-1000.0, 400.0))
    for wrong in ([400, -1000], [1], [1, 1], [1, 2, 3]):
        with pytest.raises(MedvolError, match="BAD_VALUE: window_hu"):
            fit_facts(study, window_hu=wrong)
    for other in ("mr", "scaled"):
        with pytest.raises(MedvolError, match=f"BAD_VALUE: window_hu .* with intensity '{other}'"):
            fit_facts(study, intensity=other, window_hu=[-1000, 400])


def test_a_given_size_with_automatic_spacing_still_holds_the_field_of_view(tmp_path):
    facts = fit_facts(study_of([nifti(tmp_path, (40, 20, 10), np.eye(4))]), spatial_size=[20, 20, 20])
    assert facts.spacing_mm == (2.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "scheme", "limits"),
    [(0, 255, "scaled", (0.0, 255.0)), (0, 1500, "mr", None), (-1024, 2000, "ct", (-160.0, 240.0))],
)
def test_the_scheme_follows_the_grey_values(tmp_path, low, high, scheme, limits):
    facts = fit_facts(study_of([nifti(tmp_path, (7, 8, 9), np.eye(4), low, high)]))
    assert (facts.intensity, facts.limits) == (scheme, limits)


def test_floating_point_arrays_between_0_and_1_stay_as_they_are(tmp_path):
    values = np.random.default_rng(0).random((7, 8, 9)).astype(np.float32)
    assert fit_facts(study_of(npy(tmp_path, values))).limits == (0.0, 1.0)


def test_only_the_training_split_is_looked_at(tmp_path):
    small, large = npy(tmp_path, np.zeros((7, 8, 9), np.uint8), np.full((30, 30, 30), 5000, np.int16))
    train, test = study_of([small]), study_of([large], "test")
    other = replace(test.cases[0], case="t", patient="t")
    assert fit_facts(replace(train, cases=(*train.cases, other))) == fit_facts(train)
    with pytest.raises(MedvolError, match="NO_TRAINING_CASES"):
        fit_facts(test)


def test_volumes_with_and_without_geometry_do_not_mix(tmp_path):
    paths = [*npy(tmp_path, np.zeros((7, 8, 9), np.uint8)), nifti(tmp_path, (7, 8, 9), np.eye(4))]
    with pytest.raises(MedvolError, match="MIXED_GEOMETRY: case c0"):
        fit_facts(study_of(paths))


def test_images_are_refused_by_a_volume_bundle(tmp_path):
    with pytest.raises(MedvolError, match=r"WRONG_DIMS: case c0.*\(7, 8\)"):
        fit_facts(study_of(npy(tmp_path, np.zeros((7, 8), np.uint8))))


@pytest.mark.parametrize("name", ["spatial_size", "spacing_mm"])
@pytest.mark.parametrize("numbers", [[4, 4], [0, 4, 4], [4, 4, 4, 4]])
def test_a_size_or_spacing_that_is_none_is_refused_by_name(tmp_path, name, numbers):
    with pytest.raises(MedvolError, match=f"UNKNOWN_OPTION.*{name}.*three positive numbers.*write --{name} "):
        fit_facts(study_of(npy(tmp_path, np.zeros((7, 8, 9), np.uint8))), **{name: numbers})


def test_facts_survive_json(tmp_path):
    facts = fit_facts(study_of([nifti(tmp_path, (7, 8, 9), np.eye(4))]))
    assert Facts.from_dict(facts.as_dict()) == facts
