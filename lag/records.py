"""The records that several modules share, and how they become JSON lines.

A question is answered in steps; the steps and their outcome are a trace; a trace without its
gold answers is a log. A run appends traces to parts, one JSON line each, so that a kill at any
point loses at most the line being written.
"""

import re
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np


SECONDS = ("retrieve", "prefill", "decode", "store")
ASIDE = ("curate", "retry", "select")  # actions of steps that are not among what the agent said
DRAFTS = ("drafted_tokens", "accepted_tokens")  # what no row is compared by
MARKED = ("memory", "reason", "answer")  # what trained markers say of the words behind them
MARKER = re.compile(rf"<({'|'.join(MARKED)})(?:-1)?>")
COUNTS = ("prompt_tokens", "cached_tokens", "reused_tokens", "new_tokens", "kv_bytes", "near_ties")
COUNTS += DRAFTS


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a data set.

    answers: the gold answer, then its aliases; of multiple choice the letter, then the option.
    supporting_ids: documents that support the answer, where the data set knows them.
    groups: what scores are broken down by, such as `type`, `hops` or `category`.
    subquestions: the gold decomposition, where known; used to find overlap between questions.
    paragraphs: ids of the question's own context documents, in their order.
    sample: which of several rows on this question it stands for, from 0; None: its only one.
    without: id of a log that is left out of what it retrieved, to see what that log did.
    """

    id: str
    text: str
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    supporting_ids: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)
    subquestions: tuple[str, ...] = ()
    paragraphs: tuple[str, ...] = ()
    sample: int | None = None
    without: str = ""

    @property
    def row_id(self) -> str:
        """The id of its row: `<question>#<sample>` where it has several."""
        return self.id if self.sample is None else f"{self.id}#{self.sample}"

    def samples(self, count: int) -> "list[Question]":
        """Itself, or so many of it, one per row."""
        return [self] if count == 1 else [replace(self, sample=k) for k in range(count)]


@dataclass(frozen=True, slots=True)
class UsedLog:
    """A log that entered a prompt: as text, as stored KV, or as KV encoded on the spot."""

    id: str
    similarity: float
    source: str = "text"


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the model: the query before it, what entered its prompt, what it replied.

    action: `answer`, `search`, `nothing` (a reply without a tag), `retry` (as `nothing`, and the
        next step asks again), `curate` (a cheatsheet) or `select` (which documents enter the next).
    cached_tokens: of the prompt, placed from stored KV; reused_tokens: left from the step before, or
        from the beginning that all prompts share.
    drafted_tokens: were guessed and checked; accepted_tokens: those of them that the reply says.
    seconds: by part, `retrieve`, `prefill` (to the first token), `decode`, `store`.
    """

    query: str
    action: str
    docs: tuple[str, ...] = ()
    logs: tuple[UsedLog, ...] = ()
    reply: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    kv_bytes: int = 0
    near_ties: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    reused_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(slots=True)
class Trace:
    """One question answered, or not: a row of a predictions file. The only record that grows.

    adapter: digest of the one of several adapters that answered it; else empty.
    ended: why it ended without an answer before its last step, such as `repeats itself`.
    question_id, sample: of a row that is one of several on its question; else empty and None.
    store: of a store that grows the version that it retrieved from: `version`, `digest`.
    without: id of the log that was left out of what it retrieved (`--ablate`).
    """

    id: str
    question: str
    gold_answer: tuple[str, ...] = ()
    gold_evidence: tuple[str, ...] = ()
    pred: str = ""
    steps: list[Step] = field(default_factory=list)
    sheet: str | None = None
    dropped: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, str] | None = None
    ended: str = ""
    question_id: str = ""
    sample: int | None = None
    adapter: str = ""
    store: dict[str, Any] | None = None
    without: str = ""

    @classmethod
    def of(cls, question: Question) -> "Trace":
        trace = cls(question.row_id, question.text, question.answers, question.supporting_ids)
        trace.without = question.without
        if question.sample is not None:
            trace.question_id, trace.sample = question.id, question.sample
        return trace

    @property
    def status(self) -> str:
        if self.error:
            return "error"
        return "answered" if self.pred else "unanswered"

    @property
    def replies(self) -> tuple[str, ...]:
        """What the agent said, step by step, without a curator's sheet and what was asked again."""
        return tuple(step.reply for step in self.steps if step.action not in ASIDE)

    @property
    def markers(self) -> list[str]:
        """What the markers in its replies say, in their order; a run of one marker's tokens is one."""
        return [kind for reply in self.replies for kind in MARKER.findall(reply)]

    @property
    def cost(self) -> dict[str, Any]:
        """Sums over all calls, a curator's included: tokens, bytes, seconds by part."""
        steps = self.steps
        counts = {name: sum(getattr(step, name) for step in steps) for name in COUNTS}
        seconds = {part: sum(step.seconds.get(part, 0.0) for step in steps) for part in SECONDS}
        return {"calls": len(steps), **counts, "seconds": seconds}

    def to_json(self) -> dict[str, Any]:
        """The row as DESIGN's file format has it, without its id."""
        row = {
            "question": self.question,
            "pred": self.pred,
            "gold_answer": list(self.gold_answer),
            "gold_evidence": list(self.gold_evidence),
            "status": self.status,
            "error": self.error,
            "num_steps": len(self.replies),
            "trace": [asdict(step) for step in self.steps],
            "cost": self.cost,
        }
        if self.sample is not None:
            row |= {"question_id": self.question_id, "sample": self.sample}
        names = ("markers", "ended", "adapter", "dropped", "store", "without")
        rare = {"sheet": self.sheet} | {name: getattr(self, name) or None for name in names}
        return row | {name: value for name, value in rare.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Log:
    """What is left of a trace when it is reused: the question and the model's own words.

    It has no gold field, so nothing that reuses a log can look at one.

    question_id: whose it is, where it is one of several; else empty.
    """

    id: str
    question: str
    replies: tuple[str, ...]
    question_id: str = ""

    @classmethod
    def of(cls, trace: Trace) -> "Log":
        said = tuple(r for r in trace.replies if r.strip())
        return cls(trace.id, trace.question, said, trace.question_id)

    @property
    def key(self) -> str:
        """The text that retrieval embeds, the same in every mode."""
        return f"{self.question}\n{self.replies[-1]}"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said to one prompt, and its cost.

    cached_tokens: came from the store; reused_tokens: were computed for the question's last prompt,
        or once for all prompts that begin alike.
    sources: for each note of the prompt how it entered: `text`, `kv` or `encoded`.
    near_ties: greedy choices whose lead over the runner-up was too small to survive a batch.
    drafted_tokens, accepted_tokens: as a `Step` has them.
    seconds: `store` (finding and encoding KV), `prefill` (to the first token) and `decode`.
    """

    text: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    kv_bytes: int = 0
    near_ties: int = 0
    sources: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    reused_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """A passage that can enter a prompt."""

    id: str
    title: str
    content: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A document or a log that was found: its id and its cosine to the query."""

    id: str
    similarity: float


class Ranking(Protocol):
    """Anything that ranks ids for a query."""

    def rank(self, query: str, k: int, exclude: frozenset[str] = frozenset()) -> list[Hit]: ...


class Encoder(Protocol):
    """Texts in, unit vectors (N, E) float32 out.

    name: as the user gave it. digest: of all that decides a text's vector.
    """

    name: str
    digest: str
    dimensions: int

    def queries(self, texts: Sequence[str]) -> "np.ndarray":
        """Embed what is searched for."""

    def documents(self, texts: Sequence[str]) -> "np.ndarray":
        """Embed what is searched in."""

    def preload(self, path: Path) -> None:
        """Take query vectors from a file, where it has them."""


Counts = dict[str, int]
Ended = tuple[Hashable, Reply | Exception]  # a ticket, and what came of its prompt
Asked = TypeVar("Asked", contravariant=True)


class InFlight(Protocol[Asked]):
    """Prompts that a model replies to, each under a ticket; one prompt of a ticket at a time."""

    def submit(self, ticket: Hashable, prompt: Asked) -> None: ...

    def step(self) -> list[Ended]:
        """Work on what was submitted, or wait for it; returns what has ended, if anything."""

    def close(self) -> None:
        """Give up what has not ended."""


class LanguageModel(Protocol[Asked]):
    """Who plays the model's side of a run: a model in this process, or a server.

    Asked: what it replies to, `prompts.Prompt`.
    device: where it computes; of a server its URL.
    concurrency: how many prompts it is to be asked at once; 0 leaves that to the run.
    continues: whether it goes on with a model's turn that was begun for it.
    room: how many tokens a prompt may have.
    new_tokens: how many tokens it has written so far.
    """

    name: str
    device: str
    concurrency: int
    continues: bool
    room: int
    new_tokens: int

    def fingerprint(self, cache: Path | None = None) -> dict[str, str]:
        """Digests of what the model is; `digest` is one of all."""

    def open_store(self, folder: Path, mode: Any) -> Any:
        """Take the logs of a KV mode from this folder from now on."""

    def can_be_encoded(self, note: Any) -> bool:
        """Whether a note that is to enter as KV fits, the text that it hides included."""

    def make_kv(self, notes: Sequence[Any]) -> int:
        """Store the KV of notes that are going to enter; returns of how many it was made."""

    def num_tokens(self, text: str) -> int: ...

    def count(self, prompt: Asked) -> int:
        """How many tokens a prompt has; 0 where that is not known."""

    def in_flight(self, slots: int) -> InFlight[Asked]:
        """Nothing yet, with room for so many prompts at once."""

    def stats(self) -> dict[str, Counts]:
        """What the run's summary says of it: counts by subject."""
