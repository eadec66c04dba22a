"""Differences, their intervals and their tests, against slower ways to the same numbers."""

import itertools
import math
import random

import evaldata
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lag.evaluation.compare import (
    Resampler,
    Sampling,
    compare,
    components,
    find_baseline,
    mcnemar,
    named_baseline,
)
from lag.evaluation.find_runs import Run, read_folder
from lag.evaluation.gold import Catalogue
from lag.evaluation.leakage import Stores, leakage
from lag.evaluation.scores import Evaluation
from lag.paths import Paths
from lag.records import Question, Step, UsedLog
from lag.tasks import TASKS, read_questions


def questions(count, shared=lambda n: ()):
    return [Question(f"q{n}", f"text {n}", ("gold",), subquestions=shared(n)) for n in range(count)]


def evaluation(name, asked, preds, **meta):
    """A run that gives these answers; None is a missing row."""
    traces = {
        q.id: evaldata.traced(q, pred)
        for q, pred in zip(asked, preds, strict=True)
        if pred is not None
    }
    run = Run(name, "wikihop", "test", (), meta={"mode": name, **meta}, traces=traces)
    return Evaluation.of(run, "hotpotqa", asked)


# --- clusters -----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.lists(st.frozensets(st.integers(0, 9), max_size=3), max_size=12))
def test_components_are_what_a_search_from_every_question_reaches(parts):
    asked = questions(len(parts), lambda n: tuple(f"Sub {p}" for p in sorted(parts[n])))
    labels = components(asked)
    for start in range(len(parts)):
        reached, todo = {start}, [start]
        while todo:
            n = todo.pop()
            near = {m for m in range(len(parts)) if parts[n] & parts[m]} - reached
            reached |= near
            todo += near
        assert {n for n in range(len(parts)) if labels[n] == labels[start]} == reached


def test_sub_questions_are_the_same_whatever_their_case_and_articles():
    asked = [
        Question("a", "", subquestions=("Who wrote the Iliad?",)),
        Question("b", "", subquestions=("who wrote Iliad",)),
        Question("c", "", subquestions=("Who read the Iliad?",)),
    ]
    labels = components(asked)
    assert labels[0] == labels[1] != labels[2]


# --- intervals ----------------------------------------------------------------------------------


def test_interval_equals_resampling_one_question_at_a_time():
    source = random.Random(0)
    parts = [source.randrange(7) for _ in range(30)]
    asked = questions(30, lambda n: (f"part {parts[n]}",))
    values = np.array([source.choice([-1.0, 0.0, 1.0]) for _ in range(30)])
    found = Resampler(asked, seed=5, samples=300).interval(values)

    members = [[n for n in range(30) if parts[n] == p] for p in sorted(set(parts))]
    # clusters stand in the order in which the resampler labels them
    labels = components(asked)
    members.sort(key=lambda ns: labels[ns[0]])
    draws = np.random.default_rng(5).integers(len(members), size=(300, len(members)))
    means = [np.mean([values[n] for c in draw for n in members[c]]) for draw in draws]
    assert [found.low, found.high] == pytest.approx(np.percentile(means, [2.5, 97.5]))


def test_copies_of_questions_in_one_cluster_do_not_narrow_the_interval():
    """The defect: questions that share a sub-question taken as independent."""
    values = np.array([1.0, 0, 0, 1, -1, 0, 1, 0] * 5)
    single = Resampler(questions(40, lambda n: (f"part {n}",)), 1).interval(values)
    tripled = questions(120, lambda n: (f"part {n // 3}",))
    assert Resampler(tripled, 1).interval(np.repeat(values, 3)) == single
    alone = Resampler(questions(120), 1).interval(np.repeat(values, 3))
    assert alone.high - alone.low < 0.7 * (single.high - single.low)


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    asked, covered = questions(150), 0
    for seed in range(200):
        values = rng.binomial(1, 0.3, 150).astype(float)
        found = Resampler(asked, seed).interval(values)
        covered += found.low <= 0.3 <= found.high
    assert 180 <= covered <= 200


def test_interval_is_the_same_each_time_and_another_with_another_seed():
    asked, values = questions(50), np.arange(50.0)
    first, again, other = (Resampler(asked, seed).interval(values) for seed in (1, 1, 2))
    assert first == again != other


# --- McNemar ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gained", "lost"), itertools.product(range(7), range(7)))
def test_mcnemar_equals_counting_every_way_to_fall(gained, lost):
    n = gained + lost
    far = abs(gained - n / 2)
    ways = sum(math.comb(n, k) for k in range(n + 1) if abs(k - n / 2) >= far)
    assert mcnemar(gained, lost) == pytest.approx(ways / 2**n)


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(10, 2, 0.03857), (1500, 1400, 0.06602), (0, 0, 1)]
)
def test_mcnemar_known_values(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p, rel=1e-3)


# --- comparing ----------------------------------------------------------------------------------

BEFORE = ["gold", "gold", "bad", "bad", "", None, "gold", "bad"]
AFTER = ["gold", "bad", "gold", "bad", "gold", "gold", "", ""]


def test_differences_and_flips_of_runs_known_in_advance():
    asked = questions(8)
    run, base = evaluation("log_kv", asked, AFTER), evaluation("base", asked, BEFORE)
    found = compare(run, base, Sampling(1))
    assert found.differences["em"].value == pytest.approx(1 / 8)
    assert (found.gained, found.lost, found.differences["em"].discordant) == (3, 2, 5)
    assert found.p == 1.0
    assert found.flips == {
        "missing > right": ["q5"],
        "right > unanswered": ["q6"],
        "right > wrong": ["q1"],
        "unanswered > right": ["q4"],
        "wrong > right": ["q2"],
        "wrong > unanswered": ["q7"],
    }


def test_runs_without_discordant_pairs_get_no_interval_of_width_zero():
    asked = questions(20)
    same = ["gold"] * 8 + ["bad"] * 12
    found = compare(evaluation("x", asked, same), evaluation("base", asked, same), Sampling(1))
    assert found.differences["em"].discordant == 0
    assert found.differences["em"].interval is None
    assert found.p == 1.0 and found.flips == {}


def test_questions_in_one_cluster_get_no_interval():
    asked = questions(6, lambda n: ("shared by all",))
    run, base = evaluation("x", asked, ["gold"] * 6), evaluation("base", asked, ["bad"] * 6)
    found = compare(run, base, Sampling(1))
    assert (found.clusters, found.largest) == (1, 6)
    assert found.differences["em"].value == 1 and found.differences["em"].interval is None


def test_runs_on_other_questions_are_compared_where_they_meet():
    asked = questions(10)
    run = evaluation("x", asked[2:], ["gold"] * 8)
    base = evaluation("base", asked[:8], ["bad"] * 8)
    found = compare(run, base, Sampling(1))
    assert (found.count, found.only_run, found.only_baseline) == (6, 2, 2)
    assert found.gained == 6


def test_runs_without_a_common_question_are_refused():
    asked = questions(4)
    run, base = (
        evaluation("x", asked[:2], ["gold"] * 2),
        evaluation("base", asked[2:], ["gold"] * 2),
    )
    with pytest.raises(ValueError, match="no question in common"):
        compare(run, base, Sampling(1))


def test_the_order_of_rows_changes_nothing():
    source = random.Random(2)
    asked = questions(60, lambda n: (f"part {n // 2}",))
    before, after = ([source.choice(["gold", "bad", ""]) for _ in asked] for _ in range(2))
    found = compare(evaluation("x", asked, after), evaluation("base", asked, before), Sampling(1))
    order = source.sample(range(60), 60)
    mixed = [asked[n] for n in order]
    again = compare(
        evaluation("x", mixed, [after[n] for n in order]),
        evaluation("base", mixed, [before[n] for n in order]),
        Sampling(1),
    )
    assert found == again


def run_called(name, mode="", **meta):
    return Run(name, "wikihop", "test", (), meta={"mode": mode or name, **meta})


def test_the_baseline_is_the_plainest_base_or_the_one_asked_for():
    runs = [run_called("log_kv"), run_called("base_s3", "base"), run_called("base")]
    assert [find_baseline(run, runs).name for run in runs] == ["base"] * 3
    assert named_baseline("log_kv", runs).name == "log_kv"
    assert find_baseline(runs[0], runs[:1]) is None
    with pytest.raises(ValueError, match=r"log_tex.*0 runs.*log_kv, base_s3, base"):
        named_baseline("log_tex", runs)


def test_a_run_is_compared_with_the_base_of_its_own_solver():
    """The defect: what retrieval in one step lost, told as if logs had lost it."""
    runs = [
        run_called(f"{mode}{'' if solver == 'react' else '_' + solver}", mode, solver=solver)
        for solver in ("react", "rag")
        for mode in ("base", "log_text")
    ]
    found = [find_baseline(run, runs).name for run in runs]
    assert found == ["base", "base", "base_rag", "base_rag"]
    assert find_baseline(runs[3], runs[:2]) is None


def test_of_several_bases_the_one_with_the_same_settings_counts():
    runs = [
        run_called("base", max_steps=8, solver="react"),
        run_called("base_s3", "base", max_steps=3, solver="react"),
        run_called("log_kv_s3", "log_kv", max_steps=3, solver="react"),
        run_called("log_kv_s5", "log_kv", max_steps=5, solver="react"),
    ]
    assert [find_baseline(run, runs).name for run in runs[1:]] == ["base", "base_s3", "base"]


def test_others_call_a_run_without_logs_by_its_solver():
    runs = [run_called("rag"), run_called("log_text_rag", solver="rag"), run_called("lmlm")]
    assert [find_baseline(run, runs).name for run in runs] == ["rag"] * 3


# --- steps --------------------------------------------------------------------------------------


def stepping(name, asked, counts):
    """A run that takes so many steps for each question; None failed in its first."""
    traces = {}
    for question, count in zip(asked, counts, strict=True):
        steps = [evaldata.step("<ans>gold</ans>")] * (count or 1)
        traces[question.id] = evaldata.traced(question, "gold", steps)
        if count is None:
            traces[question.id] = evaldata.failed(question)
    run = Run(name, "wikihop", "test", (), meta={"mode": name}, traces=traces)
    return Evaluation.of(run, "hotpotqa", asked)


def test_steps_are_compared_where_neither_side_failed():
    """The defect: a question that failed in its first step counted as steps saved."""
    asked = questions(6)
    run = stepping("log_kv", asked, [1, 2, None, 1, 3, 2])
    base = stepping("base", asked, [4, 2, 4, None, 4, 4])
    found = compare(run, base, Sampling(1)).differences["steps"]
    assert (found.value, found.count, found.discordant) == (pytest.approx(-6 / 4), 4, 3)
    assert found.interval.low <= -6 / 4 <= found.interval.high < 0


def test_the_interval_of_some_questions_is_that_of_their_mean_in_each_sample():
    source = np.random.default_rng(7)
    asked = questions(20, lambda n: (f"part {n // 2}",))
    values, counted = source.normal(size=20), source.random(20) < 0.6
    resampler = Resampler(asked, seed=5, samples=200)
    found = resampler.interval(values, counted)
    means = []
    for weights in resampler.weights:
        drawn = weights[resampler.labels] * counted
        means.append((drawn * values).sum() / drawn.sum())
    assert [found.low, found.high] == pytest.approx(np.percentile(means, [2.5, 97.5]))


def test_runs_without_a_finished_question_in_common_have_no_steps_to_compare():
    asked = questions(2)
    run, base = stepping("log_kv", asked, [1, None]), stepping("base", asked, [None, 1])
    found = compare(run, base, Sampling(1)).differences["steps"]
    assert (found.value, found.count, found.interval) == (0, 0, None)


# --- leakage ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """12 questions, 6 of them logged; one test question is the text of a logged one again."""
    paths = Paths(tmp_path_factory.mktemp("data"), "wikihop")
    rows = evaldata.qa_rows(12)
    for row in rows:  # neighbours 2k and 2k+1 share a sub-question, and 5 shares one with 6
        row["evidences"] = [[f"s{row['id'] in ('q5', 'q6') or row['id']}", "r", "o"]]
    rows[8]["question"] = rows[3]["question"].upper()
    evaldata.write_dataset(paths, rows, 6)
    train, test = (read_questions(paths, TASKS["wikihop"], split) for split in ("train", "test"))
    evaldata.write_run(paths, "train", "base", [evaldata.traced(q, "x") for q in train])
    paths.log_store.write_bytes(paths.merged("train", "base").read_bytes())

    def using(question, *ids):
        used = tuple(UsedLog(id, 0.9) for id in ids)
        return evaldata.traced(
            question, "x", [Step("q", "answer", logs=used, reply="<ans>x</ans>")]
        )

    evaldata.write_run(paths, "train", "log_kv", [using(q, "q0", "q1") for q in train])
    excluded = [using(q, "q0" if q.id != "q0" else "q1") for q in train]
    evaldata.write_run(
        paths, "train", "log_kv_exclude-self", excluded, mode="log_kv", exclude_self=True
    )
    evaldata.write_run(paths, "test", "log_kv", [using(q, "q0") for q in test], logs="other")
    return paths


def counted(paths, split, name):
    catalogue = Catalogue(paths.root)
    run = read_folder(paths.run(split, name))
    scored = Evaluation.of(run, "hotpotqa", catalogue.questions("wikihop", split))
    return leakage(scored, Stores(catalogue))


def test_leakage_on_seen_questions(leaky):
    found = counted(leaky, "train", "log_kv")
    assert (found.count, found.logs, found.own_possible, found.own_entered) == (6, 6, 6, 2)
    assert (found.duplicates, found.shared) == (0, 0)


def test_leakage_with_own_logs_excluded(leaky):
    found = counted(leaky, "train", "log_kv_exclude-self")
    assert (found.own_possible, found.own_entered) == (0, 0)


def test_leakage_on_unseen_questions_counts_duplicates_and_shared_parts(leaky):
    found = counted(leaky, "test", "log_kv")
    assert (found.own_possible, found.own_entered) == (0, 0)
    assert (found.duplicates, found.shared) == (1, 1)
    assert "changed" in found.note


def test_a_mode_without_logs_has_no_leakage(leaky):
    assert counted(leaky, "train", "base") is None
