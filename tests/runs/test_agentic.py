"""The real commands, on a small data set: runs, resume, merge, the log store, refusals."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small
import warm
from scripted import ScriptedLLM

import agentic
from lag import files, trace_files
from lag.modes import MODES
from lag.paths import Paths

ROOT = Path(__file__).resolve().parents[2]
TEXT_MODES = [name for name, mode in MODES.items() if mode.enters != "kv"]


@pytest.fixture
def run(small_data, embedder_folder, capsys):
    """Call agentic's main on the small data; returns the exit code, the summary and what was said."""

    def call(command, llm=None):
        flags = ["--data", str(small_data), "--embedder", str(embedder_folder), "--max-steps", "3"]
        if "-d " not in command:
            flags += ["-d", "wikihop"]
        code = agentic.main(command.split() + flags, llm or ScriptedLLM(small.stepwise))
        output = capsys.readouterr()
        summary = json.loads(output.out.splitlines()[-1])
        return code, summary, output

    return call


def rows_of(folder: Path) -> dict:
    rows = trace_files.read_parts(folder)
    return {id: trace_files.without_seconds(row) for id, row in sorted(rows.items())}


def by_key(prompt) -> str:
    return prompt.key


def preds(root: Path, split: str, name: str) -> Path:
    return Paths(root, "wikihop").run(split, name)


def test_the_paper_s_workflow_with_known_scores(run, small_data):
    """Some questions end after one, two and three steps, every fourth never does."""
    code, summary, output = run("-m base -p 0")
    assert code == 0
    assert output.out.splitlines()[0] == "wikihop base_s3: seen (train), partition 0 of 1"
    assert (summary["questions"], summary["answered"], summary["unanswered"]) == (10, 8, 2)
    assert (summary["em"], summary["steps"]) == (0.8, 2.1)
    _, merged, _ = run("-m base --merge --as-log")
    assert merged["n"] == 10 and merged["missing"] == 0
    store = json.loads(Paths(small_data, "wikihop").log_store.read_text())
    assert list(store["results"]) == [f"w{n}" for n in range(10)]
    assert store["metadata"]["mode"] == "base" and store["metadata"]["n"] == 10
    seen, unseen = ScriptedLLM(small.stepwise), ScriptedLLM(small.stepwise)
    run("-m log_text", seen)
    run("-m log_text --split test", unseen)
    assert rows_of(preds(small_data, "train", "log_text_s3")).keys() == {f"w{n}" for n in range(10)}
    assert rows_of(preds(small_data, "test", "log_text_s3")).keys() == {
        f"w{n}" for n in range(10, 16)
    }
    for llm, known in ((seen, True), (unseen, False)):
        first = [p for p in llm.seen if p.key.endswith(" 1")]
        own = [p.key.split()[0] in {note.id for note in p.notes} for p in first]
        assert sum(own) > len(own) / 2 if known else not any(own)


def test_several_modes_and_splits_in_one_process(run, small_data):
    run("-m base")
    run("-m base --merge --as-log")
    code, summary, _ = run(f"-m {','.join(TEXT_MODES)} --split train,test")
    assert code == 0 and len(summary["runs"]) == 2 * len(TEXT_MODES)
    assert {Path(r["run"]).parent.name for r in summary["runs"]} == {"train", "test"}


@pytest.mark.parametrize("layout", ["paper", "system-first", "user"])
@pytest.mark.parametrize("mode", [m for m in TEXT_MODES if m != "base"])
def test_zero_logs_is_base_through_the_real_commands(run, mode, layout):
    base, other = ScriptedLLM(small.stepwise), ScriptedLLM(small.stepwise)
    run(f"-m base --layout {layout}", base)
    run("-m base --layout paper")
    run("-m base --layout paper --merge --as-log")
    run(f"-m {mode} --num-logs 0 --layout {layout}", other)
    # a playbook is asked question by question: the same prompts in another order
    assert sorted(base.seen, key=by_key) == sorted(other.seen, key=by_key)


@pytest.mark.parametrize("mode", TEXT_MODES)
def test_gold_answers_change_no_prompt(run, small_data, mode):
    """A log has no gold field, and neither has anything that builds a prompt."""
    run("-m base")
    run("-m base --merge --as-log")
    before, after = ScriptedLLM(small.stepwise), ScriptedLLM(small.stepwise)
    run(f"-m {mode} --run before", before)
    paths = Paths(small_data, "wikihop")
    store = json.loads(paths.log_store.read_text())
    for n, row in enumerate(store["results"].values()):
        row["gold_answer"], row["gold_evidence"] = [f"scrambled {n}"], [f"p{n}"]
    paths.log_store.write_text(json.dumps(store))
    rows = json.loads(paths.questions("train").read_text())
    for row in rows:
        row["answer"] = "scrambled"
    paths.questions("train").write_text(json.dumps(rows))
    run(f"-m {mode} --run after", after)
    assert before.seen and before.seen == after.seen


def test_two_partitions_merged_equal_one(run, small_data):
    run("-m base --run one")
    for partition in (0, 1):
        run(f"-m base --run two -p {partition} --num-partitions 2 --batch-size 2")
    for name in ("one", "two"):
        run(f"-m base --run {name} --merge")
    one, two = (
        json.loads(Paths(small_data, "wikihop").merged("train", name).read_text())["results"]
        for name in ("one", "two")
    )
    assert list(one) == list(two)
    assert trace_files.without_seconds(one) == trace_files.without_seconds(two)


def test_merge_lists_what_is_missing(run):
    run("-m base -p 1 --num-partitions 2")
    _, summary, output = run("-m base --merge")
    assert (summary["n"], summary["missing"]) == (5, 5)
    assert "w0, w2, w4, w6, w8" in output.err


def test_merging_knows_no_limit(run, small_data):
    """A run.json whose last command had a limit cut a merged file of 700 rows to 100."""
    run("-m base --run whole")
    run("-m base --run whole --limit 3")
    manifest = preds(small_data, "train", "whole") / "run.json"
    for command in (f"--config {manifest} --merge", "-m base --run whole --merge --ids w1"):
        _, summary, _ = run(command)
        assert (summary["n"], summary["missing"]) == (10, 0)
    merged = json.loads(Path(summary["merged"]).read_text())
    assert list(merged["results"]) == [f"w{n}" for n in range(10)]
    assert merged["metadata"]["scope"]["limit"] == 3


def test_a_merge_keeps_rows_that_the_question_file_lost(run, small_data):
    """It never writes fewer rows than the parts hold."""
    run("-m base --run whole")
    path = Paths(small_data, "wikihop").questions("train")
    path.write_text(json.dumps(json.loads(path.read_text())[:4]))
    _, summary, _ = run("-m base --run whole --merge")
    assert (summary["n"], summary["missing"]) == (10, 0)


def test_a_run_is_exported_as_far_as_it_was_asked(run, tmp_path):
    run("-m base --run part --limit 3")
    flags = f"--run part --merge --export-batches 2 --export-to {tmp_path / 'out'}"
    _, summary, _ = run(f"-m base {flags}")
    assert (summary["n"], summary["missing"], summary["batches"]) == (3, 0, 2)


def test_a_finished_run_is_not_run_again_and_failed_rows_are(run, small_data):
    def failing(prompt):
        if "arno" in prompt.user or "bela" in prompt.user:
            raise RuntimeError("the model broke")
        return small.stepwise(prompt)

    code, summary, _ = run("-m base", ScriptedLLM(failing))
    assert code == 1 and summary["failed"] > 0 and summary["answered"] < 8
    failed = summary["failed"]
    healthy = ScriptedLLM(small.stepwise)
    code, summary, _ = run("-m base", healthy)
    assert code == 0 and summary["failed"] == 0 and summary["answered"] == 8
    assert len({prompt.key.split()[0] for prompt in healthy.seen}) == failed
    idle = ScriptedLLM(small.stepwise)
    run("-m base", idle)
    assert not idle.seen


def test_another_identity_is_refused_by_name(run):
    run("-m base --run mine")
    with pytest.raises(ValueError, match=r"seed: 1234 -> 7.*--run NAME"):
        run("-m base --run mine --seed 7")


def test_changed_data_is_another_identity(run, small_data):
    run("-m base")
    path = Paths(small_data, "wikihop").docs
    path.write_text(path.read_text().replace("by the sea", "by the lake"))
    with pytest.raises(ValueError, match=r"documents|doc\.npy"):
        run("-m base")


def test_the_name_of_a_run_spells_what_differs(run, small_data):
    run("-m base")
    run("-m base --merge --as-log")
    _, summary, _ = run("-m log_text --num-logs 5 --exclude-self --log-control random")
    assert Path(summary["run"]).name == "log_text_s3_l5_random_exclude-self"
    _, summary, _ = run("-m base --num-logs 5 --exclude-self --run x")
    manifest = json.loads((Path(summary["run"]) / "run.json").read_text())
    assert "num_logs" not in manifest["identity"]  # base reads no log flag
    assert manifest["provenance"]["partitions"]["0"]["batch_size"] == 8


def test_a_manifest_is_a_config(run, small_data):
    _, first, _ = run("-m base --seed 5 --limit 3")
    path = Path(first["run"]) / "run.json"
    _, again, _ = run(f"--config {path}")
    assert again == first
    config = small_data / "config.json"
    config.write_text('{"modee": "base"}')
    with pytest.raises(ValueError, match=r"'modee' is not a flag.*mode"):
        run(f"--config {config}")


def test_editing_the_literal_runs_the_unseen_split(small_data, embedder_folder, tmp_path):
    """The paper's README tells its users to edit `train=True`; here that works, too."""
    source = (ROOT / "agentic.py").read_text()
    assert source.count("train=True)") == 1
    (tmp_path / "agentic.py").write_text(source.replace("train=True)", "train=False)"))
    shutil.copytree(ROOT / "lag", tmp_path / "lag")
    done = subprocess.run(
        [sys.executable, "agentic.py", "-m", "base", "-d", "wikihop", "--data", small_data,
         "--run", "x", "--merge"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("wikihop x: unseen (test)")


def answer_slowly(argv):
    def slowly(prompt):
        time.sleep(0.02)
        return small.stepwise(prompt)

    sys.exit(agentic.main(argv, ScriptedLLM(slowly)))


def start(small_data, embedder_folder, *more):
    argv = ["-m", "base", "-d", "wikihop", "--data", str(small_data), "--embedder",
            str(embedder_folder), "--max-steps", "3", "--batch-size", "2", *more]  # fmt: skip
    return warm.start(answer_slowly, argv)


@pytest.mark.parametrize("partitions", [1, 3])
def test_killed_at_random_and_resumed_equals_uninterrupted(
    run, small_data, embedder_folder, partitions
):
    """SIGKILL while rows are written; then the same command, also with other partitions."""
    run("-m base --run whole")
    part = Paths(small_data, "wikihop").part("train", "killed", 0)
    for kill in range(2):
        process = start(small_data, embedder_folder, "--run", "killed")
        before = part.stat().st_size if part.exists() else 0
        while process.is_alive() and (not part.exists() or part.stat().st_size == before):
            time.sleep(0.01)
        time.sleep(random.Random(kill).random() * 0.1)
        process.kill()
        process.join()
    with open(part, "ab") as file:
        file.write(b'{"id": "w9", "question": "torn')
    for partition in range(partitions):
        run(f"-m base --run killed -p {partition} --num-partitions {partitions}")
    expected = rows_of(preds(small_data, "train", "whole"))
    assert rows_of(preds(small_data, "train", "killed")) == expected and len(expected) == 10


def test_two_processes_cannot_write_one_part(run, small_data):
    part = Paths(small_data, "wikihop").part("train", "base_s3", 0)
    with (
        files.locked(part, "is held by the test"),
        pytest.raises(ValueError, match="written by another process"),
    ):
        run("-m base")


def test_a_part_that_is_held_is_told_before_a_model_is_loaded(small_data, embedder_folder):
    """Two workers of one partition both loaded their model, which takes minutes, then one left."""
    part = Paths(small_data, "wikihop").part("train", "base", 0)
    flags = ["-m", "base", "-d", "wikihop", "--data", str(small_data), "--model", "/nowhere"]
    flags += ["--embedder", str(embedder_folder)]
    with (
        files.locked(part, "is held by the test"),
        pytest.raises(ValueError, match="written by another process"),
    ):
        agentic.main(flags)
    part.unlink()
    part.parent.rmdir()
    with pytest.raises((ValueError, OSError), match="/nowhere"):
        agentic.main(flags)
    assert not part.parent.exists()


def test_controls_change_the_logs_and_only_them(run, small_data):
    run("-m base")
    run("-m base --merge --as-log")
    seen = {}
    for control in ("none", "random", "shuffled"):
        seen[control] = ScriptedLLM(small.stepwise)
        run(f"-m log_text --log-control {control} --split test", seen[control])
    for control in ("random", "shuffled"):
        pairs = list(zip(seen["none"].seen, seen[control].seen, strict=True))
        assert all(len(a.notes) == len(b.notes) and a.user == b.user for a, b in pairs)
        assert any(a.notes != b.notes for a, b in pairs)


def test_shuffled_logs_are_another_question_s_whatever_is_asked_beside_it(run, small_data):
    """Drawn from a share of the questions, partners would change with `-p` and `--limit`."""
    run("-m base")
    run("-m base --merge --as-log")
    command = "-m log_text --log-control shuffled --run"
    run(f"{command} whole")
    for partition in range(3):
        run(f"{command} parted -p {partition} --num-partitions 3")
    run(f"{command} few --limit 4")
    run(f"{command} named --ids w3,w7")
    whole = rows_of(preds(small_data, "train", "whole"))
    assert rows_of(preds(small_data, "train", "parted")) == whole
    for name, count in (("few", 4), ("named", 2)):
        rows = rows_of(preds(small_data, "train", name))
        assert len(rows) == count and rows.items() <= whole.items()


def test_wrong_context_keeps_the_words_and_changes_what_they_are_encoded_after(run):
    run("-m base")
    run("-m base --merge --as-log")
    right, wrong = ScriptedLLM(small.stepwise), ScriptedLLM(small.stepwise)
    run("-m log_kv --split test", right)
    run("-m log_kv --split test --log-control wrong-context", wrong)
    pairs = [p for a, b in zip(right.seen, wrong.seen, strict=True) for p in zip(a.notes, b.notes)]
    assert pairs and all(a.keep == b.keep for a, b in pairs)
    assert any(a.after != b.after for a, b in pairs)


def test_a_carried_sheet_is_restored_on_resume(run, small_data):
    def counting(prompt):
        if "cheatsheet" not in prompt.user[:300]:
            return "<ans>x</ans>"
        sofar = (
            prompt.user.split("so far:\n")[1].split("\n\n")[0] if "so far" in prompt.user else ""
        )
        return f"<cheatsheet>{sofar}+</cheatsheet>"

    run("-m base")
    run("-m base --merge --as-log")
    run("-m log_cheatsheet --sheet carried --limit 4", ScriptedLLM(counting))
    _, summary, _ = run("-m log_cheatsheet --sheet carried", ScriptedLLM(counting))
    rows = trace_files.read_parts(Path(summary["run"]))
    assert [rows[f"w{n}"]["sheet"] for n in range(10)] == ["+" * (n + 1) for n in range(10)]


def test_multiple_choice_needs_no_corpus(run):
    code, summary, _ = run("-m base -d mmlupro")
    assert code == 0 and summary["em"] == 1.0


REFUSED = [
    ("-m log_txt -d wikihop", "did you mean log_text?"),
    ("-m base -d wikihopp", "did you mean wikihop?"),
    ("-m base -d wikihop -p 1", "-p 1: there are 1 partitions"),
    ("-m base -d wikihop --split dev", "--split dev: expected train, test"),
    ("-m log_kv -d wikihop --layout user", "--layout user holds text only"),
    ("-m log_text -d wikihop --log-control wrong-context", "that hide text: log_kv,"),
    ("-m log_kv_all -d wikihop --log-control wrong-context", "that hide text: log_kv,"),
    ("-m log_text -d wikihop --min-similarity 7", "at least -1 and at most 1"),
    ("-m base,base -d wikihop", "mode base is given twice"),
    ("-m base -d wikihop --solver rag,rag", "solver rag is given twice"),
    ("-m base -d wikihop --split train,train", "--split train,train: expected train, test"),
    ("-m base -d wikihop --retriever-url http://x", "is for --retriever http"),
    ("-m base -d wikihop --kv-dtype int8", "--kv-dtype int8 is for logs that enter as KV"),
    ("-m base -d wikihop --device banana", "--device banana: expected auto, cpu"),
    ("-m base -d wikihop --as-log", "--as-log goes with --merge"),
    ("-m base -d wikihop --ids w1,nope", "not in this split: nope"),
    ("-m base -d wikihop --batch-size 0", "expected a number of at least 1"),
    ("-m base -d hotpotqa", "python dataset.py -d hotpotqa"),
    ("-m log_text -d wikihop", "no logs to reuse; run: python agentic.py -m base"),
    ("-m base -d wikihop --merge", "holds no parts to merge"),
    ("-m base -d wikihop --model /nowhere", "/nowhere"),
    ("-m base -d wikihop --model meta-llama/Llama-3.1-8B-Instruct", "hub cannot be reached"),
    ("-m base -d wikihop --device cuda", "--device cuda"),
    ("-m base -d wikihop --config /nowhere.json", "/nowhere.json not found"),
]


@pytest.mark.parametrize(
    "name", ["", ".", "..", " ", "...", "../x", "a/b", "a\\b", "/x", "a\nb", "a/"]
)
def test_a_run_s_name_is_one_folder_s(small_data, capsys, name):
    """`--run ..` wrote into preds/ itself, and `--run ""` was as if it were not there."""
    with pytest.raises(SystemExit) as end:
        agentic.main(["-m", "base", "-d", "wikihop", "--data", str(small_data), "--run", name])
    assert end.value.code == 2 and "expected a plain name" in capsys.readouterr().err
    assert not list(small_data.glob("*/preds"))


@pytest.mark.parametrize(("command", "expected"), REFUSED)
def test_bad_input_is_one_line_that_says_what_to_do(
    small_data, embedder_folder, capsys, command, expected
):
    import torch

    if "cuda" in command and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    flags = ["--data", str(small_data), "--embedder", str(embedder_folder)]
    with pytest.raises((ValueError, FileNotFoundError, SystemExit)) as caught:
        agentic.main(command.split() + flags)
    said = capsys.readouterr().err if caught.type is SystemExit else str(caught.value)
    assert expected in said.strip().splitlines()[-1]
    assert not list(small_data.glob("*/preds/*/*/part-*.jsonl"))


def test_a_refusal_is_exit_code_2_without_a_traceback(small_data):
    done = subprocess.run(
        [sys.executable, ROOT / "agentic.py", "-m", "log_text", "-d", "wikihop", "--data", small_data],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("agentic.py: error:") and "no logs to reuse" in line


def test_a_real_run_says_what_it_does_at_once_and_draws_no_foreign_bars(
    small_data, embedder_folder, tiny_folder
):
    """The libraries' own bars stood between our lines."""
    flags = f"-m base -d wikihop --data {small_data} --embedder {embedder_folder}"
    flags += f" --model {tiny_folder} --limit 2 --max-steps 1 --max-new-tokens 4"
    done = warm.run_script("agentic.py", *flags.split())
    assert done.returncode == 0
    said = done.stderr.splitlines()
    begun = [f"loading the embedder {embedder_folder}", f"loading the model {tiny_folder}"]
    assert said[0] == begun[0] and begun[1] in said
    (first,) = [line for line in said if line.endswith("the first is under way")]
    assert said.index(first) > said.index(begun[1])
    assert not any("%|" in line or "it/s" in line for line in said)
