"""Look-ups and exams: what they give and ask, and that every reply follows from what stands before it.

What an exam says is read here from its words alone, in the order in which they stand.
"""

import itertools
import re
from dataclasses import dataclass, field

import pytest
from test_world import read

from lag.actions import Answer, Search, parse
from lag.miniwiki.drills import EXAM, FOUND, LOOKUP, MOST_TURNS, make_exams, make_lookups
from lag.miniwiki.gold_agent import UNKNOWN
from lag.miniwiki.tokenizer import make_tokenizer
from lag.miniwiki.world import NAMES, RELATIONS, TRAINING_NAMES, TRAINING_SEEDS, generate
from lag.model.chat import Chat
from lag.train.batches import lay_out

SENTENCE = re.compile(r"(?:(\w+) alias )?(\w+)'s (\w+) is (\w+)\.")
ASKED = re.compile(r"Question: \w+ is (?:(\w+) alias )?(\w+)((?:'s \w+)+)\?\nFacts:$")
both = pytest.mark.parametrize("make", [make_lookups, make_exams])


@pytest.fixture(scope="module")
def world():
    return generate(TRAINING_SEEDS + 77, articles=400, questions=20)


@pytest.fixture(scope="module")
def exams(world):
    return list(make_exams(world, 150, "x"))


def turns_of(example) -> list[tuple[str, str]]:
    """What is given in front of each reply, and the reply."""
    return [(f"{example.prompt.user}\n\n{example.prompt.prefill}", example.reply), *example.then]


def plain(text: str) -> set[str]:
    """What sentences say, each under every name that stands in it."""
    return {
        f"{name}'s {noun} is {object}."
        for second, first, noun, object in SENTENCE.findall(text)
        for name in (second, first)
        if name
    }


def known(text: str) -> set[str]:
    return {sentence for sentence in plain(text) if not sentence.endswith(f" {UNKNOWN}.")}


@dataclass
class Reader:
    """What an exam has said so far, of two statements the first, and how far its question has got.

    name, nouns: what is still to be followed. queries: what was searched for, for this question.
    """

    facts: dict[tuple[str, str], str] = field(default_factory=dict)
    names: dict[tuple[str, str], str] = field(default_factory=dict)
    asked: str = ""
    name: str = ""
    nouns: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)

    def read(self, text: str) -> None:
        """Articles, then a question: another one, or the same again where the last reply searched."""
        for block in text.split("\n\n"):
            if re.match(r"\[\d+\] ", block):
                told = read(block.partition("\n")[2])
                self.facts, self.names = told.facts | self.facts, told.names | self.names
        question = ASKED.search(text)
        second, own, way = question.groups()
        start = second or own
        nouns = re.findall(r"'s (\w+)", way)
        if question[0] != self.asked or not 0 < len(self.queries) < MOST_TURNS:
            self.asked, self.name, self.nouns, self.queries = question[0], start, nouns, []
        if second:
            self.names.setdefault((RELATIONS[nouns[0]].subject, second), own)

    def read_log(self, note) -> None:
        for second, own, noun, object in SENTENCE.findall(note.after + note.keep):
            for name in filter(None, (own, second)) if object != UNKNOWN else ():
                self.facts.setdefault((noun, name), object)

    def first(self, noun: str, name: str) -> str:
        return self.names.get((RELATIONS[noun].subject, name)) or self.names.get(("", name), "")

    def check(self, reply: str) -> Answer | Search:
        """Every sentence is of what is next on the way, and was said before; so does what ends the reply."""
        action, missing, rest = parse(reply, "keywords"), False, reply
        for match in SENTENCE.finditer(reply):
            second, own, noun, object = match.groups(default="")
            assert not missing and noun == self.nouns[0], reply
            first = self.first(noun, self.name)
            left = f"{self.name} alias {first}" if first else self.name
            left += "".join(f"'s {noun}" for noun in self.nouns)
            assert rest.startswith(f"{left}: {match[0]} "), reply
            rest = rest.removeprefix(f"{left}: {match[0]} ")
            assert (second, own) == ((self.name, first) if first else ("", self.name))
            stated = self.facts.get((noun, own)) or self.facts.get((noun, second))
            assert object == (stated or UNKNOWN)
            missing = object == UNKNOWN
            if not missing:
                self.name, self.nouns = object, self.nouns[1:]
        assert missing == bool(self.nouns)
        assert re.fullmatch(r"<(ans|keywords)>[^<>]+</\1>", rest)
        if missing:
            self.check_query(action)
        else:
            assert action == Answer(self.name)
        self.queries = [*self.queries, action.query] if isinstance(action, Search) else []
        return action

    def check_query(self, action: Answer | Search) -> None:
        """It is for the next fact, by both names if they are known; at last the kind is named."""
        noun, first = self.nouns[0], self.first(self.nouns[0], self.name)
        usual = f"{self.name} alias {first}'s {noun}" if first else f"{self.name}'s {noun}"
        wordings = [usual] * 2 + [f"the {RELATIONS[noun].subject} {usual}"] * 2
        failed = list(itertools.takewhile(lambda query: query in wordings, self.queries[::-1]))
        assert failed == wordings[: len(failed)][::-1]
        if len(failed) == len(wordings):
            assert action == Answer(UNKNOWN)
        else:
            assert action == Search(wordings[len(failed)])


def test_every_reply_of_an_exam_follows_from_what_stands_before_it(exams):
    """A reply that says what nothing has told teaches to guess."""
    ends, resolved = {Answer: 0, Search: 0}, 0
    for exam in exams:
        assert exam.format is EXAM
        reader = Reader()
        for note in exam.prompt.notes:
            reader.read_log(note)
        for given, reply in turns_of(exam):
            reader.read(given)
            ends[type(reader.check(reply))] += 1
            resolved += " alias " in reply
    assert min(ends.values()) > 3 * len(exams)  # one context holds many replies of both kinds
    assert resolved > len(exams)


def test_a_search_of_an_exam_mostly_finds_what_it_is_for(exams):
    """The article told what was asked, or the subject's first name."""
    found = []
    for exam in exams:
        for (_, before), (given, _) in itertools.pairwise(turns_of(exam)):
            action = parse(before, "keywords")
            if isinstance(action, Search) and "\n\n[1] " in given:
                name, noun = re.findall(r"(\w+)'s (\w+)$", action.query)[0]
                told = read(given.split("\n\n")[1].partition("\n")[2])
                found.append((noun, name) in told.facts or name in {n for _, n in told.names})
    assert len(found) > 3 * len(exams)
    assert sum(found) / len(found) == pytest.approx(FOUND, abs=0.05)


def test_only_the_replies_of_an_exam_are_targets(exams):
    tokenizer = make_tokenizer()
    chat = Chat(tokenizer)
    for exam in exams[:40]:
        row = lay_out(exam, chat, tokenizer.eos_token_id)
        runs = itertools.groupby(zip(row.ids, row.trained), key=lambda pair: pair[1])
        runs = [(trained, [id for id, _ in run]) for trained, run in runs]
        said = [ids for trained, ids in runs if trained]
        assert [ids[-1] for ids in said] == [tokenizer.eos_token_id] * len(said)
        assert [chat.text(ids) for ids in said] == [reply for _, reply in turns_of(exam)]


@both
def test_a_log_as_kv_stands_behind_the_fact_that_led_to_it_and_one_as_text_alone(make, world):
    hidden, said = 0, 0
    for example in make(world, 150, "x"):
        assert example.format is {make_lookups: LOOKUP, make_exams: EXAM}[make]
        notes, replies = example.prompt.notes, " ".join(reply for _, reply in turns_of(example))
        assert len({note.kv for note in notes}) < 2
        for note in notes:
            (kept,) = SENTENCE.findall(note.keep)
            assert f"<ans>{kept[-1]}</ans>" in note.keep
            if make is make_lookups:
                assert known(note.after + note.keep) <= plain(replies)
            if note.after:
                led, missing = SENTENCE.findall(note.after)
                assert note.kv and led[-1] == kept[1] == missing[1]
                assert missing[2:] == (kept[2], UNKNOWN)
                hidden += 1
                said += bool(known(note.after) & plain(replies))
    assert min(hidden, said) > 40


@both
def test_a_seed_gives_the_same_drills(make, world):
    few = list(make(world, 20, "x"))
    assert list(make(world, 20, "x")) == few
    assert not [1 for one, other in zip(few, make(world, 20, "y"), strict=True) if one == other]


@both
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_logs_enter_as_kv_as_often_as_is_asked_for(make, world, share):
    notes = [note for example in make(world, 40, "x", 4, share) for note in example.prompt.notes]
    assert len(notes) > 40
    assert {note.kv for note in notes} == {bool(share)}
    assert any(note.after for note in notes) == bool(share)


@both
def test_no_drill_says_a_name_of_other_worlds(make, world):
    """A model that had read of Corbek in training answered other worlds' questions about it."""
    for example in make(world, 150, "x"):
        texts = [note.after + note.keep for note in example.prompt.notes]
        texts += [given + reply for given, reply in turns_of(example)]
        words = {word for text in texts for word in re.findall(r"\w+", text)}
        assert not words & {*NAMES}
        assert words & {*TRAINING_NAMES}
