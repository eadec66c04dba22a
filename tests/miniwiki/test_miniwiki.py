"""The embedded data set: made by the command, and hard enough that logs can matter."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import dataset
from lag.logs.controls import foreign_context, random_logs
from lag.miniwiki.gold_agent import RolloutModel, WordRanking
from lag.miniwiki.world import generate
from lag.modes import MODES
from lag.records import Log
from lag.tasks import TASKS, load_qa
from lag.train.examples import Format

ROOT = Path(__file__).resolve().parents[2]
TASK = TASKS["miniwiki"]
DEVELOPMENT_SEED = 501
SCORED = ("base", "log_text", "log_kv", "log_kv_last_action")
MANY = 150  # questions of those; the other runs are compared with one of them question by question
FEW = 80


def made(folder: Path, *flags: str) -> dict[str, bytes]:
    assert dataset.main(["-d", "miniwiki", "--data", str(folder), *flags]) == 0
    return {path.name: path.read_bytes() for path in sorted((folder / "miniwiki").glob("*.json"))}


def test_the_command_makes_the_same_files_twice_and_they_pass_the_check(tmp_path, capsys):
    first = made(tmp_path / "a", "--seed", "7")
    assert made(tmp_path / "b", "--seed", "7") == first
    assert made(tmp_path / "c", "--seed", "8")["dev.json"] != first["dev.json"]
    capsys.readouterr()
    assert dataset.main(["-d", "miniwiki", "--data", str(tmp_path / "a"), "--check"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["warnings"] == {}
    assert (summary["train"], summary["test"]) == (700, 300)


@pytest.mark.parametrize(
    ("seed", "known"),
    [
        (10_005, "the shipped model was trained on it"),
        (10_030, "the shipped model was trained on it"),
        (9_976, "the shipped embedder was trained on it"),
        (9_000, "the shipped model's training was watched on it"),
        (9_975, ""),
        (10_031, ""),
    ],
)
def test_a_world_that_the_shipped_model_knows_is_told(tmp_path, capsys, seed, known):
    """`--seed 10005` made a world of the training without a word."""
    made(tmp_path, "--seed", str(seed))
    (warning,) = json.loads(capsys.readouterr().out.splitlines()[-1])["warnings"] or [""]
    assert known in warning and bool(warning) == bool(known)


def test_the_files_are_the_world_split_as_it_was_drawn(tmp_path):
    files = made(tmp_path, "--seed", "7")
    world = generate(7)
    for name, rows in (("dev_train.json", world.train), ("dev_test.json", world.test)):
        assert [row["id"] for row in json.loads(files[name])] == [row["id"] for row in rows]
    assert json.loads(files["dev_docs.json"]) == world.documents


@pytest.mark.parametrize("flags", [("--hub", "x/y"), ("--docs", "x.json")])
def test_flags_that_name_a_source_are_refused(flags, tmp_path):
    with pytest.raises(ValueError, match="generated from --seed"):
        dataset.main(["-d", "miniwiki", "--data", str(tmp_path), *flags])


def test_no_constant_answer_is_worth_much():
    # closed book, this is all that other worlds teach: which answers a relation likes
    world = generate(DEVELOPMENT_SEED)
    answers: dict[str, Counter] = {}
    for row in world.train:
        noun = world.chains[row["id"]].nouns[-1]
        answers.setdefault(noun, Counter())[row["answer"]] += 1
    best = {noun: counts.most_common(1)[0][0] for noun, counts in answers.items()}
    right = [best[world.chains[row["id"]].nouns[-1]] == row["answer"] for row in world.test]
    assert sum(right) / len(right) < 0.12


@pytest.fixture(scope="module")
def runs(embed):
    """Outcomes of the scripted agent, which never errs, on unseen questions."""
    world = generate(DEVELOPMENT_SEED)
    model, store = RolloutModel.of(world, embed), {}
    train, test = ([load_qa(row) for row in rows] for rows in (world.train, world.test))

    def solved(questions, mode="base", max_steps=TASK.max_steps, **settings):
        logs = {name: settings.pop(name) for name in ("store", "logs") if name in settings}
        agent = model.agent(Format(mode, "paper"), **logs)
        agent = replace(agent, max_steps=max_steps, **settings)
        return [model.rollout(question, agent)[0] for question in questions]

    found = {"train": solved(train)}
    for trace in found["train"]:
        store[trace.id] = Log.of(trace)
    index = WordRanking(list(store), [log.key for log in store.values()], embed)
    logs = dict(store=store, logs=index)
    cut = {trace.id for trace in found["train"] if len(trace.replies) == TASK.max_steps}
    found["cut"] = [trace for trace in found["train"] if trace.id in cut]
    found["cut@16"] = solved([q for q in train if q.id in cut], max_steps=16)
    for mode in MODES:
        found[mode] = solved(test[: MANY if mode in SCORED else FEW], mode, **logs)
    few = test[:FEW]
    found["random"] = solved(few, "log_kv", control=random_logs(list(store), 1), **logs)
    context = foreign_context(store, 1)
    for mode in ("log_kv", "log_kv_last_action"):
        found[f"{mode}, wrong"] = solved(few, mode, foreign_context=context, **logs)
    return found


def exact(traces) -> float:
    """EM in points; a second name of the answer is right, too."""
    return 100 * sum(trace.pred in trace.gold_answer for trace in traces) / len(traces)


def steps(traces) -> float:
    return sum(len(trace.replies) for trace in traces) / len(traces)


def alike(one, other) -> float:
    """Share of the first questions to which two runs gave the same replies."""
    pairs = list(zip(one[:FEW], other[:FEW], strict=True))
    assert len(pairs) == FEW and all(a.id == b.id for a, b in pairs)
    return sum(a.replies == b.replies for a, b in pairs) / FEW


def test_the_step_limit_decides_nothing(runs):
    """With three steps, all that logs gained was that questions of four hops ended in time."""
    assert TASK.max_steps == 8
    assert 55 < exact(runs["base"]) < 85 and 55 < exact(runs["train"]) < 85
    share = len(runs["cut"]) / len(runs["train"])  # the others end as before
    assert share * abs(exact(runs["cut@16"]) - exact(runs["cut"])) < 2
    for hops in (4, 5):
        some = [trace for trace in runs["train"] if trace.id.startswith(f"{hops}hop")]
        assert exact(some) > 25


def test_a_perfect_reader_gains_by_logs_and_by_their_hidden_text(runs):
    # the room that a perfect reader has: without it no model could show the method
    base, text, kv = (exact(runs[mode]) for mode in ("base", "log_text", "log_kv"))
    assert base + 4 < text < kv - 2
    assert alike(runs["log_kv_last_as_context"], runs["log_text"]) == 1  # nothing is hidden
    assert alike(runs["log_kv_all"], runs["log_text_all"]) == 1
    assert exact(runs["log_kv_all"]) > exact(runs["log_kv"][:FEW])
    assert steps(runs["log_kv"]) < steps(runs["log_text"]) < steps(runs["base"]) - 0.2


def test_every_mode_shortens(runs):
    for name, mode in MODES.items():
        if mode.enters:
            assert steps(runs[name][:FEW]) < steps(runs["base"][:FEW]), name


def test_a_foreign_context_takes_the_hidden_text_s_gain_and_no_more(runs):
    """`wrong-context` is the control of hidden text: what is kept still helps, as text does."""
    assert alike(runs["log_kv, wrong"], runs["log_text"]) == 1
    assert exact(runs["log_text"]) < exact(runs["log_kv"])
    assert alike(runs["log_kv_last_action, wrong"], runs["base"]) > 0.98
    assert exact(runs["log_kv_last_action"]) > exact(runs["base"]) + 3


def test_random_logs_help_nobody(runs):
    base, random = runs["base"][:FEW], runs["random"]
    assert alike(random, base) > 0.9
    assert abs(exact(random) - exact(base)) < 2
    assert abs(steps(random) - steps(base)) < 0.1


def test_the_page_s_perfect_reader_is_that_one(runs, tmp_path, monkeypatch):
    """`benchmarks/perfect_reader.py` from the same logs: hidden text counts, a stranger's does not."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import perfect_reader
    from worlds import Measured

    made(tmp_path, "--seed", str(DEVELOPMENT_SEED))
    world = Measured(tmp_path)
    world.questions = dict(list(world.questions.items())[:FEW])
    world.logs = [Log.of(trace) for trace in runs["train"]]
    found = perfect_reader.answered(world)
    for mode in perfect_reader.MODES:
        right = {trace.id: trace.pred in trace.gold_answer for trace in runs[mode][:FEW]}
        assert {id: row["em"] for id, row in found[mode].items()} == right, mode
    assert found["log_kv_wrong-context"] == found["log_text"] != found["log_kv"]
    assert found["log_kv_random"] != found["log_kv"]
