"""The numbers: each with its interval, beside the baseline, and with what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medvol.report.cautions import cautions
from medvol.report.html_charts import Axis, forest
from medvol.report.html_page import interval, note, number, paragraph, plural, table, text
from medvol.report.html_words import LOWER_IS_BETTER, metric_name, sentence, undefined

HEADLINES = ("auc", "accuracy", "sensitivity", "specificity", "dice", "hd95_mm", "nsd")
HEADLINES_OF_MANY = ("auc", "accuracy", "balanced_accuracy")
_SHARE = Axis("", 0.0, 1.0)


def headline(result: Mapping[str, Any]) -> str:
    """Return the cards at the top: how many, and the numbers that one looks for first."""
    about = f"of {plural(result['n_patients'], 'patient')}, {result['split']} split"
    cards = [(plural(result["n_cases"], "case"), about)]
    names = HEADLINES_OF_MANY if len(result.get("classes", ())) > 2 else HEADLINES
    for name in names:
        if name in result["metrics"]:
            entry = result["metrics"][name]
            low, high = (number(bound) for bound in entry["ci95"])
            cards.append((number(entry["value"]), f"{metric_name(name)[0]}, {low} to {high}"))
    inside = "".join(f'<div class="card"><b>{text(big)}</b><span>{text(small)}</span></div>' for big, small in cards)
    return f'<div class="cards">{inside}</div>'


def metrics(result: Mapping[str, Any]) -> str:
    """Return the chapter of the metrics that are of all classes or structures together."""
    structures = result.get("structures", ())
    overall = {name: entry for name, entry in result["metrics"].items() if not metric_name(name, structures)[1]}
    baseline = result.get("baseline") or {}
    body = note(*cautions(result))
    body += paragraph(
        "The interval is where the number would lie in 95 of 100 draws of as many patients from the same source: "
        "patients, not cases, are resampled. Another hospital may differ by more."
    )
    body += _metric_table(result, overall, baseline)
    if baseline:
        body += paragraph(f"Baseline: {baseline['name']}, which looks at no case.", "soft")
    if "image_value" in result:
        body += note(result["image_value"]["sentence"])
    return body + _comparisons(result)


def _metric_table(result: Mapping[str, Any], entries: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    beside = baseline.get("metrics", {})
    rows = []
    for metric, entry in entries.items():
        other = beside.get(metric, {}).get("value")
        low, high = entry["ci95"]
        small = "lower is better" if metric in LOWER_IS_BETTER else ""
        drawn = forest(entry["value"], (low, high), other, _SHARE) if metric != "hd95_mm" else ""
        cells = [
            f'<th scope="row" class="name">{text(metric_name(metric)[0])} <small>{small}</small></th>',
            f'<td class="n"><b>{number(entry["value"])}</b></td>',
            f"<td>{interval(entry['ci95'])}</td>",
            f'<td class="forest">{drawn}</td>',
            *([f'<td class="n">{number(other)}</td>'] if beside else []),
        ]
        says = sentence(metric, result) if entry["value"] is not None else undefined(metric)
        rows.append(f'<tr class="value">{"".join(cells)}</tr>')
        rows.append(f'<tr class="says"><td colspan="{len(cells)}"><p>{text(says)}</p></td></tr>')
    titles = ["Metric", "Value", "95 % interval", "", *(["Baseline"] if beside else [])]
    kinds = ["name", "n", "", "forest", "n"]
    columns = zip(titles, kinds, strict=False)
    head = "".join(f'<th scope="col" class="{kind}">{text(name)}</th>' for name, kind in columns)
    body = "".join(rows)
    return f'<div class="scroll"><table class="wide"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _comparisons(result: Mapping[str, Any]) -> str:
    """Return a table of other models on the same cases, with how much more the network has."""
    compared = result.get("comparisons", {})
    if not compared:
        return ""
    rows = []
    for name, other in compared.items():
        for metric, entry in other["metrics"].items():
            difference = other["difference"][metric]
            rows.append(
                [
                    text(name),
                    text(metric_name(metric)[0]),
                    number(entry["value"]),
                    interval(entry["ci95"]),
                    f"{_signed(difference['value'])} <small>({_signed(difference['ci95'][0])} to "
                    f"{_signed(difference['ci95'][1])})</small>",
                ]
            )
    says = "Other models on the same cases. An interval of the difference that holds 0 shows no difference."
    head = ["Model", "Metric", "Value", "95 % interval", "Network minus it"]
    return "<h3>Compared with</h3>" + table(head, rows, caption=says, numbers=(2,))


def _signed(value: Any) -> str:
    return f"{value:+.3f}" if isinstance(value, (int, float)) else "–"


def interval_cells(entries: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return `value (low to high)` as HTML for each of the named metrics; a dash for one that is not there."""
    cells = []
    for name in names:
        entry = entries.get(name)
        cells.append("–" if entry is None else f"{number(entry['value'])} <small>({interval(entry['ci95'])})</small>")
    return cells
