"""`COLUMNS`: one row per number of a run that is shown anywhere. Read a row and see where.

A new metric is one row; terminal, report, CSV, Markdown and LaTeX show it.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from lag.evaluation.compare import Difference
from lag.evaluation.intervals import ONE_SIDED, Estimate
from lag.evaluation.results import Result
from lag.evaluation.scores import DEPTHS
from lag.json_checks import Row

TEXTS = ("solver", "run", "from")  # stand to the left, numbers to the right
SUPPORT = [f"{kind}@{k}" for k in (*DEPTHS, "all") for kind in ("recall", "precision")]
Value = Callable[[Result], Any]
Spell = Callable[[Any], str]


# --- how people read a value --------------------------------------------------------------------
mean, shift = "{:.2f}".format, "{:+.2f}".format


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    return f"{100 * value:+.1f}"


def p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def amount(number: float) -> str:
    """A count, short: 950, 1.2k, 3.4M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def num_bytes(number: float) -> str:
    power = 0
    while number >= 1024 and power < 4:
        number, power = number / 1024, power + 1
    return f"{number:.{min(power, 1)}f} {('B', 'KB', 'MB', 'GB', 'TB')[power]}"


def bracket(found: Estimate, spell: Spell) -> str:
    """The interval, or in a word why there is none; a 0 that only one-sided changes make is marked."""
    if found.interval is None:
        return f"[{found.notes[0].split(':')[0]}]" if found.notes else ""
    ends = found.interval.low, found.interval.high
    marked = ONE_SIDED in found.notes
    return f"[{', '.join(spell(end) + '*' * (marked and end == 0) for end in ends)}]"


@dataclass(frozen=True, slots=True)
class Cell:
    """What people read: a text, and beside it in brackets how sure it is."""

    text: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.hint}".rstrip()


# --- the columns --------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Column:
    """One number of a run.

    name: its heading, also where nothing else says what the table is about.
    value: a text, a number or an `Estimate`; None where there is none.
    spell: how people read a value, of an estimate its mean and its bounds.
    tables: where it stands: names of `TABLES`, `paper` (Markdown, LaTeX), `csv`.
    short: its heading in one of `TABLES`, where that differs.
    better: 1 if more is, -1 if less is, 0 if neither.
    bounded: whether its values are estimates.
    of_texts: whether multiple choice, where accuracy is the only score, does without it.
    if_any: whether tables in which no run has it do without it.
    """

    name: str
    value: Value
    spell: Spell
    tables: str
    short: str = ""
    better: int = 0
    bounded: bool = False
    of_texts: bool = False
    if_any: bool = False

    def cell(self, result: Result) -> Cell:
        found = self.value(result)
        if not isinstance(found, Estimate):
            return Cell("" if found is None else self.spell(found))
        hint = bracket(found, self.spell)
        if isinstance(found, Difference) and not found.count:
            return Cell("none finished")
        if isinstance(found, Difference) and not found.discordant:
            return Cell("no discordant pairs", hint if found.interval else "")
        return Cell(self.spell(found.value), hint)

    def fields(self, result: Result) -> Row:
        """What programs read: the value as it is, then its bounds, and what was noted of them."""
        found = self.value(result)
        if not self.bounded:
            return {self.name: found}
        heads = [self.name, *(f"{self.name} {end}" for end in ("low", "high", "note"))]
        if found is None or (isinstance(found, Difference) and not found.count):
            return dict.fromkeys(heads)
        bounds = astuple(found.interval) if found.interval else (None, None)
        return dict(zip(heads, (found.value, *bounds, "; ".join(found.notes))))


def at(path: str) -> Value:
    """What lies at a path of attributes and keys of a result; None from where there is nothing."""

    def value(result: Result) -> Any:
        found: Any = result
        for name in path.split("."):
            if found is not None:
                found = found[name] if isinstance(found, dict) else getattr(found, name)
        return found

    return value


def flipped(result: Result) -> str | None:
    found = result.comparison
    return found and f"+{found.gained} -{found.lost}"


def drafts(name: str) -> Value:
    """Of what was drafted; None where nothing was."""
    return lambda result: result.evaluation.cost[name] if is_drafted(result) else None


def is_drafted(result: Result) -> bool:
    return bool(result.evaluation.cost["drafted_tokens"])


def training(name: str) -> Value:
    return lambda result: result.training.get(name)


def support(name: str) -> Value:
    return lambda result: result.retrieval.get(name)


# What stands in `paper` and `csv` at another place than in its own table has two rows: `n`, `prefilled`.
# fmt: off
COLUMNS = (
    Column("dataset",          at("run.dataset"),                       str,       "csv"),
    Column("split",            at("run.split"),                         str,       "csv"),
    Column("mode",             at("run.mode"),                          str,       "csv"),
    Column("solver",           at("run.solver"),                        str,       "paper csv"),
    Column("run",              at("run.name"),                          str,       "paper csv"),
    Column("from",             at("comparison.baseline"),               str,       "differences paper csv"),
    Column("n",                at("evaluation.metrics.count"),          str,       "paper csv"),
    Column("EM",               at("estimates.em"),                      percent,   "scores paper csv",      better=1, bounded=True),
    Column("EM difference",    at("comparison.differences.em"),         points,    "differences paper csv", "EM", better=1, bounded=True),
    Column("F1",               at("estimates.f1"),                      percent,   "scores paper csv",      better=1, bounded=True, of_texts=True),
    Column("F1 difference",    at("comparison.differences.f1"),         points,    "differences paper csv", "F1", better=1, bounded=True, of_texts=True),
    Column("P",                at("evaluation.metrics.precision"),      percent,   "scores", better=1, of_texts=True),
    Column("R",                at("evaluation.metrics.recall"),         percent,   "scores", better=1, of_texts=True),
    Column("cover EM",         at("evaluation.metrics.cover_em"),       percent,   "scores", better=1, of_texts=True),
    Column("n",                at("evaluation.metrics.count"),          str,       "scores"),
    Column("answered",         at("evaluation.metrics.answered"),       str,       "scores"),
    Column("answer rate",      at("evaluation.metrics.answer_rate"),    percent,   "scores paper csv"),
    Column("unanswered",       at("evaluation.metrics.unanswered"),     str,       "scores"),
    Column("errors",           at("evaluation.metrics.errors"),         str,       "scores", better=-1),
    Column("missing",          at("evaluation.metrics.missing"),        str,       "scores", better=-1),
    Column("calls",            at("evaluation.cost.calls"),             mean,      "cost"),
    Column("steps",            at("evaluation.cost.steps"),             mean,      "cost paper csv"),
    Column("steps difference", at("comparison.differences.steps"),      shift,     "differences paper csv", "steps", better=-1, bounded=True),
    Column("changed",          flipped,                                 str,       "differences"),
    Column("permutation p",    at("comparison.p"),                      p_value,   "differences"),
    Column("same ids",         at("comparison.count"),                  str,       "differences"),
    Column("clusters",         at("comparison.clusters"),               str,       "differences"),
    Column("prefilled tokens", at("evaluation.cost.prefilled_tokens"),  amount,    "paper csv"),
    Column("prompt tokens",    at("evaluation.cost.prompt_tokens"),     amount,    "cost",           "prompt"),
    Column("cached tokens",    at("evaluation.cost.cached_tokens"),     amount,    "cost paper csv", "cached"),
    Column("reused tokens",    at("evaluation.cost.reused_tokens"),     amount,    "cost csv",       "reused"),
    Column("prefilled tokens", at("evaluation.cost.prefilled_tokens"),  amount,    "cost",           "prefilled"),
    Column("new tokens",       at("evaluation.cost.new_tokens"),        amount,    "cost paper csv", "new"),
    Column("drafted tokens",   drafts("drafted_tokens"),                amount,    "cost csv",       "drafted", if_any=True),
    Column("accepted tokens",  drafts("accepted_tokens"),               amount,    "cost csv",       "accepted", if_any=True),
    Column("tokens per forward", drafts("tokens_per_forward"),          mean,      "cost csv",       "per forward", if_any=True),
    Column("seconds",          at("evaluation.cost.seconds.all"),       mean,      "cost paper csv"),
    Column("retrieve",         at("evaluation.cost.seconds.retrieve"),  mean,      "cost"),
    Column("store",            at("evaluation.cost.seconds.store"),     mean,      "cost"),
    Column("prefill",          at("evaluation.cost.seconds.prefill"),   mean,      "cost"),
    Column("decode",           at("evaluation.cost.seconds.decode"),    mean,      "cost"),
    Column("KV read",          at("evaluation.cost.kv_bytes"),          num_bytes, "cost"),
    Column("KV on disk",       at("kv_stored"),                         num_bytes, "cost"),
    Column("training tokens",  training("tokens"),                      amount,    "cost paper csv", "trained on", if_any=True),
    Column("training seconds", training("seconds"),                     mean,      "cost paper csv", "in seconds", if_any=True),
    *(Column(name,             support(name),              percent, "support") for name in SUPPORT),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Table:
    """Columns that are shown together, a row per run.

    corner: what stands over the runs' names, and so says what the table is about. title: the same
    in a report. has: which runs have a row.
    """

    name: str
    corner: str
    title: str
    has: Callable[[Result], Any] = bool

    def columns(self, results: Sequence[Result]) -> list[Column]:
        """Its columns under their short headings."""
        return [replace(c, name=c.short or c.name) for c in columns_of(self.name, results)]


# fmt: off
TABLES = (
    Table("scores",      "run",                  "Scores"),
    Table("differences", "difference",           "Differences from the baseline, in points and steps", lambda r: r.comparison),
    Table("cost",        "per question",         "Cost per question"),
    Table("support",     "supporting documents", "Supporting documents among those that entered", lambda r: r.retrieval),
)
# fmt: on


def needed(table: str, results: Sequence[Result]) -> list[Column]:
    """The columns of a table of these runs, under their own names."""
    found = [column for column in COLUMNS if table in column.tables.split()]
    return [c for c in found if not c.if_any or any(c.value(r) is not None for r in results)]


def columns_of(table: str, results: Sequence[Result]) -> list[Column]:
    """As `needed`, for people; of multiple choice accuracy is the only score."""
    found = needed(table, results)
    if results[0].evaluation.scorer != "choice":
        return found
    return [
        replace(c, name=c.name.replace("EM", "accuracy"), short=c.short.replace("EM", "accuracy"))
        for c in found
        if not c.of_texts
    ]
