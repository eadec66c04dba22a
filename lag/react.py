"""The loop: query, prompt, reply, parse, until an answer or the last step.

`solve` is a generator that yields prompts and is sent replies, so that one driver keeps many
questions in flight and whoever plays the model's side need not know the loop. Every row of `SOLVERS`
is this loop; they differ in where documents come from and in how many steps it may take.
"""

import logging
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lag import prompts
from lag.actions import Answer, parse
from lag.controls import Control, Ranking, retrieved
from lag.modes import BLANK, Mode
from lag.prompts import Document, Note, Prompt
from lag.retrieve import Hit
from lag.traces import Log, Question, Step, Trace, UsedLog
from lag.wire import GivenUp

log = logging.getLogger(__name__)

CURATOR_TOKENS = 512
SHEET_TAG = "<cheatsheet>"
ORDERS = ("similar-last", "similar-first", "entered")


@dataclass(slots=True)
class Agent:
    """What every question of a run shares.

    docs, logs: rankings, or None where the task, the solver or the mode uses none.
    evidence: a column of `SOLVERS`.
    trace_steps: how many earlier steps a prompt shows; trace_tokens bounds them, 0 does not.
    prefill: `turn` begins the model's turn, `folded` ends the user's.
    sheet: the cheatsheet that lives on (`--sheet carried`); everything else never changes.
    """

    task: Any
    mode: Mode
    llm: Any
    documents: dict[str, Document] = field(default_factory=dict)
    docs: Ranking | None = None
    store: dict[str, Log] = field(default_factory=dict)
    logs: Ranking | None = None
    evidence: str = "searched"
    max_steps: int = 8
    num_docs: int = 2
    num_logs: int = 3
    trace_steps: int = 0
    trace_tokens: int = 0
    prefill: str = "turn"
    layout: str = "paper"
    log_order: str = "similar-last"
    log_tokens: int = 0
    min_similarity: float = -1.0
    exclude_self: bool = False
    carried: bool = False
    control: Control = retrieved
    foreign_context: Callable[[str], Log] | None = None
    sheet: str = ""


class Entered:
    """What a question has retrieved so far, in the order in which it first entered.

    A query adds its `per_query` best; asked again, it digs deeper in its own ranking.
    """

    def __init__(
        self, index: Ranking | None, per_query: int, exclude: frozenset[str], least: float
    ):
        self.index, self.per_query, self.exclude, self.least = index, per_query, exclude, least
        self.cuts: dict[str, int] = {}
        self.hits: dict[str, Hit] = {}

    def query(self, text: str) -> None:
        if self.index is None or not self.per_query:
            return
        self.cuts[text] = self.cuts.get(text, 0) + self.per_query
        for hit in self.index.rank(text, self.cuts[text], self.exclude):
            if hit.similarity >= self.least:
                self.hits.setdefault(hit.id, hit)


class Paragraphs:
    """A question's own paragraphs as a ranking: in their order, whatever is asked."""

    def __init__(self, question: Question):
        self.ids = question.paragraphs

    def rank(self, query: str, k: int, exclude: frozenset[str] = frozenset()) -> list[Hit]:
        return [Hit(id, 1.0) for id in self.ids if id not in exclude][:k]


def evidence(question: Question, agent: Agent) -> Entered:
    """Where this question's documents come from."""
    own = agent.evidence == "own"
    index = Paragraphs(question) if own else agent.docs
    per_query = len(question.paragraphs) if own else agent.num_docs
    return Entered(index, per_query, frozenset(), -1.0)


@dataclass(slots=True)
class Context:
    """What one prompt is made from, and what had to be left out of it.

    steps: the earlier steps that the prompt shows, the last one last.
    """

    docs: list[Document]
    notes: list[Note]
    steps: list[Step] = field(default_factory=list)
    dropped: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, docs: list[Document], notes: list[Note], steps: list[Step], at_most: int
    ) -> "Context":
        """With the last `at_most` of the steps; 0 is a loop that shows none, so none is dropped."""
        context = cls(docs, notes, list(steps) if at_most else [])
        while len(context.steps) > at_most:
            context.forget()
        return context

    def forget(self) -> None:
        """Leave out the oldest step; it is recorded by its number, from 1."""
        self.steps.pop(0)
        gone = self.dropped.setdefault("steps", [])
        gone.append(len(gone) + 1)

    def shrink(self) -> bool:
        """Leave out the least similar log, else the oldest step, else the oldest document.

        Returns False if nothing is left to leave out.
        """
        if self.notes:
            least = min(self.notes, key=lambda note: note.similarity)
            self.notes.remove(least)
            self.dropped.setdefault("logs", []).append(least.id)
        elif self.steps:
            self.forget()
        elif self.docs:
            self.dropped.setdefault("docs", []).append(self.docs.pop(0).id)
        else:
            return False
        return True


def solve(trace: Trace, question: Question, agent: Agent) -> Generator[Prompt, Any, None]:
    """Answer one question; the trace grows with every reply."""
    exclude = frozenset([question.id]) if agent.exclude_self else frozenset()
    docs = evidence(question, agent)
    logs = Entered(agent.logs, agent.num_logs, exclude, agent.min_similarity)
    query, previous = question.text, ""
    sheet = []
    if agent.mode.enters == "sheet":
        sheet = yield from curate(trace, question, agent, logs)
        logs = Entered(None, 0, exclude, 0.0)
    for number in range(1, agent.max_steps + 1):
        start = time.perf_counter()
        docs.query(query)
        logs.query(query)
        documents = [agent.documents[id] for id in docs.hits]
        notes, steps = list(sheet) or arrange(question, logs, agent), asked(trace)
        context = Context.of(documents, notes, steps, agent.trace_steps)
        seconds = time.perf_counter() - start
        prompt = fit(context, agent, partial(build, question, previous, agent))
        note_dropped(trace, number, context)
        reply = yield prompts.with_key(prompt, f"{question.id} {number}")
        action = parse(reply.text, agent.task.query_tag)
        used = () if sheet else used_logs(context.notes, reply)
        trace.steps.append(step_of(query, action.name, context, used, reply, seconds))
        if isinstance(action, Answer):
            trace.pred = action.text
            return
        query = action.query or query
        previous = reply.text if agent.task.carries_reply else ""


def asked(trace: Trace) -> list[Step]:
    """The steps so far; a curator's call is none of them."""
    return [step for step in trace.steps if step.action != "curate"]


def curate(
    trace: Trace, question: Question, agent: Agent, logs: Entered
) -> Generator[Prompt, Any, list[Note]]:
    """Ask for a cheatsheet made from the question's logs; without logs there is none to ask for."""
    start = time.perf_counter()
    logs.query(question.text)
    context = Context([], arrange(question, logs, agent))
    seconds = time.perf_counter() - start
    sheet = agent.sheet if agent.carried else ""
    if context.notes:
        ask = fit(context, agent, partial(curator, question, sheet, agent))
        note_dropped(trace, 0, context)
        reply = yield prompts.with_key(ask, f"{question.id} 0")
        sheet = read_sheet(reply.text, question.id)
        used = used_logs(context.notes, reply)
        trace.steps.append(step_of(question.text, "curate", context, used, reply, seconds))
    trace.sheet = agent.sheet = sheet
    return [Note("sheet", sheet + BLANK, similarity=1.0)] if sheet else []


def curator(question: Question, sheet: str, agent: Agent, context: Context) -> Prompt:
    pairs = [(agent.store[n.id].question, n.keep.removesuffix(BLANK)) for n in context.notes]
    return prompts.curator_prompt(question.text, pairs, sheet, CURATOR_TOKENS)


def read_sheet(reply: str, id: str) -> str:
    """What stands in the sheet's tag, closed or cut off; without a tag the whole reply, said so."""
    lower = reply.lower()
    if SHEET_TAG not in lower:
        log.warning("%s: the curator's reply has no %s tag; all of it is used", id, SHEET_TAG)
        return reply.strip()
    start = lower.index(SHEET_TAG) + len(SHEET_TAG)
    end = lower.find("</cheatsheet>", start)
    return reply[start : end if end >= 0 else None].strip()


def arrange(question: Question, logs: Entered, agent: Agent) -> list[Note]:
    """The notes of the logs that entered, in the order in which they stand in the prompt."""
    found = agent.control(question, list(logs.hits.values()), logs.exclude)
    if agent.log_order != "entered":
        found = sorted(
            found, key=lambda hit: hit.similarity, reverse=agent.log_order == "similar-first"
        )
    return [note_of(hit, agent) for hit in found]


def note_of(hit: Hit, agent: Agent) -> Note:
    mode, past = agent.mode, agent.store[hit.id]
    kv = mode.enters == "kv"
    context = agent.foreign_context(hit.id) if agent.foreign_context else past
    return Note(hit.id, mode.keep(past), mode.after(context) if kv else "", kv, hit.similarity)


def build(question: Question, previous: str, agent: Agent, context: Context) -> Prompt:
    documents = None if agent.evidence == "none" else context.docs
    prompt = agent.task.prompt(question, documents, "" if agent.trace_steps else previous)
    prompt = prompts.with_steps(prompt, [(step.query, step.reply) for step in context.steps])
    if agent.prefill == "folded":
        prompt = prompts.folded(prompt)
    header = prompts.SHEET_HEADER if agent.mode.enters == "sheet" else prompts.LOGS_HEADER
    return prompts.with_notes(prompt, context.notes, agent.layout, header)


def fit(context: Context, agent: Agent, make: Callable[[Context], Prompt]) -> Prompt:
    """Make the prompt; leave out whole items until it fits.

    Raises:
        ValueError: even without logs and documents it is longer than the model's room.
    """
    while agent.log_tokens and notes_length(context, agent) > agent.log_tokens:
        context.shrink()
    while agent.trace_tokens and steps_length(context, agent, make) > agent.trace_tokens:
        context.forget()
    while (length := agent.llm.count(prompt := make(context))) > agent.llm.room:
        if not context.shrink():
            raise ValueError(
                f"a prompt of {length} tokens; the model has room for {agent.llm.room}"
            )
    return prompt


def notes_length(context: Context, agent: Agent) -> int:
    return sum(agent.llm.num_tokens(note.keep) for note in context.notes)


def steps_length(context: Context, agent: Agent, make: Callable[[Context], Prompt]) -> int:
    """How many tokens longer a prompt is because it shows earlier steps."""
    if not context.steps:
        return 0
    without = replace(context, steps=[])
    return agent.llm.count(make(context)) - agent.llm.count(make(without))


def note_dropped(trace: Trace, number: int, context: Context) -> None:
    if context.dropped:
        trace.dropped.append({"step": number, **context.dropped})


def used_logs(notes: Sequence[Note], reply: Any) -> tuple[UsedLog, ...]:
    sources = reply.sources or ("text",) * len(notes)
    return tuple(UsedLog(n.id, n.similarity, s) for n, s in zip(notes, sources, strict=True))


def step_of(
    query: str, action: str, context: Context, used: tuple[UsedLog, ...], reply: Any, seconds: float
) -> Step:
    return Step(
        query=query,
        action=action,
        docs=tuple(doc.id for doc in context.docs),
        logs=used,
        reply=reply.text,
        prompt_tokens=reply.prompt_tokens,
        cached_tokens=reply.cached_tokens,
        reused_tokens=reply.reused_tokens,
        new_tokens=reply.new_tokens,
        kv_bytes=reply.kv_bytes,
        near_ties=reply.near_ties,
        seconds={"retrieve": seconds, **reply.seconds},
    )


@dataclass(slots=True, eq=False)
class Flight:
    """A question in flight: its trace, its generator, and the prompt that waits for a reply."""

    trace: Trace
    turns: Generator[Prompt, Any, None]
    prompt: Prompt | None = None

    def send(self, reply: Any) -> None:
        """Go on to the next prompt; an exception on the way ends this question only.

        Raises:
            GivenUp: a server that every question needs is lost.
        """
        try:
            if isinstance(reply, Exception):
                raise reply
            self.prompt = self.turns.send(reply)
        except StopIteration:
            self.prompt = None
        except GivenUp:
            raise
        except Exception as error:
            self.prompt = None
            self.trace.pred = ""
            self.trace.error = describe(error)
            log.error("%s: %s", self.trace.id, self.trace.error["traceback"])


def take_off(question: Question, agent: Agent) -> Flight:
    """Begin a question: it waits for the reply to its first prompt."""
    trace = Trace.of(question)
    flight = Flight(trace, solve(trace, question, agent))
    flight.send(None)
    return flight


def describe(error: Exception) -> dict[str, str]:
    """An error as a row keeps it; its stage is the module of ours in which it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [Path(f.filename).stem for f in frames if Path(f.filename).parent.name == "lag"]
    text = "".join(traceback.format_exception(error))
    stage = ours[-1] if ours else "model"
    return {"stage": stage, "type": type(error).__name__, "message": str(error), "traceback": text}


def run(questions: Iterable[Question], agent: Agent, batch_size: int) -> Iterator[Trace]:
    """Answer questions, `batch_size` in flight; yield each trace as it ends.

    Raises:
        GivenUp: a server that every question needs is lost.
    """
    waiting, flying = iter(questions), 0
    batch = agent.llm.in_flight(batch_size)
    while True:
        while flying < batch_size and (question := next(waiting, None)) is not None:
            flight = take_off(question, agent)
            flying += 1
            yield from go_on(flight, batch)
            flying -= flight.prompt is None
        if not flying:
            return
        for flight, reply in batch.step():
            flight.send(reply)
            yield from go_on(flight, batch)
            flying -= flight.prompt is None


def go_on(flight: Flight, batch: Any) -> Iterator[Trace]:
    """Ask for the flight's next prompt, or yield its trace if it has none."""
    if flight.prompt is None:
        yield flight.trace
    else:
        batch.submit(flight, flight.prompt)
