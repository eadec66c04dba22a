"""Differences, their intervals and their tests, against slower ways to the same numbers."""

import itertools
import math
import random

import evaldata
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweeps import sweep

from lag.evaluation.compare import (
    compare,
    difference,
    estimates,
    find_baseline,
    named_baseline,
)
from lag.evaluation.find_runs import Run, read_folder
from lag.evaluation.gold import Catalogue
from lag.evaluation.intervals import (
    CHANGE,
    NO_SPREAD,
    ONE_CLUSTER,
    ONE_SIDED,
    SHARE,
    Resampler,
    Sampling,
    components,
    sign_flip_p,
)
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


@sweep(60)
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
    found = Resampler(asked, seed=5, samples=300).estimate(values).interval

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
    single = Resampler(questions(40, lambda n: (f"part {n}",)), 1).estimate(values).interval
    tripled = questions(120, lambda n: (f"part {n // 3}",))
    assert Resampler(tripled, 1).estimate(np.repeat(values, 3)).interval == single
    alone = Resampler(questions(120), 1).estimate(np.repeat(values, 3)).interval
    assert alone.high - alone.low < 0.7 * (single.high - single.low)


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    asked, covered = questions(150), 0
    for seed in range(200):
        values = rng.binomial(1, 0.3, 150).astype(float)
        found = Resampler(asked, seed).estimate(values).interval
        covered += found.low <= 0.3 <= found.high
    assert 180 <= covered <= 200


def test_interval_is_the_same_each_time_and_another_with_another_seed():
    asked, values = questions(50), np.arange(50.0)
    first, again, other = (Resampler(asked, seed).estimate(values).interval for seed in (1, 1, 2))
    assert first == again != other


# --- where all clusters agree, and where one decides --------------------------------------------


def clopper_pearson(hits, n, level=0.95):
    """Both bounds by bisection of the binomial tails, as Clopper and Pearson define them."""

    tail = (1 - level) / 2

    def chance(counts, p):
        return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in counts)

    def turn(below):
        """Where a condition that holds at 0 ceases to."""
        low, high = 0.0, 1.0
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if below(middle) else (low, middle)
        return low

    lower = turn(lambda p: chance(range(hits, n + 1), p) < tail) if hits else 0.0
    upper = turn(lambda p: chance(range(hits + 1), p) > tail) if hits < n else 1.0
    return lower, upper


@pytest.mark.parametrize("clusters", [2, 6, 37, 500])
@pytest.mark.parametrize("right", [0, 1])
def test_a_score_that_all_clusters_share_has_the_interval_of_clopper_and_pearson(clusters, right):
    """The defect: 0 of 6 showed no interval, and 37 clusters that agree were called one."""
    asked = questions(2 * clusters, lambda n: (f"part {n // 2}",))
    found = Resampler(asked, 1).estimate(np.full(2 * clusters, float(right)), SHARE)
    exact = clopper_pearson(right * clusters, clusters)
    assert (found.interval.low, found.interval.high) == pytest.approx(exact, abs=1e-12)
    assert found.value == right and f"exact interval over {clusters} clusters" in found.notes[0]


def test_the_exact_interval_is_over_clusters_and_not_over_questions():
    one = Resampler(questions(6), 1).estimate(np.zeros(6), SHARE).interval
    pairs = questions(12, lambda n: (f"part {n // 2}",))
    assert Resampler(pairs, 1).estimate(np.zeros(12), SHARE).interval == one
    assert one.high == pytest.approx(0.4593, abs=1e-4)  # none of 6


def test_the_exact_interval_holds_as_often_as_it_says():
    """Clusters that differ in 5 of 100: where none of 30 shows it, the bound must still cover it."""
    rng = np.random.default_rng(11)
    asked, held = questions(30), 0
    for _ in range(400):
        values = np.where(rng.random(30) < 0.05, -1.0, 0.0)
        if values.any():
            held += 1
            continue
        bounds = Resampler(asked, 1, 100).estimate(values, CHANGE).interval
        held += bounds.low <= -0.05 <= bounds.high
    assert held / 400 >= 0.95


def test_a_difference_that_all_clusters_share_is_bounded_by_its_scale():
    u = 1 - 0.025 ** (1 / 20)
    for value, low, high in ((0.0, -u, u), (1.0, 1 - 2 * u, 1.0), (-1.0, -1.0, 2 * u - 1)):
        found = difference(np.full(20, value), Resampler(questions(20), 1))
        assert (found.interval.low, found.interval.high) == pytest.approx((low, high))


def test_steps_that_all_clusters_share_have_no_scale_and_so_no_interval():
    """The defect: 37 clusters of one step less each, told as "[one cluster]"."""
    found = difference(np.full(37, -1.0), Resampler(questions(37), 1), scale=None)
    assert (found.value, found.interval, found.notes) == (-1, None, (NO_SPREAD,))


def test_clusters_that_agree_though_their_questions_do_not_have_no_interval_of_width_zero():
    asked = questions(20, lambda n: (f"part {n // 2}",))
    found = Resampler(asked, 1).estimate(np.array([0.0, 1.0] * 10), SHARE)
    assert found.value == 0.5 and found.interval.high - found.interval.low > 0.2


def test_clusters_without_a_counted_question_do_not_count_as_agreeing():
    values, counted = np.zeros(20), np.arange(20) < 5
    found = Resampler(questions(20), 1).estimate(values, SHARE, counted)
    assert found.interval.high == pytest.approx(1 - 0.025 ** (1 / 5))
    alone = Resampler(questions(20), 1).estimate(values, SHARE, np.arange(20) < 1)
    assert (alone.interval, alone.notes) == (None, (ONE_CLUSTER,))


@pytest.mark.parametrize(("large", "withheld"), [(10, True), (9, False)])
def test_a_mean_that_one_cluster_decides_has_no_interval(large, withheld):
    """The defect: half the questions in one cluster, and an interval as if they were many."""
    asked = questions(30, lambda n: ("shared",) if n < large else ())
    run = evaluation("x", asked, ["gold"] * 15 + ["bad"] * 15)
    base = evaluation("base", asked, ["bad"] * 12 + ["gold"] * 6 + ["bad"] * 12)
    for one in estimates(run, Sampling(1)).values():
        assert one.value == 0.5 and (one.interval is None) == withheld
        assert one.notes == (
            ("withheld: 33 % of the questions are one cluster",) if withheld else ()
        )
    told = compare(run, base, Sampling(1)).differences["em"]
    assert told.interval and any("too narrow" in note for note in told.notes) == withheld


# --- the permutation test -----------------------------------------------------------------------


def mcnemar(gained, lost):
    """The exact McNemar test: the binomial sign test, which takes questions as independent."""
    n, few = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n)


@pytest.mark.parametrize(("gained", "lost"), itertools.product(range(7), range(7)))
def test_with_clusters_of_one_question_it_is_the_exact_mcnemar_test(gained, lost):
    n = gained + lost
    far = abs(gained - n / 2)
    ways = sum(math.comb(n, k) for k in range(n + 1) if abs(k - n / 2) >= far)
    found = sign_flip_p([1] * gained + [-1] * lost)
    assert found == pytest.approx(ways / 2**n) == pytest.approx(mcnemar(gained, lost))


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(10, 2, 0.03857), (1500, 1400, 0.06602), (0, 0, 1), (2000, 0, 0)]
)
def test_known_p_values(gained, lost, p):
    assert sign_flip_p([1] * gained + [-1] * lost) == pytest.approx(p, rel=1e-3)


@sweep(80)
@given(st.lists(st.integers(-6, 6), max_size=9))
def test_it_counts_every_way_to_flip(changes):
    sums = [sum(s * c for s, c in zip(signs, changes)) for signs in
            itertools.product((1, -1), repeat=len(changes))]  # fmt: skip
    wanted = sum(abs(one) >= abs(sum(changes)) for one in sums) / len(sums)
    assert sign_flip_p(changes) == pytest.approx(wanted)


def test_clusters_that_fall_together_are_not_called_significant():
    """The defect: McNemar's p of 0.002 where one cluster of ten questions changed."""
    asked = questions(40, lambda n: ("shared",) if n < 10 else ())
    found = compare(
        evaluation("x", asked, ["gold"] * 40),
        evaluation("base", asked, ["bad"] * 10 + ["gold"] * 30),
        Sampling(1),
    )
    assert (found.gained, found.lost, found.p) == (10, 0, 1.0)
    assert mcnemar(10, 0) < 0.01


def test_it_errs_about_as_often_as_it_says_where_clusters_fall_together():
    """No true difference; questions of a cluster gain or lose together, clusters differ in size."""
    rng = np.random.default_rng(5)
    wrong = {"clusters": 0, "questions": 0}
    for _ in range(2000):
        sizes = rng.integers(1, 9, 40)
        changes = sizes * rng.choice([-1, 0, 1], 40, p=[0.3, 0.4, 0.3])
        wrong["clusters"] += sign_flip_p(changes.tolist()) <= 0.05
        gained, lost = int(changes[changes > 0].sum()), int(-changes[changes < 0].sum())
        wrong["questions"] += mcnemar(gained, lost) <= 0.05
    assert 0.035 < wrong["clusters"] / 2000 < 0.06
    assert wrong["questions"] / 2000 > 0.3


def test_it_finds_a_difference_that_is_there():
    rng = np.random.default_rng(6)
    found = [
        sign_flip_p(rng.choice([-1, 0, 3], 40, p=[0.2, 0.4, 0.4]).tolist()) for _ in range(200)
    ]
    assert sum(p <= 0.05 for p in found) > 190


# --- changes one way ----------------------------------------------------------------------------


def test_a_bound_of_zero_from_changes_one_way_is_told():
    """The defect: +1 -0 of 30 reads [+0.0, ..], as if no harm were possible."""
    one_way = np.zeros(30)
    one_way[3] = 1.0
    found = difference(one_way, Resampler(questions(30), 1))
    assert found.interval.low == 0 and ONE_SIDED in found.notes
    losing = difference(-one_way, Resampler(questions(30), 1))
    assert losing.interval.high == 0 and ONE_SIDED in losing.notes


def test_a_bound_of_zero_is_told_where_no_cluster_lost_though_questions_did():
    values = np.array([1.0, 0.0] * 5 + [1.0, -1.0] * 10)
    found = difference(values, Resampler(questions(30, lambda n: (f"part {n // 2}",)), 1))
    assert (found.interval.low == 0) == (ONE_SIDED in found.notes)
    few = difference(values[8:], Resampler(questions(22, lambda n: (f"part {n // 2}",)), 1))
    assert few.interval.low == 0 and ONE_SIDED in few.notes


@pytest.mark.parametrize("gained", [range(15), range(4)])
def test_other_bounds_are_not_marked(gained):
    """Enough changes one way keep the bound above 0; changes both ways show what they show."""
    values = np.zeros(30)
    values[list(gained)] = 1.0
    if len(gained) < 15:
        values[20] = -1.0
    assert ONE_SIDED not in difference(values, Resampler(questions(30), 1)).notes


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
    u = 1 - 0.025 ** (1 / 20)
    bounds = found.differences["em"].interval
    assert (bounds.low, bounds.high) == pytest.approx((-u, u))
    assert found.differences["steps"].interval is None
    assert found.p == 1.0 and found.flips == {}


def test_questions_in_one_cluster_get_no_interval():
    asked = questions(6, lambda n: ("shared by all",))
    run, base = evaluation("x", asked, ["gold"] * 6), evaluation("base", asked, ["bad"] * 6)
    found = compare(run, base, Sampling(1))
    assert (found.clusters, found.largest) == (1, 6)
    assert found.differences["em"].value == 1 and found.differences["em"].interval is None
    assert found.differences["em"].notes == (ONE_CLUSTER,)
    assert estimates(run, Sampling(1))["em"].notes == (ONE_CLUSTER,)


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
    found = resampler.estimate(values, counted=counted).interval
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
