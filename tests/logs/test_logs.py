"""The log store: every row becomes a log or is counted, whoever wrote the file."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from sweeps import sweep
from test_index import Counting

from lag.files import write_json
from lag.logs.index import LogIndex
from lag.logs.store import LogStore
from lag.paths import Paths
from lag.records import Question, Step, Trace
from lag.retrieval.embedder import Embedder


def trace(id, *replies, **fields):
    steps = [Step(f"query {n}", "search", reply=reply) for n, reply in enumerate(replies)]
    return Trace(id, f"What is {id}?", ("gold",), steps=steps, **fields)


def predictions(*traces):
    results = {entry.id: entry.to_json() for entry in traces}
    return {"metadata": {"dataset": "wikihop"}, "inference_params": {}, "results": results}


@pytest.fixture
def paths(tmp_path):
    return Paths(tmp_path, "wikihop")


@pytest.fixture
def save(paths):
    def write(content):
        write_json(paths.log_store, content)
        return paths.log_store

    return write


@pytest.fixture
def embedder(embedder_folder):
    return Counting.load(str(embedder_folder), "cpu")


def test_every_trace_that_did_not_fail_is_a_log_right_or_wrong_answered_or_not(save):
    store = LogStore.load(
        save(
            predictions(
                trace("right", "<keywords>x</keywords>", "<ans>gold</ans>", pred="gold"),
                trace("wrong", "<ans>lead</ans>", pred="lead"),
                trace("unanswered", "hm", "hm, hm"),
                trace("failed", "half", error={"stage": "generate", "message": "out of memory"}),
                trace("silent", "", "  \n"),
                trace("stepless"),
            )
        )
    )
    assert list(store.logs) == ["right", "wrong", "unanswered"]
    assert (store.errors, store.empty, store.skipped) == (1, 2, 3)
    assert store.logs["right"].replies == ("<keywords>x</keywords>", "<ans>gold</ans>")
    assert store.logs["right"].question == "What is right?"


def test_a_curators_sheet_is_no_reply(save):
    entry = trace("a", "said")
    entry.steps.insert(0, Step("", "curate", reply="<cheatsheet>notes</cheatsheet>"))
    assert LogStore.load(save(predictions(entry))).logs["a"].replies == ("said",)


def test_our_own_replies_are_not_touched(save):
    reply = "  a literal <|eot_id|>\n"
    assert LogStore.load(save(predictions(trace("a", reply)))).logs["a"].replies == (reply,)


def test_the_limit_takes_the_first_logs(save):
    path = save(predictions(trace("a", ""), trace("b", "1"), trace("c", "2"), trace("d", "3")))
    assert list(LogStore.load(path, limit=2).logs) == ["b", "c"]
    assert LogStore.load(path, limit=0).logs == {}
    assert len(LogStore.load(path).logs) == 3
    with pytest.raises(ValueError, match="the log limit is -1"):
        LogStore.load(path, limit=-1)


def test_the_digest_is_of_what_logs_say_in_their_order(save):
    a, b = trace("a", "x", "y"), trace("b", "z")

    def digest(*traces):
        return LogStore.load(save(predictions(*traces))).digest

    first = digest(a, b)
    scrambled = [replace(entry, gold_answer=("other",), pred="right") for entry in (a, b)]
    assert digest(*scrambled) == first
    assert digest(a, b, trace("c", error={"stage": "x"})) == first
    changed = [
        digest(b, a),
        digest(a),
        digest(trace("a", "x y"), b),
        digest(trace("a", "x", "y!"), b),
        digest(trace("a", "x!", "y"), b),
        digest(replace(a, question="?"), b),
        digest(replace(a, id="A"), b),
    ]
    assert len({first, *changed}) == 8


def test_no_store_says_which_command_makes_one(paths, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        LogStore.load(paths.log_store)
    assert str(caught.value) == (
        f"{paths.log_store} not found: no logs to reuse; "
        "run: python agentic.py -d wikihop -m base --split train --merge --as-log"
    )
    with pytest.raises(FileNotFoundError, match="check --log-store"):
        LogStore.load(tmp_path / "mine.json")


def envelope(*steps, **fields):
    return {"pred": "x", "gold_answer": ["y"], "question": "Why?", "trace": list(steps), **fields}


def agent_step(answer, **fields):
    base = {"prompt": "p", "action": "generate", "error": None, "tool_name": None}
    return {**base, "answer": answer, "tool_args": None, **fields}


def test_another_toolkits_envelope_is_read(save):
    store = LogStore.load(
        save(
            {
                "metadata": {"model": "gpt", "type": "rag"},
                "inference_params": {"seed": 1},
                "results": {
                    "q1": envelope(agent_step("step"), agent_step("FINAL_ANSWER: 7<|im_end|>")),
                    "q2": envelope(agent_step("", action="finish", error="rate limit")),
                    "q3": envelope(agent_step(None)),
                },
            }
        )
    )
    assert store.logs["q1"].replies == ("step", "FINAL_ANSWER: 7")
    assert (list(store.logs), store.errors, store.empty) == (["q1"], 1, 1)


QUESTIONS = [Question(f"q{n}", f"Question number {n}?") for n in range(4)]


def position(question, *responses):
    prompt = f"<|begin_of_text|>rules\n{question.text}"
    return [[text for response in responses for text in (prompt, response)], {}, 2, 0, 0, ""]


def test_the_positional_file_is_read_with_the_train_questions(save):
    rows = [
        position(QUESTIONS[0], "<keywords>a</keywords><|eot_id|>", "<ans>b</ans><|eot_id|>"),
        "",
        position(QUESTIONS[2], "<ans>c</ans>\n<|im_end|>\n<|endoftext|>"),
        position(QUESTIONS[3], "<|eot_id|>"),
    ]
    store = LogStore.load(save(rows), QUESTIONS)
    assert list(store.logs) == ["q0", "q2"]
    assert (store.errors, store.empty) == (1, 1)
    assert store.logs["q0"].replies == ("<keywords>a</keywords>", "<ans>b</ans>")
    assert store.logs["q2"].replies == ("<ans>c</ans>",)
    assert store.logs["q2"].question == "Question number 2?"


def generated(question, *steps):
    lines = [f"<prefix_0><prefix_1>{step}\n" for step in steps]
    return {"generated_text": f"Question: {question}\n {''.join(lines)}", "result": "wrong"}


def test_outputs_with_marker_tokens_are_read_without_them(save):
    options = "A. One. B. Two."
    rows = [
        generated(
            f"Question number 2? {options}", "<memory_0> So it is.", "<answer_0> The answer is: B"
        ),
        generated("Is a < b?", "<reason_0><reason_1> Yes <b>."),
        generated("Nothing?"),
    ]
    store = LogStore.load(save(rows), QUESTIONS)
    assert {id: (log.question, log.replies) for id, log in store.logs.items()} == {
        "q2": ("Question number 2?", ("So it is.\nThe answer is: B",)),
        "row 2": ("Is a < b?", ("Yes <b>.",)),
    }
    assert (store.errors, store.empty) == (0, 1)
    assert list(LogStore.load(save(rows)).logs) == ["row 1", "row 2"]
    numbered = [Question("2", "Question number 2?")]
    assert list(LogStore.load(save(rows), numbered).logs) == [
        "2",
        "row 2",
    ]  # neither hides the other
    for wrong in (["text"], {"result": "wrong"}, {"generated_text": "no question"}):
        with pytest.raises(ValueError, match="row 4: expected a 'generated_text'"):
            LogStore.load(save([*rows, wrong]), QUESTIONS)


@pytest.mark.parametrize("token", ["<|eot_id|>", "<|im_end|>", "</s>", "<eos>", "<end_of_turn>"])
def test_end_tokens_are_cut_at_the_end_only(save, token):
    rows = [position(QUESTIONS[0], f"say {token} and <ans>x</ans> {token}{token}\n")]
    replies = LogStore.load(save(rows), QUESTIONS[:1]).logs["q0"].replies
    assert replies == (f"say {token} and <ans>x</ans>",)


def test_positions_that_cannot_be_trusted_are_refused(save):
    rows = [position(question, "reply") for question in QUESTIONS]
    with pytest.raises(ValueError, match="the train questions must be there"):
        LogStore.load(save(rows))
    with pytest.raises(ValueError, match="has 3 rows for 4 train questions"):
        LogStore.load(save(rows[:3]), QUESTIONS)
    with pytest.raises(ValueError, match="row 1 answers question 'q1', not 'q0'"):
        LogStore.load(save(rows[1:] + rows[:1]), QUESTIONS)
    with pytest.raises(ValueError, match=r"row 2: expected \[\[prompt, response"):
        LogStore.load(save([rows[0], [["prompt only"], {}], *rows[2:]]), QUESTIONS)


def test_prompts_without_their_question_are_taken_on_trust_and_counted(save, caplog):
    rows = [[["p", "reply"], {}, 1, 0, 0, ""] for _ in QUESTIONS]
    assert len(LogStore.load(save(rows), QUESTIONS).logs) == 4
    assert "4 prompts do not repeat their question" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "without 'results'"),
        ({"results": []}, "without 'results'"),
        (7, "JSON int without 'results'"),
        ({"results": {"q": None}}, "row 'q' is not a trace"),
        ({"results": {"q": {"question": "?"}}}, "row 'q' is not a trace"),
        ({"results": {"q": {"question": 3, "trace": []}}}, "row 'q' .* int where a text"),
        ({"results": {"q": {"question": "?", "trace": ["said"]}}}, "row 'q' is not a trace"),
        ({"results": {"q": {"question": "?", "trace": [{"reply": "x"}]}}}, "row 'q'"),
        ({"results": {"q": envelope(agent_step(["x"]))}}, "expected text"),
        ({"results": {"q": envelope(agent_step("\ud800"))}}, "half a character"),
    ],
)
def test_what_is_no_store_is_refused_and_the_row_named(save, content, message):
    path = save({})
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        LogStore.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_torn_file_is_named(save):
    path = save(predictions(trace("a", "x")))
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="not valid JSON"):
        LogStore.load(path)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["question", "trace", "reply", "action", "error", "query", "answer"])
            | st.text(max_size=3),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)
good_row = st.builds(
    lambda replies, failed: trace(
        "x", *replies, error={"stage": "x"} if failed else None
    ).to_json(),
    st.lists(st.text(max_size=20), max_size=3),
    st.booleans(),
)
good_position = st.one_of(
    st.just(""),
    st.lists(st.text(max_size=9), max_size=3).map(lambda said: position(QUESTIONS[0], *said)),
)
files = st.one_of(
    anything,
    st.lists(anything | good_position, max_size=5),
    st.dictionaries(st.text(max_size=3), anything | good_row, max_size=4).map(
        lambda rows: {"results": rows}
    ),
    st.dictionaries(st.text(max_size=3), good_row, max_size=4).map(lambda rows: {"results": rows}),
)


@given(files, st.integers(0, 5))
@sweep(400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_is_a_store_that_lost_no_row_or_one_line(tmp_path, content, count):
    path = tmp_path / "log.json"
    path.write_text(json.dumps(content))
    questions = [Question(f"q{n}", QUESTIONS[0].text) for n in range(count)]
    try:
        store = LogStore.load(path, questions)
    except ValueError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return
    rows = content if isinstance(content, list) else content["results"]
    assert len(store.logs) + store.errors + store.empty == len(rows)
    assert all(log.replies and all(r.strip() for r in log.replies) for log in store.logs.values())
    assert len(store.digest) == 16


@given(st.dictionaries(st.text(max_size=3), good_row, max_size=4))
@sweep(50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_good_file_is_never_refused(tmp_path, rows):
    path = tmp_path / "log.json"
    path.write_text(json.dumps({"results": rows}))
    assert LogStore.load(path).skipped <= len(rows)


def test_logs_rank_by_question_and_last_reply(save, paths, embedder):
    a = trace("a", "about ships", "the harbour of Ostia")
    b = trace("b", "the harbour of Ostia", "about mountains")
    index = LogIndex(LogStore.load(save(predictions(a, b))), embedder, paths)
    hits = index.rank("What is a?\nthe harbour of Ostia", 2)
    assert [hit.id for hit in hits] == ["a", "b"] and hits[0].similarity == 1.0
    assert [hit.id for hit in index.rank("What is a?", 2, frozenset({"a"}))] == ["b"]


def asked(embedder):
    found = [text for kind, text in embedder.asked if kind == "document"]
    embedder.asked.clear()
    return found


def test_only_new_and_changed_logs_are_embedded(save, paths, embedder):
    a, b = trace("a", "one"), trace("b", "two")
    store = LogStore.load(save(predictions(a, b)))
    assert LogIndex(store, embedder, paths).embedded == 2
    asked(embedder)
    assert LogIndex(store, embedder, paths).embedded == 0 and asked(embedder) == []

    grown = predictions(trace("c", "three"), replace(b, steps=[Step("", "answer", reply="2")]), a)
    index = LogIndex(LogStore.load(save(grown)), embedder, paths)
    assert sorted(asked(embedder)) == ["What is b?\n2", "What is c?\nthree"]
    assert [hit.id for hit in index.rank("What is b?\n2", 1)] == ["b"]


def test_log_stores_share_their_vectors(save, paths, embedder):
    first = LogStore.load(save(predictions(trace("a", "one"), trace("b", "two"))))
    other = LogStore.load(save(predictions(trace("b", "two"), trace("c", "three"))))
    for store, embedded in ((first, 2), (other, 1), (first, 0), (other, 0)):
        index = LogIndex(store, embedder, paths)
        assert index.embedded == embedded
        assert {hit.id for hit in index.rank("anything", 9)} == set(store.logs)


def test_a_kept_index_ranks_as_a_fresh_one(save, paths, embedder, tmp_path):
    many = [trace(f"{n}", f"reply about {n * 7919}") for n in range(30)]
    LogIndex(LogStore.load(save(predictions(*many[:11]))), embedder, paths)
    store = LogStore.load(save(predictions(*many)))
    kept = LogIndex(store, embedder, paths)
    fresh = LogIndex(store, embedder, Paths(tmp_path / "elsewhere", "wikihop"))
    for entry in many:
        assert kept.rank(entry.question, 5) == fresh.rank(entry.question, 5)


def test_another_embedder_makes_its_own_vectors(save, paths, embedder, tiny_folder, caplog):
    store = LogStore.load(save(predictions(trace("a", "one"))))
    LogIndex(store, embedder, paths)
    other = LogIndex(store, Embedder.load(str(tiny_folder), "cpu"), paths)
    assert other.embedded == 1 and other.rank("a", 1)[0].id == "a"
    assert f"but by {embedder.name}; embedding again" in caplog.text


def test_damaged_log_vectors_are_named_and_made_again(save, paths, embedder, caplog):
    store = LogStore.load(save(predictions(trace("a", "one"))))
    before = LogIndex(store, embedder, paths).rank("one", 1)
    path = paths.vectors("log")
    path.write_bytes(path.read_bytes()[:-4])
    assert LogIndex(store, embedder, paths).rank("one", 1) == before
    assert "log.npy is truncated or changed" in caplog.text


def test_an_empty_store_ranks_nothing_and_writes_nothing(save, paths, embedder):
    index = LogIndex(LogStore.load(save(predictions())), embedder, paths)
    assert index.rank("anything", 3) == [] and not paths.vectors("log").exists()


def test_logs_that_say_the_same_rank_by_id(save, paths, embedder):
    same = [replace(trace(id, "reply"), question="Same?") for id in ("c", "a", "b")]
    index = LogIndex(LogStore.load(save(predictions(*same))), embedder, paths)
    hits = index.rank("Same?", 3)
    assert [hit.id for hit in hits] == ["a", "b", "c"]
    assert len(np.unique([hit.similarity for hit in hits])) == 1
