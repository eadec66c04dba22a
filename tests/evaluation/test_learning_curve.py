"""Learning curves against sums made by hand from the rows and from the order in the store."""

import json
import shutil
from statistics import fmean

import pytest
import small
from scripted import ScriptedLLM

import agentic
import evaluate
from lag.evaluation.find_runs import Skipping, runs_of_dataset
from lag.evaluation.gold import Catalogue
from lag.evaluation.intervals import Sampling
from lag.evaluation.learning_curve import (
    Asked,
    Stream,
    band,
    break_even,
    curve_rows,
    label_of,
    streams,
    summaries,
)
from lag.evaluation.results import Evaluator
from lag.evaluation.scores import outcome_of
from lag.files import write_json
from lag.logs.versions import LogVersions
from lag.paths import Paths
from lag.records import Question, Step, Trace

ORDERS = "1,2,3,4,5"
PEOPLE = {name: n for n, name in enumerate(small.NAMES)}


def helped(prompt):
    """As `stepwise`; with three logs or more the third kind of question is answered at once."""
    if len(prompt.notes) >= 3 and "does" in prompt.user:
        for name, n in PEOPLE.items():
            if f"does {name} live" in prompt.user and n % 4 != 3:
                return f"<ans>{small.CITIES[n % 3]}</ans>"
    return small.stepwise(prompt)


@pytest.fixture(scope="module")
def data(small_root, embedder_folder, tmp_path_factory):
    """Base and five orders of a stream through both splits."""
    root = shutil.copytree(small_root, tmp_path_factory.mktemp("curve") / "data")
    words = (
        f"-d wikihop --data {root} --embedder {embedder_folder} --max-steps 2 --split train,test"
    )
    words += f" -m base,log_text --grow --grow-every 4 --order-seed {ORDERS}"
    assert agentic.main(words.split(), ScriptedLLM(helped)) == 0
    return root


@pytest.fixture
def results(data):
    return read(data)


def read(data):
    evaluator = Evaluator(Catalogue(data), Sampling(1, 100))
    return evaluator.results(runs_of_dataset(Paths(data, "wikihop"), "", Skipping()))


def rows_of(data, name):
    paths = Paths(data, "wikihop")
    rows = {}
    for split in ("train", "test"):
        for line in paths.part(split, name, 0).read_text().splitlines():
            row = json.loads(line)
            rows[row["id"]] = row
    return rows


def right(row):
    return float(row["pred"] == row["gold_answer"][0])


def order_of(data, order):
    store = LogVersions(Paths(data, "wikihop").grown(f"log_text_s2_grow4_o{order}"))
    return [id for version in store.versions for id in version.asked]


def test_windows_are_means_of_the_rows_in_the_order_of_the_store(data, results):
    rows = curve_rows(streams(results, data), window=5)
    base = rows_of(data, "base_s2")
    for span, first in (
        ("window", lambda end: max(end - 5, 0) if end < 16 else 15),
        ("all", lambda end: 0),
    ):
        for end in (5, 10, 15, 16):
            own, plain = [], []
            for order in ORDERS.split(","):
                ids = order_of(data, order)[first(end) : end]
                grown = rows_of(data, f"log_text_s2_grow4_o{order}")
                own.append(fmean(right(grown[id]) for id in ids))
                plain.append(fmean(right(base[id]) for id in ids))
            (found,) = [
                row for row in rows
                if (row["run"], row["span"], row["seen"], row["metric"]) == ("log_text_s2_grow4", span, end, "em")
            ]  # fmt: skip
            changes = [a - b for a, b in zip(own, plain)]
            assert found["value"] == pytest.approx(fmean(own)) and found["orders"] == 5
            assert found["change"] == pytest.approx(fmean(changes))
            assert found["change low"] <= found["change"] <= found["change high"]
    assert any(row["change"] for row in rows if row["metric"] == "em" and row["span"] == "window")


def test_a_run_without_logs_is_asked_once_and_stands_in_every_order(data, results):
    found = streams(results, data)
    plain = [stream for stream in found if stream.plain]
    assert [stream.order[0] for stream in plain] == ORDERS.split(",")
    assert {stream.label for stream in plain} == {"base_s2"}
    ids = [[asked.outcome.question.id for asked in stream.asked] for stream in plain]
    assert ids == [order_of(data, order) for order in ORDERS.split(",")]


def test_logs_are_those_that_could_be_retrieved(data, results):
    stream = next(s for s in streams(results, data) if not s.plain)
    assert [asked.logs for asked in stream.asked] == [0] * 4 + [4] * 4 + [8] * 2 + [10] * 4 + [
        14
    ] * 2


def test_a_band_needs_five_orders():
    found = band([0.1, 0.2, 0.3, 0.4, 0.5])
    half = 2.776 * 0.15811388 / 5**0.5
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3 - half, 0.3 + half))
    assert band([0.1, 0.2, 0.3, 0.4]).low is None
    many = [n / 99 for n in range(100)]
    assert band(many).high - band(many).value == pytest.approx(2.086 * 0.29304 / 10, rel=1e-3)


def made(seconds, writing=0.0, right=True):
    question = Question("q", "q", ("x",))
    trace = Trace("q", "q", pred="x" if right else "y", gold_answer=("x",))
    trace.steps = [Step("q", "answer", reply="r", prompt_tokens=10, seconds={"decode": seconds})]
    return Asked(outcome_of("musique", question, trace), 0, writing)


def stream(label, *asked, order="1", plain=False):
    return Stream(label, (order, tuple(("train", str(n)) for n in range(len(asked)))), asked, plain)


def test_the_break_even_question():
    plain = stream("base", *[made(1.0)] * 6, plain=True)
    slow_then_fast = stream("kv", made(2.0), made(1.5), made(0.5), made(0.5), made(0.5), made(0.5))
    assert break_even(slow_then_fast, plain) == 5
    writes = stream("kv", *[made(0.5, writing=0.4)] * 5, made(0.5, writing=9))
    assert break_even(writes, plain) is None, "paid for itself, and then no more"
    assert break_even(stream("kv", *[made(1.0)] * 6), plain) == 1
    row = next(r for r in summaries([plain, slow_then_fast]) if r["run"] == "kv")
    assert row["break_even"] == [5] and row["note"] == "1 order: a band needs 5"
    assert row["seconds"] == pytest.approx(5.5 / 6)
    alone = summaries([slow_then_fast])
    assert "no run without logs" in alone[0]["note"] and alone[0]["break_even"] == []


def test_writing_is_counted(data, results):
    """The seconds of a version are shared by the questions that it was made of."""
    rows = summaries(streams(results, data))
    plain, grown = (next(r for r in rows if r["run"].startswith(n)) for n in ("base", "log_text"))
    store = [
        sum(v.seconds.values())
        for order in ORDERS.split(",")
        for v in LogVersions(Paths(data, "wikihop").grown(f"log_text_s2_grow4_o{order}")).versions[
            1:
        ]
    ]
    assert plain["writing"] == 0 and grown["writing"] == pytest.approx(sum(store) / 80)
    assert grown["whole"] == pytest.approx(grown["seconds"] + grown["writing"])


def test_runs_that_begin_later_are_one_stream_with_the_baseline_before(
    data, tmp_path, embedder_folder
):
    """Weights that are trained every N questions: each run answers what comes after its training."""
    root = shutil.copytree(data, tmp_path / "data")
    order = order_of(root, 2)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_json(adapter / "lag.json", {"result": {"seconds": 12.0}})
    train = {f"w{n}" for n in range(10)}
    for first, last in ((4, 8), (8, 16)):
        for split, known in (("train", train), ("test", set(order) - train)):
            ids = [id for id in order[first:last] if id in known]
            if not ids:
                continue
            words = f"-d wikihop --data {root} --embedder {embedder_folder} --max-steps 2 -m base"
            words += f" --split {split} --ids {','.join(ids)} --run weights_o2_from{first}"
            agentic.main(words.split(), ScriptedLLM(small.stepwise))
            manifest = Paths(root, "wikihop").manifest(split, f"weights_o2_from{first}")
            known_facts = json.loads(manifest.read_text())
            known_facts["provenance"]["flags"]["adapter"] = str(adapter)
            write_json(manifest, known_facts)
    (found,) = [s for s in streams(read(root), root) if s.label == "weights"]
    assert found.order[0] == "2" and found.borrowed == 4
    assert [asked.outcome.question.id for asked in found.asked] == order
    assert sum(asked.writing for asked in found.asked) == pytest.approx(24.0)
    row = next(r for r in summaries(streams(read(root), root)) if r["run"] == "weights")
    assert "the baseline answers the first 4 questions" in row["note"]
    for split in ("train", "test"):  # a name longer than theirs, as with an adapter
        folder = Paths(root, "wikihop").run(split, "base_s2")
        folder.rename(folder.with_name("base_s2_adapter-0123abcd"))
    again = {stream.label: stream for stream in streams(read(root), root)}
    assert again["base_s2_adapter-0123abcd"].plain and again["weights"].borrowed == 4


def test_names():
    assert label_of("log_kv_grow16_o12_exclude-self") == "log_kv_grow16_exclude-self"
    assert label_of("weights_o1_from100") == "weights" and label_of("log_only") == "log_only"


def test_the_command_writes_table_numbers_and_drawing(data, tmp_path, capsys):
    words = ["-d", "wikihop", "--data", str(data), "--outdir", str(tmp_path), "--curve"]
    report = tmp_path / "report.html"
    assert evaluate.main([*words, "--report", str(report), "--bootstrap-samples", "100"]) == 0
    said = capsys.readouterr().out
    summary = json.loads(said.splitlines()[-1])
    assert [path.rpartition("/")[2] for path in summary["curves"]] == [
        "wikihop_curve.csv",
        "wikihop_curve.png",
    ]
    assert "break-even question" in said and "log_text_s2_grow4 " in said
    lines = (tmp_path / "wikihop_curve.csv").read_text().splitlines()
    assert lines[0].startswith("run,span,seen,logs,metric,orders,value,low,high,change")
    assert (tmp_path / "wikihop_curve.png").read_bytes()[:4] == b"\x89PNG"
    page = report.read_text()
    assert 'id="curves"' in page and "Learning curves: wikihop" in page


def test_without_a_store_that_grew_there_is_no_curve(small_data, tmp_path, embedder_folder):
    words = f"-d wikihop --data {small_data} --embedder {embedder_folder} -m base"
    agentic.main(words.split(), ScriptedLLM(small.stepwise))
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="none of these runs grew a store"):
        evaluate.main(["-d", "wikihop", "--data", str(small_data), "--curve", "--outdir", str(out)])
    assert not out.exists()
