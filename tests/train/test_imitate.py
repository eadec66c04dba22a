"""The teacher states what its prompt says, and nothing else."""

import json

import pytest

from lag.agent.agent import LoopSettings
from lag.agent.react import solve
from lag.modes import MODES
from lag.prompts import Note, Prompt
from lag.records import Document, Hit, Log, Trace
from lag.tasks import TASKS, id_of
from lag.train.imitate import Teacher, next_query, plan_of

ROW = {
    "id": "q",
    "question": "Where was the director of Red Sky (film) born?",
    "answer": "Oslo",
    "evidences": [["Red Sky", "director", "Ann Berg"], ["Ann Berg", "place of birth", "Oslo"]],
    "supporting_facts": [["Red Sky (film)", 0], ["Ann Berg", 1]],
    "supporting_ids": ["red", "ann"],
}
DOCUMENTS = {
    "red": Document("red", "Red Sky (film)", "Red Sky is a film by Ann Berg."),
    "ann": Document("ann", "Ann Berg", "Ann Berg was born in Oslo."),
    "sea": Document("sea", "Sea", "The sea is wide."),
}
MUSIQUE = {
    "id": "2hop__1_2",
    "question": "When did the founder of Acme die?",
    "answer": "1901",
    "question_decomposition": [
        {"question": "Acme >> founded by", "answer": "Jo Fox", "document_id": "a"},
        {"question": "#1 >> date of death", "answer": "1901", "document_id": "b"},
    ],
}


class Titles:
    """Ranks documents whose title the query holds."""

    def rank(self, query, k, exclude=frozenset()):
        ids = sorted(DOCUMENTS, key=lambda id: DOCUMENTS[id].title not in query)
        return [Hit(id, 0.5) for id in ids][:k]


def loop(teacher, **settings):
    """The traces of the question, with one document per query."""
    question = TASKS["wikihop"].load(ROW)
    agent = LoopSettings(
        task=TASKS["wikihop"], llm=teacher, documents=DOCUMENTS, docs=Titles(), num_docs=1,
        **{"mode": MODES["base"], **settings},
    )  # fmt: skip
    trace, prompts, replies = Trace.of(question), [], []
    steps = solve(trace, question, agent)
    prompt = next(steps)
    try:
        while True:
            prompts.append(prompt)
            replies.append(teacher.reply(prompt))
            prompt = steps.send(replies[-1])
    except StopIteration:
        return trace, prompts


def test_the_loop_is_led_from_fact_to_fact():
    trace, _ = loop(Teacher({"q": plan_of(ROW)}, DOCUMENTS))
    assert trace.pred == "Oslo"
    assert [step.query for step in trace.steps] == [ROW["question"], "Ann Berg"]
    assert trace.steps[0].reply.startswith("\n- Red Sky (film): director Ann Berg\n")
    assert "So: Red Sky (film) -> Ann Berg -> Oslo\n" in trace.steps[1].reply


def test_no_fact_is_stated_before_its_source_stands_in_the_prompt():
    teacher = Teacher({"q": plan_of(ROW)}, DOCUMENTS)
    trace, prompts = loop(teacher)
    for step, prompt in zip(trace.steps, prompts, strict=True):
        for hop in teacher.plans["q"].hops:
            stands = DOCUMENTS[hop.document].content in prompt.user
            assert (hop.text in step.reply) == stands


@pytest.mark.parametrize("kv", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_fact_of_a_log_counts_as_known(kv, hidden):
    """Hidden text is what keys and values carry; without KV nothing is hidden."""
    said = "\n- Ann Berg: place of birth Oslo\n<ans>Oslo</ans>\n\n"
    keep, after = ("<ans>Oslo</ans>\n\n", said) if hidden else (said, "")
    note = Note("log", keep, after, kv)
    teacher = Teacher({"q": plan_of(ROW)}, DOCUMENTS)
    reply = teacher.reply(Prompt("no documents", notes=(note,), key="q 1")).text
    assert reply.startswith("\n- Ann Berg: place of birth Oslo\n")
    assert reply.endswith("<keywords>Red Sky (film)</keywords>")


def test_logs_of_the_same_question_end_it_at_once():
    first, _ = loop(Teacher({"q": plan_of(ROW)}, DOCUMENTS))
    log = Log.of(first)

    class Logs:
        def rank(self, query, k, exclude=frozenset()):
            return [Hit("q", 0.9)][:k]

    teacher = Teacher({"q": plan_of(ROW)}, DOCUMENTS)
    for mode in ("log_text", "log_kv"):
        trace, _ = loop(teacher, mode=MODES[mode], store={"q": log}, logs=Logs())
        assert (trace.pred, len(trace.steps)) == ("Oslo", 1)


def test_a_search_that_failed_is_asked_in_other_words_and_then_again():
    plan, asked = plan_of(MUSIQUE), []
    for _ in range(4):
        asked.append(next_query(plan, [], asked))
    assert asked == ["Acme founded by", "Acme"] * 2


def test_what_an_unknown_fact_names_is_not_searched_for():
    """The birthplace is asked for once the director's name is known."""
    plan = plan_of(ROW)
    assert "Ann" not in next_query(plan, [], ["Red Sky (film)"])
    assert next_query(plan, plan.hops[:1], []) == "Ann Berg"


def test_a_decomposition_is_a_plan_too():
    first, second = plan_of(MUSIQUE).hops
    assert (first.text, first.document) == ("Acme: founded by Jo Fox", "a")
    assert (second.text, second.document) == ("Jo Fox: date of death 1901", "b")


def test_a_row_without_annotations_is_refused():
    with pytest.raises(ValueError, match="neither 'evidences' nor 'question_decomposition'"):
        plan_of({"id": "x", "question": "?", "answer": "!"})


def test_a_fact_without_a_document_gives_no_plan():
    assert plan_of({**ROW, "supporting_ids": ["red"]}) is None


def test_every_question_of_the_real_sample_has_a_plan(shared_data, tmp_path):
    import dataset

    source = shared_data / "wikihop"
    flags = ["-d", "wikihop", "--data", str(tmp_path), "--from", str(source / "dev.json")]
    assert dataset.main([*flags, "--docs", str(source / "corpus.json")]) == 0
    rows = json.loads((tmp_path / "wikihop" / "dev.json").read_text())
    documents = json.loads((tmp_path / "wikihop" / "dev_docs.json").read_text())
    plans = {id_of(row): plan_of(row) for row in rows}
    assert all(plans.values()) and len(plans) == 230
    assert all(hop.document in documents for plan in plans.values() for hop in plan.hops)
