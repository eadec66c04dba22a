"""One HTML file that opens by a double click: tables, figures, and every trace.

The tables and figures are plain HTML and SVG; only the browser of traces needs the page's script.
Nothing is fetched: the page forbids itself all connections.
"""

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lag.evaluation import tables
from lag.evaluation.columns import TABLES, Column, Table, percent
from lag.evaluation.compare import Difference
from lag.evaluation.curve_figure import CURVE, HEAD, Curves
from lag.evaluation.figures import FIGURES, inline_svg
from lag.evaluation.intervals import LEVEL, Estimate
from lag.evaluation.results import IDENTITY, Evaluator, Result
from lag.evaluation.scores import by_number
from lag.files import write_text
from lag.report.page_data import bundle

ASSETS = Path(__file__).parent
HOLE = re.compile(r"\{\{(\w+)\}\}")
# What stands beneath a table or a figure, which bring their own titles.
# fmt: off
CAPTIONS = {
    "scores": "Percent of all questions asked, with intervals; the best run of a column stands out.",
    "differences": "Each run minus its baseline on the questions that both were asked; gained and lost count answers that became right, or no longer are.",
    "changes": "Questions whose state is another one than in the baseline; a number opens them below.",
    "cost": "Means per question that has a row. Of a prompt's tokens the cached came from stored KV, the reused were left from an earlier prompt, the prefilled were computed. Of the new tokens the accepted were drafted, and only checked.",
    "support": "Percent, over the questions whose supporting documents are known; @k: of the first k that entered.",
    "settings": "What the runs were told, as far as they differ.",
    "groups": "Exact match in percent; n: how many questions the group has.",
    "figure curve": "Of runs whose store grew, window by window: a band is that of the mean over orders, at 95 %.",
    "curve": "Means per question of the whole stream. Writing is what it took to embed, store and make the KV of logs, or to train; from the break-even question on a run has cost no more seconds than the one without logs.",
    "figure steps": "Exact match if every question were cut off after so many steps.",
    "figure cost": "A run's exact match with its interval, over what a question costs it; up and left is better.",
    "figure flips": "Questions that became right, and that no longer are, by the state before or after.",
}
# fmt: on
SHOWN_GROUPS = 40  # rows of a table of groups; more would bury the page


def escape(value: Any) -> str:
    return html.escape(str(value))


def cell(text: str, kind: str = "", hint: str = "") -> str:
    """A table cell; `hint` stands behind it, smaller. The text may be HTML, so escape it first."""
    small = f" <small>{hint}</small>" if hint else ""
    return f"<td{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{text}{small}</td>"


def table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], label: str) -> str:
    """A table in a box that scrolls; every row begins with its heading."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row" title="{escape(name)}">{escape(name)}</th>{"".join(cells)}</tr>'
        for name, cells in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def captioned(name: str, shown: str) -> str:
    """A table or a drawing with what it shows beneath it; nothing stays nothing."""
    said = f"<figcaption>{escape(CAPTIONS[name])}</figcaption>"
    return f"<figure>{shown}{said}</figure>" if shown else ""


def run_table(kind: Table, same: Sequence[Result]) -> str:
    """One of the tables of runs; "" if no run has a row in it."""
    columns = kind.columns(same)
    shown = [result for result in same if kind.has(result)]
    best = {column: best_of(column, shown) for column in columns}
    rows = [(r.run.name, [run_cell(c, r, best[c]) for c in columns]) for r in shown]
    head = ["run", *(column.name for column in columns)]
    whole = f"<h3>{kind.title}</h3>{table(head, rows, kind.title)}" if rows else ""
    return captioned(kind.name, whole)


def best_of(column: Column, results: Sequence[Result]) -> float:
    """The highest value, if more is better and it is not a difference; else 0: none stands out."""
    if column.better < 1 or not results or isinstance(column.value(results[0]), Difference):
        return 0
    return max(map(mean_of, map(column.value, results)))


def mean_of(value: Any) -> Any:
    return value.value if isinstance(value, Estimate) else value


def run_cell(column: Column, result: Result, best: float) -> str:
    """A cell: the best score stands out, so do failures, and differences whose interval leaves out 0."""
    value, shown = column.value(result), column.cell(result)
    kind = "best" if mean_of(value) == best != 0 else ""
    if isinstance(value, Difference):
        kind = direction(value, column.better)
    elif column.better < 0 and value:
        kind = "alarm"
    return cell(escape(shown.text), kind, escape(shown.hint))


def direction(found: Difference, better: int) -> str:
    """`up` or `down` where the interval leaves out zero, else ""; fewer steps are better."""
    if found.interval is None:
        return ""
    low, high = sorted((better * found.interval.low, better * found.interval.high))
    return "up" if low > 0 else "down" if high < 0 else ""


def flips_table(same: Sequence[Result], number: int) -> str:
    """Changes of state with links to their questions; "" if nothing is compared."""
    compared = [result for result in same if result.comparison and result.comparison.flips]
    changes = list(dict.fromkeys(c for result in compared for c in result.comparison.flips))
    if not changes:
        return ""
    rows = [(r.run.name, [flip_cell(r, number, change) for change in changes]) for r in compared]
    head = ["from baseline to run", *(change.replace(" > ", " to ") for change in changes)]
    return "<h3>What changed</h3>" + table(head, rows, "Flips")


def flip_cell(result: Result, number: int, change: str) -> str:
    count = len(result.comparison.flips.get(change, ()))
    if not count:
        return cell("0")
    view = {"split": number, "left": result.comparison.baseline, "right": result.run.name}
    return cell(f'<a href="#{escape(urlencode(view | {"flip": change}))}">{count}</a>')


def settings_table(same: Sequence[Result]) -> str:
    """What the runs were told, as far as they differ in it: controls, gates, own logs, models."""
    metas = [result.meta() for result in same]
    names = [name for name in IDENTITY if name != "mode"]
    differ = [n for n in names if len({str(meta[n]) for meta in metas if n in meta}) > 1]
    if not differ:
        return ""
    rows = [(meta["run"], [cell(escape(meta.get(name, "–"))) for name in differ]) for meta in metas]
    head = ["run", *(name.replace("_", " ") for name in differ)]
    return "<h3>Settings that differ</h3>" + table(head, rows, "Settings")


def notes(same: Sequence[Result]) -> str:
    lines = tables.notes(same)
    items = "".join(
        f"<li{' class=warning' if ': warning: ' in line else ''}>"
        f"{escape(line.replace(': warning: ', ': ', 1))}</li>"
        for line in lines
    )
    return f'<ul class="notes">{items}</ul>' if items else ""


def groups_section(same: Sequence[Result]) -> str:
    """A table per group, folded: exact match and size, run by run."""
    grouped = {result.run.name: result.evaluation.groups for result in same}
    names = list(dict.fromkeys(name for groups in grouped.values() for name in groups))
    titles = {"logs": "number of logs that entered", "similarity": "similarity of the best log"}
    return "".join(group_table(name, titles.get(name, name), grouped) for name in names)


def group_table(name: str, label: str, grouped: dict[str, Any]) -> str:
    values = sorted({v for groups in grouped.values() for v in groups.get(name, {})}, key=by_number)
    if not values or values in (["none"], ["0"]):
        return ""
    shown = values[:SHOWN_GROUPS]
    rows = []
    for run, groups in grouped.items():
        found = [groups.get(name, {}).get(value) for value in shown]
        cells = [cell(percent(f["em"]), hint=f"n {f['count']}") if f else cell("") for f in found]
        rows.append((run, cells))
    rest = f" (the first {len(shown)} of {len(values)})" if len(values) > len(shown) else ""
    return (
        f'<details class="groups"><summary>By {escape(label)}{rest}</summary>'
        f"{captioned('groups', table(['run', *shown], rows, label))}</details>"
    )


def figures_section(same: Sequence[Result], number: int) -> str:
    drawn = []
    for figure in FIGURES:
        if rows := figure.rows(same):
            svg = inline_svg(figure, rows, f"{figure.name}{number}")
            drawn.append(captioned(f"figure {figure.name}", svg))
    return f'<div class="figures">{"".join(drawn)}</div>'


def section(same: Sequence[Result], number: int) -> str:
    """All of one split but its traces."""
    scores, differences, *others = (run_table(kind, same) for kind in TABLES)
    parts = [
        scores, differences, notes(same), figures_section(same, number),
        captioned("changes", flips_table(same, number)), *others,
        captioned("settings", settings_table(same)), groups_section(same),
    ]  # fmt: skip
    return f'<section id="part-{number}"><h2>{escape(tables.title(same[0]))}</h2>{"".join(parts)}</section>'


def curves_section(results: Sequence[Result], data: Path) -> str:
    """What stores that grew brought and cost; "" if none did."""
    shown = ""
    for one in Curves.all_of(results, data):
        rows = [(row[0], [cell(escape(text)) for text in row[1:]]) for row in one.cells()]
        name = f"Learning curves: {one.dataset}"
        svg = inline_svg(CURVE, one.rows, f"curve-{one.dataset}")
        shown += f"<h2>{escape(name)}</h2>" + captioned("figure curve", svg)
        shown += captioned("curve", table(HEAD, rows, name))
    return f'<section id="curves">{shown}</section>' if shown else ""


def lede(results: Sequence[Result]) -> str:
    """What a reader must know to read the numbers."""
    models = sorted({str(r.run.meta.get("model") or "") for r in results} - {""})
    ran = f"Model: {', '.join(models)}. " if models else ""
    return escape(
        f"{ran}Scores are percent of all questions asked: unanswered, failed and missing ones count "
        f"as wrong. Small figures are {LEVEL} % intervals from a seeded paired bootstrap over "
        "clusters of questions that share a sub-question; a difference is coloured where its "
        "interval leaves out zero. p is that of an exact sign-flip permutation test over the same "
        "clusters."
    )


def page(results: Sequence[Result], evaluator: Evaluator, unredacted: bool) -> str:
    """The whole report as HTML."""
    groups = tables.blocks(results)
    packed = bundle(results, evaluator, unredacted)
    pieces = "\n".join(
        f'<script type="text/plain" id="piece-{name}">{text}</script>'
        for name, text in packed.pieces.items()
    )
    links = [(f"part-{n}", tables.title(g[0]).split(",")[0]) for n, g in enumerate(groups)]
    curves = curves_section(results, evaluator.catalogue.data)
    links += [("curves", "Learning curves")] * bool(curves)
    links.append(("traces", "Traces"))
    datasets = ", ".join(dict.fromkeys(same[0].run.dataset for same in groups))
    fills = {
        "title": escape(f"{datasets}: runs compared"),
        "heading": escape(f"{datasets}: {len(results)} runs compared"),
        "lede": lede(results),
        "nav": "".join(f'<a href="#{a}">{escape(t)}</a>' for a, t in links),
        "sections": "\n".join(section(same, n) for n, same in enumerate(groups)) + curves,
        "cut": escape(packed.note),
        "footer": f"{sum(len(r.evaluation.outcomes) for r in results):,} rows; made by evaluate.py",
        "pieces": pieces,
        "style": asset("page.css"),
        "script": asset("page.js"),
    }
    return HOLE.sub(lambda hole: fills[hole[1]], asset("page.html"))


def asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def write_report(
    path: Path, results: Sequence[Result], evaluator: Evaluator, *, unredacted: bool
) -> None:
    """Write the report; half a character, which no file can hold, becomes a mark.

    unredacted: show the texts of gated data sets too.
    """
    write_text(path, page(results, evaluator, unredacted).encode(errors="replace").decode())
