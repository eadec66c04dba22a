"""Examples without retrieval, which a training begins with: look-ups, then questions, many to a context."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lag import prompts
from lag.miniwiki.gold_agent import Knowledge, follow, rest_of
from lag.miniwiki.world import (
    PLAIN,
    RELATIONS,
    WITH_SECOND,
    Article,
    Chain,
    Fact,
    World,
    called,
    first_name,
    keys_of,
    told,
)
from lag.modes import BLANK
from lag.prompts import Note, Prompt
from lag.records import Document, Log
from lag.train.examples import Format, TrainingExample

LOOKUP = Format("lookup", "paper", 0)
EXAM = Format("exam", "paper", 0)
AS_KV = 0.5  # of the look-ups and exams: their logs enter as KV
QUESTIONS = 6  # of an exam
MOST_TURNS = 6  # of one of its questions
FOUND = 0.75  # of the searches in an exam: what they are for comes next
NAMED_BOTH = 0.5  # of an exam's questions that begin with a second name: say the first one, too
ASKED = re.compile(r"(?:the \w+ )?(\w+)(?: alias (\w+))?'s (\w+)")


def make_lookups(
    world: World, count: int, seed: str, most: int = 4, as_kv: float = AS_KV
) -> Iterator[TrainingExample]:
    """Some articles, some logs as text or KV, and a reply that states all their facts in any order.

    A log as KV keeps what its last response says, and stands behind the fact that led there.

    most: how many articles, and how many logs. as_kv: the share whose logs enter as KV.
    """
    rng = random.Random(f"primers {seed} {world.seed}")
    own = [article for article in world.articles if article.facts[0].noun != "name"]
    for _ in range(count):
        articles = rng.sample(own, rng.randint(1, most))
        kv = rng.random() < as_kv
        notes, told = [], []
        for article in rng.sample(own, rng.randint(0, most)):
            note, facts = a_log(rng, world, rng.choice(plain_facts(article.facts)), kv)
            notes.append(note)
            told += facts
        documents = as_documents(articles)
        facts = [*(fact for article in articles for fact in plain_facts(article.facts)), *told]
        rng.shuffle(facts)
        prompt = Prompt(prompts.documents_block(documents), notes=tuple(notes))
        yield TrainingExample(prompt, " ".join(map(plain, facts)), LOOKUP, only_after="is")


def make_exams(
    world: World, count: int, seed: str, most: int = 4, as_kv: float = AS_KV
) -> Iterator[TrainingExample]:
    """Some articles, some logs as text or KV, and several questions, one behind the other.

    A search mostly brings the article that helps, and then the question is asked again: one
    context holds as many replies as a dozen prompts of the loop.

    most: how many articles, and how many logs. as_kv: the share whose logs enter as KV.
    """
    rng = random.Random(f"exams {seed} {world.seed}")
    own = [article for article in world.articles if article.facts[0].noun != "name"]
    both = [a for a in own if any(fact.noun == "name" for fact in a.facts)] or own
    where = Where(world)
    for _ in range(count):
        articles = [rng.choice(rng.choice((own, both))) for _ in range(rng.randint(1, most))]
        kv, notes, known = rng.random() < as_kv, [], Knowledge()
        for article in rng.sample(own, rng.randint(0, most)):
            note, facts = a_log(rng, world, rng.choice(plain_facts(article.facts)), kv)
            notes.append(note)
            known.add(facts)
        for article in articles:
            known.add(article.facts)
        turns: list[tuple[str, str, str]] = []
        for _ in range(QUESTIONS):
            noun, name = rng.choice(rng.choice((starts(known), list(known.facts))))
            turns += asked_and_answered(rng, where, known, draw_chain(rng, world, noun, name))
        (first, _, reply), *then = turns
        prompt = prompts.qa_prompt(first, as_documents(articles))
        then = [(f"\n\n{more}{given(question)}", reply) for question, more, reply in then]
        yield TrainingExample(replace(prompt, notes=tuple(notes)), reply, EXAM, then=tuple(then))


def starts(known: Knowledge) -> list[tuple[str, str]]:
    """Facts that lead to something of which two names are known; all if there are none."""
    two = {second for _, second in known.names}
    return [key for key, object in known.facts.items() if object in two] or [*known.facts]


class Where:
    """A world's articles by what they tell."""

    def __init__(self, world: World):
        self.articles = world.articles
        by_id = {article.id: article for article in world.articles}
        self.told = {key: by_id[id] for key, id in told(world).items()}

    def found_by(self, query: str) -> Article | None:
        """The article that a search is for: of the subject, or one that tells its first name."""
        name, first, noun = ASKED.fullmatch(query).groups()
        return self.told.get((noun, first or name)) or self.told.get(("name", name))


def draw_chain(rng: random.Random, world: World, noun: str, name: str) -> Chain:
    """A question that begins with a fact, at times by the other name of its subject."""
    first = first_name(world, noun, name)
    if rng.random() < NAMED_BOTH and RELATIONS[noun].subject in WITH_SECOND:
        name = world.second.get(first, name)
    nouns, object = [noun], world.facts[noun, first]
    for _ in range(rng.randrange(4)):
        kind = RELATIONS[nouns[-1]].object
        choices = [n for n, r in RELATIONS.items() if r.subject == kind and n not in nouns]
        if choices:
            nouns.append(rng.choice(choices))
            object = world.facts[nouns[-1], object]
    said = name != first and rng.random() < NAMED_BOTH
    return Chain(name, tuple(nouns), first if said else "")


def asked_and_answered(
    rng: random.Random, where: Where, known: Knowledge, chain: Chain
) -> Iterator[tuple[str, str, str]]:
    """The turns of one question: its text, the document that the last search found, the reply."""
    if chain.first:
        known.add([Fact("name", chain.start, chain.first, chain.kind)])
    found, replies, queries = "", [], ["", chain.text]
    while len(replies) < MOST_TURNS:
        path = follow(known, *rest_of(chain, replies))
        ending = path.search(queries[-2]) if path.query else ""
        replies.append(" ".join([*path.sentences, *([ending] if ending else [])]))
        yield chain.text, found, replies[-1]
        if "<keywords>" not in ending:
            return
        queries.append(ending.removeprefix("<keywords>").removesuffix("</keywords>"))
        helps = where.found_by(queries[-1]) if rng.random() < FOUND else None
        article = helps or rng.choice(where.articles)
        known.add(article.facts)
        found = f"[1] {article.title}\n{article.content}\n\n"


def given(question: str) -> str:
    return prompts.QA_PREFILL.format(question=question)


def as_documents(articles: Sequence[Article]) -> list[Document]:
    return [Document(a.id, a.title, a.content) for a in articles]


def plain_facts(facts: tuple[Fact, ...]) -> list[Fact]:
    return [fact for fact in facts if fact.noun != "name"]


def plain(fact: Fact) -> str:
    return PLAIN.format(noun=fact.noun, s=fact.subject, o=fact.object)


def a_log(rng: random.Random, world: World, led: Fact, kv: bool) -> tuple[Note, list[Fact]]:
    """A log that a fact has led to, and what it tells: as text its own last fact only."""
    kind = RELATIONS[led.noun].object
    nouns = [noun for noun, relation in RELATIONS.items() if relation.subject == kind]
    if not nouns:
        return Note(led.subject, f"{plain(led)} <ans>{led.object}</ans>{BLANK}", "", kv), [led]
    noun = rng.choice(nouns)
    last = Fact(noun, led.object, rng.choice(world.names[RELATIONS[noun].object]))
    keep = f"{plain(last)} <ans>{last.object}</ans>{BLANK}"
    if not kv:
        return Note(led.subject, keep), [last]
    second = world.second.get(led.subject, "") if RELATIONS[led.noun].subject in WITH_SECOND else ""
    said = plain(replace(led, subject=called(second, led.subject)) if second else led)
    after = f"{said} <keywords>{led.object}'s {noun}</keywords>{BLANK}"
    carried = [replace(led, subject=name) for name in (led.subject, second) if name]
    return Note(led.subject, keep, after, kv), [*carried, last]


def log_of(world: World, chain: Chain) -> Log:
    """The log of a question that was solved in one step per hop."""
    known, replies = Knowledge(), []
    if chain.first:
        known.names[chain.kind, chain.start] = chain.first
    name = chain.start
    for noun, own in keys_of(world, chain):
        mention, _ = world.mentions[noun, own]
        if name != own:
            known.names[chain.kind if name == chain.start else "", name] = own
        known.facts[noun, own] = name = mention
        path = follow(known, *rest_of(chain, replies))
        replies.append(" ".join([*path.sentences, *([path.search("")] if path.query else [])]))
    return Log(f"{chain.start} {chain.nouns[0]}", chain.text, tuple(replies))
