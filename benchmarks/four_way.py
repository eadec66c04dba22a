"""Logs as text, as KV, as notes, in the weights, or just a long context: one stream, all costs.

python benchmarks/four_way.py -d miniwiki --data data/four-way        # as `make four-way` does
python benchmarks/four_way.py -d miniwiki --data data/four-way --dry-run
python benchmarks/four_way.py -d wikihop --split train,test --short --orders 1 --adapters 161 --flags "..."

Every part is a command that goes on where it was stopped, and so is the whole. It ends in one table,
one figure (accuracy against cost), and one sentence per mode that the numbers support.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import measure  # first: it finds the toolkit
import numpy as np

import agentic
import train
from lag import cli
from lag.evaluation.compare import difference
from lag.evaluation.curve_figure import HEAD, Curves
from lag.evaluation.figures import MARKERS, PNG, STYLE
from lag.evaluation.find_runs import Skipping, runs_of_dataset
from lag.evaluation.gold import Catalogue
from lag.evaluation.intervals import Resampler, Sampling
from lag.evaluation.learning_curve import Stream, streams
from lag.evaluation.results import Evaluator
from lag.files import read_json, write_json, write_text
from lag.logs.growing import in_order
from lag.modes import MODES
from lag.paths import Paths
from lag.records import Question
from lag.tasks import SPLITS, TASKS, read_questions

LEARNED = "train"  # only its rows are ever trained on
BATCH, SEED = "8", 1234
# What is asked in how many orders: flags of `agentic.py`, and how many of the orders given.
OTHERS = [name for name, mode in MODES.items() if mode.enters == "kv" and name != "log_kv"]
SHEETS = [name for name, mode in MODES.items() if mode.enters == "sheet"]
LOGS = ("-m", "log_text,log_kv")
LONG_CONTEXT = ("-m", "log_text", "--num-logs", "all")
SHORT = (LOGS, LONG_CONTEXT)
MANY = (LOGS, ("-m", "log_text", "--log-control", "random"))
FEW = (
    ("-m", ",".join([*OTHERS, *SHEETS])),
    ("-m", "log_cheatsheet", "--sheet", "carried"),
    LONG_CONTEXT,
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number, add = cli.at_least(1), parser.add_argument
    # fmt: off
    add("-d", "--dataset", default="miniwiki", choices=TASKS, help="(%(default)s)")
    add("--data", type=Path, default=Path("data/four-way"), help="folder of all data sets (%(default)s)")
    add("--split", type=cli.list_of(SPLITS, "split"), default=["train"], help="the stream's, in this order; only rows of train are ever trained on (train)")
    add("--questions", type=number, default=300, help="of each split, at most (%(default)s)")
    add("--short", action="store_true", help="only base, closed book, text, KV, long context and weights")
    add("--orders", type=number, default=5, help="of base, text, KV and random logs (%(default)s)")
    add("--few-orders", type=number, default=3, help="of the rest (%(default)s)")
    add("--grow-every", type=number, default=16, help="questions between two versions (%(default)s)")
    add("--adapters", default="100,200,300", help="questions after which weights are trained; empty: never (%(default)s)")
    add("--flags", default="", help="more flags of agentic.py, such as --model, in one text")
    add("--training-flags", default="", help="more flags of train.py sft, in one text; with --adapter the weights go on from one")
    add("--out", type=Path, help="a copy of the result file, and the figure beside it; default: both lie beside the runs only")
    add("--dry-run", action="store_true", help="print the commands and do nothing")
    add("--gather", action="store_true", help="ask nothing; compare what such commands, run by hand, have left")
    # fmt: on
    args = parser.parse_args(argv)
    args.adapters = [int(one) for one in args.adapters.split(",") if one]
    if args.adapters and LEARNED not in args.split:
        parser.error(
            f"--split {','.join(args.split)}: only rows of {LEARNED} are trained on; add it, or give --adapters ''"
        )
    return args


Command = tuple[str, ...]  # the script's name, then its words


class Plan:
    """All commands of the comparison, in their order."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.paths = args, Paths(args.data, args.dataset)
        self.common = ("-d", args.dataset, "--data", str(args.data))
        self.folder = self.paths.preds / "four-way"

    def ask(self, *words: str, split: str = "", part: Sequence[str] = ()) -> Command:
        """Ask the stream, or only some questions of one split; the words come last, and count."""
        splits = ("--split", split or ",".join(self.args.split))
        some = ("--ids", ",".join(part)) if part else ("--limit", str(self.args.questions))
        extra = (*self.args.flags.split(), "--batch-size", BATCH)
        return ("agentic.py", *self.common, *splits, *some, *extra, *words)

    def orders(self, count: int) -> Command:
        listed = ",".join(str(n) for n in range(1, count + 1))
        return ("--grow", "--grow-every", str(self.args.grow_every), "--order-seed", listed)

    def streams(self) -> list[Command]:
        found = [self.ask("-m", "base", "--solver", "react,direct")]
        many, few = (SHORT, ()) if self.args.short else (MANY, FEW)
        found += [self.ask(*words, *self.orders(self.args.orders)) for words in many]
        found += [self.ask(*words, *self.orders(self.args.few_orders)) for words in few]
        return found

    def merging(self) -> Command:
        """Base's rows that can be trained on, in one file."""
        return self.ask("-m", "base", "--merge", split=LEARNED)

    def order(self, seed: int) -> list[tuple[str, str]]:
        """Split and id of every question of the stream."""
        return [
            (split, q.id)
            for split in self.args.split
            for q in in_order(self.questions(split), str(seed))
        ]

    def questions(self, split: str) -> list[Question]:
        return read_questions(self.paths, TASKS[self.args.dataset], split)[: self.args.questions]

    def adapter(self, seed: int, first: int) -> Path:
        return self.folder / f"adapter_o{seed}_{first}"

    def training(self, seed: int, first: int) -> Command:
        out = self.adapter(seed, first)
        what = ("--from", str(out.with_suffix(".json")), "--out", str(out))
        extra = self.args.training_flags.split()
        return ("train.py", "sft", *self.common, *what, "--filter", "answered", *extra)

    def weights(self, seed: int, first: int, last: int | None) -> list[Command]:
        """Ask what comes after a training, up to the next one: a command per split."""
        asked = self.order(seed)[first:last]
        adapter = ("--adapter", str(self.adapter(seed, first)))
        words = ("-m", "base", *adapter, "--run", f"weights_o{seed}_from{first}")
        parts = {split: [id for where, id in asked if where == split] for split in self.args.split}
        return [self.ask(*words, split=s, part=part) for s, part in parts.items() if part]

    def seen_so_far(self, seed: int, first: int) -> None:
        """The rows that an adapter is trained on: base's, of the first questions of an order."""
        merged = read_json(self.paths.merged(LEARNED, self.base_name))
        seen = [id for split, id in self.order(seed)[:first] if split == LEARNED]
        path = self.adapter(seed, first).with_suffix(".json")
        if not path.exists():
            write_json(path, merged | {"results": {id: merged["results"][id] for id in seen}})

    @property
    def base_name(self) -> str:
        (config,) = agentic.parse_args(list(self.ask("-m", "base", split=LEARNED)[1:])).runs()
        return config.name


def follow(plan: Plan, do: Callable[[Command], None], dry: bool) -> None:
    """Give every command to `do`; nothing is written in between if it is dry."""
    for command in plan.streams():
        do(command)
    places = plan.args.adapters
    if places:
        do(plan.merging())
    for seed in range(1, min(plan.args.orders, plan.args.few_orders) + 1) if places else ():
        for first, last in zip(places, [*places[1:], None]):
            after = first >= len(plan.order(seed))
            if after and seed > 1:
                continue  # it answers nothing, and the first order's has seen the same questions
            if not dry:
                plan.seen_so_far(seed, first)
            if dry or not (plan.adapter(seed, first) / "lag.json").exists():
                do(plan.training(seed, first))
            for command in plan.weights(seed, first, last):
                do(command)


# --- what came of it ------------------------------------------------------------------------------
def compared(curves: Curves, found: Sequence[Stream]) -> list[dict[str, Any]]:
    """The summaries, each with its difference in EM to base and how sure that is.

    over: what its interval at 95 % is over: orders, where they are enough for a band, or the
    questions, paired, where there is one order.
    """
    base = next(row for row in curves.summaries if row["run"].startswith("base"))
    whole = {
        row["run"]: row for row in curves.rows if (row["span"], row["metric"]) == ("all", "em")
    }  # the last one of each run: the whole stream
    plain = {stream.order: stream for stream in found if stream.label == base["run"]}
    rows = []
    for row in curves.summaries:
        band = {end: whole[row["run"]].get(f"change {end}") for end in ("low", "high")}
        mine = [stream for stream in found if stream.label == row["run"]]
        interval, over = (band, "orders") if None not in band.values() else (None, "")
        if len(mine) == 1 and row is not base:
            interval, over = over_questions(mine[0], plain[mine[0].order]), "questions"
        change = {"value": row["em"] - base["em"], "interval": interval, "over": over}
        times = row["whole"] / (base["whole"] or 1)
        rows.append({**row, "to_base": None if row is base else change, "times": times})
    return rows


def over_questions(mine: Stream, base: Stream) -> dict[str, float] | None:
    """The interval of the mean paired difference in EM, by the bootstrap that `evaluate.py` uses."""
    pairs = zip(mine.values, base.values, strict=True)
    changes = np.array([one["em"] - other["em"] for one, other in pairs])
    resampler = Resampler([asked.outcome.question for asked in base.asked], SEED)
    interval = difference(changes, resampler).interval
    return asdict(interval) if interval else None


def sentence(row: dict[str, Any]) -> str:
    """What the numbers of a mode support, and no more."""
    points, band, over = (row["to_base"][name] for name in ("value", "interval", "over"))
    if not band:
        sure = f"in {row['orders']} orders, too few for a band"
    else:
        within = band["low"] <= 0 <= band["high"]
        alone, without = {
            "orders": ("within what the order alone does", "whatever the order"),
            "questions": ("not told from chance", "more than chance"),
        }[over]
        ends = f"[{100 * band['low']:+.1f}, {100 * band['high']:+.1f}]"
        sure = f"{alone if within else without} {ends}"
    paid = [place for place in row["break_even"] if place]
    told = f"it has cost no more than base from question {round(fmean(paid))} on" if paid else (
        "it never costs less than base in all"
    )  # fmt: skip
    return f"* `{row['run']}`: {100 * points:+.1f} points of EM over base, {sure}; {row['times']:.2f} times the seconds, writing included; {told}."


def text_of(curves: Curves, rows: Sequence[dict[str, Any]]) -> str:
    """The table and the sentences, as Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "| " + " | ".join("---" for _ in HEAD) + " |"]
    lines += ["| " + " | ".join(cells) + " |" for cells in curves.cells()]
    return "\n".join([*lines, "", *(sentence(row) for row in rows if row["to_base"])]) + "\n"


def draw(curves: Curves, path: Path) -> None:
    """Accuracy against what a question costs, writing included; of ways that are ever right."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 5.5), layout="constrained")
        axes = figure.subplots()
        shown = [row for row in curves.summaries if row["em"]] or curves.summaries
        for n, row in enumerate(shown):
            colour = PNG.runs[n % len(PNG.runs)]
            marker = MARKERS[(n + n // len(PNG.runs)) % len(MARKERS)]  # no pair comes twice
            axes.plot(row["whole"], 100 * row["em"], marker, color=colour, label=row["run"])
        axes.set(xlabel="seconds per question, writing included", ylabel="exact match, %")
        figure.legend(loc="outside lower center", ncols=2)
        figure.savefig(path, dpi=150, metadata={"Software": None})


def write(plan: Plan) -> dict[str, str]:
    args = plan.args
    evaluator = Evaluator(Catalogue(args.data), Sampling(SEED))
    splits = ",".join(args.split)
    results = evaluator.results(runs_of_dataset(plan.paths, splits, Skipping()))
    (curves,) = Curves.all_of(results, args.data)
    rows = compared(curves, streams(results, args.data))
    text = text_of(curves, rows)
    write_text(plan.folder / "four_way.md", text)
    result = {"made_by": measure.made_by(), "questions": len(plan.order(1)), "rows": rows}
    for path in filter(None, (plan.folder / "four_way.json", args.out)):
        write_json(path, result)
        draw(curves, path.with_suffix(".png"))
    print(text)
    paths = [*curves.write(plan.folder), *(str(p) for p in sorted(plan.folder.glob("four_way.*")))]
    return {"written": paths}


def main(argv: Sequence[str] | None = None, llm: Any = None) -> int:
    args = parse_args(argv)
    plan, codes = Plan(args), []

    def do(command: Command) -> None:
        print("python", *command, file=sys.stderr, flush=True)
        script, words = command[0], list(command[1:])
        if not args.dry_run:
            codes.append(agentic.main(words, llm) if script == "agentic.py" else train.main(words))

    if not args.gather:
        follow(plan, do, args.dry_run)
    if not args.dry_run:
        print(json.dumps(write(plan)))
    return int(any(codes))


if __name__ == "__main__":
    cli.guarded(main)
