"""The frame of `report.html` and its parts: one file that asks nobody for anything.

The page holds its styles, charts (SVG) and pictures (data URIs), no script and no link to another host, and its content
security policy forbids both. Every text goes through `text`.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

FIRST_ROWS = 10
"""Rows of a long table that are shown before the reader asks for the others."""

STYLE_FILE = Path(__file__).with_name("html_page.css")


@dataclass(frozen=True)
class Section:
    """A chapter of the report.

    Args:
        title: Heading; also the word in the table of contents.
        body: HTML.
    """

    title: str
    body: str

    @property
    def anchor(self) -> str:
        """Name to link to."""
        return re.sub(r"[^a-z]+", "-", self.title.lower()).strip("-")


def text(value: object) -> str:
    """Return the value as text for HTML, in an element or a quoted attribute."""
    return html.escape(str(value), quote=True)


def page(title: str, head: str, sections: Sequence[Section], foot: str) -> str:
    """Return the whole document; sections without a body are left out.

    Args:
        title: Of the window, unescaped.
        head: HTML below the title.
        sections: Chapters.
        foot: HTML of the last lines.
    """
    shown = [section for section in sections if section.body]
    links = "".join(f'<a href="#{section.anchor}">{text(section.title)}</a>' for section in shown)
    chapters = "".join(
        f'<section id="{section.anchor}"><h2>{text(section.title)}</h2>{section.body}</section>\n' for section in shown
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE_FILE.read_text()}</style>\n</head>\n<body>\n"
        f'<header><h1>{text(title)}</h1>{head}<nav aria-label="Contents">{links}</nav></header>\n'
        f"<main>\n{chapters}</main>\n<footer>{foot}</footer>\n</body>\n</html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "", numbers: Sequence[int] = ()) -> str:
    """Return a table that scrolls by itself where the window is narrow.

    Args:
        head: Column titles, unescaped.
        rows: Cells as HTML; the first of each row is its heading.
        caption: Unescaped.
        numbers: Columns that are set flush right.
    """

    def kind(column: int) -> str:
        return "n" if column in numbers else "name" if column == 0 else ""

    titles = "".join(f'<th scope="col" class="{kind(i)}">{text(name)}</th>' for i, name in enumerate(head))
    lines = []
    for row in rows:
        cells = [f'<th scope="row" class="{kind(0)}">{row[0]}</th>']
        cells += [f'<td class="{kind(i)}">{cell}</td>' for i, cell in enumerate(row) if i]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    named = f"<caption>{text(caption)}</caption>" if caption else ""
    body = "".join(lines)
    return f'<div class="scroll"><table>{named}<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def long_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", numbers: Sequence[int] = ()
) -> str:
    """Return a table of which the first rows are shown and the others unfold."""
    if len(rows) <= 1.5 * FIRST_ROWS:
        return table(head, rows, caption=caption, numbers=numbers)
    first = table(head, rows[:FIRST_ROWS], caption=caption, numbers=numbers)
    rest = table(head, rows[FIRST_ROWS:], numbers=numbers)
    return f"{first}<details><summary>{len(rows) - FIRST_ROWS} more rows</summary>{rest}</details>"


def paragraph(words: str, kind: str = "") -> str:
    """Return a paragraph of unescaped text."""
    return f'<p class="{kind}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def note(*sentences: str) -> str:
    """Return a box of unescaped sentences that a reader must not miss; nothing without one."""
    inside = "".join(paragraph(sentence) for sentence in sentences)
    return f'<div class="note">{inside}</div>' if sentences else ""


def number(value: object, digits: int = 3) -> str:
    """Return a number as text; a dash where it is not defined."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}"


def interval(bounds: Sequence[object], digits: int = 3) -> str:
    """Return `low to high`, HTML that is not broken over lines."""
    return f'<span class="whole">{number(bounds[0], digits)} to {number(bounds[1], digits)}</span>'


def plural(count: int, word: str) -> str:
    """Return `1 case` or `12 cases`."""
    return f"{count:,} {word}" + ("" if count == 1 else "s")
