"""Exams about what hidden text says: their logs are whole questions', and every reply follows.

What a log brings is read here from its words alone.
"""

import re

import pytest
from test_drills import SENTENCE, Reader, turns_of

from lag.actions import Answer, Search
from lag.miniwiki.drills import EXAM
from lag.miniwiki.gold_agent import UNKNOWN
from lag.miniwiki.recalls import make_recalls
from lag.miniwiki.world import NAMES, RELATIONS, TRAINING_SEEDS, generate


@pytest.fixture(scope="module")
def world():
    return generate(TRAINING_SEEDS + 77, articles=400, questions=20)


@pytest.fixture(scope="module")
def recalls(world):
    return list(make_recalls(world, 150, "x", 0.8))


def hidden(note) -> list[tuple[str, ...]]:
    """The sentences of a log's hidden text that led to what it keeps."""
    before, kept = SENTENCE.findall(note.after), SENTENCE.findall(note.keep)
    if not note.kv:
        return []
    found = [s for s in before if s[3] == (kept[0][0] or kept[0][1])] if kept else before
    return [s for s in found if s[2] == found[-1][2]][-1:]


def read_log(reader: Reader, note) -> None:
    kept = SENTENCE.findall(note.keep)
    for second, own, noun, object in (*kept, *hidden(note)):
        for name in filter(None, (own, second)) if object != UNKNOWN else ():
            reader.facts.setdefault((noun, name), object)
    for second, own, noun, _ in kept:
        if second:
            reader.names.setdefault((RELATIONS[noun].subject, second), own)


def test_every_reply_follows_from_what_stands_before_it(recalls):
    ends, resolved = {Answer: 0, Search: 0}, 0
    for exam in recalls:
        assert exam.format is EXAM
        reader = Reader()
        for note in exam.prompt.notes:
            read_log(reader, note)
        for given, reply in turns_of(exam):
            reader.read(given)
            ends[type(reader.check(reply))] += 1
            resolved += " alias " in reply
    assert min(ends.values()) > 3 * len(recalls)
    assert resolved > len(recalls)


def test_logs_keep_a_response_or_an_answer_alone(recalls):
    notes = [note for exam in recalls for note in exam.prompt.notes]
    alone = [note for note in notes if not SENTENCE.search(note.keep)]
    assert all(note.kv and re.fullmatch(r"<ans>\w+</ans>\n\n", note.keep) for note in alone)
    assert all(f"<ans>{hidden(note)[0][3]}</ans>" in note.keep for note in alone)
    assert 0.15 < len(alone) / len(notes) < 0.35
    assert all("<ans>" in note.keep and f"<ans>{UNKNOWN}" not in note.keep for note in notes)
    assert sum(f"is {UNKNOWN}." in note.after for note in notes) > 0.5 * len(notes)
    assert sum(" alias " in note.after for note in notes) > 0.2 * len(notes)


def test_many_replies_say_what_only_hidden_text_does_and_not_at_their_beginning_alone(recalls):
    """Where it came first in every exam, a model read it in no other place."""
    first = later = 0
    for exam in recalls:
        told = {s[1:] for note in exam.prompt.notes for s in hidden(note)}
        for _, reply in turns_of(exam):
            said = [s[1:] in told for s in SENTENCE.findall(reply)]
            first += any(said[:1])
            later += any(said[1:])
    assert min(first, later) > len(recalls)


def test_a_model_without_kv_gets_logs_as_text(world):
    notes = [note for exam in make_recalls(world, 40, "x", 0.0) for note in exam.prompt.notes]
    assert len(notes) > 40
    assert not any(note.kv or note.after for note in notes)


def test_a_seed_gives_the_same_exams_without_names_of_other_worlds(world):
    few = list(make_recalls(world, 20, "x", 0.8))
    assert list(make_recalls(world, 20, "x", 0.8)) == few
    assert list(make_recalls(world, 20, "y", 0.8)) != few
    texts = [given + reply for exam in few for given, reply in turns_of(exam)]
    assert not {word for text in texts for word in re.findall(r"\w+", text)} & {*NAMES}
