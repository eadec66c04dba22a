"""EM teaches a weakened model of the embedded data set, with gold answers of train questions alone.

python train.py miniwiki --start data/miniwiki --without search --annealing 70000 --out models/weak
python benchmarks/em_learns.py --model models/weak/model --seed 1 --world 2031

The weakened model is the shipped one, from which 70,000 tokens without a reply that searches have
taken most of its searching. One seed a command, on a world of its own: exact match on unseen questions
before and after three iterations of `train.py em`. Its weights are those of questions that a sample
has right; beside it the same with uniform weights, right samples alone, and weights of all questions.
EM runs in a copy of the data without the test questions, so that it cannot read their answers.
Everything lies in `--work`; the same command goes on where it stopped. One result file holds all seeds.
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import measure  # first: it finds the toolkit
from measure import Measure

import agentic
import dataset
import embed
import train
from lag import cli
from lag.evaluation.find_runs import Skipping, runs_of_dataset
from lag.evaluation.gold import Catalogue
from lag.evaluation.intervals import Sampling
from lag.evaluation.results import Evaluator, Result
from lag.files import read_json
from lag.paths import Paths

NAME, SPLIT, BEFORE = "miniwiki", "test", "before"
SHORT = ["--max-new-tokens", "128"]  # a weakened model at times does not end
ARMS = {
    "weighted": ["--filter", "solved"],
    "uniform": ["--filter", "solved", "--uniform-weights"],
    "correct": ["--filter", "correct", "--uniform-weights"],  # rejection sampling
    "all": [],  # a question that no sample has right weighs as much as any
}
FLAGS = (
    "--tune full --iterations 3 --patience 3 --samples 4 --temperature 1 --validation 0.15 "
    "--epochs 1 --batch-size 32 --rate 5e-4"
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number, add = cli.at_least(1), parser.add_argument
    default = measure.ROOT / "benchmarks" / "results" / "em_learns.json"
    # fmt: off
    add("--model", default="models/weak/model", help="the weakened model, a folder (%(default)s)")
    add("--seed", type=int, default=1, help="of all that is drawn in EM (%(default)s)")
    add("--world", type=int, default=2031, help="seed of the world that is asked about (%(default)s)")
    add("--work", type=Path, default=Path("runs/em-learns"), help="folder of all files (%(default)s)")
    add("--train", type=number, default=100, help="train questions, of which some are held out (%(default)s)")
    add("--test", type=number, default=300, help="unseen questions (%(default)s)")
    add("--flags", default=FLAGS, help="of train.py em, in one text (%(default)s)")
    add("--out", type=Path, default=default, help="result file (benchmarks/results/em_learns.json)")
    # fmt: on
    return parser.parse_args(argv)


def make_data(root: Path, world: int) -> Path:
    """Make the world's files and vectors; returns a copy without the test questions."""
    blind = root / "blind"
    if not blind.exists():
        words = ["-d", NAME, "--data", str(root)]
        dataset.main([*words, "--seed", str(world)])
        embed.main(words)
        copy = root / "copying"
        shutil.copytree(Paths(root, NAME).folder, Paths(copy, NAME).folder, dirs_exist_ok=True)
        for split in ("", SPLIT):
            Paths(copy, NAME).questions(split).unlink()
        copy.rename(blind)
    return blind


def learn(args: argparse.Namespace, data: Path, out: Path, flags: Sequence[str]) -> dict[str, Any]:
    """What an EM run tells; it goes on where it stopped."""
    words = ["em", "-d", NAME, "--data", str(data), "--model", args.model, "--out", str(out)]
    words += ["--limit", str(args.train), "--seed", str(args.seed), *SHORT, *args.flags.split()]
    return train.em(train.parse_args([*words, *flags]))


def share_start(first: Path, out: Path) -> None:
    """What is the same in every arm: how the model does, and its samples of the first iteration."""
    for part in ("iter_000", "iter_001/rollouts"):
        if not (out / part).exists():
            shutil.copytree(first / part, out / part)


def ask(args: argparse.Namespace, root: Path, model: str, run: str) -> None:
    """Answer the unseen questions with a model."""
    words = ["-m", "base", "-d", NAME, "--data", str(root), "--split", SPLIT, "--run", run]
    words += ["--limit", str(args.test), "--model", model, "--batch-size", "64", *SHORT]
    if agentic.main(words):
        raise SystemExit(
            f"agentic.py {' '.join(words)}: questions failed; the same command goes on"
        )


def scored(root: Path, baseline: str) -> dict[str, Result]:
    """The runs on the unseen questions by name, each compared with one of them."""
    runs = runs_of_dataset(Paths(root, NAME), SPLIT, Skipping())
    results = Evaluator(Catalogue(root), Sampling(1234)).results(runs, baseline)
    return {result.run.name: result for result in results}


def change(results: dict[str, Result], run: str) -> dict[str, Any]:
    """A paired difference in exact match, with its interval."""
    return asdict(results[run].comparison.differences["em"])


def row_of(args: argparse.Namespace, root: Path, told: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What one seed has shown. told: by arm, what its EM run tells."""
    results = scored(root, BEFORE)
    em = {name: one.evaluation.metrics["em"] for name, one in results.items()}
    asking = {
        name: one.evaluation.cost["seconds"]["all"] * args.test for name, one in results.items()
    }
    learning = {arm: one["seconds"] for arm, one in told.items()}
    return {
        "settings": {name: getattr(args, name) for name in ("world", "train", "test", "flags")},
        "em": em,
        "to_before": {arm: change(results, arm) for arm in told},
        "weighted_to": {arm: change(scored(root, arm), "weighted") for arm in told if arm != "weighted"},
        "em_runs": {
            arm: {name: one[name] for name in ("validation_em", "answer_logprob", "best")}
            for arm, one in told.items()
        },
        "seconds": {"learning": learning, "asking": {run: round(s, 1) for run, s in asking.items()}},
        "minutes": round((sum(learning.values()) + sum(asking.values())) / 60, 2),
    }  # fmt: skip


def measures(seeds: dict[str, dict[str, Any]]) -> list[Measure]:
    """The claim, over all seeds that are there."""
    rows = seeds.values()
    gains = [100 * row["to_before"]["weighted"]["value"] for row in rows]
    bounds = [row["to_before"]["weighted"]["interval"] for row in rows]
    lowest = min(100 * one["low"] if one else 0.0 for one in bounds)
    about = f"points of EM on unseen questions, {len(gains)} seeds"
    found = [
        Measure("E1", f"least gain, weighted, {about}", round(min(gains), 1), least=10),
        Measure("E2", "its lowest bound at 95 %, points", round(lowest, 1), least=0.1),
    ]
    for arm in [arm for arm in ARMS if arm != "weighted"]:
        mean = 100 * fmean(row["to_before"][arm]["value"] for row in rows)
        found.append(Measure("E3", f"mean gain, {arm}, {about}", round(mean, 1)))
    slowest = max(row["minutes"] for row in rows)
    return [*found, Measure("E4", "minutes of a seed, ablations included", slowest, most=30)]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    cli.set_up_logging()
    args.repeats = 1
    root = args.work / f"seed-{args.seed}"
    data, told = make_data(root, args.world), {}
    ask(args, root, args.model, BEFORE)
    for arm, flags in ARMS.items():
        out = root / "em" / arm
        if told:
            share_start(root / "em" / "weighted", out)
        told[arm] = learn(args, data, out, flags)
        ask(args, root, told[arm]["fitted"], arm)
    known = read_json(args.out)["timings"]["seeds"] if args.out.exists() else {}
    seeds = known | {str(args.seed): row_of(args, root, told)}
    measure.report(args, measures(seeds), {"model": args.model, "seeds": seeds})
    return 0


if __name__ == "__main__":
    cli.guarded(main)
