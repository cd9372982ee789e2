"""The report in a real browser: no complaint, no request, nothing that runs out of a narrow window."""

import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from medvol.inference.collect import Predictions
from medvol.phantoms.grid import oblique_affine
from medvol.report.classification import EvaluatedSplit, write_evaluation
from medvol.report.html_pictures import CasePicture
from medvol.report.html_report import Shown, write_html_report
from medvol.report.html_structures import segmented_pictures
from medvol.report.segmentation import write_evaluation as write_segmentation
from medvol.report.segmented_cases import SegmentedCases
from medvol.report.views import View
from medvol.training.handlers import write_history

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
NARROW, WIDE = 400, 1400
NAME = "a-long-name-without-a-single-blank"
LONG = NAME * 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Debian's chromium: apt-get install chromium"),
]


def record(folder):
    return {
        "command": f"python -m monai.bundle run --config_file {LONG}",
        "config": {},
        "versions": {"python": "3.11"},
        "machine": {"processor": LONG},
        "outputs": {str(folder / LONG): "ab" * 32},
    }


def classification(folder):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    logits = rng.normal(size=(60, 3)) + 1.2 * np.eye(3)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    cases = (LONG, *(f"c{index}" for index in range(1, 60)))
    found = Predictions(cases, cases, logits, probabilities, labels)
    classes = ("healthy", NAME, "sick")
    write_evaluation(folder, found, EvaluatedSplit("demo_classification", "test", classes, (0, 1, 2)))
    write_history(folder / "history.csv", [{"epoch": n, "train_loss": 1 / n, "auc": 0.5 + n / 9} for n in (1, 2, 3)])
    grey = rng.integers(0, 256, (40, 30), dtype=np.uint8)
    view = View("axial", grey, np.zeros_like(grey), np.zeros_like(grey), 2.0, 1.0, "RLAP")
    picture = CasePicture("worst", LONG, LONG, (view,) * 3, (grey / 255,) * 3, LONG)
    return write_html_report(folder, record(folder), Shown(pictures=[picture] * 2))


def segmentation(folder):
    rng = np.random.default_rng(0)
    cases = SegmentedCases({"liver": 1, NAME: 2})
    truth = np.zeros((17, 18, 19), np.uint8)
    truth[3:9, 2:9, 4:12], truth[11:15, 4:11, 5:11] = 1, 2
    for index in range(4):
        image, found = rng.normal(size=truth.shape) + truth, np.roll(truth, index, axis=1)
        cases.add(f"c{index}", f"p{index}", image, found, truth, oblique_affine(truth.shape), output=f"{LONG}.nii.gz")
    write_segmentation(folder, cases, bundle="demo_segmentation", split="test")
    return write_html_report(folder, record(folder), Shown(segmented_pictures(cases), structures=cases.structures))


@pytest.fixture(scope="module", params=[classification, segmentation], ids=["classification", "segmentation"])
def report(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp(request.param.__name__))


def browse(path, folder, *options):
    """Return what the browser writes to its output and what it logs, of a page opened with an empty profile."""
    profile = folder / "profile"
    command = [BROWSER, *OPTIONS, f"--user-data-dir={profile}", *options, path.as_uri()]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, cwd=folder)
    return done.stdout, done.stderr


def complaints(log):
    """Return what pages wrote to the console, violations of their policy too."""
    return [line for line in log.splitlines() if "CONSOLE" in line]


def framed(path, folder, width):
    """Return a page that shows a copy of the report at a width and says in its title how wide the copy wants to be.

    The copy gives up its policy for the script that measures it: the report itself allows none.
    """
    measure = "<script>parent.postMessage(document.documentElement.scrollWidth,'*')</script>"
    document = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text()).replace("</body>", measure + "</body>")
    (folder / "copy.html").write_text(document)
    page = folder / "frame.html"
    page.write_text(
        "<title>none</title><script>onmessage=message=>document.title='width '+message.data</script>"
        f'<iframe src="copy.html" style="width:{width}px;height:900px;border:0"></iframe>'
    )
    return page


def test_the_console_stays_empty_and_the_page_is_painted(report, tmp_path):
    picture = tmp_path / "report.png"
    options = (f"--window-size={WIDE},1200", f"--screenshot={picture}", "--enable-logging=stderr", "--v=0")
    _, log = browse(report, tmp_path, *options)
    assert not complaints(log)
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (1200, WIDE)
    assert pixels.std() > 10


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_nothing_runs_out_of_the_window(report, tmp_path, width):
    page = framed(report, tmp_path, width)
    document, _ = browse(page, tmp_path, f"--window-size={WIDE},1200", "--virtual-time-budget=5000", "--dump-dom")
    assert f"<title>width {width}</title>" in document


def test_a_request_that_someone_smuggles_in_is_stopped_and_complained_of(tmp_path):
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    path = classification(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        smuggled = (
            f'<img src="http://127.0.0.1:{server.server_port}/x.png"><script>document.title="ran"</script></body>'
        )
        path.write_text(path.read_text().replace("</body>", smuggled))
        document, log = browse(path, tmp_path, "--enable-logging=stderr", "--v=0", "--dump-dom")
        server.shutdown()
    assert not asked
    assert len(complaints(log)) >= 2
    assert "<title>ran" not in document
