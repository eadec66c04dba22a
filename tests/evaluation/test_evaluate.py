"""`evaluate.py` on runs whose scores are known in advance; one test per defect seen elsewhere."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import evaldata
import pytest
from building import make
from hypothesis import given
from hypothesis import strategies as st
from sweeps import sweep
from test_sources import fill_hub

import evaluate
import samples
from lag import cli, json_checks
from lag.evaluation.find_runs import read_folder, runs_of_files
from lag.evaluation.gold import Catalogue, expected_questions
from lag.evaluation.scores import Evaluation, Hits, hits_of, outcome_of
from lag.files import read_json, write_json
from lag.modes import MODES
from lag.paths import Paths
from lag.records import Document, Question, Step, Trace, UsedLog
from lag.tasks import TASKS, read_questions
from lag.trace_files import append_trace, trace_of

ROOT = Path(evaluate.__file__).parent


def score(*flags, capsys=None):
    """Run the command; return what it printed as JSON."""
    assert evaluate.main([*map(str, flags), "--json"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture
def run(tmp_path, capsys):
    return lambda *flags: score(*flags, "--outdir", tmp_path / "out", capsys=capsys)["runs"]


@pytest.fixture
def data(tmp_path):
    """wikihop: 4 train and 10 test questions, 20 documents."""
    paths = Paths(tmp_path / "data", "wikihop")
    evaldata.write_dataset(paths, evaldata.qa_rows(14), 4, documents=20)
    return paths


def questions(paths, split="test"):
    return read_questions(paths, TASKS[paths.dataset], split)


def mixed(asked):
    """Ten questions: 4 right, one of them by an alias, 2 wrong, 2 unanswered, 1 failed, 1 missing."""
    right = [evaldata.traced(q, q.answers[0].upper()) for q in asked[:3]]
    alias = [evaldata.traced(asked[3], asked[3].answers[1])]
    wrong = [
        evaldata.traced(asked[4], "Nowhere"),
        evaldata.traced(asked[5], f"the {asked[5].answers[0]} x"),
    ]
    silent = [evaldata.traced(q, "") for q in asked[6:8]]
    return [*right, *alias, *wrong, *silent, evaldata.failed(asked[8])]


# --- the denominator ----------------------------------------------------------------------------


def test_every_question_of_the_split_counts(data, run):
    """The defect: missing, unanswered and failed rows left out of the denominator."""
    evaldata.write_run(data, "test", "base", mixed(questions(data)))
    (found,) = run("-d", "wikihop", "--data", data.root)
    metrics = found["metrics"]
    states = {key: metrics[key] for key in ("count", "answered", "unanswered", "errors", "missing")}
    assert states == {"count": 10, "answered": 6, "unanswered": 2, "errors": 1, "missing": 1}
    assert metrics["em"] == pytest.approx(0.4)
    assert metrics["answer_rate"] == pytest.approx(0.6)
    # the sixth answer has one word too many: precision 3/4 and recall 1 of "X Y 9"
    assert metrics["f1"] == pytest.approx((4 + 6 / 7) / 10)
    assert metrics["precision"] == pytest.approx((4 + 3 / 4) / 10)
    assert metrics["recall"] == pytest.approx(0.5)
    assert metrics["cover_em"] == pytest.approx(0.5)


def test_an_error_is_no_answer_even_with_the_right_words_in_it(data, run):
    asked = questions(data)
    rows = [evaldata.failed(q) for q in asked]
    for row, question in zip(rows, asked):
        row.pred = question.answers[0]
    evaldata.write_run(data, "test", "base", rows)
    (found,) = run("-d", "wikihop", "--data", data.root)
    assert (found["metrics"]["em"], found["metrics"]["errors"]) == (0, 10)


def test_an_unanswered_question_is_wrong_whatever_the_rule_says_of_empty_answers():
    """MuSiQue's rule calls two empty answers equal, and "The The" has an empty normal form."""
    question = Question("q", "Which band?", ("The The",))
    outcome = outcome_of("musique", question, evaldata.traced(question, ""))
    assert (outcome.state, outcome.scores["em"], outcome.scores["f1"]) == ("unanswered", 0, 0)


@pytest.mark.parametrize(
    ("scope", "count", "missing"),
    [
        ({"limit": 5}, 5, 2),
        ({"ids": "q4,q5,q9"}, 4, 1),
        ({"limit": None}, 10, 7),
        ({"limit": 2}, 3, 0),
    ],
)
def test_a_limited_run_is_held_to_what_it_was_asked(data, run, scope, count, missing):
    rows = [evaldata.traced(q, q.answers[0]) for q in questions(data)[:3]]
    evaldata.write_run(data, "test", "base", rows, scope=scope)
    (found,) = run("-d", "wikihop", "--data", data.root)
    assert (found["metrics"]["count"], found["metrics"]["missing"]) == (count, missing)


def test_a_run_that_has_only_begun_misses_everything(data, run):
    folder = evaldata.write_run(data, "test", "base", [], merged=False)
    (folder / "part-0.jsonl").touch()
    (found,) = run("-d", "wikihop", "--data", data.root)
    assert (found["metrics"]["count"], found["metrics"]["missing"]) == (10, 10)


# --- parts, merged files, batches ---------------------------------------------------------------


def test_parts_and_merged_file_give_the_same(data, run):
    rows = mixed(questions(data))
    evaldata.write_run(data, "test", "base", rows, partitions=3, merged=False)
    (parts,) = run("-d", "wikihop", "--data", data.root)
    evaldata.write_run(data, "test", "base2", rows, mode="base")
    _, merged = run("-d", "wikihop", "--data", data.root)
    assert merged["metrics"] == parts["metrics"]
    assert merged["intervals"] == parts["intervals"]


def test_parts_newer_than_the_merged_file_are_read_instead(data, run):
    asked = questions(data)
    folder = evaldata.write_run(data, "test", "base", mixed(asked))
    append_trace(folder / "part-0.jsonl", evaldata.traced(asked[9], asked[9].answers[0]))
    later = time.time_ns() + 10**9
    os.utime(folder / "part-0.jsonl", ns=(later, later))
    (found,) = run("-d", "wikihop", "--data", data.root)
    assert (found["metrics"]["em"], found["metrics"]["missing"]) == (0.5, 0)
    assert "older than the parts" in found["meta"]["warnings"][0]


def test_an_error_row_that_was_tried_again_counts_as_its_last_outcome(data, run):
    asked = questions(data)
    again = evaldata.traced(asked[0], asked[0].answers[0])
    evaldata.write_run(data, "test", "base", [evaldata.failed(asked[0]), again], merged=False)
    (found,) = run("-d", "wikihop", "--data", data.root)
    assert (found["metrics"]["errors"], found["metrics"]["em"]) == (0, 0.1)


def test_a_torn_last_line_is_told_and_not_fatal(data, run):
    folder = evaldata.write_run(data, "test", "base", mixed(questions(data)), merged=False)
    part = folder / "part-0.jsonl"
    part.write_bytes(part.read_bytes()[:-20])
    (found,) = run("-d", "wikihop", "--data", data.root)
    assert found["metrics"]["missing"] == 2
    assert "torn line" in found["meta"]["warnings"][0]


def envelope(paths, rows, **metadata):
    """A file as another toolkit writes it: one gold answer as a text, its own kind of steps."""
    results = {
        row.id: {
            "pred": row.pred or None,
            "gold_answer": row.gold_answer[0],
            "question": row.question,
            "trace": [{"prompt": "p", "answer": "thinking", "action": "generate", "error": None}],
        }
        for row in rows
    }
    return {"metadata": metadata, "inference_params": {"temperature": 0}, "results": results}


META = {"dataset": "2wikimultihopqa", "type": "icl", "model": "m", "split": "test", "seed": 1}


@pytest.fixture
def batches(data, tmp_path):
    """One run as one file, as three batch files, and the folder of these."""
    rows = [row for row in mixed(questions(data)) if not row.error]
    whole = tmp_path / "whole" / "all.json"
    write_json(whole, envelope(data, rows, **META, batch_size=4))
    folder = tmp_path / "batched"
    for number, part in ((2, rows[3:6]), (10, rows[6:]), (1, rows[:3])):
        content = envelope(data, part, **META, batch_size=4, batch_number=number)
        write_json(folder / f"test_seed=1_bn={number}_bs=4.json", content)
    return whole, folder


def test_one_file_three_batches_and_a_folder_are_the_same(data, batches, run):
    whole, folder = batches
    inputs = [
        ("--preds", whole),
        ("--preds", *folder.glob("*.json")),
        ("--pattern", str(folder / "*_bn=*.json")),
        ("--input-dir", folder),
        ("--input-dir", folder, "--split", "test", "--seed", "1", "--batch-size", "4"),
    ]
    results = [run(*given, "--data", data.root) for given in inputs]
    assert all(len(found) == 1 for found in results)
    assert results[0][0]["metrics"]["em"] == pytest.approx(0.4)
    same = [(found["metrics"], found["intervals"], found["groups"]) for (found,) in results]
    assert all(found == same[0] for found in same)


def test_batches_stand_in_natural_order(batches):
    """The defect: bn=10 before bn=2."""
    (found,) = runs_of_files(batches[1].glob("*.json"))
    numbers = [path.stem.split("_")[2] for path in found.paths]
    assert numbers == ["bn=1", "bn=2", "bn=10"]
    assert list(found.traces)[:4] == ["q4", "q5", "q6", "q7"]


def test_aliases_that_a_file_lacks_come_from_the_data_set(data, batches, run):
    """The defect: aliases dropped. One of the four right answers is an alias."""
    known = run("--preds", batches[0], "--data", data.root)
    alone = run("--preds", batches[0], "--data", data.root.parent / "empty")
    assert (known[0]["metrics"]["em"], alone[0]["metrics"]["em"]) == (0.4, pytest.approx(3 / 8))


def test_gold_answers_joined_by_newlines_are_several(data, batches, run):
    whole, _ = batches
    content = read_json(whole)
    for row in content["results"].values():
        row["gold_answer"] = "Elsewhere\n" + row["gold_answer"]
    write_json(whole, content)
    (found,) = run("--preds", whole, "--data", data.root.parent / "empty")
    assert found["metrics"]["em"] == pytest.approx(3 / 8)


@pytest.mark.parametrize("field", ["gold_answer", "answers", "true"])
def test_gold_answers_are_found_under_any_name_or_in_the_data_set(data, batches, run, field):
    whole, _ = batches
    content = read_json(whole)
    for row in content["results"].values():
        gold = row.pop("gold_answer")
        row[field] = [gold] if field == "answers" else gold
    write_json(whole, content)
    assert run("--preds", whole, "--data", data.root)[0]["metrics"]["em"] == 0.4
    for row in content["results"].values():
        del row[field]
    write_json(whole, content)
    assert run("--preds", whole, "--data", data.root)[0]["metrics"]["em"] == 0.4


def test_a_failed_call_that_was_saved_as_an_empty_answer_is_an_error(data, batches, run):
    whole, _ = batches
    content = read_json(whole)
    content["results"]["q10"]["trace"][-1]["error"] = "503"
    write_json(whole, content)
    (found,) = run("--preds", whole, "--data", data.root)
    assert (found["metrics"]["errors"], found["metrics"]["unanswered"]) == (1, 1)


# --- refusals -----------------------------------------------------------------------------------


def refused(*flags):
    """The one line that the command says before it ends with 2."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patched,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        patched.setattr(sys, "argv", ["evaluate.py", *map(str, flags)])
        cli.guarded(evaluate.main)
    assert end.value.code == 2
    assert out.getvalue() == "" and err.getvalue().count("\n") == 1, err.getvalue()
    return err.getvalue()


def broken(batches, number, change):
    path = batches[1] / f"test_seed=1_bn={number}_bs=4.json"
    content = read_json(path)
    change(content)
    write_json(path, content)


def test_batches_that_hold_the_same_question_are_refused(data, batches):
    """The defect: duplicate ids merged silently."""
    first = read_json(batches[1] / "test_seed=1_bn=1_bs=4.json")["results"]["q4"]
    broken(batches, 10, lambda content: content["results"].update(q4=first))
    with pytest.raises(ValueError, match=r"bn=10.*and.*bn=1.*both answer 'q4'"):
        runs_of_files(batches[1].glob("*.json"))


def test_batches_whose_metadata_differs_are_refused(batches):
    broken(batches, 2, lambda content: content["metadata"].update(model="other"))
    with pytest.raises(ValueError, match=r"differ in model \('m', 'other'\)"):
        runs_of_files(batches[1].glob("*.json"))


def test_an_id_that_stands_twice_in_one_file_is_refused(batches):
    text = batches[0].read_text()
    start = text.index('"q4"')
    batches[0].write_text(text[:start] + '"q4": {"pred": "x", "question": "y"}, ' + text[start:])
    with pytest.raises(ValueError, match=r"all.json.*'q4' stands twice"):
        runs_of_files([batches[0]])


def test_rows_without_a_gold_answer_anywhere_are_refused(data, batches):
    broken(batches, 1, lambda content: content["results"]["q4"].pop("gold_answer"))
    message = refused("--input-dir", batches[1], "--data", "nowhere")
    assert "'q4' has no gold answer" in message and "--source hf" in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of -d DATASET"),
        (["--preds", "a.json", "--pattern", "b"], "give one of -d DATASET"),
        (["--preds", "a.json"], "a.json not found"),
        (["--pattern", "nothing/*.json"], "matches no file"),
        (["--input-dir", "nothing"], "is no folder"),
        (["-d", "wikihop", "--seed", "1"], "--seed chooses among the files of --input-dir"),
        (["--pattern", "x", "--split", "test"], "--split goes with -d"),
        (["-d", "wikihop", "--split", "dev"], "expected train, test"),
        (["-d", "wikihop", "--unredacted"], "--report"),
        (["-d", "wikihop", "--report", "."], "is a folder; give the name of a file"),
        (["-d", "wikihop", "--figures", __file__], "is a file; give the name of a folder"),
        (["-d", "wikihop", "--data", "nothing"], "run: python agentic.py -m base -d wikihop"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(flags, message, tmp_path):
    assert message in refused(*flags, "--outdir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_baseline_is_refused_with_the_runs_that_are_there(data, tmp_path):
    evaldata.write_run(data, "test", "base", mixed(questions(data)))
    said = refused(
        "-d", "wikihop", "--data", data.root, "--baseline", "bse", "--outdir", tmp_path / "out"
    )
    assert "--baseline bse" in said and "there are: base" in said
    assert not (tmp_path / "out").exists()


def test_an_unknown_data_set_needs_a_scorer(data, batches, run):
    content = read_json(batches[0])
    content["metadata"]["dataset"] = "triviaqa"
    write_json(batches[0], content)
    assert "--scorer auto needs a known data set" in refused("--preds", batches[0])
    (found,) = run("--preds", batches[0], "--scorer", "kilt")
    assert found["metrics"]["em"] == pytest.approx(3 / 8) and found["meta"]["scorer"] == "kilt"


def test_a_file_of_another_data_set_is_refused(batches):
    assert "is on 2wikimultihopqa, not on musique" in refused(
        "--preds", batches[0], "-d", "musique"
    )


def test_the_hub_out_of_reach_is_one_line(batches):
    said = refused("--preds", batches[0], "--source", "hf")
    assert "HF_HUB_OFFLINE" in said


def test_gold_answers_from_the_hub(tmp_path):
    """Copies of repositories in the folder where the command runs, named as on the hub."""
    fill_hub(tmp_path / "hub")
    counts = {}
    for task, shape in [("musique", "musique raw"), ("mmlupro", "mmlupro hub")]:
        known = make(tmp_path / "data", task, samples.SHAPES[shape].rows)
        asked = questions(known, "train,test")
        preds = {q.id: {"pred": q.answers[-1], "question": q.text, "trace": []} for q in asked}
        metadata = {"dataset": task, "mode": "icl"}
        write_json(tmp_path / f"{task}.json", {"metadata": metadata, "results": preds})
        counts[task] = len(samples.SHAPES[shape].rows)
    files = [tmp_path / f"{task}.json" for task in counts]
    command = [sys.executable, ROOT / "evaluate.py", "--preds", *files, "--source", "hf", "--json"]
    env = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [*command, "--outdir", tmp_path / "out"],
        cwd=tmp_path / "hub", env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["runs"]
    assert {run["meta"]["dataset"]: run["metrics"]["count"] for run in found} == counts
    assert [run["metrics"]["em"] for run in found] == [1, 1]


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"results": []}', '{"results": {"q": 1}}', '{"results": {"q": {"pred": {}}}}',
                '{"results": {"q": {"pred": "x", "trace": 5}}}', '{"results": {"\\ud800": {}}}', "\x00", "[" * 99999]
)  # fmt: skip
def test_broken_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"broken\.json"):
        runs_of_files([path])


def test_a_wrong_line_of_a_part_is_refused_by_number(data):
    folder = evaldata.write_run(data, "test", "base", mixed(questions(data)), merged=False)
    part = folder / "part-0.jsonl"
    lines = part.read_text().splitlines()
    part.write_text("\n".join([lines[0], "{broken", *lines[1:]]) + "\n")
    with pytest.raises(ValueError, match=r"part-0.jsonl line 2"):
        read_folder(folder)


# --- one run that cannot be had beside others that can -------------------------------------------


def spoil_line(folder):
    part = folder / "part-0.jsonl"
    part.write_text("{broken\n" + part.read_text())


def spoil_merged(folder):
    (folder / "preds.json").write_text("[")


def spoil_manifest(folder):
    (folder / "run.json").write_text('{"identity": [1]}')


def nest_manifest(folder):
    (folder / "run.json").write_text("[" * 99999)


def of_another_data_set(folder):
    path = folder / "run.json"
    manifest = read_json(path)
    manifest["identity"]["dataset"] = "musique"
    write_json(path, manifest)


def of_another_toolkit(folder):
    for path in folder.iterdir():
        path.unlink()
    row = {"pred": "x", "question": "Which?", "trace": []}
    write_json(folder / "preds.json", {"metadata": {}, "results": {"elsewhere": row}})


def unreadable(folder):
    part = folder / "part-0.jsonl"
    part.unlink()
    part.mkdir()  # a test may run as root, whom no mode keeps out
    (folder / "preds.json").unlink()


# fmt: off
SPOILED = {
    spoil_line: "line 1", spoil_merged: "preds.json", spoil_manifest: "expected an object", nest_manifest: "run.json",
    of_another_data_set: "is on musique, not on wikihop", of_another_toolkit: "'elsewhere' has no gold answer",
    unreadable: "part-0.jsonl",
}
# fmt: on


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_one_broken_or_foreign_run_stops_no_other(data, tmp_path, capsys, spoil):
    """The defect: one such folder, and `evaluate.py -d` scored none."""
    asked = questions(data)
    for name in ("base", "log_kv", "log_text"):
        rows = mixed(asked)
        folder = evaldata.write_run(data, "test", name, rows, merged=spoil is not spoil_line)
        if name == "log_kv":
            spoil(folder)
    flags = ["-d", "wikihop", "--data", str(data.root), "--outdir", str(tmp_path / "out"), "--json"]
    assert evaluate.main(flags) == 1
    out, err = capsys.readouterr()
    said = json.loads(out.splitlines()[-1])
    assert [run["meta"]["run"] for run in said["runs"]] == ["base", "log_text"]
    assert said["runs"][1]["comparison"]["baseline"] == "base"
    ((where, why),) = said["skipped"].items()
    assert where == str(data.run("test", "log_kv")) and SPOILED[spoil] in why
    assert f"skipped {where}" in err and len(list((tmp_path / "out").iterdir())) == 2


def test_a_run_that_is_given_by_name_is_refused_as_before(data):
    folder = evaldata.write_run(data, "test", "log_kv", mixed(questions(data)), merged=False)
    spoil_line(folder)
    assert "part-0.jsonl line 1" in refused("--preds", folder / "part-0.jsonl")


def test_if_no_run_can_be_scored_nothing_is_written(data, tmp_path):
    for name in ("base", "log_kv"):
        folder = evaldata.write_run(data, "test", name, mixed(questions(data)))
        spoil_merged(folder)
    out = tmp_path / "out"
    said = refused("-d", "wikihop", "--data", data.root, "--outdir", out)
    assert "none of 2 runs can be scored" in said and not out.exists()


def test_runs_on_other_questions_than_their_baseline_are_scored_and_told(data, run):
    asked = questions(data)
    for name, half in (("base", asked[:5]), ("log_kv", asked[5:])):
        ids = ",".join(q.id for q in half)
        rows = [evaldata.traced(q, q.answers[0]) for q in half]
        evaldata.write_run(data, "test", name, rows, scope={"ids": ids})
    _, found = run("-d", "wikihop", "--data", data.root)
    assert (found["metrics"]["em"], found["comparison"]) == (1, None)
    assert found["meta"]["warnings"] == ["compared with nothing: base has other questions"]


# --- groups, cost, curves, retrieval ------------------------------------------------------------


def test_groups_add_up_and_know_the_logs_that_entered(data, run):
    asked = questions(data)
    rows = []
    for n, question in enumerate(asked):
        logs = tuple(UsedLog(f"l{k}", 0.5 + 0.2 * k) for k in range(n % 3))
        step = evaldata.step("<ans>x</ans>", logs=logs)
        rows.append(evaldata.traced(question, question.answers[0] if n % 2 else "x", [step, step]))
    evaldata.write_run(data, "test", "log_text", rows)
    (found,) = run("-d", "wikihop", "--data", data.root)
    groups = found["groups"]
    assert all(sum(v["count"] for v in values.values()) == 10 for values in groups.values())
    assert {key: value["count"] for key, value in groups["logs"].items()} == {
        "0": 4,
        "1": 3,
        "2": 3,
    }
    assert groups["logs"]["1"]["em"] == pytest.approx(2 / 3)
    similar = {key: value["count"] for key, value in groups["similarity"].items()}
    assert similar == {"0.50 to 0.60": 3, "0.70 to 0.80": 3, "none": 4}
    assert set(groups["type"]) == {"comparison", "compositional", "inference"}


def test_a_curators_call_is_counted(data, run):
    """The defect: the call that writes a cheatsheet missing from the cost."""
    asked = questions(data)
    curate = evaldata.step("<cheatsheet>x</cheatsheet>", action="curate", prompt_tokens=500)
    answer = evaldata.step("<ans>x</ans>")
    rows = [evaldata.traced(q, "x", [curate, answer], sheet="x") for q in asked]
    evaldata.write_run(data, "test", "log_cheatsheet", rows)
    cost = run("-d", "wikihop", "--data", data.root)[0]["cost"]
    assert (cost["calls"], cost["steps"]) == (2, 1)
    assert (cost["prompt_tokens"], cost["cached_tokens"], cost["new_tokens"]) == (600, 40, 20)
    assert cost["computed_tokens"] == 600 - 40 + 20
    assert cost["seconds"]["all"] == pytest.approx(2 * 0.36)
    assert cost["kv_bytes"] == 2000


def test_kv_on_disk_is_that_of_the_runs_model_and_mode(data, run):
    for digest, mode, size in (
        ("d1", "log_kv", 700),
        ("d1", "log_kv_all", 50),
        ("d2", "log_kv", 9),
    ):
        folder = data.kv / digest / mode
        folder.mkdir(parents=True)
        (folder / "x.safetensors").write_bytes(b"0" * size)
    rows = mixed(questions(data))
    evaldata.write_run(data, "test", "log_kv", rows, model_digest="d1")
    assert run("-d", "wikihop", "--data", data.root)[0]["cost"]["kv_stored"] == 700


@pytest.mark.parametrize(
    ("strategy", "flags"),
    [
        ("log_kv.sink4.int8", {"sink": 4, "kv_dtype": "int8"}),
        ("log_kv.bf16", {"sink": 0, "kv_dtype": "bf16"}),
        ("log_kv", {"sink": 0, "kv_dtype": "auto"}),
    ],
)
def test_kv_on_disk_is_that_of_the_runs_sink_and_kv_dtype(data, run, strategy, flags):
    """The defect: a run with --sink or --kv-dtype was told the bytes of the plain folder."""
    for number, name in enumerate(("log_kv", "log_kv.bf16", "log_kv.sink4.int8")):
        folder = data.kv / "d1" / name
        folder.mkdir(parents=True)
        (folder / "x.safetensors").write_bytes(b"0" * (1 + 1000 * number))
    size = (data.kv / "d1" / strategy / "x.safetensors").stat().st_size
    rows = mixed(questions(data))
    evaldata.write_run(data, "test", "log_kv", rows, model_digest="d1", **flags)
    assert run("-d", "wikihop", "--data", data.root)[0]["cost"]["kv_stored"] == size


def test_the_curve_cuts_off_what_came_later(data, run):
    asked = questions(data)[:4]
    search = evaldata.step("<keywords>x</keywords>", action="search")
    answer = evaldata.step("<ans>x</ans>")
    curate = evaldata.step("sheet", action="curate")
    steps = [[answer], [curate, search, answer], [search, search, answer], [search] * 3]
    preds = [asked[0].answers[0], asked[1].answers[0], "wrong", ""]
    rows = [evaldata.traced(*row) for row in zip(asked, preds, steps)]
    evaldata.write_run(data, "test", "base", rows, scope={"limit": 4})
    curve = run("-d", "wikihop", "--data", data.root)[0]["curve"]
    assert [(p["steps"], p["em"], p["answered"]) for p in curve] == [
        (1, 0.25, 0.25), (2, 0.5, 0.5), (3, 0.5, 0.75),
    ]  # fmt: skip


def test_support_is_found_by_id_where_titles_repeat():
    """The defect: recall by title where two paragraphs share one, as in MuSiQue."""
    documents = {id: Document(id, "Same title", id) for id in ("a", "b")}
    documents["c"] = Document("c", "Other", "c")
    step = Step("q", "answer", docs=("b", "c"), reply="<ans>x</ans>")
    by_id = Question("q", "", ("x",), supporting_ids=("a", "c"))
    by_title = Question("q", "", ("x",), supporting_ids=("Same title", "Third"))
    for question, wanted, recall, precision in (
        (by_id, ("", "c"), 0.5, 0.5),
        (by_title, ("Same title", ""), 0.5, 0.5),
    ):
        outcome = outcome_of("musique", question, evaldata.traced(question, "x", [step]))
        hits = hits_of(outcome, documents)
        assert hits.entered == wanted
        assert (hits.recall(None), hits.precision(None)) == (recall, precision)
        assert hits.recall(1) == (0 if question is by_id else 0.5)


def test_precision_is_of_the_documents_that_entered_however_few():
    hits = Hits(frozenset("ab"), ("a", "", "b"))
    found = [(hits.recall(k), hits.precision(k)) for k in (1, 2, 3, 5)]
    assert found == [(0.5, 1), (0.5, 0.5), (1, pytest.approx(2 / 3)), (1, pytest.approx(2 / 3))]
    assert Hits(frozenset("a"), ()).precision(5) == 0


def test_retrieval_counts_documents_in_the_order_in_which_they_entered(data, run):
    asked = questions(data)  # the support of q<n> is d<n> and d<n+1>
    first = [evaldata.step("s", docs=(q.supporting_ids[0], "d0"), action="search") for q in asked]
    then = [
        evaldata.step("a", docs=(q.supporting_ids[0], "d0", "d1", "d2", "d3", q.supporting_ids[1]))
        for q in asked
    ]
    rows = [evaldata.traced(q, "x", pair) for q, pair in zip(asked, zip(first, then))]
    evaldata.write_run(data, "test", "base", rows)
    found = run("-d", "wikihop", "--data", data.root)[0]["retrieval"]
    assert found["recall@2"] == 0.5 and found["precision@2"] == 0.5
    assert found["recall@5"] == 0.5 and found["precision@5"] == pytest.approx(0.2)
    assert found["recall@all"] == 1 and found["precision@all"] == pytest.approx(1 / 3)


# --- multiple choice ----------------------------------------------------------------------------


@pytest.fixture
def choice(tmp_path):
    paths = Paths(tmp_path / "data", "mmlupro")
    evaldata.write_dataset(paths, evaldata.choice_rows(12), 4)
    return paths


def test_multiple_choice_shows_what_needs_no_model(choice, run):
    asked = questions(choice)  # their letters: A D C B A D C B
    preds = ["(A)", asked[1].answers[1], "C", "(A) or (B)", "Z", "dunno", "", "B."]
    rows = [evaldata.traced(*row) for row in zip(asked, preds)]
    evaldata.write_run(choice, "test", "base", rows)
    (found,) = run("-d", "mmlupro", "--data", choice.root)
    metrics = found["metrics"]
    assert metrics["em"] == 4 / 8 and metrics["invalid"] == 3
    assert (metrics["majority_letter"], metrics["majority"], metrics["random"]) == ("D", 0.25, 0.25)


@pytest.mark.parametrize("gold", [0, 1])
def test_an_envelope_may_give_a_letter_or_a_text(choice, run, tmp_path, gold):
    asked = questions(choice)
    rows = [evaldata.traced(q, q.answers[1 - gold]) for q in asked]
    for row, question in zip(rows, asked):
        row.gold_answer = (question.answers[gold],)
    path = tmp_path / "x.json"
    write_json(path, envelope(choice, rows, dataset="MMLU-Pro", split="test", mode="icl"))
    (found,) = run("--preds", path, "--data", choice.root)
    assert found["metrics"]["em"] == 1 and found["meta"]["warnings"] == []


def test_options_in_another_order_than_the_run_saw_are_not_used(choice, run):
    """A data set made again with other letters must not turn right answers wrong."""
    rows = [evaldata.traced(q, q.answers[n % 2]) for n, q in enumerate(questions(choice))]
    evaldata.write_run(choice, "test", "base", rows)
    again = evaldata.choice_rows(12)
    for row in again:
        row["options"] = row["options"][1:] + row["options"][:1]
        row["answer"] = "DABC"["ABCD".index(row["answer"])]
    evaldata.write_dataset(choice, again, 4)
    (found,) = run("-d", "mmlupro", "--data", choice.root)
    assert found["metrics"]["em"] == 1
    assert "8 rows have other gold answers" in found["meta"]["warnings"][0]


# --- several runs -------------------------------------------------------------------------------


def test_every_run_of_both_splits_stands_in_one_table(data, tmp_path, capsys):
    for split in ("train", "test"):
        rows = [evaldata.traced(q, q.answers[0]) for q in questions(data, split)]
        for name in ("log_kv", "log_text", "base"):
            evaldata.write_run(data, split, name, rows)
    flags = ["-d", "wikihop", "--data", str(data.root), "--outdir", str(tmp_path / "out")]
    assert evaluate.main(flags) == 0
    out = capsys.readouterr().out
    assert "wikihop train (seen), scorer 2wiki" in out
    assert "wikihop test (unseen), scorer 2wiki" in out
    cells = [re.sub(r"\[.*?\]", "", line).split() for line in out.splitlines()]
    firsts = [row[0] for row in cells if row[1:6] == ["100.0"] * 5 and len(row) == 12]
    assert firsts == ["base", "log_text", "log_kv"] * 2
    assert out.count("no discordant pairs") == 12
    written = json.loads(out.splitlines()[-1])["written"]
    assert len(set(written)) == 6 and all(Path(path).is_file() for path in written)
    assert "wikihop_train_log_kv_tiny_seed=1234.json" in {Path(path).name for path in written}


def test_a_reader_that_stops_early_costs_no_file(data, tmp_path):
    evaldata.write_run(data, "test", "base", mixed(questions(data)))
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "evaluate.py"), "-d", "wikihop", "--data", str(data.root)]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*command, "--outdir", out], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "") and len(list(out.iterdir())) == 1


def test_two_runs_of_one_name_get_two_names(data, tmp_path, run):
    rows = mixed(questions(data))
    for seed, folder in ((1, "a"), (2, "b")):
        content = envelope(data, rows, **{**META, "seed": seed})
        write_json(tmp_path / folder / "x.json", content)
    found = run(
        "--preds", tmp_path / "a" / "x.json", tmp_path / "b" / "x.json", "--data", data.root
    )
    assert [result["meta"]["run"] for result in found] == ["icl seed=1", "icl seed=2"]
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_what_else_differs_from_the_baseline_is_told(data, run):
    rows = mixed(questions(data))
    evaldata.write_run(data, "test", "base", rows)
    evaldata.write_run(data, "test", "log_kv", rows, model="large")
    _, found = run("-d", "wikihop", "--data", data.root)
    assert "model differs from the baseline's: large instead of tiny" in found["meta"]["warnings"]


SOLVED = {"react": "", "direct": "_direct", "icl": "_icl", "rag": "_rag"}


def write_solvers(paths, bases=SOLVED):
    """base and log_text of every solver; logs turn every second answer of `rag` right."""
    for solver, name in SOLVED.items():
        wrong = [evaldata.traced(q, "x") for q in questions(paths)]
        if solver in bases:
            evaldata.write_run(paths, "test", f"base{name}", wrong, mode="base", solver=solver)
        better = [
            evaldata.traced(q, q.answers[0] if solver == "rag" and n % 2 else "x")
            for n, q in enumerate(questions(paths))
        ]
        evaldata.write_run(paths, "test", f"log_text{name}", better, mode="log_text", solver=solver)


def test_every_solver_is_compared_with_its_own_base(data, run):
    write_solvers(data)
    found = run("-d", "wikihop", "--data", data.root)
    names = [(r["meta"]["run"], r["comparison"] and r["comparison"]["baseline"]) for r in found]
    assert names == [
        pair
        for name in SOLVED.values()
        for pair in ((f"base{name}", None), (f"log_text{name}", f"base{name}"))
    ]
    assert found[-1]["comparison"]["differences"]["em"]["value"] == 0.5
    assert not any(r["meta"]["warnings"] for r in found)


def test_a_baseline_that_is_named_is_every_solvers(data, run):
    write_solvers(data)
    found = run("-d", "wikihop", "--data", data.root, "--baseline", "log_text_rag")
    assert found[0]["meta"]["run"] == "log_text_rag" and found[0]["comparison"] is None
    assert {r["comparison"]["baseline"] for r in found[1:]} == {"log_text_rag"}


def test_a_solver_without_its_base_is_scored_and_told(data, run):
    write_solvers(data, bases=("react", "icl"))
    found = {r["meta"]["run"]: r for r in run("-d", "wikihop", "--data", data.root)}
    assert found["log_text_rag"]["metrics"]["em"] == 0.5
    assert found["log_text_rag"]["comparison"] is None
    (told,) = found["log_text_rag"]["meta"]["warnings"]
    command = f"-m base -d wikihop --data {data.root} --solver rag --split test"
    assert told.endswith(f"run: python agentic.py {command}")
    assert found["log_text_icl"]["comparison"]["baseline"] == "base_icl"


def test_what_was_computed_of_a_prompt_is_neither_cached_nor_reused(data, run):
    asked = questions(data)
    for name, reused in (("base", 0), ("log_kv", 15)):
        step = evaldata.step("<ans>x</ans>", prompt_tokens=70, reused_tokens=reused)
        rows = [evaldata.traced(q, "x", [step]) for q in asked]
        evaldata.write_run(data, "test", name, rows)
    found = run("-d", "wikihop", "--data", data.root)
    costs = {one["meta"]["mode"]: one["cost"] for one in found}
    for name, reused in (("base", 0), ("log_kv", 15)):
        prefilled = 70 - 20 - reused
        assert costs[name]["reused_tokens"] == reused
        assert costs[name]["prefilled_tokens"] == prefilled
        assert costs[name]["computed_tokens"] == prefilled + 10


def test_results_are_the_same_each_time(data, tmp_path, capsys):
    asked = questions(data)
    evaldata.write_run(data, "test", "base", mixed(asked))
    evaldata.write_run(data, "test", "log_kv", [evaldata.traced(q, q.answers[0]) for q in asked])
    contents = []
    for name in ("one", "two"):
        score("-d", "wikihop", "--data", data.root, "--outdir", tmp_path / name, capsys=capsys)
        contents.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]


# --- the start, the fuzzer ----------------------------------------------------------------------


def test_scoring_needs_no_model_stack_and_no_plotting(data, tmp_path):
    evaldata.write_run(data, "test", "base", mixed(questions(data)))
    code = (
        "import sys, evaluate; evaluate.main(sys.argv[1:]);"
        "print({'torch', 'transformers', 'matplotlib', 'datasets', 'faiss'} & set(sys.modules))"
    )
    flags = ["-d", "wikihop", "--data", str(data.root), "--outdir", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.stress
def test_two_thousand_questions_in_every_mode_are_quick():
    command = [sys.executable, ROOT / "benchmarks" / "evaluate_2000.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["questions"], found["modes"]) == (2000, len(MODES))
    assert found["processor_seconds"] < 10


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = ["pred", "gold_answer", "answers", "gold_evidence", "question", "status", "error", "trace",
          "sheet", "dropped", "options", "id"]  # fmt: skip
STEP_FIELDS = [
    "query",
    "action",
    "docs",
    "logs",
    "reply",
    "prompt_tokens",
    "seconds",
    "answer",
    "error",
]
STEPS = st.lists(st.dictionaries(st.sampled_from(STEP_FIELDS), JSON, max_size=4), max_size=3)
ROWS = st.dictionaries(st.sampled_from(FIELDS), JSON | STEPS, max_size=6)


@sweep(150)
@given(st.dictionaries(st.text(max_size=4), ROWS | JSON, max_size=3), JSON)
def test_no_envelope_raises_anything_but_one_line(tmp_path_factory, results, metadata):
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_text(json.dumps({"metadata": metadata, "results": results}))
    check_reads_or_refuses(lambda: runs_of_files([path]))


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory):
    """A run's folder, whose part every example writes anew."""
    return tmp_path_factory.mktemp("fuzz")


@sweep(150)
@given(st.lists(st.one_of(ROWS, JSON), max_size=4), st.binary(max_size=20))
def test_no_part_raises_anything_but_one_line(fuzz_folder, rows, tail):
    path = fuzz_folder / "part-0.jsonl"
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() + tail)
    check_reads_or_refuses(lambda: [read_folder(path.parent)])


KNOWN = ["dataset", "split", "mode", "solver", "run", "model", "model_digest", "seed", "log_store", "log_limit",
         "exclude_self", "sink", "kv_dtype", "logs", "missing", "limit", "ids", "max_steps"]  # fmt: skip
MANIFESTS = st.dictionaries(
    st.sampled_from(["identity", "scope", "provenance"]),
    st.dictionaries(st.sampled_from([*KNOWN, "flags"]), JSON, max_size=5) | JSON,
)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Two runs on four questions, of which every example writes the manifest of the second anew."""
    paths = Paths(tmp_path_factory.mktemp("fuzz"), "wikihop")
    evaldata.write_dataset(paths, evaldata.qa_rows(4), 1)
    for name in ("base", "log_kv"):
        evaldata.write_run(paths, "test", name, [evaldata.traced(q, "x") for q in questions(paths)])
    return paths


@sweep(120)
@given(MANIFESTS | JSON)
def test_no_manifest_stops_the_other_runs(two_runs, manifest):
    """Whatever stands in a run's manifest, the run beside it is scored."""
    paths, out = two_runs, two_runs.root / "out"
    paths.manifest("test", "log_kv").write_text(json.dumps(manifest))
    shutil.rmtree(out, ignore_errors=True)
    flags = ["-d", "wikihop", "--data", str(paths.root), "--outdir", str(out)]
    flags += ["--bootstrap-samples", "100"]
    assert evaluate.main(flags) in (0, 1)
    assert any("_base_" in found.name for found in out.iterdir())


def check_reads_or_refuses(read):
    """Whatever is read can be scored, and written; whatever is not is refused in one line."""
    try:
        for run in read():
            scored = Evaluation.of(run, "kilt", expected_questions(run, Catalogue(Path("nowhere"))))
            assert 0 <= scored.metrics["em"] <= 1
            json.dumps([scored.metrics, scored.cost, scored.groups, scored.curve]).encode()
    except ValueError as error:
        assert str(error)


@sweep(100)
@given(st.text(), st.text(), st.lists(st.text(), max_size=3))
def test_our_own_rows_are_read_as_they_were_written(question, pred, golds):
    """Nothing of a trace is lost on the way, but blanks around the answer and broken characters."""
    step = Step(
        "q", "answer", ("d1",), (UsedLog("l", 0.25, "kv"),), pred, 5, 4, 3, 2, 1, {"store": 0.5}
    )
    trace = Trace("x", question, tuple(golds), ("d1",), pred, [step], sheet=question)
    row = json.loads(json.dumps(trace.to_json()))
    found = trace_of("x", row)
    clean = json_checks.text
    assert (found.question, found.pred, found.sheet) == (
        clean(question),
        clean(pred).strip(),
        clean(question),
    )
    assert found.gold_answer == tuple(clean(gold) for gold in golds if gold.strip())
    (again,) = found.steps
    assert (again.docs, again.logs, again.prompt_tokens, again.kv_bytes) == (
        ("d1",),
        step.logs,
        5,
        2,
    )
