"""`train.py weigh`: log-probabilities by another route, and weights within a question."""

import json
import math

import pytest
import small
import torch
from scripted import ScriptedLLM

import agentic
import train
from lag.model.llm import LLM
from lag.paths import Paths
from lag.records import Question
from lag.train.log_examples import PastRun, maker_of, read_weights
from lag.train.past_run import spellings, up_to_answer, with_gold
from lag.train.weigh import effective, entropy, log_sum, normalised


def sampled(prompt):
    """Samples of a question that end in different answers, or in none."""
    sample = int(prompt.key.split()[0].rpartition("#")[2])
    city = small.CITIES[sample] if sample < 3 else ""
    return f"Facts. <ans>{city}</ans> done" if city else "No idea."


@pytest.fixture
def rows(small_data, embedder_folder):
    path = Paths(small_data, "wikihop").questions("train")
    questions = json.loads(path.read_text())
    for question in questions:
        question["answer_aliases"] = [f"old {question['answer']}"]
    path.write_text(json.dumps(questions))
    flags = ["-d", "wikihop", "--data", str(small_data), "--embedder", str(embedder_folder)]
    more = [
        "-m",
        "base",
        "--max-steps",
        "1",
        "--samples",
        "4",
        "--temperature",
        "1",
        "--limit",
        "3",
    ]
    agentic.main([*flags, *more, "--run", "drawn"], ScriptedLLM(sampled))
    return Paths(small_data, "wikihop").run("train", "drawn")


def weigh(data, run, model, *flags):
    argv = ["weigh", "-d", "wikihop", "--data", str(data), "--preds", str(run), "--device", "cpu"]
    return train.main([*argv, "--model", str(model), *map(str, flags)])


def by_hand(llm, prompt, reply, gold):
    """The log-probability of an answer, one token and one whole forward at a time."""
    parts = llm.chat.encode(prompt)
    given = [*parts.head, *parts.tail, *llm.chat.content_ids(up_to_answer(reply))]
    total = 0.0
    for token in llm.chat.content_ids(gold + "</ans>"):  # one token per byte: nothing fuses
        with torch.no_grad():
            logits = llm.model(torch.tensor([given])).logits[0, -1].double()
        total += torch.log_softmax(logits, -1)[token].item()
        given.append(token)
    return total


def test_log_probabilities_are_those_of_a_loop(small_data, rows, tiny_folder, capsys):
    assert weigh(small_data, rows, tiny_folder) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = [json.loads(line) for line in (rows / "weights.jsonl").read_text().splitlines()]
    assert [*found[0]] == ["id", "sample", "answer_logprob", "weight"]
    assert summary["rows"] == len(found) == 12 and summary["questions"] == 3
    llm = LLM.load(str(tiny_folder), device="cpu")
    maker = maker_of(rows, "wikihop", small_data)
    samples: dict[str, list] = {}
    for row in found:
        (trace,) = [t for t in maker.run.traces() if t.id == row["id"]]
        question = maker.question_of(trace)
        prompt, reply, _ = maker.last_prompt(trace, question)
        each = [by_hand(llm, prompt, reply, gold) for gold in question.answers]
        expected = math.log(sum(map(math.exp, each)))
        assert row["answer_logprob"] == pytest.approx(expected, abs=1e-4, rel=1e-5)
        samples.setdefault(question.id, []).append((row["answer_logprob"], row["weight"]))
    for pairs in samples.values():
        assert sum(weight for _, weight in pairs) == pytest.approx(1)
        logprobs = [logprob for logprob, _ in sorted(pairs, key=lambda pair: pair[1])]
        assert logprobs == sorted(logprobs)  # a larger log-probability, a larger weight
    means = [effective([w for _, w in pairs]) for pairs in samples.values()]
    assert summary["effective_samples"] == pytest.approx(sum(means) / 3, abs=1e-3)


def test_weights_of_a_question():
    """The published code divides negative log-likelihoods by their sum: the worst gets the most."""
    found = normalised([-0.2, -1.0, -3.0])
    assert found == pytest.approx([0.661, 0.297, 0.040], abs=2e-3)
    assert normalised([-0.2, None]) == [1.0, 0.0] and normalised([None]) == [0.0]
    assert normalised([-700.0, -701.0]) == pytest.approx(normalised([0.0, -1.0]))
    flat = normalised([-0.2, -1.0, -3.0], 1e9)
    assert flat == pytest.approx([1 / 3] * 3) and effective(flat) == pytest.approx(3)
    assert entropy(flat) == pytest.approx(math.log(3)) and entropy([1.0, 0.0]) == 0
    assert log_sum([-1000.0, -1000.0]) == pytest.approx(-1000 + math.log(2))


@pytest.mark.parametrize(
    ("reply", "prefix"),
    [
        ("a <ans>b</ans> c", "a <ans>"),
        ("a <ans>b</ans> so <ANS> c", "a <ans>b</ans> so <ans>"),
        ("a\nFINAL_ANSWER: b", "a\n<ans>"),
        ("a <keywords>b</keywords> ", "a <keywords>b</keywords>\n<ans>"),
    ],
)
def test_where_an_answer_begins(reply, prefix):
    assert up_to_answer(reply) == prefix


def test_a_reply_that_ends_in_the_gold_answer():
    question = Question("q", "", ("gold", "Gold"))
    assert with_gold("a fact\n<ans>b</ans>\n", question) == "a fact\n<ans>gold</ans>"
    assert with_gold("a fact", question) == "a fact\n<ans>gold</ans>"
    letters = Question("q", "", ("B", "no"), ("yes", "no"))
    assert with_gold("so <ans>A</ans>", letters) == "so <ans>(B)</ans>"


def test_spellings_of_a_gold_answer():
    assert spellings(Question("q", "", ("x", "y", "x", ""))) == ("x", "y")
    assert spellings(Question("q", "", ("B", "no"), ("yes", "no"))) == ("(B)", "B", "no")
    with pytest.raises(ValueError, match="'q' has no gold answer"):
        spellings(Question("q", ""))


def test_weights_reach_the_examples_and_gold_only_the_weights(small_data, rows, tiny_folder):
    weigh(small_data, rows, tiny_folder)
    weights = read_weights(rows / "weights.jsonl")
    assert sum(weights.values()) == pytest.approx(12)  # the mean of each question's is 1
    examples = maker_of(rows, "wikihop", small_data).examples("all", weights)
    assert sorted({round(e.weight, 9) for part in examples.values() for e in part}) == sorted(
        {round(weight, 9) for weight in weights.values()}
    )
    # the replies are what was said, whatever is right
    assert {e.reply for part in examples.values() for e in part} == {
        sampled(type("P", (), {"key": f"w0#{k} 1"})) for k in range(4)
    }


def test_wrong_input_is_one_line(small_data, rows, tiny_folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        weigh(small_data, rows, tiny_folder, "--adapter", tmp_path)
    assert "no adapter_config.json" in capsys.readouterr().err
    with pytest.raises(ValueError, match="answers wikihop, not -d's"):
        weigh(small_data, rows, tiny_folder, "--out", rows / "w.jsonl", "-d", "mmlupro")
    assert not (rows / "weights.jsonl").exists()
    manifest = json.loads((rows / "run.json").read_text())
    manifest["identity"]["adapter"] = "abc"
    (rows / "run.json").write_text(json.dumps(manifest))
    assert PastRun.read(rows).settings["adapter"] == "abc"
    with pytest.raises(ValueError, match="made with adapter abc"):
        weigh(small_data, rows, tiny_folder)
