"""The report in a real browser, and what stands in the file."""

import base64
import csv
import gzip
import json
import random
import re
from dataclasses import replace

import evaldata
import pytest
from browser import CONTRAST

import evaluate
from lag.files import write_json
from lag.paths import Paths
from lag.records import UsedLog
from lag.tasks import TASKS, read_questions

HOSTILE = '</script><img src=x onerror="document.title=1"> {{title}} & "quotes" \u202e \u2028 ☃'
LAPTOP, PHONE = (1366, 800), (390, 844)


def questions(paths, split="test"):
    return read_questions(paths, TASKS[paths.dataset], split)


def steps_with(question, reply, logs=()):
    used = tuple(UsedLog(id, 0.8 - 0.1 * n, ("kv", "encoded")[n % 2]) for n, id in enumerate(logs))
    first = evaldata.step(
        "<keywords>home</keywords>", question.text, "search", docs=("d1", "d2"), logs=used
    )
    return [first, evaldata.step(reply, "home", docs=("d1", "d2", "d3"), logs=used, kv_bytes=4096)]


def write_runs(paths):
    """base and log_kv on 24 test questions; states go round, so that every flip occurs."""
    asked = questions(paths)
    logged = [q.id for q in questions(paths, "train")]
    for name, period, logs in (("base", 3, []), ("log_kv", 4, logged[:2])):
        rows = []
        for n, question in enumerate(asked):
            pred = [question.answers[0], HOSTILE, ""][n % period % 3]
            steps = steps_with(question, f"Reply {n} of {name}. {HOSTILE}", logs)
            row = evaldata.traced(question, pred, steps)
            rows.append(evaldata.failed(question) if n == 5 and logs else row)
        evaldata.write_run(paths, "test", name, rows[: -1 if logs else None])
    train = [evaldata.traced(q, "x") for q in questions(paths, "train")]
    evaldata.write_run(paths, "train", "base", train)
    paths.log_store.write_bytes(paths.merged("train", "base").read_bytes())


def make_report(paths, *flags):
    path = paths.root / "report.html"
    given = ["-d", paths.dataset, "--data", str(paths.root), "--report", str(path)]
    assert evaluate.main([*given, "--outdir", str(paths.root / "out"), *flags]) == 0
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    paths = Paths(tmp_path_factory.mktemp("data"), "wikihop")
    rows = evaldata.qa_rows(30)
    rows[8]["question"] = HOSTILE
    evaldata.write_dataset(paths, rows, 6, documents=30)
    write_runs(paths)
    return paths


@pytest.fixture(scope="module")
def report(paths):
    return make_report(paths)


@pytest.fixture
def opened(page, report):
    page.look(*LAPTOP)
    page.open(report, "#split=1")
    yield page
    assert page.console() == []


def results(paths, name):
    (path,) = (paths.root / "out").glob(f"wikihop_test_{name}_*.json")
    return json.loads(path.read_text())


def count(page):
    return page.run("return document.getElementById('count').textContent")


def listed(page):
    return page.run("return [...document.querySelectorAll('#list button')].map(b => b.dataset.id)")


def choose(page, id):
    page.run(
        "[...document.querySelectorAll('#list button')].find(b => b.dataset.id === arguments[0]).click()",
        id,
    )
    page.wait("return document.querySelector('#detail dl')?.textContent.includes(arguments[0])", id)


# --- what is shown ------------------------------------------------------------------------------


def test_tables_show_the_results_that_the_json_holds(opened, paths):
    for name in ("base", "log_kv"):
        metrics = results(paths, name)["metrics"]
        cells = opened.run(
            "const row = [...document.querySelectorAll('#part-1 tbody tr')]"
            ".find(r => r.cells[0].textContent === arguments[0]);"
            "return [...row.cells].map(c => c.firstChild.textContent.trim())",
            name,
        )
        wanted = [
            f"{100 * metrics[m]:.1f}" for m in ("em", "f1", "precision", "recall", "cover_em")
        ]
        states = [str(metrics[state]) for state in ("count", "answered")]
        states += [f"{100 * metrics['answer_rate']:.1f}"]
        states += [str(metrics[state]) for state in ("unanswered", "errors", "missing")]
        assert cells == [name, *wanted, *states]


def test_figures_are_drawings_inside_the_page(opened):
    shown = opened.run(
        "return [...document.querySelectorAll('#part-1 .figures svg')]"
        ".map(s => [s.getAttribute('aria-label'), s.getBoundingClientRect().width, s.innerHTML.length])"
    )
    assert [label for label, _, _ in shown] == [
        "Exact match over the number of steps allowed",
        "Exact match over calls and tokens per question",
        "Questions gained and lost against the baseline",
    ]
    assert all(width > 250 and size > 2000 for _, width, size in shown)
    ids = opened.run("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_the_file_asks_for_nothing_from_outside(report):
    text = report.read_text()
    assert re.findall(r'(?:src|href|action)="(?!#)[^"]*"', text) == []
    assert "default-src 'none'" in text and "@import" not in text and "url(http" not in text


# --- filters ------------------------------------------------------------------------------------


def test_the_list_begins_with_all_questions_of_the_linked_split(opened):
    assert count(opened) == "24 of 24 questions"
    assert listed(opened)[:2] == ["q6", "q7"]


@pytest.mark.parametrize("state", ["right", "wrong", "unanswered"])
def test_filter_by_status(opened, paths, state):
    opened.choose("state", state)
    rows = results(paths, "base")["questions"]
    assert listed(opened) == [id for id, row in rows.items() if row["state"] == state]


def test_filter_by_run_and_status(opened, paths):
    opened.choose("left", "log_kv")
    for state in ("error", "missing"):
        opened.choose("state", state)
        rows = results(paths, "log_kv")["questions"]
        assert listed(opened) == [id for id, row in rows.items() if row["state"] == state]


def test_filter_by_every_flip(opened, paths):
    flips = results(paths, "log_kv")["comparison"]["flips"]
    assert {"wrong > right", "right > wrong", "unanswered > right", "unanswered > missing"} <= set(
        flips
    )
    for flip, ids in flips.items():
        opened.choose("flip", flip)
        assert sorted(listed(opened)) == ids
    opened.choose("flip", "*")
    assert sorted(listed(opened)) == sorted(id for ids in flips.values() for id in ids)


def test_filter_by_group_and_text(opened, paths):
    opened.choose("group", "type=comparison")
    ids = [q.id for q in questions(paths) if q.groups["type"] == "comparison"]
    assert listed(opened) == ids
    opened.choose("group", "logs that entered=2")
    assert count(opened) == "22 of 24 questions"  # one failed before, one is missing
    opened.choose("group", "")
    opened.choose("search", "Q13")
    assert listed(opened) == ["q13"]
    opened.choose("search", "nothing like it")
    assert count(opened) == "0 of 24 questions"


def searched(page, text):
    """What a search finds once the replies are open."""
    page.choose("search", text)
    page.wait("return document.getElementById('found').ariaBusy === 'false'")
    return listed(page)


def test_replies_are_searched_too_and_what_was_found_is_marked(opened):
    assert searched(opened, '"reply 4 of log_kv"') == ["q10"]
    opened.choose("right", "-")  # base alone said no such thing
    assert searched(opened, '"reply 4 of log_kv"') == []
    opened.choose("left", "log_kv")
    assert searched(opened, "Q10 LOG_KV") == ["q10"], "one word in the id, one in a reply"
    choose(opened, "q10")
    marks = "return [...document.querySelectorAll('#detail mark')].map(e => e.textContent)"
    assert set(opened.run(marks)) == {"log_kv"}
    assert searched(opened, "(.*") == [], "a search is words, not a pattern"
    opened.choose("search", "")
    assert opened.run(marks) == [] and count(opened) == "24 of 24 questions"


def test_a_search_in_an_address_covers_replies(opened, report):
    opened.open(report, "#split=1&left=base&right=-&search=%22Reply+7+of%22")
    opened.wait("return document.querySelectorAll('#list button').length === 1")
    assert listed(opened) == ["q13"]


def test_a_number_in_the_table_of_flips_opens_its_questions(opened, paths):
    ids = results(paths, "log_kv")["comparison"]["flips"]["wrong > right"]
    opened.run("document.querySelector(\"a[href*='flip=wrong+%3E+right']\").click()")
    opened.wait("return document.getElementById('flip').value === 'wrong > right'")
    opened.wait(
        "return document.querySelectorAll('#list button').length === arguments[0]", len(ids)
    )
    assert sorted(listed(opened)) == ids


def test_an_address_brings_back_what_was_chosen(opened, report):
    opened.choose("left", "log_kv")
    opened.choose("right", "-")
    opened.choose("search", "q1")
    choose(opened, "q10")
    opened.open(report, opened.run("return location.hash"))
    assert opened.run("return document.getElementById('left').value") == "log_kv"
    assert opened.run("return document.getElementById('right').value") == "-"
    assert len(listed(opened)) == 10
    opened.wait("return document.querySelectorAll('.side').length === 1")


# --- one question -------------------------------------------------------------------------------


def test_two_runs_stand_side_by_side_with_all_their_steps(opened):
    choose(opened, "q10")
    sides = opened.run(
        "return [...document.querySelectorAll('.side')].map(s =>"
        "[s.dataset.run, s.querySelectorAll('.step').length, s.getBoundingClientRect().top])"
    )
    assert [side[:2] for side in sides] == [["base", 2], ["log_kv", 2]]
    assert sides[0][2] == sides[1][2]
    text = opened.run("return document.querySelector('.side:nth-child(2)').innerText")
    for part in ("Reply 4 of log_kv.", "similarity 0.800, KV from the store", "100 prompt tokens",
                 "similarity 0.700, KV encoded on the spot", "20 of them cached", "4 KB of KV"):  # fmt: skip
        assert part in text


def test_documents_and_logs_open_with_their_texts(opened, paths):
    choose(opened, "q10")
    opened.run(
        "document.querySelectorAll('.side:nth-child(2) .items details').forEach(d => d.open = true)"
    )
    opened.wait(
        "return [...document.querySelectorAll('.side:nth-child(2) .items details')]"
        ".every(d => d.querySelector('.text-block'))"
    )
    docs, logs = (
        opened.run(f"return document.querySelector('.side:nth-child(2) .{kind}').innerText")
        for kind in ("docs", "logs")
    )
    assert evaldata.document(1)["content"] in docs
    assert questions(paths, "train")[0].text in logs and "<ans>x</ans>" in logs


def test_new_documents_stand_out_and_old_ones_do_not(opened):
    choose(opened, "q10")
    fresh = opened.run(
        "return [...document.querySelectorAll('.side:first-child .step')]"
        ".map(s => s.querySelectorAll('.docs .fresh').length + '/' + s.querySelectorAll('.docs li').length)"
    )
    assert fresh == ["2/2", "1/3"]


def test_a_failure_shows_its_error(opened):
    opened.choose("left", "log_kv")
    opened.choose("state", "error")
    choose(opened, "q11")
    assert "OutOfMemoryError: no room" in opened.run(
        "return document.querySelector('.failure').textContent"
    )


def test_texts_are_texts_whatever_they_contain(opened, report):
    title = opened.run("return document.title")
    choose(opened, "q8")
    shown = opened.run("return document.querySelector('#detail .question').textContent")
    assert shown == HOSTILE
    assert HOSTILE in opened.run("return document.querySelector('.side').textContent")
    assert opened.run("return [document.title, document.images.length]") == [title, 0]


# --- looks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_it_looks_right_on_a_laptop_and_on_a_phone(opened, scheme, size):
    opened.look(*size, scheme)
    opened.choose("search", "")
    choose(opened, "q10")
    width = opened.run("return [document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1], "the page scrolls sideways"
    assert opened.run(CONTRAST) == []
    ground = opened.run("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert brightness < 60 if scheme == "dark" else brightness > 200
    small = opened.run(
        "return [...document.querySelectorAll('#traces select, #traces input, #list button')]"
        ".filter(e => e.checkVisibility() && e.getBoundingClientRect().height < 30).length"
    )
    assert small == 0, "a control is too small for a finger"


def test_a_phone_shows_the_list_or_the_question(opened):
    opened.look(*PHONE)
    opened.choose("search", "")
    visible = "return ['found', 'detail'].map(id => document.getElementById(id).checkVisibility())"
    assert opened.run(visible) == [True, False]
    choose(opened, "q10")
    assert opened.run(visible) == [False, True]
    tops = opened.run(
        "return [...document.querySelectorAll('.side')].map(s => s.getBoundingClientRect().left)"
    )
    assert tops[0] == tops[1], "the two runs stand below each other"
    opened.run("document.getElementById('back').click()")
    assert opened.run(visible) == [True, False]


# --- the file -----------------------------------------------------------------------------------


def unpacked(report):
    """All pieces of a report by name."""
    found = re.findall(
        r'<script type="text/plain" id="piece-([\w-]+)">(.*?)</script>', report.read_text()
    )
    return {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in found}


def test_each_text_is_stored_once(report, paths):
    everything = json.dumps(unpacked(report), ensure_ascii=False)
    for once in (evaldata.document(1)["content"], "Reply 4 of log_kv.", "Reply 4 of base."):
        assert everything.count(once) == 1
    assert evaldata.document(20)["content"] not in everything, "a document that entered no prompt"


def noise(source, words):
    """Text that hardly compresses."""
    letters = base64.b32encode(source.randbytes(words * 4)).decode().lower()
    return " ".join(letters[n : n + 6] for n in range(0, 6 * words, 6))


COUNT = """
const parse = JSON.parse;
window.charactersRead = 0;
JSON.parse = (text) => { charactersRead += text.length; return parse(text); };
"""


def test_two_thousand_questions_open_at_once_and_stay_small(tmp_path, page):
    paths = Paths(tmp_path, "wikihop")
    evaldata.write_dataset(paths, evaldata.qa_rows(2010), 10, documents=60)
    rows = []
    for question in questions(paths):
        row = evaldata.lifelike(question, 0.5, ["q0", "q1"], 1)
        source = random.Random(question.id)
        row.steps = [
            replace(step, reply=f"{noise(source, 450)} {step.reply}") for step in row.steps
        ]
        rows.append(row)
    evaldata.write_run(paths, "test", "log_kv", rows, merged=False)
    report = make_report(paths)
    assert report.stat().st_size < 10_000_000
    text = report.read_text()
    assert re.search(r"texts longer than [\d,]+ characters are cut", text)
    page.look(*LAPTOP)
    page.devtools("Page.addScriptToEvaluateOnNewDocument", source=COUNT)
    page.open(report)
    assert len(listed(page)) == 60
    assert 0 < page.run("return charactersRead") < report.stat().st_size / 10
    assert count(page) == "2,000 of 2,000 questions"
    choose(page, "q12")
    assert "[cut; " in page.run("return document.querySelector('.step').innerText")
    word = rows[17].steps[0].reply.split()[0]
    assert searched(page, word) == [rows[17].id]
    assert page.run("return charactersRead") > report.stat().st_size
    assert page.console() == []


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """A made-up stand-in for a data set whose authors ask that its examples are not shown."""
    paths = Paths(tmp_path_factory.mktemp("gated"), "gpqa")
    rows = [
        {"id": f"g{n}", "question": f"SECRET question {n}", "answer": f"SECRET option {n} 0",
         "choices": [f"SECRET option {n} {k}" for k in range(4)], "category": "physics"}
        for n in range(8)
    ]  # fmt: skip
    evaldata.write_dataset(paths, rows, 2)
    traced = []
    for question in questions(paths):
        step = evaldata.step("SECRET reply <ans>B</ans>", question.text)
        traced.append(
            evaldata.traced(question, "SECRET option 9 9 (B)", [step], sheet="SECRET sheet")
        )
    traced[0].error = {"stage": "s", "type": "E", "message": "SECRET", "traceback": "SECRET"}
    evaldata.write_run(paths, "test", "base", traced)
    return paths


def test_texts_of_a_gated_data_set_are_withheld(gated, capsys):
    report = make_report(gated)
    assert "SECRET" not in report.read_text()
    assert "SECRET" not in json.dumps(unpacked(report))
    assert "SECRET" not in capsys.readouterr().out
    written = [path.read_text() for path in (gated.root / "out").glob("*.json")]
    assert len(written) == 1 and "SECRET" not in written[0]


def test_texts_of_a_gated_data_set_are_shown_when_asked_for(gated):
    everything = json.dumps(unpacked(make_report(gated, "--unredacted")))
    for text in ("SECRET question 3", "SECRET option 3 1", "SECRET reply", "SECRET sheet"):
        assert text in everything


def test_a_withheld_question_still_shows_letters_and_tokens(gated, page):
    page.look(*LAPTOP)
    page.open(make_report(gated))
    choose(page, "g4")
    text = page.run("return document.getElementById('detail').innerText")
    assert "Text withheld" in text and "Gold\nA" in text and "Answer\nB" in text
    assert "100 prompt tokens" in text
    assert page.console() == []


def test_figures_are_written_with_their_numbers(paths, tmp_path):
    make_report(paths, "--figures", str(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    kinds = [f"wikihop_test_{kind}" for kind in ("steps", "cost", "flips")]
    kinds += [f"wikihop_train_{kind}" for kind in ("steps", "cost")]  # one run: no flips
    assert names == {f"{kind}.{suffix}" for kind in kinds for suffix in ("png", "csv")}
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in tmp_path.glob("*.png"))
    with open(tmp_path / "wikihop_test_cost.csv", newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    found = results(paths, "log_kv")
    assert float(rows["log_kv"]["em"]) == found["metrics"]["em"]
    assert float(rows["log_kv"]["low"]) == found["intervals"]["em"]["low"]
    assert float(rows["log_kv"]["calls"]) == found["cost"]["calls"]
    with open(tmp_path / "wikihop_test_flips.csv", newline="") as file:
        flips = {
            f"{row['before']} > {row['after']}": int(row["count"]) for row in csv.DictReader(file)
        }
    assert flips == {flip: len(ids) for flip, ids in found["comparison"]["flips"].items()}


def test_the_report_is_the_same_each_time(paths, report):
    before = report.read_bytes()
    assert make_report(paths).read_bytes() == before


def test_a_run_without_a_data_set_has_a_report_too(tmp_path, page):
    row = {"pred": "x", "gold_answer": "x", "question": "Which?", "trace": []}
    path = tmp_path / "x.json"
    write_json(
        path, {"metadata": {"mode": "icl"}, "results": {"1": row, "2": {**row, "pred": "y"}}}
    )
    report = tmp_path / "r.html"
    flags = ["--preds", path, "--scorer", "kilt", "--report", report, "--outdir", tmp_path / "out"]
    assert evaluate.main(list(map(str, flags))) == 0
    page.open(report)
    assert count(page) == "2 of 2 questions"
    assert page.console() == []


def test_settings_that_differ_stand_in_the_report(tmp_path):
    """A control, or a gate, must not be told by its run's name alone."""
    paths = Paths(tmp_path, "wikihop")
    evaldata.write_dataset(paths, evaldata.qa_rows(12), 2)
    rows = [evaldata.traced(q, "x") for q in questions(paths)]
    known = {"num_logs": 3, "log_control": "none", "min_similarity": -1.0}
    evaldata.write_run(paths, "test", "base", rows)
    evaldata.write_run(paths, "test", "log_kv", rows, **known)
    told = known | {"log_control": "wrong-context", "min_similarity": 0.25}
    evaldata.write_run(paths, "test", "other", rows, mode="log_kv", **told)
    text = make_report(paths).read_text()
    table = text[text.index("Settings that differ") :].split("</table>")[0]
    cells = re.findall(r"<t[hd][^>]*>([^<]*)", table)
    assert cells[-12:] == ["run", "min similarity", "log control", "base", "–", "–", "log_kv", "-1.0",
                           "none", "other", "0.25", "wrong-context"]  # fmt: skip
