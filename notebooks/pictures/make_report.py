"""Draw report.png, the picture of a report in the README, from the output of `make demo`; needs Debian's chromium.

.venv/bin/python notebooks/pictures/make_report.py demo
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTH, HEIGHT = 1200, 4200
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")
COLOURS = 128  # of the saved picture: half the size of the exact one
TOPS = (0, 2060)
"""Where the two parts begin that are shown side by side: numbers and cases."""
COLUMN_WIDTH, COLUMN_HEIGHT = 540, 560


def main(demo):
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "page.png"
        where = (f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={taken}")
        page = (demo / "report.html").resolve().as_uri()
        subprocess.run([BROWSER, *OPTIONS, *where, page], check=True, capture_output=True)  # noqa: S603
        page = Image.open(taken).convert("RGB")
    gap = 16
    sheet = Image.new("RGB", (len(TOPS) * (COLUMN_WIDTH + gap) - gap, COLUMN_HEIGHT), "#d8dee6")
    for index, top in enumerate(TOPS):
        shown = page.crop((0, top, WIDTH, top + COLUMN_HEIGHT * WIDTH // COLUMN_WIDTH))
        small = shown.resize((COLUMN_WIDTH, COLUMN_HEIGHT), Image.Resampling.LANCZOS)
        sheet.paste(small, (index * (COLUMN_WIDTH + gap), 0))
    path = Path(__file__).with_name("report.png")
    sheet.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
