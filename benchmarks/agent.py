"""Questions answered end to end on the embedded data set: batches, steps that share, the naive route.

python benchmarks/agent.py                     # its world, logs and KV are made first: minutes
python benchmarks/agent.py --model FOLDER --embedder FOLDER --questions 50

T1: questions per second of log_kv with 16 in flight over 1, without drafts. T2: prefilled tokens of base with over
without what steps, and the beginnings of all prompts, share; computing those beginnings, once per
run, is left out. T5: the naive route's seconds for the same questions over ours, 64 in flight.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
import naive
from measure import Measure

from lag import cli
from lag.tasks import TASKS

NAME = "miniwiki"
MANY, MOST = 16, 64  # questions in flight


def make_world(args: argparse.Namespace, data: Path) -> None:
    """The data set, its vectors, a log of every train question, and the logs' KV."""
    common = ["-d", NAME, "--data", str(data)]
    models = ["--model", args.model, "--embedder", args.embedder]
    base = ["agentic.py", "-m", "base", *common]
    spoken = [*models, "--max-new-tokens", str(args.max_new_tokens), "--limit", str(args.logs)]
    for command in (
        ["dataset.py", *common],
        ["embed.py", *common, *models[2:]],
        [*base, *spoken, "--batch-size", str(MANY)],
        [*base, *spoken, "--merge", "--as-log"],
        ["store_log_kv.py", *common, *models[:2]],
    ):
        done = subprocess.run([sys.executable, *command], cwd=measure.ROOT, capture_output=True)
        if done.returncode:
            sys.exit(done.stderr.decode().strip().splitlines()[-1])


def make_agent(args: argparse.Namespace, data: Path, mode: str, llm: Any = None) -> Any:
    """What `agentic.py` makes of its flags, and the questions that it would ask."""
    import agentic
    from lag.runs.run import Run
    from lag.runs.worker import Worker

    flags = f"-d {NAME} -m {mode} --split test --limit {args.questions}".split()
    flags += ["--model", args.model, "--embedder", args.embedder, "--data", str(data)]
    config = agentic.parse_args([*flags, "--max-new-tokens", str(args.max_new_tokens)])
    run = Run(*config.runs())
    agent = Worker(llm).prepare(run).agent
    return agent, run.questions


def answers(agent: Any, questions: list[Any], in_flight: int) -> dict[str, Any]:
    from lag.agent import driver

    return {trace.id: trace for trace in driver.run(questions, agent, in_flight)}


class NaiveLLM:
    """One prompt at a time, on caches that one pickle holds; reading it is part of the route."""

    def __init__(self, llm: Any, pickled: Path, places: dict[tuple, tuple[int, int]]):
        """places: for the ids of a log its place in the pickle, and from where it was encoded."""
        self.llm, self.places = llm, places
        self.model = measure.the_librarys(llm.model)
        self.caches = naive.load(pickled)
        self.room, self.count, self.num_tokens = llm.room, llm.count, llm.num_tokens
        self.can_be_encoded = llm.can_be_encoded
        self.asked: list[tuple[Any, Any]] = []

    def close(self) -> None:
        self.asked = []

    def in_flight(self, slots: int) -> "NaiveLLM":
        return self

    def submit(self, ticket: Any, prompt: Any) -> None:
        self.asked.append((ticket, prompt))

    def step(self) -> list[tuple[Any, Any]]:
        asked, self.asked = self.asked, []
        return [(ticket, self.reply(prompt)) for ticket, prompt in asked]

    def reply(self, prompt: Any) -> Any:
        from lag.records import Reply

        ids = []
        for logits in self.logits(self.llm.chat.encode(prompt), ids):
            ids.append(int(logits.argmax()))
            if ids[-1] in self.llm.end_ids or len(ids) >= self.llm.max_new_tokens:
                break
        spoken = ids[:-1] if ids[-1] in self.llm.end_ids else ids
        sources = ("kv",) * len(prompt.notes)
        return Reply(self.llm.chat.text(spoken), new_tokens=len(ids), sources=sources)

    def logits(self, pieces: Any, ids: list[int]) -> Iterator[Any]:
        """Logits (V,) of every next token; `ids` is what was chosen so far."""
        import torch
        from transformers import DynamicCache

        found = [self.places[pair] for pair in pieces.notes]
        logs, offsets = [self.caches[place] for place, _ in found], [at for _, at in found]
        model = self.model
        cache = naive.place(model, logs, 2, offsets) if logs else DynamicCache()
        new = [*pieces.head, *pieces.tail]
        while True:
            with torch.no_grad():
                start = cache.get_seq_length()
                positions = torch.arange(start, start + len(new))[None]
                yield model(
                    torch.tensor([new]),
                    past_key_values=cache,
                    position_ids=positions,
                    logits_to_keep=1,
                ).logits[0, -1]
            new = ids[-1:]


def pickled(agent: Any, path: Path) -> dict[tuple, tuple[int, int]]:
    """Encode every log the naive way into one pickle; says where each lies."""
    from lag.prompts import Note

    caches, places = [], {}
    for log in agent.store.values():
        note = Note(log.id, agent.mode.keep(log), agent.mode.after(log), kv=True)
        after, keep = pair = agent.llm.chat.note_ids(note)
        layers = naive.encode(agent.llm.model, after + keep)
        places[pair] = len(caches), len(after)
        own = slice(len(after), None)
        caches.append([(k[:, :, own].clone(), v[:, :, own].clone()) for k, v in layers])
    naive.save(path, caches)
    return places


def in_batches(args: argparse.Namespace, data: Path, folder: Path) -> tuple[list[Measure], Any]:
    """T1 and T5: the same questions one at a time, many in flight, and the naive way."""
    from dataclasses import replace

    from lag.kv_store.budgets import SpanCache
    from lag.paths import Paths

    agent, questions = make_agent(args, data, "log_kv")
    places = pickled(agent, folder / "logs.pkl")
    found: dict[str, dict[str, Any]] = {}

    def ours(name: str, in_flight: int, draft: str = "off") -> None:
        agent.llm.draft = draft
        agent.llm.kv.span_cache = SpanCache(
            agent.llm.kv.budget.memory
        )  # every log is read once again
        agent.llm.open_store(Paths(data, NAME).kv, agent.mode)
        found[name] = answers(agent, questions, in_flight)

    def naively() -> None:
        llm = NaiveLLM(agent.llm, folder / "logs.pkl", places)
        found["naive"] = answers(replace(agent, llm=llm), questions, 1)

    routes = {
        "one at a time": lambda: ours("one at a time", 1),
        f"{MANY} in flight": lambda: ours(f"{MANY} in flight", MANY),
        f"{MOST} in flight": lambda: ours(f"{MOST} in flight", MOST, "logs"),
        "drafted, one": lambda: ours("drafted, one", 1, "logs"),
        f"drafted, {MANY}": lambda: ours(f"drafted, {MANY}", MANY, "logs"),
        "naive": naively,
    }
    seconds = measure.take_turns(routes, args.repeats)
    drafted_many = f"drafted, {MANY}"
    one, many, most = "one at a time", f"{MANY} in flight", f"{MOST} in flight"

    def alike(a: str, b: str) -> int:
        return sum(found[a][id].replies == trace.replies for id, trace in found[b].items())

    count = len(questions)
    return [
        Measure("T1", f"questions per second, log_kv, {MANY} in flight / 1, without drafts", round(measure.ratio(seconds, one, many), 3), least=3),
        Measure("T5", f"naive route / ours with {MOST} in flight, {count} questions end to end", round(measure.ratio(seconds, "naive", most), 3), least=4),
        Measure("T5", f"the same with {MANY} in flight", round(measure.ratio(seconds, "naive", drafted_many), 3)),
        Measure("T5", "the same, one at a time", round(measure.ratio(seconds, "naive", "drafted, one"), 3)),
        Measure("S3", "drafts on / off, questions per second, log_kv, embedded model, 1 in flight", round(measure.ratio(seconds, one, "drafted, one"), 3)),
        Measure("S3", f"the same, {MANY} in flight", round(measure.ratio(seconds, many, drafted_many), 3)),
        Measure("T1", f"questions with the same replies in both, of {count}", alike(one, many)),
        Measure("T5", f"questions with the same replies on both routes, of {count}", alike("naive", most)),
    ], seconds  # fmt: skip


def shared_steps(args: argparse.Namespace, data: Path) -> list[Measure]:
    """T2: tokens that are prefilled per question."""
    agent, questions = make_agent(args, data, "base")
    prefilled = {}
    for reuse in (True, False):
        agent.llm.reuse = reuse
        costs = [trace.cost for trace in answers(agent, questions, MANY).values()]
        names = ("prompt_tokens", "cached_tokens", "reused_tokens")
        asked, *spared = (sum(cost[name] for cost in costs) for name in names)
        prefilled[reuse] = (asked - sum(spared)) / len(questions)
        calls = sum(cost["calls"] for cost in costs) / len(questions)
    share = round(prefilled[True] / prefilled[False], 3)
    return [
        Measure("T2", "prefilled tokens per question, base, with / without what is shared", share, most=0.55),
        Measure("T2", "prefilled tokens per question without", round(prefilled[False], 1)),
        Measure("T2", "steps per question", round(calls, 2)),
    ]  # fmt: skip


def main() -> None:
    task = TASKS[NAME]
    parser = measure.make_parser(__doc__, repeats=3)
    parser.add_argument("--model", default=task.model, help="language model (%(default)s)")
    parser.add_argument("--embedder", default=task.embedder, help="sentence encoder (%(default)s)")
    parser.add_argument("--questions", type=int, default=100, help="questions (%(default)s)")
    parser.add_argument("--logs", type=int, default=300, help="logs in the store (%(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="of a reply (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        make_world(args, data)
        measures, seconds = in_batches(args, data, Path(folder))
        measures += shared_steps(args, data)
    measure.report(args, measures, {"end to end": measure.in_milliseconds(seconds)})


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
