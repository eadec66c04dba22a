"""`train.py annotate`: labels by rules, by a model, at random, as published; and what they train."""

import itertools
import json

import pytest
import small
from building import make
from safetensors.torch import load_file
from scripted import ScriptedLLM

import agentic
import evaluate
import samples
import train
from lag import trace_files
from lag.files import write_json
from lag.http import GivenUp
from lag.paths import Paths
from lag.records import Step, Trace
from lag.train.annotate import by_rules, items_of, told, units, with_chance, with_model
from lag.train.log_examples import maker_of
from lag.train.markers import Label, all_words, marked, read_labels, write_labels
from lag.train.past_run import PastRun

REPLY = "Arno lives in Beckton. Beckton is by the sea.\nSo Arno lives by the sea. <ans>yes</ans>"


def parts(reply, spans):
    return [(reply[a:b], kind) for a, b, kind in spans]


def test_rules():
    assert parts(REPLY, by_rules(REPLY, [])) == [
        ("Arno lives in Beckton. Beckton is by the sea.", "memory"),
        ("So Arno lives by the sea. <ans>yes</ans>", "reason"),
    ]
    record = "<fact>Because of A, B is C.</fact>\n<keywords>B</keywords>"
    assert [kind for _, _, kind in by_rules(record, [])] == ["memory", "reason"]
    fact = "Since 1901 Arno lives in Beckton."
    assert by_rules(fact, [])[0][2] == "reason"
    assert by_rules(fact, ["arno beckton"])[0][2] == "memory"  # a gold fact is one
    assert by_rules("Who lives there?", [])[0][2] == "reason"
    assert by_rules(" \n", []) == ()


@pytest.mark.parametrize(
    "reply", [REPLY, "a\n\n b. c", "<ans>a. b</ans> c. <keywords>d</keywords>"]
)
def test_units_are_the_reply_without_blanks(reply):
    found = units(reply)
    assert "".join("".join(reply[a:b].split()) for a, b in found) == "".join(reply.split())
    assert all(b <= c for (_, b), (c, _) in itertools.pairwise(found))


def test_markers_stand_before_the_parts():
    spans = by_rules(REPLY, [])
    assert marked(REPLY, spans) == (
        "<memory>Arno lives in Beckton. Beckton is by the sea.\n"
        "<reason>So Arno lives by the sea. <answer><ans>yes</ans>"
    )
    assert marked("a <ans>b</ans>", [(0, 1, "memory")], 2) == (
        "<memory-1><memory-2>a <answer-1><answer-2><ans>b</ans>"
    )
    trace = Trace("q", "?", steps=[Step("?", "answer", reply=marked(REPLY, spans, 3))])
    assert trace.to_json()["markers"] == ["memory", "reason", "answer"]
    assert "markers" not in Trace("q", "?", steps=[Step("?", "answer", reply=REPLY)]).to_json()


def test_labels_come_back_and_wrong_ones_are_named(tmp_path):
    path = tmp_path / "labels.jsonl"
    labels = [Label("q#1", 2, ((0, 3, "memory"), (4, 9, "reason"))), Label("r", 0)]
    write_labels(path, labels)
    assert json.loads(path.read_text().splitlines()[0]) == {
        "id": "q#1",
        "step": 2,
        "spans": [[0, 3, "memory"], [4, 9, "reason"]],
    }
    assert read_labels(path) == {("q#1", 2): labels[0].spans}  # a failed one has none
    path.write_text('{"id": "q", "step": 0, "spans": [[0, 1, "fact"]]}\n')
    with pytest.raises(ValueError, match=r"line 1: expected id, step and spans"):
        read_labels(path)


@pytest.mark.parametrize(
    ("answer", "kinds"),
    [
        ("1 memory\n2 memory\n3 reason\n4 reason", ["memory", "reason"]),
        ("1. Memory, 2. reason, 3. memory 4) reason", ["memory", "reason", "memory", "reason"]),
        ("1 memory\n2 memory\n3 reason", []),
        ("1 memory 2 memory 3 reason 4 reason 5 reason", []),
        ('{"1": "memory", "2": ', []),
        ("", []),
    ],
)
def test_what_a_model_says(answer, kinds):
    assert len(units(REPLY)) == 4
    assert [kind for _, _, kind in told(answer, REPLY)] == kinds


def items(count):
    step = Step("?", "answer", reply=REPLY)
    return [(Trace(f"q{n}", "?", steps=[step]), 0, step) for n in range(count)]


def test_a_model_is_asked_again_a_bounded_number_of_times():
    def reply(prompt):
        id, _, attempt = prompt.key.split()
        if id == "q0" or (id == "q1" and attempt == "0"):
            return "1 memory"
        if id == "q2" and attempt == "0":
            raise ValueError("no server")
        return "1 memory\n2 memory\n3 reason\n4 reason"

    llm = ScriptedLLM(reply)
    labels = with_model(items(4), llm, 2, tries=3)
    assert [label.failed for label in labels] == [True, False, False, False]
    keys = [prompt.key for prompt in llm.seen]
    assert sum(key.startswith("q0") for key in keys) == 3
    assert sum(key.startswith("q3") for key in keys) == 1


def test_a_server_that_is_lost_ends_the_labelling():
    """Each part of each reply was asked for three times, and all of them counted as failed."""

    def lost(prompt):
        raise GivenUp("no server")

    llm = ScriptedLLM(lost)
    with pytest.raises(GivenUp, match="no server"):
        with_model(items(4), llm, 2)


def test_labels_at_random_follow_the_seed():
    one, other = with_chance(items(9), 1), with_chance(items(9), 2)
    assert one == with_chance(items(9), 1) != other
    assert {kind for label in one for _, _, kind in label.spans} == {"memory", "reason"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--base-url", "http://x"], "--base-url is for --labeller llm; leave it out"),
        (["--labeller", "random", "--model", "m"], "--model is for --labeller llm"),
        (["--labeller", "llm", "--base-url", "http://x"], "is for --provider openai"),
    ],
)
def test_flags_of_a_model_that_does_not_label_are_refused(flags, said, small_data):
    with pytest.raises(ValueError, match=said):
        train.main(["annotate", "-d", "wikihop", "--data", str(small_data), *flags])


def test_a_data_set_of_one_s_own_is_labelled(tmp_path, capsys):
    """A KeyError showed its traceback."""
    rows = [
        {"id": "a", "question": "Who is Crea?", "answer": "a teacher", "cot_steps": ["[rag]: x"]}
    ]
    paths = Paths(tmp_path, "mine")
    write_json(paths.task, {"like": "musique"})
    write_json(paths.questions("train"), rows)
    flags = ["-d", "mine", "--data", str(tmp_path)]
    assert train.main(["annotate", *flags, "--labeller", "published"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["memory"] == 1


@pytest.fixture
def logged(small_data, embedder_folder):
    flags = ["-d", "wikihop", "--data", str(small_data), "--embedder", str(embedder_folder)]
    agentic.main([*flags, "-m", "base"], ScriptedLLM(small.stepwise))
    agentic.main([*flags, "-m", "base", "--merge", "--as-log"])
    return small_data


def test_labels_become_trained_rows(logged, tmp_path, tiny_folder, capsys):
    data = ["-d", "wikihop", "--data", str(logged)]
    train.main(["annotate", *data])
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    path = Paths(logged, "wikihop").preds / "labels.jsonl"
    run = PastRun.read(Paths(logged, "wikihop").log_store)
    assert said["labelled"] == len(items_of(run)) and not said["failed"]
    assert said["memory"] and said["reason"]
    sft = ["sft", *data, "--from", str(run.path), "--model", str(tiny_folder), "--device", "cpu"]
    sft += ["--out", str(tmp_path / "a"), "--labels", str(path), "--epochs", "1", "--rank", "2"]
    with pytest.raises(ValueError, match="--tune lora with --tokens"):
        train.main(sft)
    train.main([*sft, "--tune", "lora+tokens", "--tokens-per-marker", "2"])
    facts = json.loads((tmp_path / "a" / "lag.json").read_text())
    assert tuple(facts["tokens"]) == all_words(2)
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    rows = [value for name, value in weights.items() if "trainable_tokens" in name]
    assert rows and all(len(value) == 6 for value in rows)
    maker = maker_of(run.path, "wikihop", logged, labels=read_labels(path))
    replies = [e.reply for part in maker.examples("correct", None).values() for e in part]
    assert all("<memory>" in r or "<reason>" in r for r in replies)
    assert sum("<answer><ans>" in reply for reply in replies) == 8


def test_markers_are_told_in_rows_and_scores(small_data, embedder_folder, capsys, tmp_path):
    def reply(prompt):
        return "<memory>A fact.<reason>So <answer><ans>aldburg</ans>"

    flags = ["-d", "wikihop", "--data", str(small_data), "--embedder", str(embedder_folder)]
    agentic.main([*flags, "-m", "base"], ScriptedLLM(reply))
    run = Paths(small_data, "wikihop").run("train", "base")
    rows = trace_files.read_parts(run)
    assert all(row["markers"] == ["memory", "reason", "answer"] for row in rows.values())
    capsys.readouterr()
    evaluate.main([*flags[:4], "--outdir", str(tmp_path), "--json"])
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    third = pytest.approx(1 / 3)
    assert found["metrics"]["markers"] == {
        **dict.fromkeys(("memory", "reason", "answer"), third),
        "rows": 1,
    }


def test_published_steps_come_with_their_labels(tmp_path, tiny_folder, capsys):
    shape = samples.SHAPES["strategyqa steps"]
    make(tmp_path, shape.task, shape.rows)
    data = ["-d", "strategyqa", "--data", str(tmp_path / "data")]
    capsys.readouterr()
    train.main(["annotate", *data, "--labeller", "published"])
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["labelled"] == said["memory"] == said["reason"] == 7
    maker = maker_of(
        Paths(tmp_path / "data", "strategyqa").preds / "published.json",
        "strategyqa",
        tmp_path / "data",
        labels=read_labels(Paths(tmp_path / "data", "strategyqa").preds / "labels.jsonl"),
    )
    examples = maker.examples("correct", None)
    assert len(examples) == 7
    (example,) = next(iter(examples.values()))
    assert example.reply.startswith("<memory>Even numbers swim.\n<reason>")
    assert "\n<answer><ans>(" in example.reply and "(A) yes\n(B) no" in example.prompt.user
