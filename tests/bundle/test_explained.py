"""Which cases a report shows, which way round, and what of them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medvol.bundle.explained import Evaluated, case_pictures, column_importances, telling_cases
from medvol.data.column_facts import ColumnFacts
from medvol.data.facts import Facts
from medvol.inference.collect import Predictions
from medvol.inference.record import ModelRecord
from medvol.networks.mlp import mlp
from medvol.networks.resnet3d import resnet3d

SIZE = (14, 16, 12)


def facts(**options):
    kept = {
        "classes": ("healthy", "sick"),
        "channels": ("image",),
        "spatial_size": SIZE,
        "spacing_mm": (1.0, 1.5, 3.0),
        "intensity": "mr",
        "limits": None,
        "has_geometry": True,
        "laterality_matters": True,
    }
    return Facts(**{**kept, **options})


def evaluated(images, probabilities, labels, network, count=6):
    items = [{"case": f"c{index}", "patient": f"p{index}", "image": image} for index, image in enumerate(images)]
    dataset = [{**item, "label": int(label)} for item, label in zip(items, labels, strict=True)]
    data = type("Data", (list,), {"data": property(list)})(dataset)
    names = tuple(item["case"] for item in items)
    found = Predictions(names, names, np.log(probabilities), np.asarray(probabilities), np.asarray(labels))
    evaluator = SimpleNamespace(
        network=network,
        state=SimpleNamespace(device=torch.device("cpu")),
        data_loader=SimpleNamespace(dataset=data),
        prepare_batch=lambda batch, device, non_blocking: (batch["image"], batch["label"]),
    )
    return Evaluated(evaluator, found, count)


def test_a_third_each_are_the_best_the_uncertain_and_the_worst_and_none_comes_twice():
    sick = np.array([0.99, 0.9, 0.8, 0.51, 0.45, 0.05, 0.25])
    labels = np.array([1, 1, 1, 1, 1, 1, 0])
    chosen = telling_cases(np.stack([1 - sick, sick], axis=1), labels, 6)
    assert chosen == [("best", 0), ("best", 1), ("uncertain", 3), ("uncertain", 6), ("worst", 5), ("worst", 4)]
    assert telling_cases(np.stack([1 - sick, sick], axis=1), labels, 0) == []
    assert len(telling_cases(np.array([[0.3, 0.7]]), np.array([1]), 6)) == 1


def test_slices_run_through_the_hottest_place_the_right_way_round():
    torch.manual_seed(0)
    image = torch.zeros(1, *SIZE)
    image[0, 10, 3, 8] = 5.0  # to the right, behind, and to the head
    (picture,) = case_pictures(
        evaluated([image], [[0.2, 0.8]], [1], resnet3d(1, 2, widths=(8, 16))), ModelRecord(facts())
    )
    assert (picture.kind, picture.case) == ("best", "c0")
    assert "Predicted sick with probability 0.800, which is right" in picture.says
    assert [view.letters for view in picture.views] == ["RLAP", "RLSI", "APSI"]
    axial, coronal, sagittal = picture.views
    assert (axial.grey.shape, coronal.grey.shape, sagittal.grey.shape) == ((16, 14), (12, 14), (12, 16))
    assert (axial.row_mm, axial.column_mm, sagittal.row_mm, sagittal.column_mm) == (1.5, 1.0, 3.0, 1.5)
    assert [heat.shape for heat in picture.heats] == [view.grey.shape for view in picture.views]
    assert max(float(heat.max()) for heat in picture.heats) == pytest.approx(1)
    assert "HiResCAM" in picture.about


def test_without_geometry_no_side_is_named():
    image = torch.randn(1, *SIZE)
    record = ModelRecord(facts(has_geometry=False, spacing_mm=None))
    (picture,) = case_pictures(evaluated([image], [[0.2, 0.8]], [0], resnet3d(1, 2, widths=(8, 16))), record)
    assert [view.letters for view in picture.views] == ["", "", ""]
    assert "left and right are unknown" in picture.about
    assert (picture.kind, picture.says) == (
        *("worst", "Predicted sick with probability 0.800; true is healthy, which got 0.200."),
    )


def test_columns_are_valued_for_a_network_of_rows_alone():
    torch.manual_seed(0)
    columns = tuple(ColumnFacts(name, "number", 0.0, 1.0, 0.0, (), has_gaps=False) for name in ("used", "unused"))
    rows = torch.randn(40, 2)
    network = mlp(2, 1).eval()
    with torch.no_grad():
        next(iter(network.parameters()))[:, 1] = 0
        sick = network(rows).sigmoid()[:, 0].double().numpy()
    labels = (sick > np.median(sick)).astype(int)
    of_rows = evaluated(list(rows), np.stack([1 - sick, sick], axis=1), labels, network)
    record = ModelRecord(facts(spatial_size=(), channels=(), columns=columns))
    drops = column_importances(of_rows, record)
    assert drops["unused"]["value"] == 0
    assert drops["used"]["value"] > 0.2
    assert case_pictures(of_rows, record) == []
    assert column_importances(of_rows, ModelRecord(facts())) == {}
