"""Hold what has entered so far; leave out what does not fit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from lag.agent.agent import LoopSettings
from lag.prompts import Note, Prompt
from lag.records import Document, Hit, Log, Question, Ranking, Reply, Step, Trace, UsedLog
from lag.step_prompt import Entered, note_of


class RetrievedItems:
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


class LastFound(RetrievedItems):
    """What the last query has found; the question itself, which comes first, is not searched for."""

    def query(self, text: str) -> None:
        self.hits = {}
        before, started = self.cuts.get(text, 0), bool(self.cuts)
        self.cuts[text] = before + (self.per_query if started else 0)
        if self.index is not None and started:
            found = self.index.rank(text, self.cuts[text], self.exclude)
            self.hits = {hit.id: hit for hit in found[before:]}


class Paragraphs:
    """A question's own paragraphs as a ranking: in their order, whatever is asked."""

    def __init__(self, question: Question):
        self.ids = question.paragraphs

    def rank(self, query: str, k: int, exclude: frozenset[str] = frozenset()) -> list[Hit]:
        return [Hit(id, 1.0) for id in self.ids if id not in exclude][:k]


def no_documents_yet(question: Question, agent: LoopSettings) -> RetrievedItems:
    """Where this question's documents are going to come from."""
    own = agent.documents_from == "own"
    index = Paragraphs(question) if own else agent.docs
    per_query = len(question.paragraphs) if own else agent.num_docs
    kind = LastFound if agent.records else RetrievedItems
    return kind(index, per_query, frozenset(), -1.0)


@dataclass(frozen=True, slots=True)
class Context(Entered):
    """What one prompt is made from, and what had to be left out of it.

    dropped: by kind the ids that were left out; of steps their numbers, from 1.
    """

    dropped: dict[str, list[str | int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, docs: list[Document], notes: list[Note], steps: list[Step], at_most: int
    ) -> "Context":
        """With the last `at_most` of the steps; 0 is a loop that shows none, so none is dropped."""
        context = cls(docs, notes, list(steps) if at_most else [])
        return context.without_steps(len(context.steps) - at_most)

    def __len__(self) -> int:
        return len(self.notes) + len(self.steps) + len(self.docs)

    @property
    def by_similarity(self) -> list[Note]:
        """The notes, the least similar first; of logs that nobody searched for, the newest."""
        if self.notes and all(note.similarity == 1.0 for note in self.notes):
            return self.notes[::-1]  # what stands first stays, so that prompts begin alike
        return sorted(self.notes, key=lambda note: note.similarity)

    def without(self, count: int) -> "Context":
        """Leave out so many items: the least similar logs, then the oldest steps and documents."""
        logs = self.without_logs(count)
        steps = logs.without_steps(count - len(self.notes))
        return steps.without_docs(count - len(self.notes) - len(self.steps))

    def without_logs(self, count: int) -> "Context":
        return self.without_notes(self.by_similarity[: max(count, 0)])

    def without_notes(self, gone: Sequence[Note]) -> "Context":
        notes = [note for note in self.notes if all(note is not one for one in gone)]
        return replace(
            self, notes=notes, dropped=self.also_dropped("logs", [note.id for note in gone])
        )

    def without_steps(self, count: int) -> "Context":
        count = min(max(count, 0), len(self.steps))
        first = len(self.dropped.get("steps", ())) + 1
        dropped = self.also_dropped("steps", list(range(first, first + count)))
        return replace(self, steps=self.steps[count:], dropped=dropped)

    def without_docs(self, count: int) -> "Context":
        gone = self.docs[: max(count, 0)]
        dropped = self.also_dropped("docs", [document.id for document in gone])
        return replace(self, docs=self.docs[len(gone) :], dropped=dropped)

    def also_dropped(self, kind: str, ids: list[str | int]) -> dict[str, list[str | int]]:
        before = self.dropped.get(kind, [])
        return {**self.dropped, kind: [*before, *ids]} if ids else self.dropped


def arrange(question: Question, logs: RetrievedItems, agent: LoopSettings) -> list[Note]:
    """The notes of the logs that entered, in the order in which they stand in the prompt."""
    found = agent.control(question, list(logs.hits.values()), logs.exclude)
    found = [hit for hit in found if hit.id != question.without]
    if agent.log_order != "entered":
        found = sorted(
            found, key=lambda hit: hit.similarity, reverse=agent.log_order == "similar-first"
        )
    context = agent.foreign_context or agent.store.__getitem__
    notes = [
        note_of(agent.mode, agent.store[hit.id], context(hit.id), hit.similarity) for hit in found
    ]
    return [replace(note, shared=True) for note in notes] if agent.shared_logs else notes


def fit(
    context: Context, agent: LoopSettings, make: Callable[[Context], Prompt]
) -> tuple[Prompt, Context]:
    """Make the prompt from as much as fits; returns what it was made from, whole items only.

    Raises:
        ValueError: even without logs and documents it is longer than the model's room.
    """
    room, count = agent.llm.room, agent.llm.count
    context = context.without_notes(
        [note for note in context.notes if note.kv and not agent.llm.can_be_encoded(note)]
    )  # first: whatever else is left out would not make them fit
    context = within_log_tokens(context, agent)
    context = within_trace_tokens(context, agent, make)
    prompt = make(context)
    length = count(prompt)
    if length <= room:
        return prompt, context
    bare = count(make(context.without(len(context))))
    if bare > room:
        raise ValueError(f"a prompt of {bare} tokens; the model has room for {room}")
    fewest = first_that_fits(
        lambda dropped: count(make(context.without(dropped))) <= room,
        len(context),
        guess(context, length, room),
    )
    context = context.without(fewest)
    return make(context), context


def first_that_fits(fits: Callable[[int], bool], most: int, near: int = 1) -> int:
    """The smallest number above 0 that fits, where `most` does and so does all above one that does.

    It is looked for near a guess, then farther and farther off: to ask is to tokenise a prompt.
    """
    low, high, stride = 0, most, 1
    while high - low > 1:
        number = near if low < near < high else (low + high) // 2
        if fits(number):
            high, near = number, number - stride
        else:
            low, near = number, number + stride
        stride *= 2
    return high


def guess(context: Context, length: int, room: int) -> int:
    """How many items to leave out, if a character of each takes equally many tokens."""
    sizes = [len(note.keep) for note in context.by_similarity]
    sizes += [len(step.query) + len(step.reply) for step in context.steps]
    sizes += [len(document.title) + len(document.content) for document in context.docs]
    too_much = sum(sizes) * (length - room) / length
    return next((n for n, size in enumerate(accumulate(sizes), 1) if size >= too_much), len(sizes))


def within_log_tokens(context: Context, agent: LoopSettings) -> Context:
    """Leave out the least similar logs until the others have at most `--log-tokens`."""
    if not agent.log_tokens:
        return context
    lengths = [agent.llm.num_tokens(note.keep) for note in context.by_similarity]
    left = [sum(lengths), *(sum(lengths) - gone for gone in accumulate(lengths))]
    return context.without_logs(next(n for n, sum in enumerate(left) if sum <= agent.log_tokens))


def within_trace_tokens(
    context: Context, agent: LoopSettings, make: Callable[[Context], Prompt]
) -> Context:
    """Leave out the oldest steps until the others make a prompt at most `--trace-tokens` longer."""
    if not agent.trace_tokens or not context.steps:
        return context
    bare = make(replace(context, steps=[]))
    most = agent.llm.count(bare) + agent.trace_tokens

    def fits(count: int) -> bool:
        return agent.llm.count(make(context.without_steps(count))) <= most

    return context if fits(0) else context.without_steps(first_that_fits(fits, len(context.steps)))


def note_dropped(trace: Trace, number: int, context: Context) -> None:
    entry = {"step": number, **context.dropped}
    if context.dropped and entry not in trace.dropped:
        trace.dropped.append(entry)


def used_logs(notes: Sequence[Note], reply: Reply) -> tuple[UsedLog, ...]:
    sources = reply.sources or ("text",) * len(notes)
    return tuple(UsedLog(n.id, n.similarity, s) for n, s in zip(notes, sources, strict=True))


def drafts_of(notes: Sequence[Note], steps: Sequence[Step], store: Mapping[str, Log]) -> list[str]:
    """What a reply may repeat: full traces of the logs that entered, and the question's replies."""
    logs = [store[note.id].replies for note in notes if note.id in store]
    return [*(reply for replies in logs for reply in replies), *(step.reply for step in steps)]


def step_of(
    query: str,
    action: str,
    context: Context,
    used: tuple[UsedLog, ...],
    reply: Reply,
    seconds: float,
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
        drafted_tokens=reply.drafted_tokens,
        accepted_tokens=reply.accepted_tokens,
        seconds={"retrieve": seconds, **reply.seconds},
    )
