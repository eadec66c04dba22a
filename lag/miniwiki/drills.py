"""Short examples without retrieval, which a training begins with: look-ups, many to a context."""

import random
from collections.abc import Iterator

from lag import prompts
from lag.miniwiki.gold_agent import Knowledge, follow, rest_of
from lag.miniwiki.world import PLAIN, RELATIONS, Chain, Fact, World, keys_of
from lag.modes import BLANK
from lag.prompts import Note, Prompt
from lag.records import Document, Log
from lag.train.examples import Format, TrainingExample

LOOKUP = Format("lookup", "paper", 0)
AS_KV = 0.5  # of the look-ups: their logs enter as KV


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
        documents = [Document(a.id, a.title, a.content) for a in articles]
        facts = [*(fact for article in articles for fact in plain_facts(article.facts)), *told]
        rng.shuffle(facts)
        prompt = Prompt(prompts.documents_block(documents), notes=tuple(notes))
        yield TrainingExample(prompt, " ".join(map(plain, facts)), LOOKUP, only_after="is")


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
    after = f"{plain(led)} <keywords>the {noun} of {led.object}</keywords>{BLANK}"
    return Note(led.subject, keep, after, kv), [led, last]


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
