"""Answer train questions as their gold annotations say, through the loop itself.

A teacher plays the model's side: it reads the prompt that the loop built, states the annotated facts
whose source stands in it, and asks for the next one or answers. It knows nothing but which facts a
question needs, so its traces show how to use documents and logs, when to search, and for what. The
traces are an ordinary predictions file, and `train.py sft` learns from it like from any other.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lag.files import digest_of, read_json
from lag.json_checks import Row, lists_of, records_of, text_of
from lag.paths import Paths
from lag.prompts import Note, Prompt
from lag.records import Counts, Document, Reply
from lag.runs.config import RunConfig
from lag.runs.merge import merge_run
from lag.runs.run import Run
from lag.runs.worker import Worker
from lag.tasks import id_of, read_documents, read_questions, subquestions_of
from lag.train.folds import Fold, folds

ANNOTATIONS = "gold annotations"  # the model's name in these runs
WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Hop:
    """One fact that a question needs.

    subject, object: what it is about, and what it says.
    text: how a reply states it, on one line.
    document: id of the document that says it.
    queries: what to search for, the best first.
    """

    subject: str
    object: str
    text: str
    document: str
    queries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What answers a question: its facts in the order in which they can be found, and the answer."""

    hops: tuple[Hop, ...]
    answer: str

    def conclusion(self) -> str:
        """The chains of facts, each from its start to its end, on one line."""
        chains: list[list[str]] = []
        for hop in self.hops:
            chain = next((c for c in chains if like(c[-1], hop.subject)), None)
            if chain is None:
                chains.append([hop.subject, hop.object])
            else:
                chain.append(hop.object)
        return "; ".join(" -> ".join(chain) for chain in chains)


def like(one: str, other: str) -> bool:
    """Whether two names have the same words; case, punctuation and order do not matter."""
    return words(one) == words(other)


def words(text: str) -> frozenset[str]:
    return frozenset(WORD.findall(text.casefold()))


def plan_of(row: Row) -> Plan | None:
    """The plan of a row with evidence triples (2WikiMultiHopQA) or a decomposition (MuSiQue).

    Returns None where a fact names no document.

    Raises:
        ValueError: a row without either.
    """
    if "evidences" in row:
        hops = hops_of_triples(row)
    elif "question_decomposition" in row:
        hops = hops_of_decomposition(row)
    else:
        raise ValueError(
            f"row {id_of(row)} has neither 'evidences' nor 'question_decomposition'; "
            "expected a data set with annotated facts, such as wikihop or musique"
        )
    return Plan(tuple(hops), text_of(row, "answer")) if all(hop.document for hop in hops) else None


def hops_of_triples(row: Row) -> list[Hop]:
    """A hop per triple; the supporting documents stand in the same order, or are found by title."""
    triples = [tuple(map(str, triple[:3])) for triple in lists_of(row, "evidences", 3)]
    titles = [str(fact[0]) for fact in lists_of(row, "supporting_facts", 1)]
    by_title = dict(zip(dict.fromkeys(titles), row.get("supporting_ids", ())))
    hops: list[Hop] = []
    for number, (subject, relation, object) in enumerate(triples):
        aligned = len(titles) == len(triples)
        title = titles[number] if aligned else nearest(subject, titles)
        linked = any(like(hop.object, subject) for hop in hops)
        name = subject if linked or not title else title  # what is known of it before it is found
        text = f"{name}: {relation} {object}"
        hops.append(Hop(name, object, text, by_title.get(title, ""), (name,)))
    return hops


def nearest(name: str, titles: Sequence[str]) -> str:
    """The title that shares most words with a name; empty if none shares any."""
    shared = {title: len(words(name) & words(title)) for title in titles}
    best = max(shared, key=shared.__getitem__, default="")
    return best if shared.get(best) else ""


def hops_of_decomposition(row: Row) -> list[Hop]:
    """A hop per sub-question, with the answers of earlier ones put in."""
    parts = records_of(row, "question_decomposition")
    hops = []
    for part, asked in zip(parts, subquestions_of(row), strict=False):
        subject, _, relation = asked.partition(" >> ")
        answer = text_of(part, "answer")
        queries = (f"{subject} {relation}".strip(), subject)
        text = f"{subject}: {relation} {answer}" if relation else f"{asked} {answer}"
        hops.append(Hop(subject, answer, text, str(part.get("document_id", "")), queries))
    return hops


class Teacher:
    """Plays the model's side of a run, for questions that have a plan; nothing is too long for it."""

    name, device, concurrency, continues, room, new_tokens = (
        ANNOTATIONS,
        "none",
        0,
        True,
        1 << 30,
        0,
    )

    def __init__(self, plans: Mapping[str, Plan], documents: Mapping[str, Document]):
        self.plans, self.documents = plans, documents
        self.asked: dict[str, list[str]] = {}

    def fingerprint(self, cache: Path | None = None) -> dict[str, str]:
        plans = {id: asdict(plan) for id, plan in self.plans.items()}
        return {"digest": digest_of(plans)[:24]}

    def open_store(self, folder: Path, mode: Any) -> None:
        """Nothing is stored: what keys and values carry is known as words."""

    def can_be_encoded(self, note: Note) -> bool:
        return True

    def num_tokens(self, text: str) -> int:
        return 0

    def count(self, prompt: Prompt) -> int:
        return 0

    def in_flight(self, slots: int) -> "Replies":
        return Replies(self)

    def stats(self) -> dict[str, Counts]:
        return {}

    def reply(self, prompt: Prompt) -> Reply:
        """What the annotations say to one prompt of the loop."""
        id, number = prompt.key.rsplit(" ", 1)
        plan = self.plans[id]
        known = [hop for hop in plan.hops if self.states(prompt, hop)]
        facts = "".join(f"\n- {hop.text}" for hop in known)
        if len(known) == len(plan.hops):
            return Reply(f"{facts}\nSo: {plan.conclusion()}\n<ans>{plan.answer}</ans>")
        asked = self.asked[id] = self.asked[id] if number != "1" else []
        asked.append(query := next_query(plan, known, asked))
        return Reply(f"{facts or ' none yet'}\n<keywords>{query}</keywords>")

    def states(self, prompt: Prompt, hop: Hop) -> bool:
        """Whether the prompt's documents or logs, hidden text included, say what a hop needs."""
        document = self.documents[hop.document]
        if f"] {document.title}\n{document.content}" in prompt.user:
            return True
        said = [prompt.user, *(note.after + note.keep for note in prompt.notes)]
        return any(f"- {hop.text}\n" in text for text in said)


class Replies:
    """Prompts that a teacher replies to at the next step."""

    def __init__(self, teacher: Teacher):
        self.teacher, self.asked = teacher, []

    def submit(self, ticket: Hashable, prompt: Prompt) -> None:
        self.asked.append((ticket, prompt))

    def step(self) -> list[tuple[Any, Reply | Exception]]:
        asked, self.asked = self.asked, []
        return [(ticket, self.teacher.reply(prompt)) for ticket, prompt in asked]

    def close(self) -> None:
        self.asked = []


def next_query(plan: Plan, known: Sequence[Hop], asked: Sequence[str]) -> str:
    """What to search for next: a fact whose subject the question or a known fact names.

    asked: the queries so far; what was asked and did not help is asked in other words first.
    """
    missing = [hop for hop in plan.hops if hop not in known]
    hidden = [hop.object for hop in missing]
    able = [hop for hop in missing if not any(like(hop.subject, name) for name in hidden)]
    queries = [query for hop in able or missing for query in hop.queries]
    return min(queries, key=lambda query: asked.count(query))


def imitate(config: RunConfig, fold: tuple[int, int] | None = None) -> dict[str, Any]:
    """Answer train questions as their annotations say; write the rows as a run of their own.

    fold: answer only the questions of this part, of so many; logs of others do not enter.

    Raises:
        ValueError: questions without annotations, or a log store with logs of other parts.
    """
    paths = Paths(config.data, config.dataset)
    part = part_of(config, paths, fold)
    rows = read_json(paths.questions("train"), f"run: python dataset.py {paths.flags}")
    rows = [row for row in rows if part is None or id_of(row) in part.ids]
    plans = {id_of(row): plan for row in rows if (plan := plan_of(row))}
    asked = replace(config, split="train", ids=",".join(plans), model=ANNOTATIONS).settled()
    name = asked.run or f"{part.name if part else 'gold'}_{asked.name}"
    run = Run(replace(asked, run=name))
    if part and run.mode.enters:
        check_logs(run.log_store, part)
    summary = Worker(Teacher(plans, read_documents(paths))).answer(run)
    return summary | {"without_plan": len(rows) - len(plans)} | merge_run(run)


def part_of(config: RunConfig, paths: Paths, fold: tuple[int, int] | None) -> Fold | None:
    if fold is None:
        return None
    return folds(read_questions(paths, config.task, "train"), fold[1])[fold[0]]


def check_logs(path: Path, part: Fold) -> None:
    """
    Raises:
        ValueError: logs of questions that are not of this part.
    """
    foreign = sorted(read_json(path, "check --log-store")["results"].keys() - part.ids)
    if foreign:
        raise ValueError(
            f"--log-store {path} holds logs of other parts, such as {foreign[0]!r}; give the "
            f"predictions of {part.name}: what was trained on them would not be cross-fitted"
        )
