"""Learning curves: what a store that grows brings and costs, against the questions seen so far.

A stream is one run in one order. Runs that do not grow are put into the same orders, so that every
difference is one between the same questions at the same place. What is spent on writing logs
counts, and the break-even question is the one from which on a run has cost less than its baseline.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lag.evaluation.compare import is_plain
from lag.evaluation.envelope import read_manifest
from lag.evaluation.results import Result
from lag.evaluation.scores import Outcome
from lag.files import read_json
from lag.json_checks import Row, mapping
from lag.logs.versions import LogVersions
from lag.paths import ADAPTER_FACTS, Paths
from lag.records import Trace

WINDOWS = 10  # into which a stream is cut
ORDERS = 5  # that a band needs
# Student's t at 97.5 % by degrees of freedom from 1; what is above takes the last.
T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
METRICS = ("em", "f1", "steps", "tokens", "seconds", "writing", "whole")
ORDER = re.compile(r"_o(\d+)(?=_|$)")
FROM = re.compile(r"_from\d+(?=_|$)")  # a run that answers the stream from a question on
Key = tuple[str, str]  # split and id


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of a stream.

    logs: how many there were to retrieve from.
    writing: seconds that its share of the next version took: embed, make KV, store, or train.
    """

    outcome: Outcome
    logs: int = 0
    writing: float = 0.0

    @property
    def values(self) -> dict[str, float]:
        """By metric; `whole` is `seconds` with `writing`, `tokens` are those that were computed."""
        cost, scores = (self.outcome.trace or Trace("", "")).cost, self.outcome.scores
        seconds, spared = (
            sum(cost["seconds"].values()),
            cost["cached_tokens"] + cost["reused_tokens"],
        )
        return {
            "em": scores["em"],
            "f1": scores["f1"],
            "steps": self.outcome.num_steps,
            "tokens": cost["prompt_tokens"] - spared + cost["new_tokens"],
            "seconds": seconds,
            "writing": self.writing,
            "whole": seconds + self.writing,
        }


@dataclass(frozen=True)
class Stream:
    """One run in one order.

    order: its seed, and what was asked in it. borrowed: questions that the baseline answers here,
    because the run begins later.
    """

    label: str
    order: tuple[str, tuple[Key, ...]]
    asked: tuple[Asked, ...]
    plain: bool = False
    borrowed: int = 0

    @cached_property
    def values(self) -> list[dict[str, float]]:
        return [asked.values for asked in self.asked]

    def mean(self, metric: str, first: int = 0, end: int | None = None) -> float:
        return fmean(row[metric] for row in self.values[first:end])


@dataclass(slots=True)
class RunParts:
    """One run name over its splits, and what it wrote."""

    name: str
    splits: dict[str, Result] = field(default_factory=dict)

    @property
    def first(self) -> Result:
        return next(iter(self.splits.values()))

    @property
    def grows(self) -> bool:
        return bool(self.first.run.meta.get("grow"))

    @property
    def outcomes(self) -> dict[Key, Outcome]:
        return {
            (split, id): outcome
            for split, result in self.splits.items()
            for id, outcome in result.evaluation.outcomes.items()
        }


def run_parts(results: Sequence[Result]) -> list[RunParts]:
    """Runs of one data set by the name of their folder, their splits together."""
    found: dict[str, RunParts] = {}
    for result in results:
        name = result.run.folder.name
        found.setdefault(name, RunParts(name)).splits[result.run.split] = result
    return list(found.values())


def grown_stream(parts: RunParts, data: Path) -> Stream | None:
    """The stream of a run that grows, as its store tells it; None if the store is gone."""
    result, outcomes = parts.first, parts.outcomes
    folder = Paths(data, result.run.dataset).grown(parts.name).parent
    found: list[tuple[int, Key, Asked]] = []
    for path in sorted(folder.glob("store*.jsonl")):
        store, place = LogVersions(path), 0
        for version in store.versions[1:]:
            store.show(version.number - 1)
            writing = sum(version.seconds.values()) / len(version.asked)
            for id in version.asked:
                outcome = outcomes.get((version.split, id))
                if outcome:
                    asked = Asked(outcome, len(store), writing)
                    found.append((place, (version.split, id), asked))
                place += 1
    found.sort(key=lambda one: one[0])  # of partitions, which answer at once
    if not found:
        return None
    order = str(result.run.meta.get("order_seed")), tuple(key for _, key, _ in found)
    return Stream(label_of(parts.name), order, tuple(asked for *_, asked in found))


def label_of(name: str) -> str:
    """What the runs of several orders, and from several questions on, have in common."""
    return FROM.sub("", ORDER.sub("", name))


def placed(
    label: str,
    group: Sequence[RunParts],
    order: tuple[str, tuple[Key, ...]],
    plain: Stream | None,
    is_plain: bool = False,
) -> Stream | None:
    """Runs that do not grow in an order; what they were not asked yet the baseline answers.

    None where some of the order's questions have no row in it.
    """
    known: dict[Key, Asked] = {}
    for parts in group:
        named, trained = ORDER.search(parts.name), training(parts.first)
        if named and named[1] != order[0]:
            continue
        share = {key: o for key, o in parts.outcomes.items() if o.state != "missing"}
        known |= {key: Asked(o, 0, trained / len(share)) for key, o in share.items()}
    begun_later = any(FROM.search(parts.name) for parts in group)
    others = dict(zip(plain.order[1], plain.asked)) if plain and begun_later else {}
    asked = [known.get(key) or others.get(key) for key in order[1]]
    if not known or not all(asked):
        return None
    borrowed = sum(key not in known for key in order[1])
    return Stream(label, order, tuple(asked), is_plain, borrowed)


def training(result: Result) -> float:
    """Seconds that the training of a run's adapter took, 0 where it has none."""
    folder = read_manifest(result.run.folder / "run.json")["flags"].get("adapter")
    path = Path(str(folder)) / ADAPTER_FACTS
    if not folder or not path.is_file():
        return 0.0
    return float(mapping(mapping(read_json(path)).get("result")).get("seconds") or 0.0)


def streams(results: Sequence[Result], data: Path) -> list[Stream]:
    """All runs of one data set as streams; those without logs first, in every order there is."""
    every = run_parts(results)
    grown = [s for parts in every if parts.grows and (s := grown_stream(parts, data))]
    orders = list(dict.fromkeys(stream.order for stream in grown))
    groups: dict[str, list[RunParts]] = {}
    for parts in every:
        if not parts.grows:
            groups.setdefault(label_of(parts.name), []).append(parts)
    whole = [n for n, g in groups.items() if not any(FROM.search(parts.name) for parts in g)]
    plain = [name for name in whole if is_plain(groups[name][0].first.run)]
    base = min(plain, key=len, default="")
    found: list[Stream] = []
    for order in orders:
        first = placed(base, groups[base], order, None, True) if base else None
        rest = (placed(n, g, order, first) for n, g in groups.items() if n != base)
        found += [stream for stream in (first, *rest) if stream]
    return found + grown


@dataclass(frozen=True, slots=True)
class Band:
    """A mean over orders with its band at 95 %; no band for fewer orders than it needs."""

    value: float
    low: float | None = None
    high: float | None = None


def band(values: Sequence[float]) -> Band:
    """Source: Student 1908; the orders are the sample, the questions are the same in all."""
    mean = fmean(values)
    if len(values) < ORDERS:
        return Band(mean)
    half = T[min(len(values) - 1, len(T)) - 1] * stdev(values) / len(values) ** 0.5
    return Band(mean, mean - half, mean + half)


def ends_of(total: int, window: int = 0) -> list[int]:
    """Where windows end; the last one may be shorter."""
    window = window or max(1, round(total / WINDOWS))
    return [*range(window, total, window), total]


def by_label(found: Sequence[Stream]) -> dict[str, list[Stream]]:
    groups: dict[str, list[Stream]] = {}
    for stream in found:
        groups.setdefault(stream.label, []).append(stream)
    return groups


def curve_rows(found: Sequence[Stream], window: int = 0) -> list[Row]:
    """A row per run, span, place and metric: its mean over orders, and its change to the baseline.

    span: `window`, or `all` from the first question on. The change is paired: order by order.
    """
    plain = {stream.order: stream for stream in found if stream.plain}
    rows = []
    for group in by_label(found).values():
        ends = ends_of(min(len(stream.asked) for stream in group), window)
        for start, end in zip([0, *ends], ends):
            for span, first in (("window", start), ("all", 0)):
                rows += [curve_row(group, plain, span, first, end, name) for name in METRICS]
    return rows


def curve_row(
    group: Sequence[Stream], plain: dict[Any, Stream], span: str, first: int, end: int, metric: str
) -> Row:
    mean = band([stream.mean(metric, first, end) for stream in group])
    changes = [
        stream.mean(metric, first, end) - plain[stream.order].mean(metric, first, end)
        for stream in group
        if stream.order in plain and not stream.plain
    ]
    change = band(changes) if changes else None
    return {
        "run": group[0].label,
        "span": span,
        "seen": end,
        "logs": fmean(stream.asked[end - 1].logs for stream in group),
        "metric": metric,
        "orders": len(group),
        "value": mean.value,
        "low": mean.low,
        "high": mean.high,
        "change": change and change.value,
        "change low": change and change.low,
        "change high": change and change.high,
    }


def break_even(stream: Stream, plain: Stream) -> int | None:
    """The question, from 1, from which on a run has cost no more seconds than its baseline, writing
    included; None if it never has by the end.
    """
    total, since = 0.0, None
    for place, (own, other) in enumerate(zip(stream.values, plain.values), 1):
        total += own["whole"] - other["whole"]
        since = (since or place) if total <= 0 else None
    return since


def summaries(found: Sequence[Stream]) -> list[Row]:
    """A row per run: what a question cost, and when it had paid for itself, order by order."""
    plain = {stream.order: stream for stream in found if stream.plain}
    rows = []
    for label, group in by_label(found).items():
        pairs = [(s, plain[s.order]) for s in group if s.order in plain and not s.plain]
        means = {metric: fmean(stream.mean(metric) for stream in group) for metric in METRICS}
        rows.append(
            {
                "run": label,
                "orders": len(group),
                "questions": len(group[0].asked),
                **means,
                "break_even": [break_even(stream, other) for stream, other in pairs],
                "note": note_on(group, bool(pairs) or group[0].plain),
            }
        )
    return rows


def note_on(group: Sequence[Stream], paired: bool) -> str:
    count = len(group)
    few = f"{count} order{'s' * (count > 1)}: a band needs {ORDERS}" if count < ORDERS else ""
    alone = "" if paired else "no run without logs to compare with"
    lent = group[0].borrowed
    borrowed = f"the baseline answers the first {lent} questions" if lent else ""
    return "; ".join(filter(None, [few, alone, borrowed]))
