"""A model that has only read logs as text learns to read them as KV, with `train.py sft --logs kv`.

python train.py miniwiki --without kv --out models/text-only
python benchmarks/log_tuning.py --model models/text-only/model

Before and after: how often the right one of three answer tags is found that are kept as KV behind
their reasoning (forced choice, and free), as in `hidden.py`, on a world that nothing was trained on.
Learned from are solved questions of worlds with other names. Three times: an adapter, with which logs
are encoded anew; a reader, an adapter that is off while logs are encoded, so that the spans of the
model before serve on; and the whole model, vectors of the names that it reads included. Everything
lies in `--work`; the same command goes on where it stopped.
"""

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import measure  # first: it finds the toolkit
from hidden import KINDS, MODE, SEED, Case, cases, notes_of, prompt_of, share_chosen, share_right
from measure import Measure

import train
from lag import cli, prompts
from lag.files import read_json, write_json
from lag.logs.store import LogStore
from lag.miniwiki.world import generate
from lag.model.llm import LLM
from lag.paths import Paths
from lag.records import Question, Step, Trace, UsedLog
from lag.solvers import SOLVERS, limits
from lag.tasks import TASKS

NAME = "miniwiki"
WORLDS = range(20_000, 20_100)  # with the names of training, and none that a model was trained on
READ = ("kv", "wrong", "text")
WAYS = {
    "adapter": "--rank 64 --alpha 64",
    "reader": "--rank 64 --alpha 64 --reader",
    "whole": "--tune full",
}


def trace_of(id: str, case: Case, number: int) -> Trace:
    """A question that was solved in one step, by what its documents and logs say."""
    used = tuple(UsedLog(f"{id} {place}", 1.0, "kv") for place in range(len(case.logs)))
    docs = tuple(f"{number} {document.id}" for document in case.documents)
    trace = Trace(id, case.question, (case.answer,), pred=case.answer)
    trace.steps = [Step(case.question, "answer", docs, used, case.reply, new_tokens=1)]
    return trace


def log_traces(id: str, case: Case) -> dict[str, Trace]:
    """The logs of a case as rows."""
    found = {}
    for place, log in enumerate(case.logs):
        steps = [Step(log.question, "answer", reply=reply) for reply in log.replies]
        found[f"{id} {place}"] = Trace(f"{id} {place}", log.question, steps=steps)
    return found


def write_run(data: Path, count: int, per_world: int) -> Path:
    """A data set of solved questions, its logs, and the run that has solved them; returns the run."""
    paths = Paths(data, NAME)
    run = paths.preds / "solved.json"
    if run.exists():
        return run
    rows, documents, logs, solved = [], {}, {}, {}
    for number in WORLDS:
        if len(rows) >= count:
            break
        for place, case in enumerate(cases(generate(number), per_world)):
            id = f"w{number}_{place}"
            rows.append({"id": id, "question": case.question, "answer": case.answer})
            documents |= {
                f"{number} {d.id}": {"title": d.title, "content": d.content} for d in case.documents
            }
            logs |= log_traces(id, case)
            solved[id] = trace_of(id, case, number)
    write_json(paths.questions("train"), rows)
    write_json(paths.docs, documents)
    store = {id: trace.to_json() for id, trace in logs.items()}
    write_json(paths.log_store, {"metadata": {}, "inference_params": {}, "results": store})
    questions = [Question(row["id"], row["question"]) for row in rows]
    metadata = {"dataset": NAME, "split": "train", "mode": MODE.name, "solver": "react"}
    settings = limits(SOLVERS["react"], TASKS[NAME]) | {
        "layout": "paper",
        "prefill": "turn",
        "prompts": prompts.digest(),
        "logs": LogStore.load(paths.log_store, questions).digest,
    }
    results = {id: trace.to_json() for id, trace in solved.items()}
    write_json(run, {"metadata": metadata, "inference_params": settings, "results": results})
    return run


def reading(model: str, adapter: Path | None, asked: Sequence[Case]) -> dict[str, Any]:
    """Shares of right answers, free and forced, by what enters."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        llm = LLM.load(model, adapter=adapter, max_new_tokens=64)
        llm.open_store(Path(folder), MODE)
        for kind in READ:
            make = partial(prompt_of, kind=kind)
            right, wrong = share_right(llm, list(asked), make)
            forced = share_chosen(llm, list(asked), make)
            found[kind] = {"right": right, "wrong": wrong, "forced": forced}
    return found


def same_spans(model: str, reader: Path, asked: Sequence[Case]) -> bool:
    """Whether logs are encoded to the same bits with a reader and without."""
    import torch

    made, notes = [], [note for case in asked for note in notes_of(case, "kv")]
    for adapter in (None, reader):
        with tempfile.TemporaryDirectory() as folder:
            llm = LLM.load(model, adapter=adapter)
            llm.open_store(Path(folder), MODE)
            made.append(llm.kv.encode([llm.chat.note_ids(note) for note in notes]))
    return all(
        torch.equal(mine, theirs)
        for one, other in zip(*made, strict=True)
        for mine, theirs in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True)
    )


def tuned(args: argparse.Namespace, run: Path, out: Path, flags: Sequence[str]) -> Path:
    """What `train.py sft` makes of the run; nothing is done again."""
    if not (out / "lag.json").exists():
        words = ["sft", "-d", NAME, "--data", str(args.work), "--model", args.model]
        words += ["--from", str(run), "--logs", "kv", "--out", str(out)]
        words += ["--rate", str(args.rate), "--epochs", str(args.epochs), "--batch-size", "8"]
        if train.main([*words, *flags]):
            raise SystemExit(f"train.py {' '.join(words)} failed")
    return out


def cost(folder: Path) -> dict[str, Any]:
    """How a model was tuned, and what that took."""
    made = read_json(folder / "lag.json")
    done = {name: value for name, value in made["result"].items() if name != "out"}
    return {"adapter": made["recipe"], "training": made["training"], **done}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number, add = cli.at_least(1), parser.add_argument
    # fmt: off
    add("--model", default="models/text-only/model", help="folder (%(default)s)")
    add("--work", type=Path, default=Path("runs/log-tuning"), help="folder of its files (%(default)s)")
    add("--solved", type=number, default=4000, help="questions to learn from (%(default)s)")
    add("--per-world", type=number, default=400, help="of each world (%(default)s)")
    add("--questions", type=number, default=300, help="that reading is measured on (%(default)s)")
    add("--epochs", type=number, default=2, help="times that every example is read (%(default)s)")
    add("--rate", type=float, default=1e-3, help="highest learning rate (%(default)s)")
    add("--out", type=Path, help="result file; default: benchmarks/results/")
    # fmt: on
    args = parser.parse_args()
    args.repeats = 1
    asked = list(cases(generate(SEED), args.questions))
    run = write_run(args.work, args.solved, args.per_world)
    adapter, reader, whole = made = [
        tuned(args, run, args.work / name, flags.split()) for name, flags in WAYS.items()
    ]
    shares = {
        "before": reading(args.model, None, asked),
        "adapter": reading(args.model, adapter, asked),
        "reader": reading(args.model, reader, asked),
        "whole": reading(str(whole), None, asked),
    }
    equal = same_spans(args.model, reader, asked[:20])
    rows = [
        Measure(
            "W1",
            f"forced choice of three, {KINDS[kind]}: {what}",
            round(one["forced"], 3),
            least=0.9 if kind == "kv" and what in ("adapter", "reader") else None,
        )
        for what, found in shares.items()
        for kind, one in found.items()
    ]
    rows.append(
        Measure("W2", "spans with the reader equal those without, bit for bit", equal, least=1)
    )
    costs = {name: cost(folder) for name, folder in zip(WAYS, made, strict=True)}
    told = {"questions": args.questions, "shares": shares, "training": costs}
    measure.report(args, rows, told)


if __name__ == "__main__":
    cli.guarded(main)
