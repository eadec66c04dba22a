"""Drills whose logs are those of whole questions, and which ask for what only hidden text says.

In the loop's own prompts few replies hang on it, and in the exams before these hidden text is short
and its fact comes first in a reply: a model that had read both found the right one of three names in
98 %, and yet searched on in 82 %.
"""

import random
from collections.abc import Iterator
from dataclasses import replace

from lag import prompts
from lag.actions import Search, parse
from lag.miniwiki.drills import (
    EXAM,
    LOOKUP,
    QUESTIONS,
    Library,
    answer,
    as_documents,
    draw_chain,
    entities,
    starts,
)
from lag.miniwiki.gold_agent import Knowledge, carried, follow, rest_of, stated
from lag.miniwiki.world import (
    RELATIONS,
    Article,
    Chain,
    Fact,
    World,
    first_name,
    keys_of,
)
from lag.modes import MODES
from lag.prompts import Note, Prompt
from lag.records import Log
from lag.train.examples import TrainingExample

Key = tuple[str, str]  # of `World.facts`
AS_KV = 0.8  # of the exams: their logs enter as KV
TAG_ONLY = 0.3  # of the logs as KV: they keep their answer tag alone
MOST_LOGS, MOST_ARTICLES = 5, 5
FAILED = 0.3  # of a log's searches, and as often again
TOGETHER = 0.2  # of a log's facts: the next one stands in the same reply
LED_TO = 0.8  # of what logs tell: an article leads to it
CROWDED = 0.5  # of it: articles of the same name stand there as well
ASKED = 0.7  # of the questions: they go through what a log tells, each time another one


def make_recalls(world: World, count: int, seed: str, as_kv: float) -> Iterator[TrainingExample]:
    """Logs of solved questions, articles that lead to what they tell, and questions in turn.

    as_kv: the share whose logs enter as KV.
    """
    rng = random.Random(f"recalls {seed} {world.seed}")
    shelf = Shelf(world)
    for _ in range(count):
        notes = shelf.logs(rng, as_kv)
        told = {key for note in notes for key in shelf.keys(tells(note))}
        ways = {key: rng.choice([*shelf.ends.get(key[1], ()), None]) for key in sorted(told)}
        ways = {key: way for key, way in ways.items() if way and rng.random() < LED_TO}
        articles = shelf.around(rng, ways)
        known = Knowledge()
        known.add([fact for article in articles for fact in article.facts])
        for note in reversed(notes):
            known.add(carried(note))
        first, turns, left = "", [], rng.sample(sorted(told), len(told))
        for _ in range(QUESTIONS):
            chain = draw_question(rng, world, known, left, ways)
            first = first or chain.text
            turns += answer(rng, shelf.library, known, chain)
        (_, reply), *then = turns
        prompt = replace(prompts.qa_prompt(first, as_documents(articles)), notes=notes)
        yield TrainingExample(prompt, reply, EXAM, then=tuple(then))


def make_recitals(world: World, count: int, seed: str, as_kv: float) -> Iterator[TrainingExample]:
    """Logs of solved questions, an article, and a line for each of many facts: told, or unknown.

    Only what stands for a fact's object is learned, so that every target is a choice between a name
    that something tells and `unknown`; most unknown ones are other facts of what logs tell about.
    """
    rng = random.Random(f"recitals {seed} {world.seed}")
    shelf = Shelf(world)
    for _ in range(count):
        notes, article = shelf.logs(rng, as_kv), rng.choice(shelf.own)
        known = Knowledge()
        known.add(article.facts)
        for note in reversed(notes):
            known.add(carried(note))
        asked = dict.fromkeys([(f.noun, f.subject) for note in notes for f in tells(note)])
        asked |= dict.fromkeys(rng.sample(sorted(known.facts), min(2, len(known.facts))))
        for noun, name in list(asked):
            others = [n for n, r in RELATIONS.items() if r.subject == RELATIONS[noun].subject]
            asked[rng.choice(others), name] = None
        lines = [follow(known, name, (noun,)).lines[0] for noun, name in asked]
        rng.shuffle(lines)
        prompt = Prompt(prompts.documents_block(as_documents([article])), notes=notes)
        yield TrainingExample(prompt, " ".join(lines), LOOKUP, only_after="is")


class Shelf:
    """A world's articles by what they tell, what they lead to, and what they are called.

    ends: first name -> facts of which it is the object. doubled: facts about what has two names.
    """

    def __init__(self, world: World):
        self.world, self.library, self.own = world, Library(world), entities(world)
        second, self.facts = world.second, list(world.facts)
        self.doubled = [key for key in self.facts if key[1] in second] or self.facts
        self.ends: dict[str, list[Key]] = {}
        for key, object in world.facts.items():
            self.ends.setdefault(object, []).append(key)
        self.titled: dict[str, list[Article]] = {}
        for article in self.own:
            self.titled.setdefault(article.title.partition(" (")[0], []).append(article)

    def path(self, rng: random.Random) -> Chain:
        """A question of two hops or more, half of them about something that has two names."""
        while True:
            noun, name = rng.choice(rng.choice((self.doubled, self.facts)))
            begin = [noun]
            if name in self.ends and rng.random() < LED_TO:
                before, name = rng.choice(self.ends[name])
                begin.insert(0, before)
            chain = draw_chain(rng, self.world, begin, name)
            if len(chain.nouns) > 1:
                return chain

    def logs(self, rng: random.Random, as_kv: float) -> tuple[Note, ...]:
        """Some logs of solved questions, all as KV or all as text."""
        kv = rng.random() < as_kv
        chains = [self.path(rng) for _ in range(rng.randint(1, MOST_LOGS))]
        return tuple(as_note(rng, chain, solve(rng, self.world, chain), kv) for chain in chains)

    def keys(self, facts: list[Fact]) -> list[Key]:
        return [(f.noun, first_name(self.world, f.noun, f.subject)) for f in facts]

    def around(self, rng: random.Random, ways: dict[Key, Key]) -> list[Article]:
        """Articles that lead to what logs tell, some of the same name, and others."""
        found = []
        for way in ways.values():
            found.append(self.library.told[way])
            if rng.random() < CROWDED:
                found += self.titled.get(self.world.mentions[way][0], ())[:1]
        found = found[:MOST_ARTICLES] or [rng.choice(self.own)]
        rng.shuffle(found)
        return list({article.id: article for article in found}.values())


def draw_question(
    rng: random.Random, world: World, known: Knowledge, left: list[Key], ways: dict[Key, Key]
) -> Chain:
    """A question that goes through what a log tells, behind an article that leads there or not.

    left: what is not asked for yet; what is drawn is taken out.
    """
    if not left or rng.random() > ASKED:
        noun, name = rng.choice(rng.choice((starts(known), list(known.facts))))
        return draw_chain(rng, world, (noun,), name, 1)
    noun, name = key = left.pop()
    if key in ways:
        before, name = ways[key]
        return draw_chain(rng, world, (before, noun), name, 1)
    return draw_chain(rng, world, (noun,), name, 1)


def solve(rng: random.Random, world: World, chain: Chain) -> Log:
    """The log of a question: some searches fail, and second names are resolved on the way."""
    known, replies, queries = Knowledge(), [], ["", chain.text]

    def reply() -> None:
        replies.append(follow(known, *rest_of(chain, replies)).reply(queries[-2]))
        action = parse(replies[-1], "keywords")
        queries.extend([action.query] if isinstance(action, Search) else [])

    def fail() -> None:
        for _ in range(2):
            if rng.random() < FAILED:
                reply()

    name = chain.start
    for noun, own in keys_of(world, chain):
        if name != own:
            if name != chain.start or not chain.first:
                fail()
            known.names[RELATIONS[noun].subject, name] = own
        fail()
        known.facts[noun, own] = name = world.mentions[noun, own][0]
        if rng.random() > TOGETHER:
            reply()
    if not replies or parse(replies[-1], "keywords").name != "answer":
        reply()
    return Log(chain.text, chain.text, tuple(replies))


def as_note(rng: random.Random, chain: Chain, log: Log, kv: bool) -> Note:
    tag = rng.random() < TAG_ONLY
    mode = MODES["log_text" if not kv else "log_kv_last_action" if tag else "log_kv"]
    return Note(chain.text, mode.keep(log), mode.after(log), kv)


def tells(note: Note) -> list[Fact]:
    """What only a log's hidden text tells; where none does, what its words do."""
    said, facts = set(stated(note.keep)), carried(note)
    return [f for f in facts if f not in said and f.noun != "name"] or [
        f for f in facts if f.noun != "name"
    ]
