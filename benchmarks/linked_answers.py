"""What `--sink` and `--recompute` do to answers: paired differences to plain `log_kv`, on unseen questions.

python benchmarks/linked_answers.py data data/worlds/{2011,2012,2013,2014,2015}

Each folder is one world of `make worlds`, with its logs. Prints Markdown; writes linked_answers.json.
Started again after an end of any kind, it goes on where it was. The embedded model was trained with
neither flag, and its logs keep about 13 tokens each, so that 16 are nearly all.
"""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import measure  # first: it finds the toolkit
from tables import difference
from worlds import NAME

from lag import cli
from lag.evaluation.compare import compare, estimates
from lag.evaluation.find_runs import read_folder
from lag.evaluation.gold import Catalogue
from lag.evaluation.intervals import Sampling
from lag.evaluation.results import Evaluator
from lag.evaluation.scores import Evaluation
from lag.files import read_json, write_json
from lag.paths import Paths
from lag.records import Question

SPLIT, SEED, AT_ONCE = "test", 1234, 64
LAYOUTS = ("paper", "system-first")
PLAIN = "plain"
VARIANTS = {
    PLAIN: (),
    "sink 4": ("--sink", "4"),
    "recompute 4": ("--recompute", "4"),
    "recompute 16": ("--recompute", "16"),
    "sink 4, recompute 16": ("--sink", "4", "--recompute", "16"),
}
EVERY = "all worlds"
COLUMNS = (
    "layout", "`log_kv`", "EM", "F1", "steps", "EM to plain", "F1 to plain", "steps to plain",
    "tokens placed", "computed",
)  # fmt: skip


def run_name(layout: str, variant: str) -> str:
    return f"linked_{layout}_{variant}".replace(", ", "_").replace(" ", "")


def answer(data: Path, layout: str, variant: str) -> None:
    """Ask what was not asked yet; ends the program if a question failed."""
    command = ["agentic.py", "-m", "log_kv", "-d", NAME, "--data", str(data), "--split", SPLIT]
    command += ["--layout", layout, "--run", run_name(layout, variant), *VARIANTS[variant]]
    command += ["--batch-size", str(AT_ONCE)]
    done = subprocess.run([sys.executable, *command], cwd=measure.ROOT, capture_output=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.decode().strip().splitlines()[-1]}")


def evaluated(data: Path, layout: str, variant: str, sampling: Sampling) -> Evaluation:
    run = read_folder(Paths(data, NAME).run(SPLIT, run_name(layout, variant)))
    return Evaluator(Catalogue(data), sampling).evaluate(run)


def pooled(worlds: dict[str, Evaluation]) -> Evaluation:
    """One evaluation of the questions of all worlds, whose ids tell these apart."""
    outcomes = {
        id: replace(outcome, question=of_world(world, outcome.question))
        for world, evaluation in worlds.items()
        for id, outcome in evaluation.outcomes.items()
    }
    assert len(outcomes) == sum(len(one.outcomes) for one in worlds.values()), "worlds share ids"
    first = next(iter(worlds.values()))
    return Evaluation(first.run, first.scorer, outcomes)


def of_world(world: str, question: Question) -> Question:
    """The same words ask for another fact in another world: no cluster spans two of them."""
    parts = tuple(f"{world}: {part}" for part in question.subquestions)
    return replace(question, subquestions=parts)


def commits(worlds: dict[str, Path]) -> list[str]:
    """Which commits the answers are of; results may be gathered at a later one."""
    names = [run_name(layout, variant) for layout in LAYOUTS for variant in VARIANTS]
    paths = [Paths(data, NAME).manifest(SPLIT, name) for data in worlds.values() for name in names]
    return sorted({read_json(path)["provenance"]["commit"] for path in paths})


def result(run: Evaluation, plain: Evaluation, sampling: Sampling) -> dict[str, Any]:
    """Scores, costs per question, and what differs from the plain run."""
    compared = None if run is plain else asdict(compare(run, plain, sampling))
    names = "count", "em", "f1", "answered", "unanswered", "errors"
    costs = "steps", "prompt_tokens", "cached_tokens", "prefilled_tokens"
    return {
        "metrics": {name: run.metrics[name] for name in names},
        "intervals": {k: v.interval and asdict(v.interval) for k, v in estimates(run, sampling).items() if k in names},
        "cost": {name: run.cost[name] for name in costs},
        "comparison": compared,
    }  # fmt: skip


def gather(worlds: dict[str, Path], layout: str, sampling: Sampling) -> dict[str, Any]:
    """By variant and world, `all worlds` last."""
    found: dict[str, Any] = {}
    plain: dict[str, Evaluation] = {}
    for variant in VARIANTS:
        runs = {name: evaluated(data, layout, variant, sampling) for name, data in worlds.items()}
        runs[EVERY] = pooled(runs)
        plain = plain or runs
        found[variant] = {name: result(runs[name], plain[name], sampling) for name in runs}
    return found


def lines(layouts: dict[str, Any]) -> list[str]:
    """A table with one row per variant, over all worlds."""
    found = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    for layout, variants in layouts.items():
        for variant, worlds in variants.items():
            cells = [layout, variant, *cells_of(worlds[EVERY])]
            found.append(f"| {' | '.join(cells)} |")
    return found


def cells_of(one: dict[str, Any]) -> list[str]:
    metrics, cost = one["metrics"], one["cost"]
    return [
        f"{100 * metrics['em']:.1f}",
        f"{100 * metrics['f1']:.1f}",
        f"{cost['steps']:.2f}",
        difference(one, "em"),
        difference(one, "f1"),
        difference(one, "steps", 1),
        f"{cost['cached_tokens']:.0f}",
        f"{cost['prefilled_tokens']:.0f}",
    ]


def main() -> None:
    args = measure.parse_worlds(__doc__, "linked_answers.json")
    worlds = {f"world {n + 1}": data.resolve() for n, data in enumerate(args.data)}
    for data in worlds.values():
        for layout in LAYOUTS:
            for variant in VARIANTS:
                answer(data, layout, variant)
    sampling = Sampling(SEED)
    layouts = {layout: gather(worlds, layout, sampling) for layout in LAYOUTS}
    print(*lines(layouts), sep="\n")
    found = {"benchmark": "linked_answers", "layouts": layouts, "answers_of": commits(worlds)}
    write_json(args.out, {**found, "made_by": measure.made_by()})


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
