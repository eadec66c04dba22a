"""Gather runs on several embedded worlds at another step limit: EM, by hops, and what logs change.

python benchmarks/step_limit.py data/steps/1234 data/steps/2001      # folders that `make steps` filled

Differences to `base` are paired, pooled over the worlds; whole clusters of questions that share a
sub-question within a world are drawn together. Writes step_limit.json.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import measure  # first: it finds the toolkit
import numpy as np

from lag.evaluation.intervals import Resampler
from lag.files import read_json, write_json
from lag.paths import Paths
from lag.records import Question
from lag.tasks import TASKS, read_questions

NAME = "miniwiki"
SEED = 1234
Values = dict[str, dict[str, float]]  # of a run: EM and steps, by question


def read_runs(paths: Paths, prefix: str) -> dict[str, Values]:
    """EM and steps of each question, by run without its step limit, on unseen questions."""
    found: dict[str, Values] = {}
    for path in sorted((paths.folder / "results").glob("*.json")):
        result = read_json(path)
        if result["meta"]["split"] == "test":
            name = "_".join(p for p in result["meta"]["run"].split("_") if p != "s8")
            questions = result["questions"].items()
            found[name] = {f"{prefix} {id}": one for id, one in questions}
    return found


def questions_of(paths: Paths, prefix: str) -> dict[str, Question]:
    """Questions by id, with the world's name in their ids and in what ties them together."""
    found = {}
    for question in read_questions(paths, TASKS[NAME], "test"):
        parts = tuple(f"{prefix} {part}" for part in question.subquestions)
        id = f"{prefix} {question.id}"
        found[id] = replace(question, id=id, subquestions=parts)
    return found


def pooled(questions: Mapping[str, Question], runs: Mapping[str, Values]) -> dict[str, Any]:
    """Per run: means with intervals, by hops, and paired differences to `base`."""
    ids = sorted(questions)
    resampler = Resampler([questions[id] for id in ids], SEED)
    hops = np.array([len(questions[id].subquestions) for id in ids])
    found = {}
    for name, values in runs.items():
        entry: dict[str, Any] = {}
        for what in ("em", "steps"):
            mine, base = (np.array([run[id][what] for id in ids]) for run in (values, runs["base"]))
            entry[what] = asdict(resampler.estimate(mine))
            entry[f"{what}_to_base"] = asdict(resampler.estimate(mine - base))
            by = {str(n): float(mine[hops == n].mean()) for n in sorted({*hops.tolist()})}
            entry[f"{what}_by_hops"] = by
        found[name] = entry
    return found


def merged(worlds: Sequence[dict[str, Values]]) -> dict[str, Values]:
    """Runs that every world has."""
    names = set.intersection(*map(set, worlds))
    return {name: {k: v for world in worlds for k, v in world[name].items()} for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DIR", type=Path, nargs="+", help="one folder per world")
    folder = measure.ROOT / "benchmarks" / "results"
    parser.add_argument("--out", type=Path, default=folder / "step_limit.json", help="result file")
    args = parser.parse_args()
    places = {data.name: Paths(data, NAME) for data in args.data}
    questions = {
        k: q for name, paths in places.items() for k, q in questions_of(paths, name).items()
    }
    runs = merged([read_runs(paths, name) for name, paths in places.items()])
    result = {"benchmark": "step_limit", "worlds": [*places], "questions": len(questions)}
    result |= {"runs": pooled(questions, runs), "made_by": measure.made_by()}
    write_json(args.out, result)
    for name, entry in result["runs"].items():
        print(name, entry["em"], entry["em_to_base"], entry["em_by_hops"], sep="\n  ")


if __name__ == "__main__":
    main()
