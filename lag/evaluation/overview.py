"""One row per run with all that it is judged by, as a file: for papers, READMEs and other programs.

A table is a list of columns. Where a column has an interval, people read `12.3 [10.0, 14.6]`, and
programs find both bounds in columns of their own.
"""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from lag.evaluation import tables
from lag.evaluation.compare import STEPS, Difference, Interval
from lag.evaluation.results import Result
from lag.files import write_text

SPECIAL = re.compile(r"[&%$#_{}~^\\]")  # what LaTeX reads as commands
NAMED = {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
TEXTS = ("solver", "run", "from")  # stand to the left, numbers to the right
Rows = Sequence[Result]


def nothing(result: Result) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    value: a text or a number, None where there is none. interval: bounds beside the value.
    spell: how people read a value; None leaves the column to programs.
    """

    name: str
    value: Callable[[Result], Any]
    spell: Callable[[Any], str] | None = str
    interval: Callable[[Result], Interval | None] = nothing

    @property
    def bounded(self) -> bool:
        return self.interval is not nothing

    def cell(self, result: Result) -> str:
        """What people read; "" where there is nothing to say."""
        value, bounds = self.value(result), self.interval(result)
        if value is None or self.spell is None:
            return ""
        between = f" [{self.spell(bounds.low)}, {self.spell(bounds.high)}]" if bounds else ""
        return self.spell(value) + between

    def fields(self, result: Result) -> dict[str, Any]:
        """What programs read: the value as it is, then its bounds."""
        found = {self.name: self.value(result)}
        if self.bounded:
            bounds = self.interval(result)
            found[f"{self.name} low"] = bounds and bounds.low
            found[f"{self.name} high"] = bounds and bounds.high
        return found


def scored(name: str, metric: str) -> Column:
    """A score with the interval of its mean."""
    return Column(
        name,
        lambda r: r.evaluation.metrics[metric],
        tables.percent,
        lambda r: r.intervals[metric],
    )


def against(name: str, metric: str) -> Column:
    """The difference to the run's baseline; nothing of a baseline, or where none was finished."""

    def found(result: Result) -> Difference | None:
        difference = result.comparison and result.comparison.differences[metric]
        return difference if difference and difference.count else None

    return Column(
        name,
        lambda r: (difference := found(r)) and difference.value,
        tables.spelling(metric),
        lambda r: (difference := found(r)) and difference.interval,
    )


def costing(name: str, key: str, spell: Callable[[Any], str] = tables.amount) -> Column:
    """A mean per question."""
    return Column(name, lambda r: r.evaluation.cost[key], spell)


def seconds(result: Result) -> float:
    return result.evaluation.cost["seconds"]["all"]


# fmt: off
COLUMNS = (
    Column("dataset", lambda r: r.run.dataset, None),
    Column("split", lambda r: r.run.split, None),
    Column("mode", lambda r: r.run.mode, None),
    Column("solver", lambda r: r.run.solver),
    Column("run", lambda r: r.run.name),
    Column("from", lambda r: r.comparison and r.comparison.baseline),
    Column("n", lambda r: r.evaluation.metrics["count"]),
    scored("EM", "em"),
    against("EM difference", "em"),
    scored("F1", "f1"),
    against("F1 difference", "f1"),
    Column("answer rate", lambda r: r.evaluation.metrics["answer_rate"], tables.percent),
    costing("steps", "steps", "{:.2f}".format),
    against("steps difference", STEPS),
    costing("prefilled tokens", "prefilled_tokens"),
    costing("cached tokens", "cached_tokens"),
    costing("reused tokens", "reused_tokens", None),
    costing("new tokens", "new_tokens"),
    Column("seconds", seconds, "{:.2f}".format),
)
# fmt: on


def shown(results: Rows) -> list[Column]:
    """The columns for people; of multiple choice accuracy is the only score."""
    readable = [column for column in COLUMNS if column.spell]
    if results[0].evaluation.scorer != "choice":
        return readable
    named = (replace(column, name=column.name.replace("EM", "accuracy")) for column in readable)
    return [column for column in named if not column.name.startswith("F1")]


def cells(results: Rows) -> list[list[str]]:
    """The heading, then a line per run."""
    columns = shown(results)
    rows = [[column.cell(result) for column in columns] for result in results]
    return [[column.name for column in columns], *rows]


def blocks(results: Rows) -> list[list[Result]]:
    """Results of one data set and split stand together."""
    return [list(g) for _, g in groupby(results, key=lambda r: (r.run.dataset, r.run.split))]


def as_csv(results: Rows) -> str:
    """All runs in one table: fractions, not percent; an empty field where there is nothing."""
    rows = [
        {key: value for column in COLUMNS for key, value in column.fields(result).items()}
        for result in results
    ]
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def markdown_row(row: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def markdown_block(results: Rows) -> str:
    head, *rows = cells(results)
    rule = ["---" if name in TEXTS else "---:" for name in head]
    lines = map(markdown_row, [head, rule, *rows])
    return "\n".join([tables.title(results[0]), "", *lines]) + "\n"


def as_markdown(results: Rows) -> str:
    return "\n".join(map(markdown_block, blocks(results)))


def latex_row(row: Sequence[str]) -> str:
    return " & ".join(SPECIAL.sub(escaped, cell) for cell in row) + r" \\"


def escaped(found: re.Match[str]) -> str:
    return NAMED.get(found[0], "\\" + found[0])


def latex_block(results: Rows) -> str:
    head, *rows = cells(results)
    sides = "".join("l" if name in TEXTS else "r" for name in head)
    lines = [
        f"% {tables.title(results[0])}", rf"\begin{{tabular}}{{{sides}}}", r"\toprule",
        latex_row(head), r"\midrule", *map(latex_row, rows), r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def as_latex(results: Rows) -> str:
    """Tables for the package booktabs."""
    return "\n".join(map(latex_block, blocks(results)))


FORMATS = {".csv": as_csv, ".md": as_markdown, ".tex": as_latex}


def write_overview(path: Path, results: Rows) -> None:
    """Write the table in the format that the name of the file ends in."""
    write_text(path, FORMATS[path.suffix](results))
