"""Predictions on disk: appended whole or not at all, read by one reader, never a traceback."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from sweeps import sweep

from lag import files, trace_files
from lag.evaluation.find_runs import read_folder, runs_of_files
from lag.logs.store import LogStore
from lag.records import Step, Trace, UsedLog
from lag.runs.tally import Tally
from lag.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
TRACE = Trace(
    "q1",
    "Why?",
    ("because",),
    ("d1",),
    "because",
    [Step("Why?", "answer", ("d1",), (UsedLog("q0", 0.5, "kv"),), "<ans>because</ans>", 9, 3, 2)],
)
FAILED = replace(TRACE, pred="", error={"stage": "model", "type": "E", "message": "m"})
on_files = sweep(150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def part_of(folder, *traces):
    for trace in traces:
        trace_files.append_trace(folder / "part-0.jsonl", trace)
    return folder / "part-0.jsonl"


def test_what_is_appended_is_read(tmp_path):
    part_of(tmp_path, TRACE)
    (row,) = trace_files.read_parts(tmp_path).values()
    assert trace_files.trace_of("q1", row) == TRACE


@pytest.mark.parametrize(
    ("order", "pred"),
    [("ok", "because"), ("fail ok", "because"), ("ok fail", "because"), ("ok other", "so")],
)
def test_the_last_row_counts_but_no_error_beats_a_finished_one(tmp_path, order, pred):
    """The rule stood twice, in the loop's reader and in the scorer's."""
    kinds = {"ok": TRACE, "fail": FAILED, "other": replace(TRACE, pred="so")}
    part_of(tmp_path, *(kinds[kind] for kind in order.split()))
    assert trace_files.read_parts(tmp_path)["q1"]["pred"] == pred
    assert read_folder(tmp_path).traces["q1"].pred == pred


def test_a_torn_line_is_left_out_and_cut_and_a_whole_file_is_left_alone(tmp_path):
    part = part_of(tmp_path, TRACE)
    whole = part.read_bytes()
    os.utime(part, (1, 1))
    trace_files.cut_torn_line(part)
    assert part.stat().st_mtime == 1
    part.write_bytes(whole + b'{"id": "q2", "question": "to')
    assert list(trace_files.read_parts(tmp_path)) == ["q1"]
    trace_files.cut_torn_line(part)
    assert part.read_bytes() == whole


APPENDER = """
import resource, sys
from pathlib import Path
from lag import cli, trace_files
from test_trace_files import TRACE
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
def main():
    while True:
        trace_files.append_trace(Path(sys.argv[1]), TRACE)
cli.guarded(main)
"""


@pytest.mark.parametrize("limit", [2_000, 2_345, 4_567])
def test_a_full_disk_ends_in_one_line_and_in_whole_rows(tmp_path, limit):
    """A row was left half-written, and the error named neither the file nor what to do."""
    part = tmp_path / "part-0.jsonl"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", APPENDER, part, str(limit)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and f"error: {part}: it is larger than a file may be there" in line
    rows = part.read_bytes().splitlines(keepends=True)
    assert len(rows) == limit // len(rows[0]) and len(set(rows)) == 1
    assert json.loads(rows[-1])["id"] == "q1"


DEEP = b"[" * 950 + b"]" * 950
WRONG = {
    "no JSON": b"{'id': 1}",
    "not UTF-8": b'{"id": "caf\xe9", "question": "?"}',
    "a list": b"[1, 2]",
    "no question": b'{"id": "a"}',
    "an id that is a number": b'{"id": 3, "question": "?"}',
    "a key twice": b'{"id": "a", "id": "b", "question": "?"}',
    "a question that is an object": b'{"id": "a", "question": {}}',
    "a trace of texts": b'{"id": "a", "question": "?", "trace": ["said"]}',
    "a negative count": b'{"id": "a", "question": "?", "trace": [{"new_tokens": -1}]}',
    "deep": b'{"id": "a", "question": "?", "error": ' + DEEP + b"}",
    "deeper": b'{"id": "a", "question": ' + b"[" * 90_000,
    "half a character": b'{"id": "\\ud800", "question": "?"}',
    "an empty id": b'{"id": "", "question": "?"}',
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_row_that_is_none_is_one_line_wherever_it_is_read(tmp_path, kind):
    part = tmp_path / "part-0.jsonl"
    part.write_bytes(WRONG[kind] + b"\n")
    for read in (trace_files.read_parts, read_folder):
        with pytest.raises(ValueError, match=str(tmp_path)) as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", [b"[" * 400 + b"]" * 400, b'"\\ud800"'])
def test_a_row_that_could_not_be_written_again_is_refused_before_a_merge(tmp_path, content):
    part = tmp_path / "part-0.jsonl"
    part.write_bytes(b'{"id": "a", "question": "?", "note": ' + content + b"}\n")
    with pytest.raises(ValueError, match=r"row 'a' (is nested too deep|holds half a character)"):
        trace_files.read_parts(tmp_path)


def readers(folder):
    """Whoever reads predictions: a run that goes on, a merge, the scorer, the log store."""

    def resume():
        rows = trace_files.read_parts(folder)
        Tally(TASKS["wikihop"], [], rows)
        files.write_json(folder / "out.json", trace_files.merge(rows, rows))

    merged = folder / "preds.json"
    return [
        resume,
        lambda: read_folder(folder),
        lambda: runs_of_files([merged]),
        lambda: LogStore.load(merged, []),
    ]


def all_read_or_one_line(folder):
    for read in readers(folder):
        try:
            read()
        except ValueError as error:
            assert "\n" not in str(error) and str(folder) in str(error)
        except FileNotFoundError as error:
            assert "not found" in str(error)


good = json.dumps({"id": "q1", **TRACE.to_json()}).encode()
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
changed_row = st.dictionaries(st.sampled_from(list(json.loads(good))), anything, max_size=3).map(
    lambda changes: json.dumps({**json.loads(good), **changes}).encode()
)
changed_step = st.dictionaries(
    st.sampled_from(list(json.loads(good)["trace"][0])), anything, max_size=3
).map(
    lambda changes: json.dumps(
        {**json.loads(good), "trace": [{**json.loads(good)["trace"][0], **changes}]}
    ).encode()
)
torn = st.integers(0, len(good)).map(lambda n: good[:n])
flipped = st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)).map(
    lambda at: good[: at[0]] + bytes([at[1]]) + good[at[0] + 1 :]
)
lines = st.one_of(st.just(good), changed_row, changed_step, torn, flipped, st.binary(max_size=40))


@given(st.lists(lines, max_size=4), st.booleans())
@on_files
def test_any_bytes_in_a_part_are_rows_or_one_line(tmp_path, rows, ends):
    (tmp_path / "part-0.jsonl").write_bytes(b"\n".join(rows) + b"\n" * ends)
    all_read_or_one_line(tmp_path)


@given(st.one_of(st.binary(max_size=60), anything.map(lambda v: json.dumps(v).encode()), lines))
@on_files
def test_any_bytes_in_a_merged_file_are_rows_or_one_line(tmp_path, content):
    (tmp_path / "preds.json").write_bytes(content)
    all_read_or_one_line(tmp_path)


@given(st.one_of(changed_row, changed_step, lines), anything)
@on_files
def test_any_row_in_a_merged_file_is_a_trace_or_one_line(tmp_path, row, metadata):
    whole = b'{"metadata": %s, "results": {"q1": %s}}' % (json.dumps(metadata).encode(), row)
    (tmp_path / "preds.json").write_bytes(whole)
    all_read_or_one_line(tmp_path)
