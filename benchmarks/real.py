"""Gather what `make real` measured: a pretrained model on real questions.

python benchmarks/real.py data

Beside what the evaluator wrote of each run: the share of replies that held an answer or a query, what
became of questions that name two answers and of those that name none, how many test questions share a
document or a fact with train, and the smallest difference that so few questions can show. Writes
real.json.
"""

import argparse
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import measure  # first: it finds the toolkit

from lag import cli
from lag.evaluation.compare import compare
from lag.evaluation.find_runs import Run, runs_of_files
from lag.evaluation.gold import Catalogue
from lag.evaluation.intervals import Sampling
from lag.evaluation.results import Evaluator
from lag.evaluation.scores import Evaluation
from lag.files import read_json, write_json
from lag.metrics import normalize
from lag.paths import Paths
from lag.records import Question
from lag.tasks import TASKS, read_questions

NAME = "wikihop"
ADAPTER = re.compile(r"_adapter-[0-9a-f]{8}")
POWER = 1.96 + 0.84  # two-sided at 5 %, found in 80 % of repetitions
SAMPLING = Sampling(1234)
TWO, CHAIN = "two named", "none named"  # answers, in the question
KINDS = {"comparison": TWO, "bridge_comparison": TWO, "compositional": CHAIN, "inference": CHAIN}


def well_formed(run: Run) -> dict[str, int]:
    """Replies of the loop, and how many held an answer or a query."""
    actions = [step.action for trace in run.traces.values() for step in trace.steps]
    said = [action for action in actions if action != "curate"]
    return {"replies": len(said), "in_format": sum(a in ("answer", "search") for a in said)}


def of_kind(evaluation: Evaluation, kind: str) -> Evaluation:
    """Of its questions those of a kind: yes, no or one of two that they name, or else a chain's end."""
    mine = evaluation.outcomes.items()
    return replace(
        evaluation, outcomes={id: o for id, o in mine if KINDS[o.question.groups["type"]] == kind}
    )


def by_kind(evaluations: dict[str, Evaluation]) -> dict[str, Any]:
    """By kind and `<split>/<run>`: how many questions, answered, right; differences to `base`."""
    found: dict[str, Any] = {}
    for kind in (TWO, CHAIN):
        mine = {name: of_kind(one, kind) for name, one in evaluations.items()}
        for name, one in mine.items():
            base = mine.get(f"{name.split('/')[0]}/base")
            compared = compare(one, base, SAMPLING) if base and base is not one else None
            found.setdefault(kind, {})[name] = {
                "questions": one.metrics["count"],
                "answered": one.metrics["answered"],
                "right": round(one.metrics["em"] * one.metrics["count"]),
                "em": compared and asdict(compared.differences["em"]),
            }
    return found


def read_runs(data: Path) -> tuple[dict[str, Any], dict[str, Evaluation]]:
    """What the evaluator wrote, by `<split>/<run>` without the adapter's digest; the same runs.

    Raises:
        FileNotFoundError: nothing is there.
    """
    found, scored, evaluator = {}, {}, Evaluator(Catalogue(data), SAMPLING)
    for path in sorted((data / NAME / "results").glob("*.json")):
        result = read_json(path)
        meta = result["meta"]
        result.pop("questions", None)
        name = f"{meta['split']}/{ADAPTER.sub('', meta['run'])}"
        if not meta["run"].startswith("gold") and meta["retriever"] == "dense":
            (run,) = runs_of_files(map(Path, meta.pop("preds_path")), data)
            found[name] = result | {"replies": well_formed(run)}
            scored[name] = evaluator.evaluate(run)
    if not found:
        raise FileNotFoundError(f"{data / NAME}/results holds no results; run make real first")
    return found, scored


def overlap(data: Path) -> dict[str, int]:
    """How many test questions share a supporting document, or a fact, with a train question."""
    paths, task = Paths(data, NAME), TASKS[NAME]
    train, test = (read_questions(paths, task, split) for split in ("train", "test"))

    def facts(question: Question) -> set[str]:
        return set(map(normalize, question.subquestions))

    documents = {id for question in train for id in question.supporting_ids}
    known = {fact for question in train for fact in facts(question)}
    return {
        "test": len(test),
        "documents": sum(bool(documents & {*question.supporting_ids}) for question in test),
        "facts": sum(bool(known & facts(question)) for question in test),
    }


def smallest_effect(one: Evaluation, other: Evaluation) -> float:
    """The difference in EM that this many paired questions show in four of five repetitions.

    Taken from the share of questions on which two runs differ, as in McNemar's test.
    """
    mine, theirs = one.outcomes, other.outcomes
    shared = [id for id in mine if id in theirs]
    differ = sum(mine[id].scores["em"] != theirs[id].scores["em"] for id in shared) / len(shared)
    return POWER * math.sqrt(differ / len(shared))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", default=Path("data"), help="folder (data)")
    folder = measure.ROOT / "benchmarks" / "results"
    parser.add_argument("--out", type=Path, default=folder / "real.json", help="result file")
    args = parser.parse_args()
    runs, scored = read_runs(args.data)
    effects = {
        name: smallest_effect(scored["test/base"], one)
        for name, one in scored.items()
        if name.startswith("test/") and name != "test/base"
    }
    result = {"benchmark": "real", "overlap": overlap(args.data), "smallest_effect": effects}
    result |= {"kinds": by_kind(scored), "runs": runs, "made_by": measure.made_by()}
    write_json(args.out, result)
    print(args.out)


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
