"""What KV carries that the kept words do not say, on the embedded data set's own model.

Every question asks for one fact. No document holds it; of the logs in the prompt one was encoded
behind a text that states it, and keeps its answer tag alone; the others keep answers of their own.
The same words enter as KV, as KV behind another log's hidden text, as text, and with their text.

python benchmarks/hidden.py --questions 500
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import measure  # first: it finds the toolkit
from measure import Measure

from lag import prompts
from lag.actions import parse
from lag.drills import a_log
from lag.llm import LLM
from lag.modes import MODES, last_response
from lag.prompts import Document, Note, Prompt
from lag.tasks import TASKS
from lag.traces import Log
from lag.world import Chain, World, generate, keys_of

SEED = 2101  # a world that nothing else is measured on
NUM_LOGS = 3
NUM_DOCS = 2
MODE = MODES["log_kv_last_action"]


@dataclass(frozen=True, slots=True)
class Case:
    """A question for one fact, its answer, the log that knows it, and the prompt's logs in order."""

    question: str
    answer: str
    logs: tuple[Log, ...]
    documents: tuple[Document, ...]


def cases(world: World, count: int) -> Iterator[Case]:
    """Questions whose fact stands in one log's hidden text and nowhere else."""
    rng = random.Random(f"hidden {world.seed}")
    keys = [key for key, name in world.mentions.items() if name not in world.aliases]
    for _ in range(count):
        chosen = [one_step(rng, world, *key) for key in rng.sample(keys, NUM_LOGS)]
        chain = chosen[0][0]
        (key,) = keys_of(world, chain)
        silent = [a for a in world.articles if (key[0], key[1]) not in known(a)]
        documents = [Document(a.id, a.title, a.content) for a in rng.sample(silent, NUM_DOCS)]
        logs = [log for _, log in chosen]
        rng.shuffle(logs)
        yield Case(chain.text, world.facts[key], tuple(logs), tuple(documents))


def known(article: Any) -> set[tuple[str, str]]:
    return {(fact.noun, fact.subject) for fact in article.facts}


def one_step(rng: random.Random, world: World, noun: str, name: str) -> tuple[Chain, Log]:
    """A question for one fact, and the log of a run that found it."""
    log = a_log(rng, world, noun, name)
    while len(log.replies) > 1:
        log = a_log(rng, world, noun, name)
    return Chain(name, (noun,)), log


def notes_of(logs: tuple[Log, ...], kind: str) -> tuple[Note, ...]:
    """The notes of a prompt: `kv`, `wrong` (behind the next log's hidden text), `text`, `full`."""
    contexts = logs[1:] + logs[:1] if kind == "wrong" else logs
    if kind == "full":
        return tuple(Note(log.id, last_response(log)) for log in logs)
    if kind == "text":
        return tuple(Note(log.id, MODE.keep(log)) for log in logs)
    pairs = zip(logs, contexts)
    return tuple(Note(log.id, MODE.keep(log), MODE.after(other), True) for log, other in pairs)


KINDS = {
    "kv": "answer tags as KV, encoded behind their reasoning",
    "wrong": "the same tags as KV, encoded behind another log's reasoning",
    "text": "the same tags as text",
    "full": "tags with their reasoning, as text",
    "none": "no logs",
}


def prompt_of(case: Case, kind: str) -> Prompt:
    prompt = prompts.qa_prompt(case.question, case.documents)
    return prompt if kind == "none" else replace(prompt, notes=notes_of(case.logs, kind))


def share_right(llm: LLM, asked: list[Case], make: Callable[[Case], Prompt]) -> tuple[float, float]:
    """Shares of right answers, and of wrong ones; the rest searches on."""
    right = wrong = 0
    for start in range(0, len(asked), 32):
        batch = asked[start : start + 32]
        for case, reply in zip(batch, llm.generate([make(case) for case in batch])):
            action = parse(reply.text, "keywords")
            right += action.name == "answer" and action.text == case.answer
            wrong += action.name == "answer" and action.text != case.answer
    return right / len(asked), wrong / len(asked)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=500, help="how many (%(default)s)")
    parser.add_argument("--model", default=TASKS["miniwiki"].model, help="folder (%(default)s)")
    parser.add_argument("--out", type=Path, help="result file; default: benchmarks/results/")
    args = parser.parse_args()
    llm = LLM.load(args.model, max_new_tokens=64)
    asked = list(cases(generate(SEED), args.questions))
    args.repeats, rows, shares = 1, [], {}
    with tempfile.TemporaryDirectory() as folder:
        llm.open_store(Path(folder), MODE)
        for kind, what in KINDS.items():
            right, wrong = share_right(llm, asked, lambda case, kind=kind: prompt_of(case, kind))
            kept = notes_of(asked[0].logs, kind) if kind != "none" else ()
            tokens = sum(llm.num_tokens(note.keep) for note in kept) / NUM_LOGS
            shares[kind] = {"right": right, "wrong": wrong, "tokens_per_log": tokens}
            rows.append(Measure("H1", f"right answers: {what}", round(right, 3)))
    measure.report(args, rows, {"questions": args.questions, "shares": shares})


if __name__ == "__main__":
    main()
