"""Examples without retrieval, which a training begins with: look-ups, then questions, many to a context."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lag import prompts
from lag.actions import Search, parse
from lag.miniwiki.gold_agent import Knowledge, follow, rest_of
from lag.miniwiki.world import (
    PLAIN,
    RELATIONS,
    WITH_SECOND,
    Article,
    Chain,
    Fact,
    World,
    first_name,
    keys_of,
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
    own = entities(world)
    for _ in range(count):
        articles = rng.sample(own, rng.randint(1, most))
        kv = rng.random() < as_kv
        notes, told = draw_logs(rng, world, rng.sample(own, rng.randint(0, most)), kv)
        facts = [*(fact for article in articles for fact in plain_facts(article)), *told]
        rng.shuffle(facts)
        prompt = Prompt(prompts.documents_block(as_documents(articles)), notes=notes)
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
    own, library = entities(world), Library(world)
    both = [a for a in own if any(fact.noun == "name" for fact in a.facts)] or own
    for _ in range(count):
        articles = [rng.choice(rng.choice((own, both))) for _ in range(rng.randint(1, most))]
        kv = rng.random() < as_kv
        notes, told = draw_logs(rng, world, rng.sample(own, rng.randint(0, most)), kv)
        known = Knowledge()
        known.add([*told, *(fact for article in articles for fact in article.facts)])
        by_logs = [(fact.noun, fact.subject) for fact in told] or [*known.facts]
        first, turns = "", []
        for _ in range(QUESTIONS):
            noun, name = rng.choice(rng.choice((starts(known), by_logs, list(known.facts))))
            chain = draw_chain(rng, world, (noun,), name)
            first = first or chain.text
            turns += answer(rng, library, known, chain)
        (_, reply), *then = turns
        prompt = replace(prompts.qa_prompt(first, as_documents(articles)), notes=notes)
        yield TrainingExample(prompt, reply, EXAM, then=tuple(then))


def starts(known: Knowledge) -> list[tuple[str, str]]:
    """Facts that lead to something of which two names are known; all if there are none."""
    two = {second for _, second in known.names}
    return [key for key, object in known.facts.items() if object in two] or [*known.facts]


class Library:
    """A world's articles by what they tell."""

    def __init__(self, world: World):
        self.articles = world.articles
        self.told = {(fact.noun, fact.subject): a for a in world.articles for fact in a.facts}

    def found_by(self, query: str) -> Article | None:
        """The article that a search is for: of the subject, or one that tells its first name."""
        name, first, noun = ASKED.fullmatch(query).groups()
        return self.told.get((noun, first or name)) or self.told.get(("name", name))


def draw_chain(
    rng: random.Random, world: World, begin: Sequence[str], name: str, more: int = 3
) -> Chain:
    """A question that begins with relations, at times by the other name of where it starts.

    more: how many relations follow, at the most.
    """
    first = first_name(world, begin[0], name)
    if rng.random() < NAMED_BOTH and RELATIONS[begin[0]].subject in WITH_SECOND:
        name = world.second.get(first, name)
    nouns = [*begin]
    for _ in range(rng.randrange(more + 1)):
        kind = RELATIONS[nouns[-1]].object
        choices = [n for n, r in RELATIONS.items() if r.subject == kind and n not in nouns]
        nouns += [rng.choice(choices)] if choices else []
    said = name != first and rng.random() < NAMED_BOTH
    return Chain(name, tuple(nouns), first if said else "")


def answer(
    rng: random.Random, library: Library, known: Knowledge, chain: Chain
) -> Iterator[tuple[str, str]]:
    """The turns of one question: it is asked again behind an article as long as a reply searches."""
    if chain.first:
        known.add([Fact("name", chain.start, chain.first, chain.kind)])
    asked = prompts.QA_PREFILL.format(question=chain.text)
    found, replies, queries = "", [], ["", chain.text]
    while True:
        replies.append(follow(known, *rest_of(chain, replies)).reply(queries[-2]))
        yield f"\n\n{found}{asked}", replies[-1]
        action = parse(replies[-1], "keywords")
        if not isinstance(action, Search) or len(replies) == MOST_TURNS:
            return
        queries.append(action.query)
        helps = library.found_by(action.query) if rng.random() < FOUND else None
        article = helps or rng.choice(library.articles)
        known.add(article.facts)
        found = f"[1] {article.title}\n{article.content}\n\n"


def entities(world: World) -> list[Article]:
    """The articles that are about something, and not about a name only."""
    return [article for article in world.articles if plain_facts(article)]


def as_documents(articles: Sequence[Article]) -> list[Document]:
    return [Document(a.id, a.title, a.content) for a in articles]


def plain_facts(article: Article) -> list[Fact]:
    return [fact for fact in article.facts if fact.noun != "name"]


def plain(fact: Fact) -> str:
    return PLAIN.format(noun=fact.noun, s=fact.subject, o=fact.object)


def draw_logs(
    rng: random.Random, world: World, articles: Sequence[Article], kv: bool
) -> tuple[tuple[Note, ...], list[Fact]]:
    """A log that a fact of each article has led to, and what these logs tell."""
    logs = [a_log(rng, world, rng.choice(plain_facts(article)), kv) for article in articles]
    return tuple(note for note, _ in logs), [fact for _, facts in logs for fact in facts]


def a_log(rng: random.Random, world: World, led: Fact, kv: bool) -> tuple[Note, list[Fact]]:
    """A log that a fact has led to, and what it tells: as text its own last fact only."""
    kind = RELATIONS[led.noun].object
    nouns = [noun for noun, relation in RELATIONS.items() if relation.subject == kind]
    if not nouns:
        return Note(led.subject, told([led], led.subject, led.noun), "", kv), [led]
    noun = rng.choice(nouns)
    last = Fact(noun, led.object, rng.choice(world.names[RELATIONS[noun].object]))
    keep = told([last], last.subject, noun)
    if not kv:
        return Note(led.subject, keep), [last]
    kind = RELATIONS[led.noun].subject
    second = world.second.get(led.subject, "") if kind in WITH_SECOND else ""
    names = [Fact("name", second, led.subject, kind)] if second else []
    after = told([*names, led], second or led.subject, led.noun, noun)
    carried = [replace(led, subject=name) for name in (led.subject, second) if name]
    return Note(led.subject, keep, after, kv), [*carried, last]


def told(facts: Sequence[Fact], start: str, *nouns: str) -> str:
    """What a reply says that follows relations through no more than these facts."""
    known = Knowledge()
    known.add(facts)
    return follow(known, start, nouns).reply("") + BLANK


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
        replies.append(follow(known, *rest_of(chain, replies)).reply(""))
    return Log(f"{chain.start} {chain.nouns[0]}", chain.text, tuple(replies))
