"""The table of data sets, and loaders that a fuzzer cannot surprise."""

import copy
import json
import re

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from sweeps import sweep

import samples
from lag import records
from lag.data.convert import Corpus, convert, load_corpus
from lag.data.readers import READERS, SUFFIXES, read_file, read_rows
from lag.data.sources import SOURCES
from lag.metrics import score
from lag.paths import Paths
from lag.records import Question
from lag.tasks import TASKS, load_rows, read_documents, read_questions

QA = Question("q", "Who?", ("Ada", "Ada L."))
CHOICE = Question("q", "Which?", ("B", "two"), options=("one", "two"))


def example(task):
    return QA if task.num_docs else CHOICE


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_row_is_complete(task):
    """A column that a new data set forgets shows here, before a run does."""
    prompt = task.prompt(example(task), [records.Document("d", "T", "text")], "before")
    assert example(task).text in prompt.user
    assert f"<{task.query_tag}>" in prompt.user
    assert ("before" in prompt.user) == task.carries_reply
    assert ("[1] T\ntext" in prompt.user) == bool(task.num_docs)
    assert task.max_steps > 0 and task.num_logs > 0 and task.model and task.embedder
    assert (
        score(task.scorer, example(task).answers[0], example(task).answers, example(task).options)[
            "em"
        ]
        == 1
    )


def test_the_papers_limits():
    limits = {name: (task.max_steps, task.num_docs, task.num_logs) for name, task in TASKS.items()}
    for name in ("musique", "wikihop"):
        assert limits[name] == (8, 2, 3)
    for name in ("gpqa", "mmlupro"):
        assert limits[name] == (3, 0, 3)
    assert [task.name for task in TASKS.values() if task.gated] == ["gpqa"]
    assert SOURCES["gpqa"].gated and set(SOURCES) <= set(TASKS)


@pytest.mark.parametrize(
    "id,groups",
    [
        ("2hop__1_2", {"type": "2hop", "hops": "2"}),
        ("3hop1__1_2_3", {"type": "3hop1", "hops": "3"}),
        ("4hop3__1_2", {"type": "4hop3", "hops": "4"}),
        ("hop", {}),
    ],
)
def test_musiques_ids_say_the_hops(id, groups):
    question = TASKS["musique"].load({"id": id, "question": "q", "answer": "a"})
    assert question.groups == groups


def test_subquestions_stand_alone():
    """`#1 >> spouse` of two questions is not the same question; the overlap would be overstated."""
    parts = [
        {"question": "Green >> performer", "answer": "Steve"},
        {"question": "#1 >> spouse", "answer": "Miquette"},
        {"question": "#2, #1, #9, #0 and #1234", "answer": "x"},
    ]
    row = {"id": "q", "question": "q", "answer": "a", "question_decomposition": parts}
    found = TASKS["musique"].load(row).subquestions
    assert found == ("Green >> performer", "Steve >> spouse", "Miquette, Steve, #9, #0 and #1234")


def test_answers_are_unique_and_never_blank():
    row = {"id": 7, "question": "q", "answer": 1986, "answer_aliases": ["", "1986", "in 1986", 86]}
    assert TASKS["musique"].load(row).answers == ("1986", "in 1986", "86")


def test_evidence_prefers_ids_to_titles():
    row = {
        "id": "q",
        "question": "q",
        "answer": "a",
        "supporting_facts": [["T", 0], ["U", 1], ["T", 2]],
    }
    load = TASKS["wikihop"].load
    assert load(row).supporting_ids == ("T", "U")
    assert load({**row, "supporting_ids": ["T_0"]}).supporting_ids == ("T_0",)


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_reading_names_the_command_the_file_and_the_row(tmp_path):
    paths, task = Paths(tmp_path, "musique"), TASKS["musique"]
    with pytest.raises(
        FileNotFoundError, match=r"dev_test.json not found; run: python dataset.py -d musique"
    ):
        read_questions(paths, task, "test")
    with pytest.raises(FileNotFoundError, match=r"dev_docs.json not found; run: .* --docs FILE"):
        read_documents(paths)
    with pytest.raises(
        ValueError, match="split 'dev' is unknown; expected train, test or train,test"
    ):
        read_questions(paths, task, "dev")
    write(paths.questions(), {"a": 1})
    with pytest.raises(ValueError, match=r"dev.json holds .* expected a list of objects"):
        read_questions(paths, task)
    write(
        paths.questions(),
        [{"id": 1, "question": "q", "answer": "a"}, {"question": "q", "answer": "a"}],
    )
    with pytest.raises(ValueError, match=r"dev.json row 2: has no id; .* run dataset.py --from"):
        read_questions(paths, task)
    write(paths.questions(), [{"id": 1, "question": "\ud83d", "answer": "a"}])
    with pytest.raises(
        ValueError, match=r"dev.json row 1: field 'question' holds half a character"
    ):
        read_questions(paths, task)
    write(paths.docs, {"d": {"title": "T"}})
    with pytest.raises(
        ValueError, match=r"dev_docs.json document 'd': field 'content' is not a text"
    ):
        read_documents(paths)
    write(paths.docs, [])
    with pytest.raises(ValueError, match=r"dev_docs.json holds \[\]"):
        read_documents(paths)


def test_documents_keep_their_order_and_every_character(tmp_path):
    paths = Paths(tmp_path, "musique")
    rows = {f"{n}\u2028<|end|>\"'\\": {"title": "\t", "content": "é\x00😀"} for n in range(20)}
    write(paths.docs, rows)
    found = read_documents(paths)
    assert list(found) == list(rows)
    assert all(
        document.content == "é\x00😀" and document.title == "\t" for document in found.values()
    )


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["id", "A", "[", "{}"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = [
    *samples.musique_lag(0),
    *samples.twowiki(0),
    *samples.mmlupro(0),
    "choices",
    "paragraph_ids",
]
FUZZ = sweep(60, suppress_health_check=list(HealthCheck))


def places(value, at=()):
    """Every place inside a nested value."""
    yield at
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in inner:
        yield from places(item, (*at, key))


def changed(value, at, new):
    """A copy with something else at one place; `...` removes it."""
    value = copy.deepcopy(value)
    target = value
    for key in at[:-1]:
        target = target[key]
    if new is ...:
        del target[at[-1]]
    else:
        target[at[-1]] = new
    return value


def accept_or_refuse(call):
    """The result, or None where it was refused in one line."""
    try:
        return call()
    except (ValueError, FileNotFoundError) as error:
        assert str(error) and "\n" not in str(error)
        return None


@pytest.mark.parametrize("shape", samples.SHAPES.values(), ids=lambda shape: shape.name)
@FUZZ
@given(data=st.data())
def test_no_row_surprises_a_loader(shape, data):
    """One place of one row becomes anything: all questions are there, or the row is named."""
    rows = shape.rows[:3]
    at = data.draw(st.sampled_from([place for place in places(rows) if len(place) > 1]))
    rows = changed(rows, at, data.draw(st.just(...) | JSON))
    task = TASKS[shape.task]

    def call():
        return convert(task, enumerate(rows, 1), "f.json", Corpus(), 0)

    made = accept_or_refuse(call)
    if made is None:
        with pytest.raises(
            ValueError, match=rf"f\.json row {at[0] + 1}: |row [23]: (id|has no id)"
        ):
            call()
        return
    left_out = made.warnings["unanswerable questions left out"]
    written = json.loads(json.dumps(made.rows, allow_nan=False))
    assert len(load_rows("dev.json", written, task)) == len(rows) - left_out
    assert all(
        id in made.corpus.documents for row in written for id in row.get("paragraph_ids", [])
    )


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
@FUZZ
@given(row=st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_no_dev_row_surprises_a_loader(task, row):
    accept_or_refuse(lambda: load_rows("dev.json", [row], task))


@pytest.mark.parametrize("suffix", SUFFIXES)
@FUZZ
@given(data=st.data())
def test_no_file_surprises_a_reader(tmp_path_factory, suffix, data):
    """A good file cut anywhere, with any bytes in it, or bytes that never were one."""
    folder = tmp_path_factory.mktemp("fuzz")
    shape = samples.SHAPES["gpqa hub"]
    content = samples.write(folder / f"good{suffix}", shape.rows).read_bytes()
    at = data.draw(st.integers(0, len(content)))
    noise = data.draw(st.binary(max_size=20))
    path = folder / f"bad{suffix}"
    path.write_bytes(
        data.draw(
            st.sampled_from([content[:at] + noise, content[:at] + noise + content[at:], noise])
        )
    )
    rows = accept_or_refuse(lambda: read_rows(path))
    if rows:
        accept_or_refuse(lambda: convert(TASKS["gpqa"], enumerate(rows, 1), "f", Corpus(), 0))


def convert_file(path, task):
    return convert(task, enumerate(read_rows(path), 1), str(path), Corpus(), 0)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_a_truncated_file_is_never_a_shorter_one(tmp_path, suffix):
    """Cut inside its last row, a file is refused."""
    good = samples.write(tmp_path / f"good{suffix}", samples.SHAPES["gpqa hub"].rows)
    assert len(convert_file(good, TASKS["gpqa"]).rows) == samples.NUM
    content, path = good.read_bytes(), tmp_path / f"cut{suffix}"
    for at in range(len(content) - 250, len(content) - 2):
        path.write_bytes(content[:at])
        assert accept_or_refuse(lambda: convert_file(path, TASKS["gpqa"])) is None, at


@FUZZ
@given(value=JSON, wrap=st.sampled_from(["list", "dict", "plain"]))
def test_no_corpus_surprises_a_reader(tmp_path_factory, value, wrap):
    path = tmp_path_factory.mktemp("fuzz") / "docs.json"
    good = {"title": "T", "text": "x"}
    wrapped = {"list": [good, value], "dict": {"a": good, "b": value}, "plain": value}[wrap]
    path.write_text(json.dumps(wrapped))
    corpus = accept_or_refuse(lambda: load_corpus(path))
    if corpus and wrap == "dict":
        assert set(corpus.documents) == {"a", "b"}


def test_every_kind_of_file_has_a_reader(tmp_path):
    assert {*READERS, ".parquet"} == set(SUFFIXES)
    rows = samples.SHAPES["gpqa hub"].rows
    found = [read_file(samples.write(tmp_path / f"x{suffix}", rows)) for suffix in SUFFIXES]
    assert all(value == rows for value in found)
    assert not [value for value in found if re.search("nan", str(value))]
