"""Results as plain text tables: percent, one row per run, one block per split."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from lag.cli import SPLITS
from lag.evaluation.compare import STEPS, Comparison, Difference, Interval
from lag.evaluation.results import Result

# A prompt's tokens: placed from a store, left from the step before, computed; then the reply's.
TOKENS = ("prompt_tokens", "cached_tokens", "reused_tokens", "prefilled_tokens", "new_tokens")
UNITS = ("B", "KB", "MB", "GB", "TB")


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def with_interval(value: float, interval: Interval | None) -> str:
    if interval is None:
        return percent(value)
    return f"{percent(value)} [{percent(interval.low)}, {percent(interval.high)}]"


def steps(value: float) -> str:
    return f"{value:+.2f}"


def spelling(metric: str) -> Callable[[float], str]:
    """How a difference in a metric is written: steps as they are, scores in points."""
    return steps if metric == STEPS else signed


def difference(found: Difference, metric: str) -> str:
    """A difference with its interval, or why there is none."""
    spell = spelling(metric)
    if not found.count:
        return "none finished"
    if not found.discordant:
        return "no discordant pairs"
    if found.interval is None:
        return f"{spell(found.value)} [one cluster]"
    return f"{spell(found.value)} [{spell(found.interval.low)}, {spell(found.interval.high)}]"


def p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def amount(number: float) -> str:
    """A count, short: 950, 1.2k, 3.4M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def num_bytes(number: float) -> str:
    for unit in UNITS:
        if number < 1024 or unit == UNITS[-1]:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError


def aligned(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns under their names: the first to the left, the others to the right."""
    table = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def score_head(scorer: str) -> list[str]:
    texts = [] if scorer == "choice" else ["F1", "P", "R", "cover EM"]
    first = "accuracy" if scorer == "choice" else "EM"
    return [first, *texts]


def score_cells(result: Result) -> list[str]:
    """The scores that the scorer knows: of multiple choice accuracy only."""
    metrics, bounds = result.evaluation.metrics, result.intervals
    cells = [with_interval(metrics["em"], bounds["em"])]
    if result.evaluation.scorer != "choice":
        cells.append(with_interval(metrics["f1"], bounds["f1"]))
        cells += [percent(metrics[name]) for name in ("precision", "recall", "cover_em")]
    return cells


def state_cells(result: Result) -> list[str]:
    metrics = result.evaluation.metrics
    counts = [str(metrics[name]) for name in ("count", "answered")]
    failures = [str(metrics[name]) for name in ("unanswered", "errors", "missing")]
    return [*counts, percent(metrics["answer_rate"]), *failures]


def scores_table(results: Sequence[Result]) -> str:
    states = ["n", "answered", "answer rate", "unanswered", "errors", "missing"]
    head = ["run", *score_head(results[0].evaluation.scorer), *states]
    return aligned(head, [[r.run.name, *score_cells(r), *state_cells(r)] for r in results])


def compared_metrics(scorer: str) -> tuple[str, ...]:
    """What intervals of differences are shown for."""
    return ("em", STEPS) if scorer == "choice" else ("em", "f1", STEPS)


def compared_head(scorer: str) -> list[str]:
    return [*score_head(scorer)[: len(compared_metrics(scorer)) - 1], "steps"]


def comparison_cells(found: Comparison, scorer: str) -> list[str]:
    return [
        found.baseline,
        *(difference(found.differences[name], name) for name in compared_metrics(scorer)),
        f"+{found.gained} -{found.lost}",
        p_value(found.p),
        str(found.count),
        str(found.clusters),
    ]


def comparison_table(results: Sequence[Result]) -> str:
    """Every run against its baseline, on the same ids; "" if there is nothing to compare."""
    scorer = results[0].evaluation.scorer
    rows = [[r.run.name, *comparison_cells(r.comparison, scorer)] for r in results if r.comparison]
    if not rows:
        return ""
    head = ["difference", "from", *compared_head(scorer), "changed", "McNemar p", "same ids",
            "clusters"]  # fmt: skip
    return aligned(head, rows)


def cost_cells(cost: dict[str, Any], stored: int) -> list[str]:
    tokens = [amount(cost[name]) for name in TOKENS]
    seconds = [
        f"{cost['seconds'][n]:.2f}" for n in ("all", "retrieve", "store", "prefill", "decode")
    ]
    kv = [num_bytes(cost["kv_bytes"]), num_bytes(stored)]
    return [f"{cost['calls']:.2f}", f"{cost['steps']:.2f}", *tokens, *seconds, *kv]


def cost_table(results: Sequence[Result]) -> str:
    head = ["per question", "calls", "steps", "prompt", "cached", "reused", "prefilled", "new",
            "seconds", "retrieve", "store", "prefill", "decode", "KV read", "KV on disk"]  # fmt: skip
    return aligned(
        head, [[r.run.name, *cost_cells(r.evaluation.cost, r.kv_stored)] for r in results]
    )


def retrieval_table(results: Sequence[Result]) -> str:
    """Supporting documents among those that entered; "" where the support is not known."""
    known = [result for result in results if result.retrieval]
    if not known:
        return ""
    columns = [name for name in known[0].retrieval if name != "count"]
    rows = [[r.run.name, *(percent(r.retrieval[name]) for name in columns)] for r in known]
    return aligned(["supporting documents", *columns], rows)


def choice_line(result: Result) -> str:
    """What needs no model: the most frequent letter, and any option."""
    metrics = result.evaluation.metrics
    chance = "unknown" if metrics["random"] is None else percent(metrics["random"])
    return (
        f"without a model: always {metrics['majority_letter'] or '?'} "
        f"{percent(metrics['majority'])}, at random {chance}"
    )


def notes(results: Sequence[Result]) -> list[str]:
    """What comparisons left out, leakage and warnings; runs of which the same is true share one."""
    found: dict[str, list[str]] = {}
    for result in results:
        for line in notes_on(result):
            found.setdefault(line, []).append(result.run.name)
    lines = [f"{', '.join(names)}: {line}" for line, names in found.items()]
    return ([choice_line(results[0])] if results[0].evaluation.scorer == "choice" else []) + lines


def notes_on(result: Result) -> list[str]:
    lines, found = [], result.comparison
    if found and (found.only_run or found.only_baseline):
        lines.append(
            f"compared on the {found.count} shared questions; {found.only_run} of its own and "
            f"{found.only_baseline} of {found.baseline} are left out"
        )
    if result.leakage:
        lines.append(result.leakage.line())
    return lines + [f"warning: {warning}" for warning in result.warnings]


def title(result: Result) -> str:
    """The block's heading: what was scored, and by which rule."""
    run = result.run
    seen = f" ({SPLITS[run.split]})" if run.split in SPLITS else ""
    return (
        f"{run.dataset or 'unknown data set'} {run.split}{seen}, scorer {result.evaluation.scorer}"
    )


def tables(results: Sequence[Result]) -> str:
    """All blocks, one per data set and split."""
    blocks = []
    for _, same in groupby(results, key=lambda r: (r.run.dataset, r.run.split)):
        group = list(same)
        parts = [scores_table(group), comparison_table(group), cost_table(group)]
        parts += [retrieval_table(group), "\n".join(notes(group))]
        blocks.append("\n\n".join([title(group[0]), *filter(None, parts)]))
    return "\n\n\n".join(blocks) + "\n\n"
