"""What an agent of the embedded world should say: gold replies to the real prompts of the loop.

The loop itself (`react.solve`) makes the prompts, with real retrieval over a world; a scripted
agent reads them and replies. It knows nothing but what the prompt holds, so its replies show how
to use documents, logs in every mode and layout, and cheatsheets, and when to search.
"""

import contextlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from lag import prompts
from lag.agent.agent import LoopSettings
from lag.agent.react import solve
from lag.logs import playbook
from lag.logs.controls import random_logs, retrieved
from lag.miniwiki.world import (
    NAMES,
    PLAIN,
    RELATIONS,
    TRAINING_NAMES,
    TRAINING_SEEDS,
    Chain,
    Fact,
    World,
    called,
    way,
)
from lag.modes import BLANK, MODES
from lag.prompts import Note, Prompt
from lag.records import Document, Hit, Log, Question, Ranking, Reply, Trace
from lag.retrieval.index import document_text
from lag.solvers import SOLVERS, limits
from lag.tasks import TASKS, load_qa
from lag.train.examples import Format, TrainingExample

UNKNOWN = "unknown"
NO_FACTS = "Nothing."  # a sheet of replies that found nothing
MOST_STEPS = 9  # an example may be one step longer than the data set allows
MOST_ON_SHEET = 8  # facts
EDITS = 2  # of a playbook at a time
WRONG = 0.1  # of the logs: one of their facts has another object
STRANGE = 0.15  # of the questions with logs: theirs are drawn at random
FEW_LOGS = 0.5  # of the questions: a query adds one log, else as many as usual
STATED = re.compile(r"(?:(\w+) alias )?(\w+)'s (\w+) is (\w+)\.")
SAID = re.compile(r"^Query: (.*)\nReply: (.*)$", re.M)
ANSWERED = re.compile(r"\s*<ans>(\w+)</ans>")
Embed = Callable[[str], np.ndarray]  # text -> unit vector (E,)


# fmt: off
FORMATS = (
    Format("base",                   "paper",        4),
    Format("base",                   "user",         0.7, prefill="folded"),
    Format("log_text",               "paper",        4.5),
    Format("log_text",               "system-first", 0.7),
    Format("log_text",               "user",         0.7),
    Format("log_text",               "user",         0.5, prefill="folded"),
    Format("log_text_all",           "paper",        1),
    Format("log_text_all",           "system-first", 0.3),
    Format("log_text_all",           "user",         0.3),
    Format("log_text_all",           "user",         0.3, prefill="folded"),
    Format("log_kv",                 "paper",        4.5),
    Format("log_kv",                 "system-first", 0.7),
    Format("log_kv_all",             "paper",        0.7),
    Format("log_kv_all",             "system-first", 0.2),
    Format("log_kv_last_action",     "paper",        0.8),
    Format("log_kv_last_action",     "system-first", 0.2),
    Format("log_kv_last_as_context", "paper",        0.5),
    Format("log_kv_last_as_context", "system-first", 0.2),
    Format("log_cheatsheet",         "paper",        0.8),
    Format("log_cheatsheet",         "paper",        0.4, carried=True),
    Format("log_cheatsheet",         "user",         0.3),
    Format("log_cheatsheet",         "user",         0.2, prefill="folded"),
    Format("log_playbook",           "paper",        0.4, carried=True),
    Format("base",                   "paper",        0.1, "direct"),
    Format("log_text",               "paper",        0.3, "direct"),
    Format("log_kv",                 "paper",        0.3, "direct"),
    Format("base",                   "paper",        0.3, "icl"),
    Format("log_text",               "paper",        0.3, "icl"),
    Format("log_kv",                 "paper",        0.3, "icl"),
    Format("base",                   "paper",        0.3, "rag"),
    Format("log_text",               "paper",        0.3, "rag"),
    Format("log_kv",                 "paper",        0.3, "rag"),
)
# fmt: on


@dataclass(slots=True)
class Knowledge:
    """What a prompt says: facts by (noun, subject), and first names by (kind, second name).

    An article that explains a second name does not tell the kind: "" stands for any.
    """

    facts: dict[tuple[str, str], str] = field(default_factory=dict)
    names: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            if fact.noun == "name":
                self.names.setdefault((fact.kind, fact.subject), fact.object)
            else:
                self.facts.setdefault((fact.noun, fact.subject), fact.object)

    def first(self, noun: str, name: str) -> str:
        """The first name of what is called so and has such a relation, if it is known."""
        kind = RELATIONS[noun].subject
        return self.names.get((kind, name)) or self.names.get(("", name), "")


@lru_cache(maxsize=100_000)
def stated(text: str) -> tuple[Fact, ...]:
    """The facts that a reply states in so many words: of two names, of each, and that they are one's."""
    facts: list[Fact] = []
    for second, name, noun, object in STATED.findall(text):
        if second and noun in RELATIONS:
            facts.append(Fact("name", second, name, RELATIONS[noun].subject))
        if object != UNKNOWN and noun in RELATIONS:
            facts += [Fact(noun, one, object) for one in (name, second) if one]
    return tuple(facts)


def carried(note: Note) -> tuple[Fact, ...]:
    """The facts that a note can carry: what its words state, and where KV what leads to them.

    The words of a log's last response begin with a name that an earlier response has found: as KV
    it carries how. An answer alone carries the fact that it was encoded after. Nothing of a search
    that failed, and nothing of a context that led to something else.
    """
    facts = stated(note.keep)
    hidden = stated(note.after)
    if not facts:
        answered = ANSWERED.match(note.keep)
        last = [fact for fact in hidden if fact.noun == hidden[-1].noun][-2:]
        return tuple(fact for fact in last if answered and fact.object == answered[1])
    found = [fact for fact in hidden if fact.noun != "name" and fact.object == facts[0].subject]
    return (*facts, *(fact for fact in found if fact.noun == found[-1].noun))


class GoldAgent:
    """Plays the model's side of the loop for one world."""

    room = 1

    def __init__(self, world: World):
        self.by_content = {article.content: article.facts for article in world.articles}

    def count(self, prompt: Prompt) -> int:
        return 0

    def can_be_encoded(self, note: Note) -> bool:
        return True

    def read(self, prompt: Prompt) -> Knowledge:
        """All facts in a prompt's earlier steps, documents, logs and sheet; what comes first holds."""
        known = Knowledge()
        rules = prompts.DIRECT_RULES if is_direct(prompt) else prompts.QA_RULES
        before, _, after = prompt.user.partition(rules)
        logs, _, steps = before.partition(prompts.STEPS_HEADER)
        known.add(stated(steps))
        for block in after.split(BLANK):
            known.add(self.by_content.get(block.partition("\n")[2], ()))
        for note in reversed(prompt.notes):
            known.add(carried(note))
        known.add(stated(logs))
        return known

    def reply(self, prompt: Prompt, chain: Chain) -> str:
        """Facts along the chain from where the last step stopped, then an answer or a search."""
        if prompt.user.startswith(prompts.CURATOR_RULES):
            return f"<cheatsheet>{write_sheet(prompt.user)}</cheatsheet>"
        if prompt.user.startswith(playbook.EDITOR_RULES):
            return write_edits(prompt.user)
        said = SAID.findall(prompt.user.partition(prompts.QA_RULES)[0])
        known = self.read(prompt)
        if chain.first:
            known.add([Fact("name", chain.start, chain.first, chain.kind)])
        path = follow(known, *rest_of(chain, [reply for _, reply in said]))
        if path.query and is_direct(prompt):
            return " ".join([*path.lines, UNANSWERED])
        return path.reply(said[-1][0] if said else "")


UNANSWERED = f"<ans>{UNKNOWN}</ans>"


def is_direct(prompt: Prompt) -> bool:
    """Whether a prompt wants an answer and no search."""
    return prompts.DIRECT_RULES in prompt.user


def told_by(user: str) -> list[str]:
    """The facts that the replies in a curator's prompt state, the most related last, as sentences."""
    replies = re.findall(r"^Reply: (.*)$", user, re.M)
    found = [m[0] for reply in replies for m in STATED.finditer(reply) if m[4] != UNKNOWN]
    return list(dict.fromkeys(reversed(found)))[::-1]


def write_sheet(user: str) -> str:
    """What the sheet so far and the replies state, as much as there is room for."""
    before = user.partition("The cheatsheet so far:\n")[2].partition(BLANK)[0]
    new = told_by(user)
    old = [match[0] for match in STATED.finditer(before) if match[0] not in new]
    return " ".join([*old, *new][-MOST_ON_SHEET:]) or NO_FACTS


def write_edits(user: str) -> str:
    """Add what the most related replies state and no entry does."""
    entries = user.partition("The entries:\n")[2].partition(BLANK)[0]
    new = [sentence for sentence in told_by(user) if sentence not in entries][-EDITS:]
    return "".join(f"<add>{sentence}</add>" for sentence in new) or "<keep></keep>"


def rest_of(chain: Chain, replies: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Where earlier replies have led along a chain: a name, and the relations still to follow."""
    known = Knowledge()
    known.add([fact for reply in replies for fact in stated(reply)])
    name, nouns = chain.start, chain.nouns
    while nouns and (nouns[0], name) in known.facts:
        name, nouns = known.facts[nouns[0], name], nouns[1:]
    return name, nouns


@dataclass(frozen=True, slots=True)
class Followed:
    """How far a chain can be followed: facts as sentences, and what to ask for next if it does not end.

    lines: each sentence behind what is left of the question there, by both names if they are known,
        so that what comes next always stands in the line before. query: as it is asked first, and `again`, in other words.
    """

    sentences: tuple[str, ...]
    lines: tuple[str, ...]
    query: str = ""
    again: str = ""

    def reply(self, last: str) -> str:
        """The lines, and what is asked for next; last: the query before the one that has failed.

        Each wording is asked twice, as a query that is asked again digs deeper.
        """
        if not self.query:
            return " ".join(self.lines)
        query = self.again if last == self.query else self.query
        ending = UNANSWERED if last == self.again else f"<keywords>{query}</keywords>"
        return " ".join([*self.lines, ending])


def follow(known: Knowledge, name: str, nouns: Sequence[str]) -> Followed:
    """Follow relations from a name through what is known."""
    sentences: list[str] = []
    lines: list[str] = []

    for place, noun in enumerate(nouns):
        first = known.first(noun, name)
        found = known.facts.get((noun, first or name)) or known.facts.get((noun, name))
        asked = called(name, first)
        sentences.append(PLAIN.format(noun=noun, s=asked, o=found or UNKNOWN))
        lines.append(f"{way(asked, nouns[place:])}: {sentences[-1]}")
        if found is None:
            kind = RELATIONS[noun].subject
            forms = f"{asked}'s {noun}", f"the {kind} {asked}'s {noun}"
            return Followed(tuple(sentences), tuple(lines), *forms)
        name = found
    return Followed(tuple(sentences), (*lines, f"<ans>{name}</ans>"))


class WordRanking:
    """Exact cosine over mean word vectors: what a static embedder's index finds, but quickly."""

    def __init__(self, ids: Sequence[str], texts: Sequence[str], embed: Embed):
        self.ids, self.embed = list(ids), embed
        self.matrix = np.stack([embed(text) for text in texts])  # (N, E), unit rows

    def rank(self, query: str, k: int, exclude: frozenset[str] = frozenset()) -> list[Hit]:
        scores = self.matrix @ self.embed(query)
        depth = min(k + len(exclude), len(self.ids))
        best = scores.argpartition(-depth)[-depth:] if depth < len(scores) else range(len(scores))
        hits = [Hit(self.ids[row], float(scores[row])) for row in best]
        hits = sorted(hits, key=lambda hit: (-hit.similarity, hit.id))
        return [hit for hit in hits if hit.id not in exclude][:k]


@dataclass(slots=True)
class RolloutModel:
    """One world with its indexes and its gold agent."""

    world: World
    documents: dict[str, Document]
    docs: Ranking
    gold: GoldAgent

    @classmethod
    def of(cls, world: World, embed: Embed) -> "RolloutModel":
        documents = {a.id: Document(a.id, a.title, a.content) for a in world.articles}
        texts = [document_text(document) for document in documents.values()]
        return cls(world, documents, WordRanking(list(documents), texts, embed), GoldAgent(world))

    def agent(self, format: Format, **logs) -> LoopSettings:
        """An agent of a format, with its solver's limits; without logs if its mode uses none."""
        task, solver, mode = TASKS["miniwiki"], SOLVERS[format.solver], MODES[format.mode]
        usual = limits(solver, task)
        return LoopSettings(
            task,
            mode,
            self.gold,
            self.documents,
            self.docs if solver.documents_from == "searched" else None,
            documents_from=solver.documents_from,
            max_steps=solver.max_steps or MOST_STEPS,
            num_docs=usual["num_docs"],
            trace_steps=usual["trace_steps"],
            prefill=format.prefill,
            layout=format.layout,
            carried=format.carried,
            **(logs if mode.keep else {}),
        )

    def rollout(
        self, question: Question, agent: LoopSettings
    ) -> tuple[Trace, list[tuple[Prompt, str]]]:
        """Run the loop on one question with the gold agent; returns what was asked and said."""
        trace, said = Trace.of(question), []
        chain = self.world.chains[question.id]
        turns = solve(trace, question, agent)
        prompt = next(turns)
        with contextlib.suppress(StopIteration):
            while True:
                said.append((prompt, self.gold.reply(prompt, chain)))
                prompt = turns.send(Reply(said[-1][1]))
        return trace, said


def spoiled(log: Log, rng: random.Random, names: Sequence[str]) -> Log:
    """A log one of whose facts has another object, in all of its replies."""
    facts = [fact for reply in log.replies for fact in stated(reply)]
    if not facts:
        return log
    wrong, right = rng.choice(names), rng.choice(facts).object
    replies = tuple(re.sub(rf"\b{right}\b", wrong, reply) for reply in log.replies)
    return Log(log.id, log.question, replies)


def make_examples(
    world: World, embed: Embed, formats: Sequence[Format] = FORMATS
) -> Iterator[TrainingExample]:
    """Examples of one world: `base` on the train questions, then every question with their logs.

    formats: `base` as the paper has it first.
    """
    rng = random.Random(f"lessons {world.seed}")
    model = RolloutModel.of(world, embed)
    base = formats[0]
    others = [format for format in formats if format is not base]
    share = base.share / sum(format.share for format in formats)
    store = {}
    for question in map(load_qa, world.train):
        trace, said = model.rollout(question, model.agent(base))
        log = Log.of(trace)
        names = NAMES if world.seed < TRAINING_SEEDS else TRAINING_NAMES
        store[question.id] = spoiled(log, rng, names) if rng.random() < WRONG else log
        if rng.random() < share * 2:
            yield from (TrainingExample(*pair, base) for pair in said)
    ranking = WordRanking(list(store), [log.key for log in store.values()], embed)
    living = {f: model.agent(f, store=store, logs=ranking) for f in others if f.carried}
    strange = random_logs(list(store), world.seed)
    for question in map(load_qa, [*world.train, *world.test]):
        format = rng.choices(others, [f.share for f in others])[0]
        logs = dict(store=store, logs=ranking, exclude_self=rng.random() < 0.7)
        agent = living.get(format) or model.agent(format, **logs)
        agent.num_logs = 1 if rng.random() < FEW_LOGS else TASKS["miniwiki"].num_logs
        agent.control = strange if rng.random() < STRANGE else retrieved
        trace, said = model.rollout(question, agent)
        agent.sheet = playbook.sheet_after(agent.mode, trace) or agent.sheet
        yield from (TrainingExample(*pair, format) for pair in said)
