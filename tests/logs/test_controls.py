"""The controls themselves: what enters instead of what a question retrieved."""

import pytest

from lag.logs import controls
from lag.records import Hit, Question

IDS = [f"log{n}" for n in range(20)]
QUESTIONS = [Question(f"q{n}", f"text {n}") for n in range(6)]
NOBODY = frozenset()


class Echo:
    """A ranking whose hits name the query that they were found for."""

    def rank(self, query, k, exclude=NOBODY):
        found = [f"{query} / {n}" for n in range(9)]
        return [Hit(id, 1.0) for id in found if id not in exclude][:k]


def drawn(seed, question, exclude=NOBODY, count=3):
    hits = [Hit("x", 1.0)] * count
    return [hit.id for hit in controls.random_logs(IDS, seed)(question, hits, exclude)]


def test_random_logs_are_drawn_for_each_question():
    """The same three logs for every question would be one draw, not a control."""
    rows = [drawn(1, question) for question in QUESTIONS]
    assert len(set(map(tuple, rows))) == len(rows)
    assert all(len(set(row)) == 3 for row in rows)
    assert rows == [drawn(1, question) for question in QUESTIONS]
    assert rows != [drawn(2, question) for question in QUESTIONS]


def test_random_logs_are_as_many_and_never_an_excluded_one():
    assert len(drawn(1, QUESTIONS[0], count=7)) == 7
    assert drawn(1, QUESTIONS[0], count=0) == []
    assert "log3" not in drawn(1, QUESTIONS[0], frozenset(["log3"]), count=20)


def test_random_logs_of_an_earlier_step_stay():
    assert drawn(1, QUESTIONS[0], count=5)[:3] == drawn(1, QUESTIONS[0])


def test_shuffled_logs_are_those_of_exactly_one_other_question():
    """Ranked for the question itself they would be the logs that the control is to replace."""
    replace = controls.shuffled_logs(Echo(), QUESTIONS, seed=1)
    owners = {}
    for question in QUESTIONS:
        hits = replace(question, [Hit("x", 1.0)] * 2, NOBODY)
        assert len(hits) == 2
        (owners[question.text],) = {hit.id.split(" / ")[0] for hit in hits}
    assert all(owner != text for text, owner in owners.items())
    assert sorted(owners.values()) == sorted(owners)


def test_a_control_with_nothing_to_exchange_is_refused():
    """A single log would be encoded after its own hidden text, under the name of a control."""
    with pytest.raises(ValueError, match="there is only 'a'"):
        controls.cycle(["a"], 1)
    assert controls.cycle([], 1) == {}
