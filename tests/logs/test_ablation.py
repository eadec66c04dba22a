"""Harm: which log turned an answer wrong, by answering again without each of them."""

import base64
import gzip
import json
import re

import pytest
import small
from scripted import ScriptedLLM

import agentic
import evaluate
from lag.paths import Paths
from lag.trace_files import read_parts

POISON = "cleo lives"  # what stands in the log that misleads


def misled(prompt):
    """Right, unless the log of cleo's question is in the prompt."""
    if any(POISON in note.keep for note in prompt.notes):
        return "<ans>nowhere</ans>"
    return small.stepwise(prompt)


@pytest.fixture
def call(small_data, embedder_folder, capsys):
    def call(command, reply=misled, steps="--max-steps 3"):
        words = f"-d wikihop --data {small_data} --embedder {embedder_folder} {steps}"
        llm = ScriptedLLM(reply)
        code = agentic.main([*command.split(), *words.split()], llm)
        return code, json.loads(capsys.readouterr().out.splitlines()[-1]), llm

    return call


@pytest.fixture
def harmed(call, small_data):
    """Base, then a stream that one log misleads."""
    call("-m base --split train,test")
    call("-m log_text --grow --grow-every 4 --order-seed 0 --split train,test --run x")
    return small_data


def rows_of(root, split):
    return read_parts(Paths(root, "wikihop").ablated(split, "x").parent)


def entered(row):
    return {log["id"] for step in row["trace"] for log in step["logs"]}


def test_each_harmed_question_is_answered_once_without_each_log(harmed, call):
    base, run = (read_parts(Paths(harmed, "wikihop").run("test", n)) for n in ("base_s3", "x"))
    lost = [id for id in base if base[id]["pred"] == base[id]["gold_answer"][0] != run[id]["pred"]]
    assert lost and all("w2" in entered(run[id]) for id in lost)
    code, summary, _ = call("--split test --ablate x")
    assert code == 0 and summary["harmed"] == len(lost)
    rows = rows_of(harmed, "test")
    assert rows.keys() == {f"{id} without {log}" for id in lost for log in entered(run[id])}
    for id in lost:
        for log in entered(run[id]):
            row = rows[f"{id} without {log}"]
            assert (row["pred"] == base[id]["gold_answer"][0]) == (log == "w2")
            assert row["store"] == run[id]["store"] and row["without"] == log
            assert log not in entered(row), "nor is it replaced by another one"
            first, again = run[id]["trace"][0]["logs"], row["trace"][0]["logs"]
            assert again == [one for one in first if one["id"] != log]


def test_it_goes_on_where_it_was_stopped_and_does_nothing_twice(harmed, call):
    _, _, llm = call("--split test --ablate x")
    path = Paths(harmed, "wikihop").ablated("test", "x")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:40])
    before = len(llm.seen)
    _, summary, llm = call("--split test --ablate x")
    assert summary["rows"] == len(lines) and 0 < len(llm.seen) < before
    _, _, llm = call("--split test --ablate x")
    assert not llm.seen
    keys = [json.loads(line)["id"] for line in path.read_bytes().splitlines()]
    assert sorted(keys) == sorted({*keys})


def test_a_run_over_a_store_that_stays_is_ablated_too(call, small_data):
    call("-m base --split train,test")
    call("-m base --merge --as-log")
    call("-m log_text --split test --run x")
    _, summary, _ = call("--split test --ablate x --batch-size 2")
    assert summary["harmed"] and summary["rows"]
    assert all("store" not in row for row in rows_of(small_data, "test").values())


def test_what_is_not_there_is_told(harmed, call):
    with pytest.raises(FileNotFoundError, match="runs of this split: base_s3, x"):
        call("--split test --ablate y")
    paths = Paths(harmed, "wikihop")
    questions = paths.questions("test")
    questions.write_text(questions.read_text() + "\n")
    with pytest.raises(ValueError, match="is another run"):
        call("--split test --ablate x")
    for path in paths.run("test", "base_s3").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="holds no rows to compare with"):
        call("--split test --ablate x")


def test_the_table_names_the_log(harmed, call, tmp_path, capsys):
    """w2's own trace was right: a log may be right and mislead."""
    _, ablated, _ = call("--split test --ablate x")
    report = tmp_path / "report.html"
    words = ["-d", "wikihop", "--data", str(harmed), "--outdir", str(tmp_path / "out"), "--harm"]
    code = evaluate.main([*words, "--report", str(report), "--bootstrap-samples", "100"])
    said = capsys.readouterr().out
    assert code == 0 and "w2" in said
    found = json.loads(said.splitlines()[-1])["harm"]
    (one,) = [row for row in found if row["run"] == "x"]
    assert one["harmed"] == ablated["harmed"] == one["explained"]
    rows = [row for row in one["logs"] if row["without"] == "right"]
    assert {row["log"] for row in rows} == {"w2"} and all(row["log_was"] == "right" for row in rows)
    run = read_parts(Paths(harmed, "wikihop").run("test", "x"))
    for row in one["logs"]:
        logs = [log for step in run[row["question"]]["trace"] for log in step["logs"]]
        assert row["similarity"] in [log["similarity"] for log in logs if log["id"] == row["log"]]
    pieces = re.findall(r'id="piece-rows-[^"]+">([^<]+)<', report.read_text())
    shown = [
        without
        for piece in pieces
        for rows in json.loads(gzip.decompress(base64.b64decode(piece)))
        for row in rows
        for without in (row or {}).get("harm", [])
    ]
    assert len(shown) == len(one["logs"]) and ["right", "right"] in [told[2:] for told in shown]
    highest = max(row["similarity"] for row in rows)
    for bound in one["min_similarity"]:
        saved = {row["question"] for row in rows if row["similarity"] < bound["bound"]}
        assert bound["saved"] == len(saved)
        assert bound["bound"] <= highest or bound["saved"] == one["harmed"]


def test_without_such_rows_there_is_no_table(harmed, tmp_path):
    words = ["-d", "wikihop", "--data", str(harmed), "--outdir", str(tmp_path / "out"), "--harm"]
    with pytest.raises(ValueError, match="no run was ablated"):
        evaluate.main(words)
    assert not (tmp_path / "out").exists()
