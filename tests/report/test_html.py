"""report.html: one offline file that holds every number, escapes every text and survives odd studies."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from medvol.errors import MedvolError
from medvol.inference.collect import Predictions
from medvol.phantoms.grid import oblique_affine
from medvol.report.classification import EvaluatedSplit, write_evaluation, write_predictions
from medvol.report.html_page import POLICY, number
from medvol.report.html_pictures import CasePicture, outline_path
from medvol.report.html_report import LARGEST_BYTES, Shown, write_html_report
from medvol.report.html_structures import segmented_pictures
from medvol.report.segmentation import write_evaluation as write_segmentation
from medvol.report.segmentation import write_predictions as write_volumes
from medvol.report.segmented_cases import SegmentedCases
from medvol.report.views import View
from medvol.training.handlers import write_history

EVIL = "<script>alert(1)</script>"
ORGANS = {"liver, right": 1, "spleen & co": 2}
VOID = {"meta", "br", "img", "link", "input", "hr", "image"}


class Page(HTMLParser):
    """Elements and texts of a page; refuses tags that are not closed in their order."""

    def __init__(self, document):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(document)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def record(**facts):
    return {
        "command": "python -m monai.bundle run --output_dir 'my out'",
        "config": {"precision": "auto"},
        "finished": "2026-01-02T03:04:05+0000",
        "weights_sha256": "ab" * 32,
        "training": {"seed": 7, "split_seed": 3, "data_sha256": "cd" * 32},
        "versions": {"python": "3.11", "monai": "1.6.1"},
        "machine": {"system": "Linux", "processor": "a processor"},
        "outputs": {},
        **facts,
    }


def predictions(count=40, classes=2, labels=None):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes if labels is None else np.asarray(labels)
    logits = rng.normal(size=(len(labels), classes)) + 1.5 * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    cases = tuple(f"c{index}" for index in range(len(labels)))
    return Predictions(cases, tuple(f"p{index // 2}" for index in range(len(labels))), logits, probabilities, labels)


def write_cases(folder, found, classes, *, others=10):
    with (folder / "cases.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "patient", "image", "label", "split", "age", "sex"])
        for index in range(others):
            writer.writerow([f"t{index}", f"q{index}", "", classes[index % 2], "train", 50 + index, "FM"[index % 2]])
        for case, patient, label in zip(found.cases, found.patients, found.labels, strict=True):
            writer.writerow([case, patient, "", classes[label], "test", "", "F"])


def view(colours=False, letters="RLAP"):
    grey = np.arange(7 * 9 * (3 if colours else 1), dtype=np.uint8).reshape((7, 9, 3) if colours else (7, 9))
    labels = np.zeros((7, 9), np.uint8)
    labels[2:4, 3:6] = 1
    return View("axial", grey, labels, np.roll(labels, 1, axis=0), 3.0, 1.5, letters)


def classified(folder, found=None, classes=("healthy, left", "sick"), shown=None, **options):
    found = found or predictions(classes=len(classes))
    evaluated = EvaluatedSplit("demo_classification", "test", classes, tuple([0] * 7 + [1] * 3), **options)
    files = write_evaluation(folder, found, evaluated)
    write_cases(folder, found, classes)
    outputs = {str(file): "ef" * 32 for file in files}
    return write_html_report(folder, record(outputs=outputs), shown)


def segmented(folder, failures=(), count=3):
    rng = np.random.default_rng(0)
    shape = (7, 8, 9)
    cases = SegmentedCases(ORGANS, lesion_structures=["spleen & co"])
    truth = np.zeros(shape, np.uint8)
    truth[1:4, 1:5, 2:6], truth[5:7, 2:5, 2:5] = 1, 2
    for index in range(count):
        output = f"predictions/c{index}.nii.gz"
        image, found = rng.normal(size=shape), np.roll(truth, index % 3, axis=1)
        cases.add(f"c{index}", f"p{index}", image, found, truth, oblique_affine(shape), output=output)
    write_segmentation(folder, cases, bundle="demo_segmentation", split="test")
    for failure in failures:
        cases.add_failure(failure)
    write_volumes(folder / "predictions.csv", cases, "test")
    shown = Shown(pictures=segmented_pictures(cases), structures=cases.structures)
    return write_html_report(folder, record(), shown)


def read(path):
    return Page(path.read_text())


def assert_offline(path):
    page = read(path)
    assert path.stat().st_size < LARGEST_BYTES
    assert ("meta", "content", POLICY) in page.attributes
    assert POLICY.startswith("default-src 'none'")
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "srcset", "href", "xlink:href", "action", "data"):
            assert not re.match(r"[a-z]+://|//|/|javascript:", value), (tag, name, value[:60])
            assert not value.startswith("data:") or tag == "image"
    assert "@import" not in path.read_text()
    assert not re.search(r"url\(", path.read_text())
    return page


def all_metrics(result):
    """Yield every metric of metrics.json with its interval, those of lesions and other models too."""
    yield from result["metrics"].values()
    for lesions in result.get("lesions", {}).values():
        yield from lesions["metrics"].values()
    for other in result.get("comparisons", {}).values():
        yield from other["metrics"].values()


def assert_holds_every_metric(folder, page):
    result = json.loads((folder / "metrics.json").read_text())
    entries = list(all_metrics(result))
    assert len(entries) >= 8
    for entry in entries:
        low, high = entry["ci95"]
        assert re.search(rf"{number(entry['value'])}[ (]+{number(low)} to {number(high)}", page.text), entry


def test_a_classification_has_every_metric_with_its_interval_and_asks_nobody_for_anything(tmp_path):
    write_history(tmp_path / "history.csv", [{"epoch": n, "train_loss": 1 / n, "auc": 0.5} for n in (1, 2, 3)])
    found = predictions()
    picture = CasePicture("worst", "c1", "Predicted sick.", (view(),) * 3, (np.eye(7, 9),) * 3, "Grad")
    path = classified(tmp_path, found, shown=Shown(pictures=[picture]), others={"other": found.probabilities[:, ::-1]})
    page = assert_offline(path)
    assert_holds_every_metric(tmp_path, page)
    for words in (
        "Not for clinical use",
        "20 patients",
        "54.5 ± 3.0",
        "Cohort",
        "Confusion",
        "ROC",
        "Calibration",
        "seed 7",
    ):
        assert words in page.text, words
    assert [word for word in page.words if word in tuple("RLAP")][:4] == ["R", "L", "A", "P"]
    assert "5 mm" in page.text
    assert ("a", "href", "predictions.csv") in page.attributes
    assert page.tags.count("image") == 6
    assert "ef" * 32 in page.text


def test_a_segmentation_has_every_metric_with_its_interval_its_volumes_and_links_to_its_masks(tmp_path):
    refusal = MedvolError("TRUNCATED", case="bad", found="10 of 20 bytes")
    path = segmented(tmp_path, failures=[refusal])
    page = assert_offline(path)
    assert_holds_every_metric(tmp_path, page)
    for words in ("TRUNCATED", "Limits of agreement", "liver, right", "spleen & co", "Missed / invented", "mm"):
        assert words in page.text, words
    assert ("a", "href", "predictions/c2.nii.gz") in page.attributes
    assert page.tags.count("image") == 9
    assert "1 case (25% of the split) could not be evaluated" in page.text


def test_names_from_the_table_are_text_and_nothing_else(tmp_path):
    found = replace(predictions(), cases=(EVIL, *predictions().cases[1:]))
    picture = CasePicture("best", EVIL, EVIL, (view(),), (), EVIL)
    classes = ('"><img src=x>', EVIL)
    shown = Shown(pictures=[picture], notes=[EVIL], importances={EVIL: {"value": 0.1, "ci95": [0.0, 0.2]}})
    path = classified(tmp_path, found, classes, shown)
    page = assert_offline(path)
    assert "<script" not in path.read_text()
    assert "img" not in page.tags
    assert page.text.count(EVIL) >= 5


def test_a_class_that_is_missing_is_said_and_what_it_decides_is_left_open(tmp_path):
    page = assert_offline(classified(tmp_path, predictions(labels=[0] * 12)))
    assert "No case of sick in this split" in page.text
    assert "cases of one class only" in page.text
    assert "Not defined here" in page.text
    assert "–" in page.text
    three = tmp_path / "three"
    three.mkdir()
    page = assert_offline(classified(three, predictions(labels=[0, 1] * 6, classes=3), ("a", "b", "c")))
    assert "No case of c in this split" in page.text


def test_cases_that_could_not_be_read_are_listed_with_the_reason_and_counted(tmp_path):
    found = predictions(8)
    classified(tmp_path, found)
    refusals = [MedvolError("TRUNCATED", case=f"bad{index}", found="10 of 20 bytes") for index in range(2)]
    write_predictions(tmp_path / "predictions.csv", found, ("healthy, left", "sick"), "test", failures=refusals)
    page = assert_offline(write_html_report(tmp_path, record()))
    assert "2 cases (20% of the split) could not be evaluated" in page.text
    assert page.text.count("10 of 20 bytes") == 2


def test_three_hundred_cases_of_twelve_classes_stay_small(tmp_path):
    classes = tuple(f"class {index}" for index in range(12))
    path = classified(tmp_path, predictions(300, 12), classes)
    assert_holds_every_metric(tmp_path, assert_offline(path))
    assert path.stat().st_size < 300_000


def test_pictures_that_would_make_the_file_too_large_are_left_out_from_the_end(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (384, 384), dtype=np.uint8)
    large = View("axial", noise, np.zeros_like(noise), np.zeros_like(noise), 1.0, 1.0, "")
    pictures = [CasePicture("best", f"case{index}", "", (large,) * 3) for index in range(12)]
    page = assert_offline(classified(tmp_path, shown=Shown(pictures=pictures)))
    assert 3 <= page.tags.count("article") < 12
    assert "case0" in page.text
    assert "case11" not in page.text


def test_a_study_without_table_and_history_is_reported_from_its_numbers_alone(tmp_path):
    classified(tmp_path)
    (tmp_path / "cases.csv").unlink()
    page = assert_offline(write_html_report(tmp_path, record()))
    assert "Cohort" in page.text
    assert "Training" not in page.text


def test_few_patients_and_an_auc_no_better_than_guessing_are_said(tmp_path):
    found = predictions(10)
    page = read(classified(tmp_path, replace(found, probabilities=found.probabilities[::-1])))
    assert "Only 5 patients" in page.text
    assert "not shown to be better than guessing" in page.text


def test_colours_are_shown_as_a_picture_of_one_slice(tmp_path):
    picture = CasePicture("uncertain", "c0", "", (view(colours=True, letters=""),), (np.eye(7, 9),))
    page = assert_offline(classified(tmp_path, shown=Shown(pictures=[picture])))
    assert page.tags.count("image") == 2
    assert "10 mm" not in page.text


def area_of(path):
    """Return the area within an SVG path of straight lines, holes taken off."""
    total = 0.0
    for loop in re.findall(r"M([^Z]*)Z", path):
        points = [tuple(map(int, point.split())) for point in loop.split("L")]
        pairs = zip(points, [*points[1:], points[0]], strict=True)
        total += sum(x * y2 - x2 * y for (x, y), (x2, y2) in pairs) / 2
    return total


def test_the_outline_runs_along_the_edges_of_the_pixels():
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:4] = True
    assert outline_path(mask) in ("M4 1L4 3L1 3L1 1Z", "M1 1L4 1L4 3L1 3Z")
    mask[:] = True
    mask[1, 2] = False
    mask[3, 4] = False
    assert outline_path(mask).count("M") == 2
    noise = np.random.default_rng(1).random((9, 8)) > 0.5
    for one in (mask, noise):
        assert area_of(outline_path(one)) == one.sum()


def test_the_style_of_the_page_is_installed_with_the_package():
    from medvol.report import html_page

    assert html_page.STYLE_FILE.is_file()
    assert Path(html_page.__file__).parent == html_page.STYLE_FILE.parent
