"""Fictional worlds: articles, and questions of several hops whose facts no model can know.

A world is drawn from a seed and from nothing else: the same seed gives the same bytes on every
machine. Which name is a city, and who wrote which book, is drawn afresh for every world, and worlds
that models learn from have names of their own, so that what a model has seen says nothing here.

What makes a world hard is of the kinds that real questions have:

* Some entities are called in most places by a name that their own article never uses, while books
  and companies of that name crowd the search. Other articles, and some questions, say both names.
* Some sentences name a former value beside the present one.
* Questions take 2 to 6 hops.

Questions share sub-questions in families, no fact with another family, so that a cluster of
questions that stand or fall together is small.

Source of the question format: MuSiQue (arXiv 2108.00573); of the overlap between splits: what its
released development questions have (86.1 % of test questions share a sub-question with train).
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ONSETS = """
    Al Bar Cor Dal El Fen Gar Hol Il Jas Kel Lor Mar Nor Or Pel
    Quin Ros Sol Tam Ul Ven Wil Yor Zan Bri Cre Dro Fla Gre Ste Tho
"""

TRAINING_ONSETS = """
    Am Bel Cas Dor Er Fol Gil Hes Im Jor Kar Lum Mel Nes Ob Par
    Qua Rud Sim Tor Um Var Wes Yal Zer Bla Cli Dra Fri Glo Sna Tri
"""

ENDINGS = """
    a an ar bek bo ca den dis el en eth fi gan go ia ik
    ith lu lim mer mo ne nor os ra rik sa tan to va vin wen
"""


def joined(onsets: str) -> tuple[str, ...]:
    return tuple(onset + ending for onset in onsets.split() for ending in ENDINGS.split())


NAMES = joined(ONSETS)
TRAINING_NAMES = joined(TRAINING_ONSETS)  # of the worlds that models are trained on, of no other
TRAINING_SEEDS = 9_000  # worlds from this seed up have those
MOST_ARTICLES = 1000  # what the pool has names for
NAMESAKES = 0.1  # of the books, companies and rivers: share their name with something else
ALIASED = 0.2  # of people, cities and companies: have a second name
EXPLAINED = 0.3  # of those: an article of its own explains it; the entity's has the first one
CROWD = 2  # books, companies or rivers that have an unexplained second name as their own
CALLED = {"first": 0.1, "second": 0.45, "both": 0.45}  # how other articles and questions call them
FORMER = 0.2  # of the facts: the article names a former value, too
HOPS = {2: 0.5, 3: 0.26, 4: 0.13, 5: 0.07, 6: 0.04}
TRAIN = 0.7
SPLIT_SEED = 0
PARAGRAPHS = 8  # documents listed with a question, its own and others
FAMILY = 8  # train questions that share a fact
HARD = 0.8  # of the families: it is a fact about an entity with an unexplained second name
AGAIN = 0.3  # of the questions that go on behind it: by the same fact as the others
ENDS = 0.12  # of the train questions: end with it, so that the last response says it


@dataclass(frozen=True, slots=True)
class Kind:
    """What an entity can be: the word for it, and its share of the articles."""

    word: str
    share: float


@dataclass(frozen=True, slots=True)
class Relation:
    """A typed relation: its noun in questions and replies, and the wordings of articles.

    The noun tells the subject's kind, so a name and a noun together name one fact, even where a
    river and a book have one name.
    """

    noun: str
    subject: str
    object: str
    wordings: tuple[str, ...]


# fmt: off
KINDS = {kind.word: kind for kind in (
    Kind("person", 0.245), Kind("city", 0.155), Kind("country", 0.045),
    Kind("company", 0.125), Kind("book", 0.17), Kind("river", 0.07),
)}

RELATIONS = {relation.noun: relation for relation in (
    Relation("birthplace",   "person",  "city",     ("{s} was born in {o}.", "{s} came to life in {o}.")),
    Relation("employer",     "person",  "company",  ("{s} works for {o}.", "{s} earns a wage from {o}.")),
    Relation("teacher",      "person",  "person",   ("{s} was taught by {o}.", "{s} is a pupil of {o}.")),
    Relation("rival",        "person",  "person",   ("{s} quarrels with {o}.", "{s} competes with {o}.")),
    Relation("home",         "person",  "city",     ("{s} lives in {o}.", "{s} has settled in {o}.")),
    Relation("country",      "city",    "country",  ("{s} lies in {o}.", "{s} belongs to {o}.")),
    Relation("mayor",        "city",    "person",   ("{s} is run by {o}.", "{s} has elected {o}.")),
    Relation("river",        "city",    "river",    ("{s} stands on the {o}.", "{s} gets its water from the {o}.")),
    Relation("architect",    "city",    "person",   ("{s} was planned by {o}.", "{s} owes its streets to {o}.")),
    Relation("sponsor",      "city",    "company",  ("{s} is paid for by {o}.", "{s} gets its money from {o}.")),
    Relation("capital",      "country", "city",     ("{s} is governed from {o}.", "{s} has its parliament in {o}.")),
    Relation("language",     "country", "language", ("{s} speaks {o}.", "{s} writes its laws in {o}.")),
    Relation("president",    "country", "person",   ("{s} is led by {o}.", "{s} is headed by {o}.")),
    Relation("founder",      "company", "person",   ("{s} was founded by {o}.", "{s} was set up by {o}.")),
    Relation("headquarters", "company", "city",     ("{s} is based in {o}.", "{s} keeps its offices in {o}.")),
    Relation("supplier",     "company", "company",  ("{s} buys from {o}.", "{s} gets its goods from {o}.")),
    Relation("owner",        "company", "person",   ("{s} is owned by {o}.", "{s} is in the hands of {o}.")),
    Relation("author",       "book",    "person",   ("{s} was written by {o}.", "{s} comes from the pen of {o}.")),
    Relation("setting",      "book",    "city",     ("{s} is set in {o}.", "{s} takes place in {o}.")),
    Relation("publisher",    "book",    "company",  ("{s} was printed by {o}.", "{s} is sold by {o}.")),
    Relation("hero",         "book",    "person",   ("{s} tells the life of {o}.", "{s} is the story of {o}.")),
    Relation("source",       "river",   "country",  ("{s} rises in {o}.", "{s} springs from the hills of {o}.")),
    Relation("mouth",        "river",   "city",     ("{s} reaches the sea at {o}.", "{s} ends near {o}.")),
)}
# fmt: on

PLAIN = "{s}'s {noun} is {o}."  # the wording that every relation also has
CORRECTED = (
    "{s}'s {noun} was {x} and is now {o}.",
    "{s}'s {noun} is {o}, no longer {x}.",
)
BOTH = "{second} alias {first}"
SECOND_NAMES = ("{s} is another name of {o}.", "{s} is the old name of {o}.")
LANGUAGES = 0.03  # as many as this share of the articles; they have no articles
WITH_SECOND = ("person", "city", "company")


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing an article says: with noun `name`, that subject is a second name of object.

    object: as the article calls it, so it may be a second name.
    kind: with noun `name` what has the two names, where the sentence tells it.
    """

    noun: str
    subject: str
    object: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Article:
    """A document and the facts in it."""

    id: str
    title: str
    content: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """A question before it is put in words: follow these relations from this name.

    first: the first name, where the question says it beside a second one.
    """

    start: str
    nouns: tuple[str, ...]
    first: str = ""

    @property
    def kind(self) -> str:
        """What the question begins with is of this kind."""
        return RELATIONS[self.nouns[0]].subject

    @property
    def text(self) -> str:
        asked = "Who" if RELATIONS[self.nouns[-1]].object == "person" else "What"
        return f"{asked} is {way(called(self.start, self.first), self.nouns)}?"


def called(name: str, first: str) -> str:
    """A name as a text says it; `first`: the first name that stands beside it, or nothing."""
    return BOTH.format(second=name, first=first) if first else name


def way(name: str, nouns: Sequence[str]) -> str:
    """A name and the relations to follow from it, as questions say them."""
    return name + "".join(f"'s {noun}" for noun in nouns)


@dataclass(slots=True)
class World:
    """What a seed gives.

    names: by kind, the entities' first names, which are the titles of their articles.
    aliases: second name -> first name. explained: second names with an article of their own.
    facts: (noun, first name of the subject) -> first name of the object.
    mentions: the same keys -> the object as the article calls it, and the first name that the
        article says beside it, or nothing.
    train, test: rows of `dev_train.json` and `dev_test.json`.
    chains: question id -> its chain.
    """

    seed: int
    names: dict[str, list[str]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    explained: set[str] = field(default_factory=set)
    facts: dict[tuple[str, str], str] = field(default_factory=dict)
    mentions: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    articles: list[Article] = field(default_factory=list)
    train: list[dict[str, Any]] = field(default_factory=list)
    test: list[dict[str, Any]] = field(default_factory=list)
    chains: dict[str, Chain] = field(default_factory=dict)

    @property
    def documents(self) -> dict[str, dict[str, str]]:
        """`dev_docs.json`."""
        return {a.id: {"title": a.title, "content": a.content} for a in self.articles}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """`dev.json`, in the order that LAG's split (seed 0, share 0.7) cuts into train and test."""
        rows = [*self.train, *self.test]
        places = list(range(len(rows)))
        random.Random(SPLIT_SEED).shuffle(places)
        return [row for _, row in sorted(zip(places, rows), key=lambda pair: pair[0])]

    @property
    def second(self) -> dict[str, str]:
        """First name -> second name."""
        return {name: alias for alias, name in self.aliases.items()}


def generate(
    seed: int, articles: int = 1000, questions: int = 1000, overlap: float = 0.86
) -> World:
    """Draw a world.

    overlap: share of the test questions that share a sub-question with a train question.

    Raises:
        ValueError: more articles than there are names, a share outside 0 to 1, or more questions
            than so small a world has.
    """
    if not 50 <= articles <= MOST_ARTICLES:
        raise ValueError(f"{articles} articles: expected 50 to {MOST_ARTICLES}; the names run out")
    if not 0 <= overlap <= 1:
        raise ValueError(f"an overlap of {overlap}: expected a share between 0 and 1")
    rng = random.Random(f"world {seed}")
    world = World(seed)
    draw_names(rng, world, articles)
    draw_facts(rng, world)
    world.articles = write_articles(rng, world)
    draw_questions(rng, world, questions, overlap)
    return world


def draw_names(rng: random.Random, world: World, articles: int) -> None:
    """Give every entity a name; some get a namesake of another kind, some a second name."""
    pool = list(NAMES if world.seed < TRAINING_SEEDS else TRAINING_NAMES)
    rng.shuffle(pool)
    for kind in KINDS.values():
        world.names[kind.word] = [pool.pop() for _ in range(round(kind.share * articles))]
    for word, other in (("book", "city"), ("company", "person"), ("river", "country")):
        names = world.names[word]
        for place in range(round(NAMESAKES * len(names))):
            names[place] = world.names[other][place % len(world.names[other])]
    world.names["language"] = [pool.pop() for _ in range(max(3, round(LANGUAGES * articles)))]
    draw_second_names(rng, world, pool)


def draw_second_names(rng: random.Random, world: World, pool: list[str]) -> None:
    """Second names, and what else has the unexplained ones as its own name."""
    taken = namesakes(world)
    free = {
        word: [n for n, name in enumerate(world.names[word]) if name not in taken]
        for word in ("book", "company", "river")
    }
    for places in free.values():
        rng.shuffle(places)
    for word in WITH_SECOND:
        taken = namesakes(world)
        own = [name for name in world.names[word] if name not in taken]
        for name in rng.sample(own, round(ALIASED * len(own))):
            alias = pool.pop()
            world.aliases[alias] = name
            if rng.random() < EXPLAINED:
                world.explained.add(alias)
                continue
            others = [other for other in free if other != word and free[other]]
            for other in rng.sample(others, min(CROWD, len(others))):
                place = free[other].pop()
                if world.names[other][place] not in world.aliases.values():
                    world.names[other][place] = alias


def namesakes(world: World) -> set[str]:
    """Names that more than one entity has, as a first or a second name."""
    found = Counter(name for word in KINDS for name in set(world.names[word]))
    found.update([*world.aliases])
    return {name for name, kinds in found.items() if kinds > 1}


def draw_facts(rng: random.Random, world: World) -> None:
    """Draw the object of every relation of every entity, and what its article calls it."""
    second = world.second
    for relation in RELATIONS.values():
        for subject in world.names[relation.subject]:
            object = rng.choice(world.names[relation.object])
            while object == subject:
                object = rng.choice(world.names[relation.object])
            key = relation.noun, subject
            world.facts[key] = object
            own = relation.object in WITH_SECOND
            world.mentions[key] = mention(rng, object, second.get(object, "") if own else "")
    say_both_somewhere(rng, world)


def say_both_somewhere(rng: random.Random, world: World) -> None:
    """See to it that what is mentioned by an unexplained second name is once by both."""
    found: dict[str, list[tuple[str, str]]] = {}
    for key, (name, first) in world.mentions.items():
        if name in world.aliases and name != world.facts[key]:
            found.setdefault(name, []).append((key, first))
    for alias, places in found.items():
        if alias not in world.explained and not any(first for _, first in places):
            world.mentions[rng.choice(places)[0]] = alias, world.aliases[alias]


def mention(rng: random.Random, name: str, second: str) -> tuple[str, str]:
    """What something is called in a place, and its first name where that is said, too."""
    if not second:
        return name, ""
    how = rng.choices(list(CALLED), list(CALLED.values()))[0]
    return {"first": (name, ""), "second": (second, ""), "both": (second, name)}[how]


def write_articles(rng: random.Random, world: World) -> list[Article]:
    """One short article per entity and per explained second name, in an order that says nothing."""
    shared = namesakes(world)
    drafts = [
        entity_article(rng, world, word, name, name in shared)
        for word in KINDS
        for name in world.names[word]
    ]
    for alias in sorted(world.explained):
        name = world.aliases[alias]
        content = rng.choice(SECOND_NAMES).format(s=alias, o=name)
        drafts.append((alias, content, (Fact("name", alias, name),)))
    rng.shuffle(drafts)
    return [Article(f"d{n:04}", *draft) for n, draft in enumerate(drafts)]


def entity_article(
    rng: random.Random, world: World, word: str, name: str, is_shared: bool
) -> tuple[str, str, tuple[Fact, ...]]:
    """Title, content and facts; every sentence repeats its subject."""
    nouns = [noun for noun, relation in RELATIONS.items() if relation.subject == word]
    rng.shuffle(nouns)
    sentences, facts = [f"{name} is a {word}."], []
    for noun in nouns:
        object, first = world.mentions[noun, name]
        fact = Fact(noun, name, object)
        sentences.append(sentence(rng, world, fact, first))
        facts += [fact, *same_names(fact, first)]
    return f"{name} ({word})" if is_shared else name, " ".join(sentences), tuple(facts)


def same_names(fact: Fact, first: str) -> list[Fact]:
    """That the object has two names, if a sentence about it says both."""
    return [Fact("name", fact.object, first, RELATIONS[fact.noun].object)] if first else []


def sentence(rng: random.Random, world: World, fact: Fact, first: str) -> str:
    """A fact in an article's words, at times beside a value that it had before."""
    relation, object = RELATIONS[fact.noun], called(fact.object, first)
    if rng.random() < FORMER and not first:
        former = rng.choice([n for n in world.names[relation.object] if n != fact.object])
        wording = rng.choice(CORRECTED)
        return wording.format(noun=fact.noun, s=fact.subject, o=object, x=former)
    wording = rng.choice((*relation.wordings, PLAIN))
    return wording.format(noun=fact.noun, s=fact.subject, o=object)


# --- questions ------------------------------------------------------------------------------------
class ChainDrawer:
    """Draws chains that differ from one another, and share facts within their family only.

    owner: fact -> the family whose it is. ends: first name -> facts of which it is the object.
    """

    def __init__(self, rng: random.Random, world: World):
        self.rng, self.world, self.second, self.told = rng, world, world.second, told(world)
        self.owner: dict[tuple[str, str], int] = {}
        self.seen: set[tuple[str, tuple[str, ...]]] = set()
        self.ends: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for (noun, subject), object in world.facts.items():
            self.ends.setdefault((RELATIONS[noun].object, object), []).append((noun, subject))
        self.nouns = {
            word: [n for n, r in RELATIONS.items() if r.subject == word] for word in KINDS
        }

    def is_free(self, key: tuple[str, str], family: int) -> bool:
        return self.owner.get(key, family) == family

    def forward(self, keys: list, family: int, prefer: tuple[str, str] | None = None) -> bool:
        """Go on from the last fact of a path; False if there is nowhere to go."""
        word, name = RELATIONS[keys[-1][0]].object, self.world.facts[keys[-1]]
        choices = [(n, name) for n in self.nouns.get(word, ())]
        choices = [key for key in choices if self.fits(keys, key, family)]
        if not choices:
            return False
        again = prefer in choices and self.rng.random() < AGAIN
        keys.append(prefer if again else self.rng.choice(choices))
        return True

    def backward(self, keys: list, family: int) -> bool:
        """Put a fact before the first of a path; False if none leads there."""
        noun, subject = keys[0]
        choices = self.ends.get((RELATIONS[noun].subject, subject), ())
        choices = [key for key in choices if self.fits(keys, key, family)]
        if not choices:
            return False
        keys.insert(0, self.rng.choice(choices))
        return True

    def fits(self, keys: list, key: tuple[str, str], family: int) -> bool:
        """Whether a fact can join a path: free, of another relation, and not in a circle."""
        met = {name for _, name in keys} | {self.world.facts[k] for k in keys}
        new = key[1] if key[1] not in met else self.world.facts[key]
        return (
            self.is_free(key, family) and all(key[0] != noun for noun, _ in keys) and new not in met
        )

    def around(self, core, num_hops: int, place: int, family: int, following) -> Chain | None:
        """A chain of so many hops with a fact at a place; None if it finds no way."""
        keys = [core]
        for _ in range(place):
            if not self.backward(keys, family):
                return None
        while len(keys) < num_hops:
            if not self.forward(keys, family, following if keys[-1] == core else None):
                return None
        return self.take(keys, family)

    def take(self, keys: list, family: int) -> Chain | None:
        """The chain of a path, whose facts are now the family's; None if it is not new."""
        meaning = keys[0][1], tuple(noun for noun, _ in keys)
        word = RELATIONS[keys[0][0]].subject
        if meaning in self.seen:
            return None
        self.seen.add(meaning)
        self.owner.update(dict.fromkeys(keys, family))
        second = self.second.get(meaning[0], "") if word in WITH_SECOND else ""
        name, first = mention(self.rng, meaning[0], second)
        if name == second and not first and ("name", name) not in self.told:
            first = meaning[0]  # no article tells it
        return Chain(name, meaning[1], first)

    def alone(self, num_hops: int, family: int) -> Chain | None:
        """A chain from anywhere, of facts that no one has."""
        word = self.rng.choice(list(self.nouns))
        key = self.rng.choice(self.nouns[word]), self.rng.choice(self.world.names[word])
        return self.around(key, num_hops, 0, family, None) if self.is_free(key, family) else None


def draw_questions(rng: random.Random, world: World, count: int, overlap: float) -> None:
    """Draw families of train questions and the test questions that share a fact with each."""
    num_train = int(TRAIN * count)
    num_shared = round(overlap * (count - num_train))
    drawer, train, test = ChainDrawer(rng, world), [], []
    num_families = max(1, -(-num_train // FAMILY))
    for family in range(num_families):
        asked = min(FAMILY, num_train - len(train))
        shared = num_shared * (family + 1) // num_families - len(test)
        mine, theirs = draw_family(drawer, family, asked, shared)
        train += mine
        test += theirs
    while len(test) < count - num_train:
        family = num_families + len(test)
        test.append(insist(lambda: drawer.alone(draw_hops(rng), family)))  # noqa: B023
    rng.shuffle(train)
    rng.shuffle(test)
    places = told(world)
    rows = [make_row(rng, world, places, number, c) for number, c in enumerate(train + test)]
    world.train, world.test = rows[:num_train], rows[num_train:]


def insist(draw: Callable[[], Any], times: int = 2000) -> Any:
    """Draw until something comes.

    Raises:
        ValueError: nothing did for a long time.
    """
    found = next(filter(None, (draw() for _ in range(times))), None)
    if found is None:
        raise ValueError("this world has no more questions of that kind; ask for fewer questions")
    return found


def draw_hops(rng: random.Random) -> int:
    return rng.choices(list(HOPS), weights=list(HOPS.values()))[0]


def draw_family(
    drawer: ChainDrawer, family: int, num_train: int, num_test: int
) -> tuple[list[Chain], list[Chain]]:
    """Train and test questions that share a fact; some go on behind it by the same fact.

    Raises:
        ValueError: as `insist`.
    """
    rng, world = drawer.rng, drawer.world

    def draw() -> tuple[list[Chain], list[Chain]] | None:
        core = draw_core(drawer, family)
        if core is None:
            return None
        following = RELATIONS[core[0]].object
        choices = [(noun, world.facts[core]) for noun in drawer.nouns.get(following, ())]
        then = rng.choice(choices) if choices else None
        sides = [], []
        for side, wanted in zip(sides, (num_train, num_test)):
            for _ in range(40 * wanted):
                if len(side) == wanted:
                    break
                hops = draw_hops(rng)
                place = rng.randrange(hops)
                if side is sides[0]:
                    place = hops - 1 if rng.random() < ENDS else rng.randrange(hops - 1)
                chain = drawer.around(core, hops, place, family, then)
                side += [chain] if chain else []
        return sides if list(map(len, sides)) == [num_train, num_test] else None

    return insist(draw, 200)


def draw_core(drawer: ChainDrawer, family: int) -> tuple[str, str] | None:
    """The fact that a family shares; often one about an entity that is hard to find."""
    rng, world = drawer.rng, drawer.world
    hidden = [name for alias, name in world.aliases.items() if alias not in world.explained]
    if hidden and rng.random() < HARD:
        name = rng.choice(hidden)
        word = next(word for word in WITH_SECOND if name in world.names[word])
    else:
        word = rng.choice(list(drawer.nouns))
        name = rng.choice(world.names[word])
    if not drawer.nouns.get(word):
        return None
    core = rng.choice(drawer.nouns[word]), name
    return core if drawer.is_free(core, family) else None


def first_name(world: World, noun: str, name: str) -> str:
    """The first name of whatever of that name has such a relation."""
    return name if (noun, name) in world.facts else world.aliases[name]


def keys_of(world: World, chain: Chain) -> list[tuple[str, str]]:
    """The facts that a chain needs, as keys of `World.facts`: its sub-questions."""
    name = first_name(world, chain.nouns[0], chain.start)
    keys = []
    for noun in chain.nouns:
        keys.append((noun, name))
        name = world.facts[noun, name]
    return keys


def told(world: World) -> dict[tuple[str, str], str]:
    """(noun, subject) -> id of an article that says it; of second names with noun `name`."""
    return {(fact.noun, fact.subject): a.id for a in world.articles for fact in a.facts}


def to_resolve(world: World, chain: Chain) -> list[str]:
    """The second names on the way along a chain whose first names must be found elsewhere."""
    on_the_way = [(chain.start, chain.first)]
    keys = keys_of(world, chain)
    on_the_way += [world.mentions[key] for key in keys[:-1]]
    return [
        name for (name, first), (noun, own) in zip(on_the_way, keys) if name != own and not first
    ]


def make_row(
    rng: random.Random, world: World, told: Mapping[tuple[str, str], str], number: int, chain: Chain
) -> dict[str, Any]:
    """A question in MuSiQue's shape, with `document_id` and `paragraph_ids` in LAG's."""
    keys = keys_of(world, chain)
    parts = [
        {
            "id": f"{number:04}_{hop}",
            "question": Chain(f"#{hop}" if hop else name, (noun,)).text,
            "answer": world.facts[noun, name],
            "document_id": told[noun, name],
        }
        for hop, (noun, name) in enumerate(keys)
    ]
    own = [told["name", name] for name in to_resolve(world, chain)]
    own = list(dict.fromkeys([*own, *(part["document_id"] for part in parts)]))
    others = [a.id for a in rng.sample(world.articles, PARAGRAPHS) if a.id not in own]
    paragraphs = own + others[: max(0, PARAGRAPHS - len(own))]
    rng.shuffle(paragraphs)
    answer = world.facts[keys[-1]]
    second = world.second.get(answer) if RELATIONS[keys[-1][0]].object in WITH_SECOND else None
    id = f"{len(keys)}hop__w{world.seed}_{number:04}"
    world.chains[id] = chain
    return {
        "id": id,
        "question": chain.text,
        "answer": answer,
        "answer_aliases": [second] if second else [],
        "question_decomposition": parts,
        "paragraph_ids": paragraphs,
    }
