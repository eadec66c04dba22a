"""The whole comparison, dry and small: every command is one, and the end is a table."""

import json
import sys
from pathlib import Path

import pytest
import small
from scripted import ScriptedLLM

import agentic
from lag.paths import Paths
from lag.tasks import TASKS, read_questions

ROOT = Path(agentic.__file__).parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import four_way  # noqa: E402 - it stands beside what it shares


@pytest.fixture
def words(small_data, embedder_folder):
    flags = f"--max-steps 2 --embedder {embedder_folder}"
    given = ["-d", "wikihop", "--data", str(small_data), "--questions", "10", "--flags", flags]
    return [*given, "--grow-every", "4"]


def test_every_command_is_one(words, capsys):
    """The adapters of a dry run are not there: what is left out of its commands is checked here."""
    assert four_way.main([*words, "--adapters", "4,8", "--dry-run"]) == 0
    lines = capsys.readouterr().err.splitlines()
    asked = [line.split()[2:] for line in lines if line.startswith("python agentic.py")]
    trained = [line for line in lines if line.startswith("python train.py sft")]
    assert len(trained) == 6 and "--filter answered" in trained[0]
    named = set()
    for command in asked:
        if "--adapter" in command:
            place = command.index("--adapter")
            assert command[place + 1].endswith(("_4", "_8"))
            command = command[:place] + command[place + 2 :]
        named |= {run.name for run in agentic.parse_args(command).runs()}
    orders = {name for name in named if name.startswith("log_kv_s2_grow4_o")}
    assert orders == {f"log_kv_s2_grow4_o{n}" for n in range(1, 6)}
    assert {"base_s2", "base_direct", "weights_o1_from4", "weights_o3_from8"} <= named
    assert "log_playbook_s2_grow4_o3" in named and "log_playbook_s2_grow4_o4" not in named


def test_an_adapter_that_answers_nothing_is_trained_once(words, capsys):
    """At the end of the stream every order has seen the same questions."""
    assert four_way.main([*words, "--adapters", "4,10", "--dry-run"]) == 0
    lines = capsys.readouterr().err.splitlines()
    trained = [line for line in lines if line.startswith("python train.py sft")]
    assert [line.count("_10 ") for line in trained] == [0, 1, 0, 0]


def test_a_stream_without_train_questions_has_nothing_to_train_on(words, capsys):
    with pytest.raises(SystemExit):
        four_way.main([*words, "--split", "test", "--dry-run"])
    assert "only rows of train are trained on" in capsys.readouterr().err
    assert four_way.main([*words, "--split", "test", "--adapters", "", "--dry-run"]) == 0


def test_a_small_run_ends_in_a_table_and_goes_on_where_it_was_stopped(
    words, small_data, tmp_path, capsys
):
    out = tmp_path / "copied" / "four_way.json"
    short = [*words, "--adapters", "", "--orders", "2", "--few-orders", "1", "--out", str(out)]
    assert four_way.main(short, ScriptedLLM(small.stepwise)) == 0
    said = capsys.readouterr().out
    written = json.loads(said.splitlines()[-1])["written"]
    assert {Path(path).suffix for path in written} == {".csv", ".png", ".md", ".json"}
    text = (small_data / "wikihop/preds/four-way/four_way.md").read_text()
    assert text in said and "| base_s2 | 2 |" in text and "* `log_kv_s2_grow4`: +0.0" in text
    rows = {row["run"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["base_s2"]["to_base"] is None and out.with_suffix(".png").is_file()
    assert rows["log_kv_s2_grow4"]["to_base"] == {"value": 0.0, "interval": None, "over": ""}
    again = ScriptedLLM(small.stepwise)
    assert four_way.main(short, again) == 0 and not again.seen


def test_a_stream_of_two_splits_trains_on_the_first_only(words, small_data, tmp_path, capsys):
    """As with the real model: what comes after the training is asked split by split."""
    both = [*words, "--split", "train,test", "--short", "--orders", "1"]
    start = ["--training-flags", "--adapter adapters/half --epochs 1"]
    assert four_way.main([*both, *start, "--adapters", "6", "--dry-run"]) == 0
    lines = [line.split()[1:] for line in capsys.readouterr().err.splitlines()]
    (trained,) = (line for line in lines if line[0] == "train.py")
    assert trained[-4:] == ["--adapter", "adapters/half", "--epochs", "1"]
    asked = {line[line.index("--split") + 1]: line for line in lines if "weights_o1_from6" in line}
    assert list(asked) == ["train", "test"]
    paths, ids = Paths(small_data, "wikihop"), {}
    for split, line in asked.items():
        ids[split] = line[line.index("--ids") + 1].split(",")
        known = {q.id for q in read_questions(paths, TASKS["wikihop"], split)}
        assert known >= set(ids[split])
    assert len(ids["train"]) == 4 and set(ids["test"]) == known

    out = tmp_path / "four_way.json"
    whole = [*both, "--adapters", "", "--out", str(out)]
    assert four_way.main(whole, ScriptedLLM(small.stepwise)) == 0
    result = json.loads(out.read_text())
    rows = {row["run"]: row for row in result["rows"]}
    logs = {f"{mode}_grow4" for mode in ("log_text_s2", "log_kv_s2", "log_text_s2_lall")}
    assert rows.keys() == {"base_s2", "base_direct", *logs}
    assert {row["questions"] for row in rows.values()} == {result["questions"]} == {10 + len(known)}
    again = ScriptedLLM(small.stepwise)
    out.unlink()
    assert four_way.main([*whole, "--gather"], again) == 0 and not again.seen
    assert json.loads(out.read_text())["rows"] == result["rows"]
    alone = rows["log_kv_s2_grow4"]["to_base"]  # one order: over its questions, which all agree
    assert alone["over"] == "questions" and alone["interval"]["low"] < 0 < alone["interval"]["high"]
