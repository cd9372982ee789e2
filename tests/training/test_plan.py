"""The planner: its rules by hand on hand-made fingerprints, and whole plans of small studies."""

import json
import math
from dataclasses import replace
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from medvol.data.facts import Facts, Sampled
from medvol.data.fingerprint import Fingerprint, LabelFacts, SampledCase
from medvol.data.sources import open_study
from medvol.data.study import Case, Study
from medvol.errors import MedvolError
from medvol.networks.unet import unet
from medvol.phantoms.cohort import segmentation_cohort
from medvol.training.budget import Problem, build_network, largest_batch, largest_fit, shrunk
from medvol.training.plan import MOST_VOXELS, PlanOptions, make_plan, plan_segmentation
from medvol.training.plan_rules import plan_flips, plan_intensity, plan_spacing, working_sizes
from medvol.training.preflight import PROCESS_GB

SMALL = partial(unet, width=8)
STUDY = Study(cases=(), task="segmentation")


def fingerprint(sizes, spacings=None, *, low=0.0, high=900.0, is_8bit=False, foreground=(1.0, 2.0, 3.0), cases=None):
    volumes = [
        Sampled(f"c{i}", tuple(size), None if spacings is None else tuple(spacings[i]), low, high, is_8bit)
        for i, size in enumerate(sizes)
    ]
    return Fingerprint(
        training_cases=cases or len(sizes),
        sampled=tuple(SampledCase((volume,), foreground) for volume in volumes),
        foreground=foreground,
        labels=(LabelFacts(0, 90, len(sizes), 1.0), LabelFacts(1, 10, len(sizes), 1.0)),
        has_geometry=spacings is not None,
    )


def planned(found, make_network=SMALL, **options):
    return make_plan(STUDY, found, make_network, PlanOptions(**options))


def problem(spacing=None, make_network=SMALL):
    return Problem(make_network, 1, 2, spacing)


@pytest.mark.parametrize(
    ("spacings", "expected"),
    [
        ([(1, 1, 1), (1, 1, 2), (1, 1.5, 2.5)], (1.0, 1.0, 2.0)),
        # Along z the median is 6, three times 1.0 and more: the 10th percentile of 3, 6, 6 is 3.6.
        ([(1, 1, 3), (1, 1, 6), (1, 1, 6)], (1.0, 1.0, 3.6)),
        # The 10th percentile of 0.5, 6, 6 is 1.6, still coarser than the others; that of 0.1, 3, 3 is 0.68.
        ([(1, 1, 0.5), (1, 1, 6), (1, 1, 6)], (1.0, 1.0, 1.6)),
        ([(1, 1, 0.1), (1, 1, 3), (1, 1, 3)], (1.0, 1.0, 1.0)),
        ([(6, 1, 1), (6, 1, 1), (3, 1, 1)], (3.6, 1.0, 1.0)),
    ],
)
def test_the_spacing_is_the_median_and_finer_along_a_coarse_axis(spacings, expected):
    spacing, reason = plan_spacing(fingerprint([(10, 10, 10)] * 3, spacings), "auto")
    assert spacing == pytest.approx(expected)
    assert "median of 3" in reason


def test_a_spacing_that_is_given_is_taken_unless_there_is_no_geometry():
    assert plan_spacing(fingerprint([(7, 8, 9)], [(1, 2, 3)]), [2, 2, 2]) == ((2.0, 2.0, 2.0), "as given")
    assert plan_spacing(fingerprint([(7, 8, 9)]), "auto")[0] is None
    with pytest.raises(MedvolError, match="NO_GEOMETRY.*spacing"):
        plan_spacing(fingerprint([(7, 8, 9)]), [2, 2, 2])


def test_sizes_on_the_working_grid_keep_the_field_of_view():
    found = fingerprint([(7, 8, 9), (10, 10, 1)], [(1.0, 1.5, 3.0), (1, 1, 0.2)])
    assert working_sizes(found, (2.0, 1.5, 1.0)).tolist() == [[4, 8, 27], [5, 7, 1]]
    assert working_sizes(fingerprint([(7, 8, 9)]), None).tolist() == [[7, 8, 9]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"low": -1000, "high": 2000, "foreground": (-57.26, 40.0, 171.04)}, ("ct", (-57.3, 171.0))),
        ({"low": -1000, "high": 2000, "foreground": (40.0, 40.0, 40.0)}, ("ct", (40.0, 50.0))),
        ({"low": -1000, "high": 2000, "foreground": None}, ("ct", (-160.0, 240.0))),
        ({"low": 0, "high": 3000}, ("mr", None)),
        ({"low": 0, "high": 200, "is_8bit": True}, ("scaled", (0.0, 255.0))),
        ({"low": 0, "high": 1}, ("scaled", (0.0, 1.0))),
    ],
)
def test_grey_values_decide_the_scheme(values, expected):
    assert plan_intensity(fingerprint([(7, 8, 9)], **values), "auto", None)[:2] == expected


def test_a_window_that_is_given_is_taken():
    assert plan_intensity(fingerprint([(7, 8, 9)]), "auto", [-100, 300])[:2] == ("ct", (-100.0, 300.0))
    for wrong in ([300, -100], [1], [1, 1]):
        with pytest.raises(MedvolError, match="BAD_VALUE: window_hu"):
            plan_intensity(fingerprint([(7, 8, 9)]), "auto", wrong)
    with pytest.raises(MedvolError, match="with intensity 'mr'"):
        plan_intensity(fingerprint([(7, 8, 9)]), "mr", [-100, 300])


def test_a_patch_of_a_small_study_is_its_median_volume_padded():
    plan = planned(fingerprint([(35, 50, 36)] * 3, [(1, 1, 1)] * 3, cases=150))
    assert plan.facts.spatial_size == (40, 56, 40)
    assert plan.batch_size == 4
    assert "35 x 50 x 36" in plan.reasons["spatial_size"]
    assert "multiples of 8 x 8 x 8" in plan.reasons["spatial_size"]


def test_a_patch_is_shrunk_until_it_fits_memory_and_never_exceeds_the_volume():
    large = fingerprint([(200, 90, 60)] * 3, [(1, 1, 1)] * 3)
    budgets = (0.75, 30.0)
    plans = [planned(large, memory_gb=budget) for budget in budgets]
    small, large_size = (plan.facts.spatial_size for plan in plans)
    assert math.prod(small) < math.prod(large_size) <= MOST_VOXELS["cuda" if torch.cuda.is_available() else "cpu"]
    for plan, budget in zip(plans, budgets, strict=True):
        assert plan.predicted_memory_gb <= budget
        assert all(length <= most for length, most in zip(plan.facts.spatial_size, (208, 96, 64), strict=True))
        assert network_takes(plan.facts.spatial_size)


@pytest.mark.parametrize(
    ("matters", "geometry", "paired", "axes"),
    [
        (True, True, False, ()),  # the body is symmetric in left and right alone
        (False, True, False, (0,)),
        (True, True, True, (0,)),
        (False, False, False, (0, 1, 2)),  # the user says that a mirror image is as good, along whichever axis
        (True, False, True, ()),
    ],
)
def test_patches_are_mirrored_where_that_leaves_the_anatomy_in_place(matters, geometry, paired, axes):
    found, why = plan_flips("auto", laterality_matters=matters, has_geometry=geometry, paired=paired)
    assert found == axes
    assert why


def test_stated_flips_are_taken_unless_they_would_make_a_label_wrong():
    found = fingerprint([(20, 20, 20)], [(1, 1, 1)])
    plan = planned(found, flip_axes=[2, 1])
    assert (plan.facts.flip_axes, plan.options()["flip_axes"]) == ((1, 2), [1, 2])
    assert planned(found, flip_axes=[]).facts.flip_axes == ()
    assert planned(found, flip_axes=[0, 1, 2], laterality_matters=False).facts.flip_axes == (0, 1, 2)
    for wrong in ([0], [3], ["x"], 1):
        with pytest.raises(MedvolError, match=r"BAD_VALUE.*axes among \[1, 2\].*--laterality_matters False"):
            planned(found, flip_axes=wrong)
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION"):
        planned(found, flip_axes="all")


def network_takes(size):
    return SMALL(1, 2, spatial_size=size).is_valid_shape(torch.empty(1, 1, *size, device="meta"))


def test_the_axis_that_is_longest_in_mm_is_shrunk_first():
    assert shrunk((64, 32, 32), (16, 8, 8), 64 * 32 * 31, None) == (48, 32, 32)
    # 64, 32 and 128 mm.
    assert shrunk((64, 32, 32), (16, 8, 8), 64 * 32 * 31, (1.0, 1.0, 4.0)) == (64, 32, 24)
    assert shrunk((32, 32, 32), (16, 16, 16), 1, None) == (16, 16, 16)


def test_coarse_slices_are_not_halved_as_often():
    # Three halvings in plane; along z the first two wait until 4 mm are reached: multiples of 8, 8 and 2.
    plan = planned(fingerprint([(60, 60, 14)] * 3, [(1, 1, 4)] * 3))
    assert plan.facts.spatial_size == (64, 64, 14)
    assert "multiples of 8 x 8 x 2" in plan.reasons["spatial_size"]


def test_the_batch_stays_within_5_percent_of_the_voxels_and_memory():
    fit = largest_fit(problem(), (16, 16, 16), batch_size=2, memory_gb=10)
    sizes = [
        largest_batch(problem(), fit, total_voxels=cases * 4096, memory_gb=10).batch_size for cases in (3, 60, 500)
    ]
    assert sizes == [2, 3, 4]
    tight = fit.memory.total_gb + fit.memory.tensors_gb * 0.6
    assert largest_batch(problem(), fit, total_voxels=1e9, memory_gb=tight).batch_size == 3


def test_what_is_given_is_taken_and_checked():
    found = fingerprint([(35, 50, 36)] * 3, [(1, 1, 1)] * 3)
    plan = planned(found, spatial_size=[16, 24, 32], batch_size=3, max_epochs=7, patches_per_epoch=10)
    assert (plan.facts.spatial_size, plan.batch_size, plan.max_epochs) == ((16, 24, 32), 3, 7)
    assert plan.patches_per_epoch == 10
    assert {plan.reasons[name] for name in ("batch_size", "max_epochs", "patches_per_epoch")} == {"as given"}
    with pytest.raises(MedvolError, match=r"BAD_PATCH_SIZE: patches of 30 x 30 x 31"):
        planned(found, spatial_size=[30, 30, 31])
    with pytest.raises(MedvolError, match="TOO_LARGE.*at most 0.8 GB"):
        planned(found, spatial_size=[64, 64, 64], batch_size=9, memory_gb=0.8)
    with pytest.raises(MedvolError, match="TOO_LARGE"):
        planned(found, memory_gb=PROCESS_GB)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "BAD_VALUE: batch_size 0"),
        ({"minutes": -1.0}, "BAD_VALUE: minutes -1"),
        ({"memory_gb": "much"}, "UNKNOWN_OPTION: memory_gb 'much'"),
        ({"spatial_size": "large"}, "UNKNOWN_OPTION: spatial_size 'large'"),
        ({"intensity": "cta"}, "UNKNOWN_OPTION: intensity 'cta'"),
    ],
)
def test_options_that_are_none_are_refused(options, message):
    with pytest.raises(MedvolError, match=message):
        planned(fingerprint([(16, 16, 16)]), **options)


@pytest.mark.parametrize(("cases", "patches", "epochs"), [(12, 200, 40), (600, 600, 14)])
def test_the_default_is_about_4000_steps(cases, patches, epochs):
    plan = planned(fingerprint([(16, 16, 16)], cases=cases), batch_size=2)
    assert (plan.patches_per_epoch, plan.max_epochs) == (patches, epochs)
    assert abs(plan.max_epochs * (patches // 2) - 4000) < patches // 2
    assert plan.minutes is None


def test_minutes_decide_the_number_of_steps(monkeypatch):
    monkeypatch.setattr("medvol.training.plan_time.seconds_per_step", lambda *_: 0.12)
    plan = planned(fingerprint([(16, 16, 16)]), batch_size=2, minutes=10.0)
    # 80 % of 10 minutes hold 4000 steps of 0.12 s.
    assert plan.max_epochs * 100 == 4000
    assert plan.minutes == pytest.approx(10.0)
    short = planned(fingerprint([(16, 16, 16)]), batch_size=2, spatial_size=[16, 16, 16], minutes=0.1)
    assert (short.max_epochs, short.patches_per_epoch) == (1, 80)
    assert "less than the 500" in short.reasons["max_epochs"]


def test_batch_and_patch_shrink_when_time_is_short(monkeypatch):
    def seconds(_, fit, device):
        return fit.voxels * fit.batch_size * 2e-5

    monkeypatch.setattr("medvol.training.plan_time.seconds_per_step", seconds)
    found = fingerprint([(64, 64, 64)], cases=500)
    long, short = (planned(found, minutes=minutes) for minutes in (10_000.0, 30.0))
    assert (long.facts.spatial_size, long.batch_size) == ((64, 64, 64), 4)
    # 500 steps in 24 minutes are 2.88 s each: 144,000 voxels in all.
    assert short.batch_size == 2
    assert 20_000 < math.prod(short.facts.spatial_size) <= 72_000
    assert short.max_epochs * (short.patches_per_epoch // 2) >= 400


def test_a_step_is_measured_when_asked_for():
    plan = planned(fingerprint([(16, 16, 16)]), batch_size=2, measure_time=True)
    assert 0.0 < plan.minutes < 1000


def test_planning_draws_no_random_numbers():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    planned(fingerprint([(16, 16, 16)]), measure_time=True)
    assert torch.rand(1) == expected


class Halving(nn.Module):
    """A network that says nothing of itself and needs multiples of 8."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.down = nn.Conv3d(in_channels, 4, 8, stride=8)
        self.up = nn.ConvTranspose3d(4, out_channels, 8, stride=8)

    def forward(self, volumes):
        return self.up(self.down(volumes))


def test_any_network_from_channels_to_classes_can_be_planned_for():
    plan = planned(fingerprint([(17, 30, 16)]), Halving)
    assert plan.facts.spatial_size == (24, 32, 16)
    assert isinstance(build_network(Halving, 1, 2, spatial_size=(8, 8, 8)), Halving)


def test_a_plan_survives_json_and_serves_as_options():
    found = fingerprint([(20, 20, 20)] * 2, [(1.0, 1.5, 2.0)] * 2, low=-1000, foreground=(-50.0, 0.0, 90.0))
    plan = planned(found)
    loaded = json.loads(json.dumps(plan.as_dict()))
    assert Facts.from_dict(loaded["facts"]) == plan.facts
    options = json.loads(json.dumps(plan.options()))
    reasons = options.pop("_desc_")
    assert all(reasons[name] for name in options if name != "window_hu")
    again = planned(found, **options)
    assert again.facts == plan.facts
    assert (again.batch_size, again.max_epochs) == (plan.batch_size, plan.max_epochs)


def test_the_body_phantom_is_planned_from_its_training_split(tmp_path):
    table = segmentation_cohort(tmp_path / "cohort", patients=6, size=(28, 26, 30))
    study = open_study(str(table), classes=("background", "a_left", "a_right", "c", "d", "never"))
    plan = plan_segmentation(study, SMALL, show_progress=False)
    facts = plan.facts
    assert facts.classes == study.classes
    assert facts.label_values == (0, 1, 2, 3, 4, 5)
    assert facts.mirror_pairs == ((1, 2),)
    assert facts.intensity == "ct"
    assert plan.notes == ("no training mask holds 'never' (value 5): it cannot be learnt",)
    training = Study(tuple(case for case in study.cases if case.split == "train"), "segmentation", study.classes)
    assert plan_segmentation(training, SMALL, show_progress=False) == plan


def test_a_value_that_the_source_does_not_declare_is_refused_with_its_first_case(tmp_path):
    study = open_study(str(segmentation_cohort(tmp_path / "cohort", patients=6, size=(18, 17, 16))))
    study = replace(study, classes=("background", "a", "b"), mask_values=(0, 1, 2))
    first = next(case for case in study.cases if case.split == "train")
    with pytest.raises(
        MedvolError, match=rf"UNKNOWN_LABEL: case {first.case}, .*the mask value 3; expected 0 background"
    ):
        plan_segmentation(study, SMALL, show_progress=False)


def test_several_channels_and_a_single_case_are_planned_for(tmp_path):
    affine = np.diag([1.0, 1.5, 3.0, 1.0])
    rng = np.random.default_rng(0)
    for name in ("t1", "t2"):
        nib.save(
            nib.Nifti1Image(rng.normal(500, 300, (17, 18, 9)).astype(np.float32), affine), tmp_path / f"{name}.nii"
        )
    mask = np.zeros((17, 18, 9), np.uint8)
    mask[4:8, 4:8, 4:8] = 255
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "m.nii")
    images = (str(tmp_path / "t1.nii"), str(tmp_path / "t2.nii"))
    case = Case("a", "a", images, str(tmp_path / "m.nii"), "train")
    plan = plan_segmentation(
        Study((case,), "segmentation", channels=("t1", "t2")), SMALL, structures=["liver"], show_progress=False
    )
    assert (plan.facts.in_channels, plan.facts.classes) == (2, ("background", "liver"))
    assert plan.facts.label_values == (0, 255)
    assert plan.facts.spacing_mm == (1.0, 1.5, 3.0)
    assert plan.batch_size == 2
