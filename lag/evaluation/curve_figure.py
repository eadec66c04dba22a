"""Learning curves as a drawing, as CSV, and as a table for people."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lag.evaluation.figures import DASHES, MARKERS, PNG, Figure, Theme, rendered
from lag.evaluation.learning_curve import curve_rows, streams, summaries
from lag.evaluation.results import UNSAFE, Result
from lag.evaluation.tables import aligned
from lag.files import write_bytes, write_text
from lag.json_checks import Row
from lag.tasks import SPLITS

PANELS = {"em": "exact match, %", "steps": "steps", "whole": "seconds, with writing"}


def draw(rows: Sequence[Row], theme: Theme) -> Any:
    """Window by window: a panel per metric, a line per run, a band where orders are enough."""
    from matplotlib.figure import Figure as Drawing

    runs = list(dict.fromkeys(row["run"] for row in rows))
    height = 2.6 + 0.18 * ((len(runs) + 1) // 2)
    drawn = Drawing(figsize=(9.0, height), layout="constrained")
    for axes, (metric, label) in zip(drawn.subplots(1, len(PANELS)), PANELS.items()):
        scale = 100 if metric == "em" else 1
        for n, run in enumerate(runs):
            points = [
                row
                for row in rows
                if (row["run"], row["span"], row["metric"]) == (run, "window", metric)
            ]
            seen, colour = [row["seen"] for row in points], theme.runs[n % len(theme.runs)]
            style = DASHES[n // len(theme.runs) % len(DASHES)]
            marker = MARKERS[n % len(MARKERS)]
            values = [scale * row["value"] for row in points]
            axes.plot(seen, values, style, color=colour, marker=marker, label=run)
            if points and points[0]["low"] is not None:
                low, high = ([scale * row[end] for row in points] for end in ("low", "high"))
                axes.fill_between(seen, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="questions seen", ylabel=label)
    drawn.suptitle("Learning curves", x=0.02, ha="left")
    handles = axes.get_legend_handles_labels()
    drawn.legend(*handles, loc="outside lower center", ncols=2)
    return drawn


CURVE = Figure(
    "curve", lambda results: [], draw, "Exact match, steps and seconds by questions seen"
)


def told_break_even(row: Row) -> str:
    """The break-even question of each order, as people read it."""
    found = [value for value in row["break_even"] if value]
    if not row["break_even"]:
        return ""
    if not found:
        return "not reached"
    missing = len(row["break_even"]) - len(found)
    low, high = min(found), max(found)
    told = str(low) if low == high else f"{low} to {high}"
    return told + (
        f" ({missing} of {len(row['break_even'])} orders: not reached)" if missing else ""
    )


def datasets_of(results: Sequence[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        if result.run.split in SPLITS:
            found.setdefault(result.run.dataset, []).append(result)
    return found


HEAD = (
    *("stream", "orders", "questions", "EM", "F1", "steps", "computed tokens", "seconds"),
    *("writing", "break-even question", "note"),
)


@dataclass(frozen=True, slots=True)
class Curves:
    """The streams of one data set in numbers."""

    dataset: str
    rows: list[Row]
    summaries: list[Row]

    @classmethod
    def all_of(cls, results: Sequence[Result], data: Path) -> "list[Curves]":
        """Of every data set that has a run that grew."""
        every = ((name, streams(same, data)) for name, same in datasets_of(results).items())
        return [cls(name, curve_rows(found), summaries(found)) for name, found in every if found]

    def write(self, folder: Path) -> list[str]:
        """The numbers as CSV, the drawing as PNG; returns their paths."""
        stem = UNSAFE.sub("-", f"{self.dataset}_curve")
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, self.rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        write_text(folder / f"{stem}.csv", text.getvalue())
        write_bytes(folder / f"{stem}.png", rendered(CURVE, self.rows, PNG, "png", stem))
        return [str(folder / f"{stem}.{kind}") for kind in ("csv", "png")]

    def __str__(self) -> str:
        return f"\n{self.dataset}\n{aligned(HEAD, self.cells())}\n"

    def cells(self) -> list[list[str]]:
        """The summary as people read it; `HEAD` stands over it."""
        return [
            [
                row["run"],
                str(row["orders"]),
                str(row["questions"]),
                f"{100 * row['em']:.1f}",
                f"{100 * row['f1']:.1f}",
                f"{row['steps']:.2f}",
                f"{row['tokens']:.0f}",
                f"{row['seconds']:.3f}",
                f"{row['writing']:.3f}",
                told_break_even(row),
                row["note"],
            ]
            for row in self.summaries
        ]
