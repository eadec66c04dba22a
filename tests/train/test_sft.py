"""`train.py sft`: prompts as the loop built them, what is learned from, curves, and resuming."""

import json
import os
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import small
import tiny
import torch
import warm
from safetensors.torch import load_file
from scripted import ScriptedLLM

import agentic
import train
from lag import prompts
from lag.paths import Paths
from lag.train import trainer
from lag.train.log_examples import ExampleMaker, PastRun, read_weights, split
from lag.train.trainer import write_tensors

QUICK = ["--epochs", "1", "--batch-size", "4", "--every", "2", "--rank", "2", "--device", "cpu"]


def run(data, embedder, *flags, dataset="wikihop", split="train", llm=None):
    """A run of the script with a scripted model; returns its folder and the prompts it was asked."""
    llm = llm or ScriptedLLM(small.stepwise)
    argv = ["-d", dataset, "--data", str(data), "--embedder", str(embedder), "--split", split]
    code = agentic.main([*argv, *flags], llm)
    assert code == 0
    folders = (Paths(data, dataset).preds / split).glob("*/run.json")
    return max(folders, key=lambda path: path.stat().st_mtime_ns).parent, llm.seen


@pytest.fixture(scope="module")
def logged(tmp_path_factory, small_root, embedder_folder):
    """A data folder whose data sets have log stores, and the folders of some runs."""
    data = Path(shutil.copytree(small_root, tmp_path_factory.mktemp("sft") / "data"))
    for dataset in ("wikihop", "mmlupro"):
        run(data, embedder_folder, "-m", "base", dataset=dataset)
        argv = ["-d", dataset, "--data", str(data), "-m", "base", "--merge", "--as-log"]
        assert agentic.main(argv) == 0
    return data


@pytest.fixture(scope="module")
def with_logs(logged, embedder_folder):
    return run(logged, embedder_folder, "-m", "log_text")[0]


def sft(data, source, out, *flags, model):
    argv = ["sft", "-d", "wikihop", "--data", str(data), "--from", str(source), "--out", str(out)]
    return train.main([*argv, "--model", str(model), *QUICK, *map(str, flags)])


RUNS = {
    "base": ["-m", "base", "--run", "again"],
    "text": ["-m", "log_text", "--exclude-self"],
    "all responses": ["-m", "log_text_all", "--num-logs", "1"],
    "kv": ["-m", "log_kv"],
    "kv of an action": ["-m", "log_kv_last_action", "--layout", "system-first"],
    "in the turn": ["-m", "log_text", "--layout", "user", "--prefill", "folded"],
    "cheatsheet": ["-m", "log_cheatsheet"],
    "earlier steps": ["-m", "base", "--trace-steps", "1"],
    "closed book": ["-m", "log_text", "--solver", "direct"],
    "asked again": ["-m", "base", "--format-retries", "1"],
    "at random": ["-m", "log_text", "--log-control", "random"],
}


@pytest.mark.parametrize("flags", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("dataset", ["wikihop", "mmlupro"])
def test_prompts_are_made_again_as_the_loop_built_them(logged, embedder_folder, dataset, flags):
    folder, seen = run(logged, embedder_folder, *flags, dataset=dataset)
    maker = ExampleMaker(PastRun.read(folder), Paths(logged, dataset))
    made = [e for part in maker.examples("all", None).values() for e in part]
    plain = Counter(replace(e.prompt, key="") for e in made)
    asked = [p for p in seen if not p.user.startswith(prompts.CURATOR_RULES)]
    assert plain == Counter(replace(prompt, key="") for prompt in asked)
    assert maker.counts["a curator's"] == len(seen) - len(asked)
    assert {e.reply for e in made} == {small.stepwise(prompt) for prompt in asked}


def test_a_sheet_that_had_no_room_is_in_no_example(logged, embedder_folder):
    def wordy(prompt):
        is_curator = prompt.user.startswith(prompts.CURATOR_RULES)
        return "word " * 900 if is_curator else small.stepwise(prompt)

    llm = ScriptedLLM(wordy, room=900)
    folder, seen = run(logged, embedder_folder, "-m", "log_cheatsheet", "--run", "tight", llm=llm)
    maker = ExampleMaker(PastRun.read(folder), Paths(logged, "wikihop"))
    made = [e for part in maker.examples("all", None).values() for e in part]
    asked = [p for p in seen if not p.user.startswith(prompts.CURATOR_RULES)]
    assert len(asked) < len(seen) and not any(prompt.notes for prompt in asked)
    assert Counter(replace(e.prompt, key="") for e in made) == Counter(
        replace(prompt, key="") for prompt in asked
    )


def test_logs_can_stand_in_other_forms(logged, with_logs):
    maker = ExampleMaker(PastRun.read(with_logs), Paths(logged, "wikihop"), ("none", "text", "kv"))
    (examples, *_) = maker.examples("answered", None).values()
    bare, text, kv = (example.prompt for example in examples[:3])
    assert not bare.notes and bare.user == text.user == kv.user
    assert [n.keep for n in text.notes] == [n.keep for n in kv.notes] and text.notes
    assert not any(n.kv for n in text.notes) and all(n.kv for n in kv.notes)
    assert any(n.after for n in kv.notes)
    assert [e.format.mode for e in examples[:3]] == ["base", "log_text", "log_kv"]


@pytest.mark.parametrize(("wanted", "left"), [("all", 10), ("answered", 8), ("correct", 8)])
def test_rows_are_filtered(logged, wanted, left):
    maker = ExampleMaker(PastRun.read(Paths(logged, "wikihop").log_store), Paths(logged, "wikihop"))
    assert len(maker.examples(wanted, None)) == left
    assert maker.counts[f"not {wanted}"] == 10 - left


@pytest.fixture
def two_samples(logged, tmp_path):
    """A log store whose rows stand twice, as samples 0 and 1, and the questions' ids; of the first
    four the second row is wrong, of the fifth both are."""
    found = json.loads(Paths(logged, "wikihop").log_store.read_text())
    rows = {id: row for id, row in found["results"].items() if row["pred"]}
    found["results"], wrong = {}, [*rows][4]
    for number, (id, row) in enumerate(rows.items()):
        for sample in (0, 1):
            one = json.loads(json.dumps(row)) | {"question_id": id, "sample": sample}
            if number <= 4 and (sample or id == wrong):
                one["pred"] = "nobody"
                last = one["trace"][-1]
                last["reply"] = last["reply"].replace("<ans>", "<ans>not ")
            found["results"][f"{id}#{sample}"] = one
    path = tmp_path / "two.json"
    path.write_text(json.dumps(found))
    return path, list(rows)


def test_of_a_question_without_a_right_row_nothing_is_learned(logged, two_samples):
    path, ids = two_samples
    maker = ExampleMaker(PastRun.read(path), Paths(logged, "wikihop"))
    every, found = (maker.examples(wanted, None) for wanted in ("all", "solved"))
    assert found == {id: every[id] for id in ids if id != ids[4]}, (
        "a wrong row by a right one stays"
    )
    assert maker.counts["not solved"] == 2


def test_a_wrong_answer_is_exchanged_for_the_gold_one(logged, two_samples):
    path, ids = two_samples
    plain, gold = (
        ExampleMaker(PastRun.read(path), Paths(logged, "wikihop"), gold=gold).examples("all", None)
        for gold in (False, True)
    )
    for id in ids:
        replies = [e.reply for e in gold[id]]
        right, wrong = replies[: len(replies) // 2], replies[len(replies) // 2 :]
        told = [e.reply for e in plain[id]]
        assert right == told[: len(right)] or id == ids[4]
        assert wrong == right, "what comes before the answer is the same in both"
        assert ("<ans>not " in told[-1]) == (id in ids[:5]) and "<ans>not " not in replies[-1]


def test_gold_answers_are_another_training(logged, two_samples, tiny_folder, tmp_path):
    flags = ["--filter", "all", "--validation", "0"]
    for name, more in (("plain", []), ("gold", ["--gold-answers"])):
        code = sft(logged, two_samples[0], tmp_path / name, *flags, *more, model=tiny_folder)
        assert code == 0
    plain, gold = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("plain", "gold"))
    assert any(not torch.equal(plain[name], gold[name]) for name in plain)


def test_whole_questions_are_held_out():
    examples = {f"q{n}": [(n, k) for k in range(3)] for n in range(20)}
    rows, held = split(examples, 0.1, 1)
    assert len(held) == 6 and len(rows) == 54 and not {n for n, _ in rows} & {n for n, _ in held}
    assert split(examples, 0.1, 1) == (rows, held) != split(examples, 0.1, 2)
    assert split(examples, 0, 1)[1] == []
    assert [len(part) for part in split({"a": [1]}, 0.5, 1)] == [1, 0]


def test_weights_have_mean_1_within_a_question(tmp_path):
    path = tmp_path / "weights.jsonl"
    rows = [{"id": f"q#{k}", "sample": k, "weight": w} for k, w in enumerate((0.7, 0.2, 0.1, 0))]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "r", "weight": 1}]))
    found = read_weights(path)
    assert found == pytest.approx({"q#0": 2.8, "q#1": 0.8, "q#2": 0.4, "q#3": 0, "r": 1})


def test_learns_and_writes_an_adapter_with_its_curve(
    logged, with_logs, tmp_path, tiny_folder, capsys
):
    flags = ["--logs", "kv,none", "--validation", "0.3", "--rate", "0.02", "--epochs", "2"]
    assert sft(logged, with_logs, tmp_path / "a", *flags, model=tiny_folder) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["loss"] < summary["loss_before"]
    assert summary["left_out"] == {"not correct": 2}
    lines = (tmp_path / "a" / "curve.csv").read_text().splitlines()
    assert lines[0] == "steps,tokens,loss,validation_loss,seconds"
    assert (tmp_path / "a" / "curve.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads((tmp_path / "a" / "lag.json").read_text())
    assert facts["data"]["forms"] == ["kv", "none"] and facts["result"]["updates"] > 0
    before = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    assert sft(logged, with_logs, tmp_path / "a", *flags, model=tiny_folder) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["updates"] == summary["updates"]  # finished: nothing is trained again
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == before


def die_at_the_second_state():
    """A step was made since what is kept was written."""
    states = []

    def write(*state):
        states.append(state)
        if len(states) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        write_tensors(*state)

    trainer.write_tensors = write


@pytest.mark.parametrize("flags", [["--dropout", "0.3"], ["--tune", "full"]], ids=["lora", "full"])
def test_a_killed_training_goes_on_to_the_same_weights(logged, tmp_path, tiny_folder, flags):
    source = Paths(logged, "wikihop").log_store
    flags = [*flags, "--epochs", "2", "--every", "1"]
    assert sft(logged, source, tmp_path / "whole", *flags, model=tiny_folder) == 0
    words = ["sft", "-d", "wikihop", "--data", logged, "--from", source, "--out", tmp_path / "cut"]
    words += ["--model", tiny_folder, *QUICK, *flags]
    process = warm.start_script(tmp_path, "train.py", *words, before=die_at_the_second_state)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "cut" / "training" / "training.safetensors").exists()
    name = "model.safetensors" if "full" in flags else "adapter_model.safetensors"
    assert not (tmp_path / "cut" / name).exists()
    assert sft(logged, source, tmp_path / "cut", *flags, model=tiny_folder) == 0
    whole, cut = (load_file(tmp_path / part / name) for part in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    for key in whole:
        assert whole[key].equal(cut[key]), key


def test_another_recipe_does_not_go_on(logged, tmp_path, tiny_folder):
    source = Paths(logged, "wikihop").log_store
    assert sft(logged, source, tmp_path, model=tiny_folder) == 0
    with pytest.raises(ValueError, match="another rate"):
        sft(logged, source, tmp_path, "--rate", "0.5", model=tiny_folder)


def test_a_training_goes_on_from_an_adapter(logged, tmp_path, tiny_folder, capsys):
    """It begins with its numbers, and what it was trained on stays known."""
    source = Paths(logged, "wikihop").log_store
    rest = changed(source, tmp_path / "half.json", results=some_rows(source, 6))
    assert sft(logged, rest, tmp_path / "a", "--rate", "0.02", model=tiny_folder) == 0
    again = ["--adapter", tmp_path / "a", "--filter", "all", "--validation", "0"]
    assert sft(logged, source, tmp_path / "b", *again, "--rate", "0", model=tiny_folder) == 0
    kept, same = (load_file(tmp_path / one / "adapter_model.safetensors") for one in "ab")
    assert kept.keys() == same.keys() and all(kept[key].equal(same[key]) for key in kept)
    assert sft(logged, source, tmp_path / "c", *again, "--rate", "0.02", model=tiny_folder) == 0
    further = load_file(tmp_path / "c" / "adapter_model.safetensors")
    assert not all(kept[key].equal(further[key]) for key in kept)
    facts = [json.loads((tmp_path / one / "lag.json").read_text()) for one in "ac"]
    assert len(facts[0]["questions"]) == 6 and len(facts[1]["questions"]) == 10
    assert facts[0]["base"] == facts[1]["base"] and len(facts[1]["training"]["start"]) == 16
    with pytest.raises(ValueError, match="trained with rank 2, not 4: its training"):
        sft(logged, source, tmp_path / "d", *again, "--rank", "4", model=tiny_folder)
    with pytest.raises(ValueError, match="trained with tune lora, not full"):
        sft(logged, source, tmp_path / "d", *again, "--tune", "full", model=tiny_folder)
    with pytest.raises(ValueError, match="no adapter_config"):
        sft(logged, source, tmp_path / "d", "--adapter", tmp_path, model=tiny_folder)
    assert not (tmp_path / "d").exists()


def some_rows(source, count):
    rows = json.loads(source.read_text())["results"]
    return dict(list(rows.items())[:count])


def test_documents_that_only_a_server_had_are_those_that_the_run_kept(logged, tmp_path):
    rows = json.loads(Paths(logged, "wikihop").log_store.read_text())["results"]
    row = next(iter(rows.values()))
    row["trace"][0]["docs"] = ["far"]
    source = changed(Paths(logged, "wikihop").log_store, tmp_path / "preds.json", results=rows)
    maker = ExampleMaker(PastRun.read(source), Paths(logged, "wikihop"))
    with pytest.raises(ValueError, match="document 'far' is not in"):
        maker.examples("all", None)
    kept = {"far": {"title": "Far", "content": "Far away."}}
    (tmp_path / "documents-0.json").write_text(json.dumps(kept))
    maker = ExampleMaker(PastRun.read(source), Paths(logged, "wikihop"))
    first = maker.examples("all", None)[next(iter(rows))][0]
    assert "[1] Far\nFar away." in first.prompt.user


def test_rows_that_do_not_fit_are_left_out_and_counted(logged, tmp_path, capsys):
    folder = tiny.save_tiny(tmp_path / "short", max_position_embeddings=850)
    source = Paths(logged, "wikihop").log_store
    assert sft(logged, source, tmp_path / "a", "--filter", "all", model=folder) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    steps = sum(row["num_steps"] for row in json.loads(source.read_text())["results"].values())
    assert 0 < summary["left_out"]["too long"] < steps
    assert summary["examples"] + summary["validation"] + summary["left_out"]["too long"] == steps
    shorter = tiny.save_tiny(tmp_path / "shorter", max_position_embeddings=64)
    with pytest.raises(ValueError, match="no example fits the model's 64 tokens"):
        sft(logged, source, tmp_path / "b", model=shorter)
    assert not (tmp_path / "b").exists()


def changed(source, target, **settings):
    """A copy of a predictions file with other settings."""
    content = json.loads(source.read_text())
    for part in ("metadata", "inference_params"):
        content[part].update({k: v for k, v in settings.items() if k in content[part]})
    content["results"] = settings.get("results", content["results"])
    target.write_text(json.dumps(content))
    return target


def test_wrong_input_is_one_line_and_writes_nothing(logged, with_logs, tmp_path, tiny_folder):
    store = Paths(logged, "wikihop").log_store
    rows = json.loads(store.read_text())["results"]
    silent = {id: {**row, "pred": "", "status": "unanswered"} for id, row in rows.items()}
    foreign = tmp_path / "foreign.json"
    foreign.write_text("[]")
    empty = tmp_path / "weights.jsonl"
    empty.write_text("")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": 1}\n')
    other = changed(store, tmp_path / "other.json", results={"nobody": next(iter(rows.values()))})
    reminded = tmp_path / "reminded.json"
    content = json.loads(store.read_text())
    content["inference_params"]["reminder"] = "x"
    reminded.write_text(json.dumps(content))
    cases = [
        ("none of its 10 rows is answered", changed(store, tmp_path / "a.json", results=silent), ["--filter", "answered"]),
        ("is of the test split", changed(store, tmp_path / "b.json", split="test"), []),
        ("wording of the prompts", changed(store, tmp_path / "c.json", prompts="x"), []),
        ("wording of the prompts", reminded, []),
        ("answers mmlupro", changed(store, tmp_path / "d.json", dataset="mmlupro"), []),
        ("holds no metadata", foreign, []),
        ("'nobody' is no train question", other, []),
        ("whose logs cannot stand so", store, ["--logs", "kv"]),
        ("holds text only", with_logs, ["--logs", "kv", "--layout", "user"]),
        ("no weight for row", store, ["--weights", empty]),
        ("line 1: expected id and weight", store, ["--weights", broken]),
        ("need both", store, ["--tune", "tokens"]),
        ("has changed since", with_logs, ["--log-store", other]),
    ]  # fmt: skip
    for message, source, flags in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            sft(logged, source, tmp_path / "out", *flags, model=tiny_folder)
        assert not (tmp_path / "out").exists(), message


def test_parts_that_are_newer_than_the_merged_file_are_read(logged, tmp_path):
    """Rows of a run that went on after it was merged were not learned from."""
    folder = shutil.copytree(Paths(logged, "wikihop").run("train", "base"), tmp_path / "base")
    part, merged = folder / "part-0.jsonl", folder / "preds.json"
    part.write_text("".join(part.read_text().splitlines(keepends=True)[:-1]))
    os.utime(part, ns=(0, merged.stat().st_mtime_ns))
    assert len(PastRun.read(folder).rows) == 10
    os.utime(part, ns=(0, merged.stat().st_mtime_ns + 1))
    assert len(PastRun.read(folder).rows) == 9


def test_a_folder_with_a_foreign_model_is_not_written_to(logged, tmp_path, tiny_folder):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in tiny_folder.iterdir())
    with pytest.raises(ValueError, match="of other making"):
        sft(logged, Paths(logged, "wikihop").log_store, tiny_folder, model=tiny_folder)
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in tiny_folder.iterdir())
