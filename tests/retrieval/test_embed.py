"""`embed.py`: what a run will look up is there, and nothing is embedded twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import warm
from test_index import Counting
from test_logs import predictions, trace

import embed
from lag.files import write_json
from lag.logs.index import LogIndex
from lag.logs.store import LogStore
from lag.paths import Paths
from lag.retrieval import vectors
from lag.retrieval.index import document_text, load_documents_index
from lag.runs.config import FLAGS
from lag.tasks import TASKS, read_documents

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = {f"d{n}": {"title": f"Town {n}", "content": f"It has {n} gates."} for n in range(9)}


def add_qa(root, name):
    paths = Paths(root, name)
    rows = [{"id": f"q{n}", "question": f"Which town has {n}?", "answer": "x"} for n in range(4)]
    write_json(paths.questions(), rows)
    write_json(paths.questions("train"), rows[:3])
    write_json(paths.docs, DOCUMENTS)
    return paths


def add_choice(root, name):
    paths = Paths(root, name)
    rows = [{"id": "m", "question": "Which?", "options": ["x", "y"], "answer": "A"}]
    write_json(paths.questions(), rows)
    return paths


@pytest.fixture
def wikihop(tmp_path):
    return add_qa(tmp_path, "wikihop")


class Script:
    """Calls the script on one data folder; keeps what the last call wrote to stderr."""

    def __init__(self, folder, embedder, capsys):
        self.flags = ["--data", str(folder), "--embedder", str(embedder), "--device", "cpu"]
        self.capsys, self.err = capsys, ""

    def __call__(self, *flags):
        assert embed.main([*self.flags, *flags]) == 0
        out, self.err = self.capsys.readouterr()
        return json.loads(out.splitlines()[-1])


@pytest.fixture
def run(tmp_path, embedder_folder, capsys):
    return Script(tmp_path, embedder_folder, capsys)


def embedded(summary, dataset="wikihop"):
    return {k: v["embedded"] for k, v in summary[dataset].items() if k != "embedder"}


def test_what_it_writes_is_what_a_run_reads(run, wikihop, embedder_folder):
    summary = run("-d", "wikihop")
    assert embedded(summary) == {"q": 4, "doc": 9}
    embedder = Counting.load(str(embedder_folder), "cpu")
    index = load_documents_index(wikihop, read_documents(wikihop), embedder)
    index.rank("Which town has 3?", 5)
    assert embedder.asked == []  # neither the documents nor the question
    assert [hit.id for hit in index.rank("Town 7\nIt has 7 gates.", 1)] == ["d7"]


def test_a_row_of_the_matrix_is_a_document(run, wikihop, embedder_folder):
    run("-d", "wikihop", "--batch-size", "2")
    matrix = np.load(wikihop.vectors("doc"))
    embedder = Counting.load(str(embedder_folder), "cpu")
    for row, document in zip(matrix, read_documents(wikihop).values(), strict=True):
        expected = embedder.documents([document_text(document)])[0]
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_what_is_up_to_date_is_left_alone_and_said(run, wikihop):
    run("-d", "wikihop")
    files = [wikihop.vectors(kind) for kind in ("q", "doc")]
    before = [file.stat().st_mtime_ns for file in files]
    assert embedded(run("-d", "wikihop")) == {"q": 0, "doc": 0}
    assert [file.stat().st_mtime_ns for file in files] == before
    assert "doc.npy is up to date: 9 vectors" in run.err
    assert embedded(run("-d", "wikihop", "--force")) == {"q": 4, "doc": 9}


def test_a_changed_document_is_the_only_one_embedded(run, wikihop):
    run("-d", "wikihop")
    changed = {**DOCUMENTS, "d4": {"title": "Town 4", "content": "It has none."}}
    write_json(wikihop.docs, changed)
    assert embedded(run("-d", "wikihop")) == {"q": 0, "doc": 1}


def test_logs_are_embedded_where_there_are_some(run, wikihop, embedder_folder):
    write_json(wikihop.log_store, predictions(trace("q0", "one"), trace("q1", "two")))
    assert embedded(run("-d", "wikihop"))["log"] == 2
    embedder = Counting.load(str(embedder_folder), "cpu")
    assert LogIndex(LogStore.load(wikihop.log_store), embedder, wikihop).embedded == 0
    assert [text for kind, text in embedder.asked if kind == "document"] == []


def test_another_log_store_can_be_named(run, wikihop, tmp_path):
    write_json(tmp_path / "mine.json", predictions(trace("q0", "three")))
    assert embedded(run("-d", "wikihop", "--log-store", str(tmp_path / "mine.json")))["log"] == 1
    with pytest.raises(FileNotFoundError, match=r"none\.json not found"):
        run("-d", "wikihop", "--log-store", str(tmp_path / "none.json"))


def test_a_positional_store_gets_its_ids_from_the_train_questions(run, wikihop):
    rows = [[[f"Which town has {n}?", "reply"], {}, 1, 0, 0, ""] for n in range(3)]
    write_json(wikihop.log_store, rows)
    assert embedded(run("-d", "wikihop"))["log"] == 3


def test_alone_it_embeds_every_data_set_that_has_a_corpus(run, tmp_path):
    for name in ("musique", "hotpotqa"):
        add_qa(tmp_path, name)
    add_choice(tmp_path, "mmlupro")
    summary = run()
    assert set(summary) == {"musique", "hotpotqa"}
    assert embedded(summary, "musique") == embedded(summary, "hotpotqa") == {"q": 4, "doc": 9}


def test_multiple_choice_has_questions_only_and_it_is_said(run, tmp_path):
    paths = add_choice(tmp_path, "mmlupro")
    assert embedded(run("-d", "mmlupro"), "mmlupro") == {"q": 1}
    assert "mmlupro has no documents; only its questions and logs are embedded" in run.err
    assert not paths.vectors("doc").exists()


def test_nothing_to_embed_is_one_line(run, wikihop, tmp_path):
    wikihop.docs.unlink()
    with pytest.raises(FileNotFoundError, match="wikihop has no documents to embed; run: python"):
        run("-d", "wikihop")
    with pytest.raises(FileNotFoundError, match=r"no data set below .* has documents"):
        run()
    assert not wikihop.vectors("q").exists()


def test_a_document_that_says_nothing_stops_it_before_anything_is_written(run, wikihop):
    write_json(wikihop.docs, {**DOCUMENTS, "d4": {"title": "", "content": ""}})
    with pytest.raises(ValueError, match="zero or not finite"):
        run("-d", "wikihop")
    assert not wikihop.vectors("doc").exists()


def test_progress_ends_at_the_number_of_texts(run, wikihop):
    run("-d", "wikihop", "--batch-size", "4")
    assert "wikihop q: 4/4" in run.err and "wikihop doc: 9/9" in run.err


def call(*flags):
    command = [sys.executable, str(ROOT / "embed.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_help_names_every_data_set(capsys):
    """That it loads nothing heavy is seen for every script in `test_house.py`."""
    with pytest.raises(SystemExit) as end:
        embed.main(["--help"])
    said = capsys.readouterr().out
    assert not end.value.code and all(name in said for name in TASKS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-d", "wikihop"], "wikihop has no documents to embed"),
        (["-d", "wikihopp"], "did you mean wikihop?"),
        (["--batch-size", "0"], "expected a number of at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, flags, message):
    result = call("--data", str(tmp_path), *flags)
    assert result.returncode == 2 and result.stdout == ""
    assert message in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_every_shared_flag_is_one_that_the_script_reads():
    args = vars(embed.parse_args([]))
    source = (ROOT / "embed.py").read_text()
    assert all(f"args.{name}" in source for name in args)
    assert set(args) - {"force"} <= set(FLAGS)


def wait_at_the_first_part():
    """Write a part of the documents at once, then do nothing until a signal comes."""
    vectors.PART_SECONDS, write = 0.0, vectors.write_part

    def write_and_wait(folder, *rest):
        if folder.stem != "doc":
            return write(folder, *rest)
        vectors.write_part = write  # first: the signal may come while it writes
        write(folder, *rest)
        signal.pause()

    vectors.write_part = write_and_wait


def stop_once_something_is_kept(flags, parts, how):
    """Start the script, stop it once there are more parts than before; its code and last words."""
    before = len(list(parts.glob("*.json")))
    process = warm.start_script(parts.parents[1], "embed.py", *flags, before=wait_at_the_first_part)
    while process.is_alive() and len(list(parts.glob("*.json"))) == before:
        time.sleep(0.01)
    os.kill(process.pid, how)
    process.join()
    return process.exitcode, (parts.parents[1] / "err").read_text().splitlines()[-1:]


def test_interrupted_it_keeps_what_is_finished_and_the_same_command_goes_on(
    run, wikihop, tmp_path, embedder_folder
):
    """It said "what is finished is kept" and kept none of 1,185 vectors."""
    many = {f"d{n}": {"title": f"Town {n}", "content": "gate " * (n % 30)} for n in range(90)}
    write_json(wikihop.docs, many)
    flags = [*run.flags, "-d", "wikihop", "--batch-size", "1"]
    parts = wikihop.vectors("doc").with_suffix(".parts")
    assert stop_once_something_is_kept(flags, parts, signal.SIGKILL)[0] == -signal.SIGKILL
    code, (said,) = stop_once_something_is_kept(flags, parts, signal.SIGINT)
    assert code == 130 and "what is finished is kept" in said
    assert embedded(run("-d", "wikihop", "--batch-size", "1"))["doc"] == 88
    assert "vectors are there from an interrupted start" in run.err and not parts.exists()
    files = [wikihop.vectors("doc"), wikihop.vectors("doc").with_suffix(".json")]
    after = [file.read_bytes() for file in files]
    run("-d", "wikihop", "--batch-size", "1", "--force")
    assert [file.read_bytes() for file in files] == after
