"""What a reader does with a report: sort its tables, go through it by keys, look at a prompt."""

import base64
import gzip
import json
import re

import evaldata
import pytest
from browser import CONTRAST

import evaluate
from lag import prompts
from lag.data.dataset_files import file_digest
from lag.evaluation.compare import Sampling
from lag.evaluation.find_runs import runs_of_files
from lag.evaluation.gold import Catalogue
from lag.evaluation.results import Evaluator
from lag.files import read_json, write_json
from lag.logs.store import LogStore
from lag.paths import Paths
from lag.records import UsedLog
from lag.report.page_data import bundle, packed
from lag.report.rebuild_prompts import RunPrompts
from lag.tasks import TASKS, read_questions

HOSTILE = '</script><img src=x onerror="document.title=1"> {{title}} & "quotes" \u202e \u2028 ☃\n\n'
LAPTOP, PHONE = (1366, 800), (390, 844)
LOGS = ("q0", "q1")
SOURCES = {"log_text": ("text", "text"), "log_kv": ("kv", "encoded")}
RUNS = {
    "base": {},
    "user": {"layout": "user", "mode": "log_text"},
    "log_kv": {"sink": 4, "recompute": 2, "layout": "system-first"},
}


def asked(paths, split="test"):
    return read_questions(paths, TASKS["wikihop"], split)


def rows_of(run, paths, mode):
    """Two steps for every question; what they cost differs from run to run."""
    sources = SOURCES.get(mode, ())
    used = tuple(UsedLog(id, 0.75, source) for id, source in zip(LOGS, sources))
    spent = {"reused_tokens": 7, "prompt_tokens": 1000 + 300 * len(run)}
    spent |= {"drafted_tokens": 6, "accepted_tokens": 4} if run == "log_kv" else {}
    rows = []
    for n, question in enumerate(asked(paths)):
        reply = f"Reply {n} of {run}. {HOSTILE}"
        steps = [
            evaldata.step(reply, question.text, "search", docs=("d1",), logs=used, **spent),
            evaldata.step("<ans>x</ans>", "home", docs=("d1", "d2"), logs=used, **spent),
        ]
        rows.append(evaldata.traced(question, question.answers[0] if n % len(run) else "x", steps))
    return rows


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Three runs on twelve questions, whose documents and logs hold what could break a page."""
    paths = Paths(tmp_path_factory.mktemp("data"), "wikihop")
    evaldata.write_dataset(paths, evaldata.qa_rows(18), 6, documents=20)
    documents = read_json(paths.docs)
    documents["d1"] = {"title": f"T {HOSTILE}", "content": HOSTILE * 3}
    write_json(paths.docs, documents)
    train = [evaldata.traced(q, f"x {HOSTILE}") for q in asked(paths, "train")]
    evaldata.write_run(paths, "train", "base", train)
    paths.log_store.write_bytes(paths.merged("train", "base").read_bytes())
    known = {
        "prompts": prompts.digest(),
        "documents": file_digest(paths.docs)[:16],
        "logs": LogStore.load(paths.log_store).digest,
    }
    for run, fields in RUNS.items():
        mode = fields.get("mode", run)
        evaldata.write_run(paths, "test", run, rows_of(run, paths, mode), **known | fields)
    return paths


def make_report(paths, path):
    given = ["-d", "wikihop", "--data", str(paths.root), "--split", "test", "--report", str(path)]
    assert evaluate.main([*given, "--outdir", str(path.parent / "out")]) == 0
    return path


@pytest.fixture(scope="module")
def report(paths, tmp_path_factory):
    return make_report(paths, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def opened(page, report):
    page.look(*LAPTOP)
    page.open(report, "#left=user&right=log_kv")
    yield page
    assert page.console() == []


# --- tables -------------------------------------------------------------------------------------

COSTS = (
    "[...document.querySelectorAll('#part-0 table')].find(t => t.textContent.includes('prefilled'))"
)


def column(page, number, table=COSTS):
    return page.run(
        f"return [...{table}.tBodies[0].rows].map(r => r.cells[arguments[0]].textContent)", number
    )


def heads(page, table=COSTS):
    return page.run(f"return [...{table}.tHead.rows[0].cells].map(c => c.ariaSort || '')")


def test_a_click_on_a_heading_sorts_and_says_so(opened):
    names = column(opened, 0)
    click = f"{COSTS}.tHead.rows[0].cells[3].querySelector('button').click()"
    tokens = [1000 + 300 * len(name) for name in names]
    by_size = sorted(names, key=lambda name: -tokens[names.index(name)])
    assert not any(heads(opened))
    for order, told in ((by_size, "descending"), (by_size[::-1], "ascending"), (names, "")):
        opened.run(click)
        found = column(opened, 0)
        assert [tokens[names.index(n)] for n in found] == [tokens[names.index(n)] for n in order]
        assert heads(opened)[3] == told and not any(heads(opened)[:3] + heads(opened)[4:])
    assert column(opened, 0) == names


def test_headings_sort_by_keys_and_names_by_their_letters(opened):
    opened.run(f"{COSTS}.tHead.rows[0].cells[0].querySelector('button').focus()")
    opened.press("Enter")
    assert column(opened, 0) == sorted(RUNS) and heads(opened)[0] == "descending"
    opened.press("Space")
    assert column(opened, 0) == sorted(RUNS, reverse=True)
    opened.press("Tab", "Enter")
    assert heads(opened)[:2] == ["", "descending"]


VALUES = ["3.1 MB", "900 B", "2 KB", "", "–", "1.5k", "+2", "-3", "−4", "<0.001", "0.002", "1,200"]
VALUES += ["50.0 [40.1, 60.2]", "no discordant pairs", "40.0<small> 1 to 99</small>", "12 %"]
DOWN = ["3.1 MB", "2 KB", "1.5k", "1,200", "900 B", "50.0 [40.1, 60.2]", "40.0 1 to 99", "12 %"]
DOWN += ["+2", "0.002", "<0.001", "-3", "−4"]


def test_numbers_sort_by_size_whatever_their_unit_and_what_is_none_comes_last(opened):
    """The script is run once more on a table of our own: what a cell says decides, not its text."""
    script = opened.run("return document.querySelector('body > script:not([type])').textContent")
    rows = "".join(f"<tr><th>r{n}</th><td>{value}</td></tr>" for n, value in enumerate(VALUES))
    rows += '<tr><th>z</th><td data-value="7e9">tiny</td></tr>'
    table = (
        f"<table id=own><thead><tr><th>a</th><th>b</th></tr></thead><tbody>{rows}</tbody></table>"
    )
    opened.run("document.querySelector('main').innerHTML = arguments[0]", table)
    opened.run("new Function(arguments[0])()", script[: script.index("// The browser of traces")])
    own = "document.getElementById('own')"
    missing = [value for value in VALUES if value in ("", "–", "no discordant pairs")]
    for order in (["tiny", *DOWN], [*DOWN[::-1], "tiny"]):
        opened.run(f"{own}.querySelectorAll('button')[1].click()")
        assert column(opened, 1, own) == order + missing


def test_every_table_and_figure_has_a_title_and_a_caption(opened):
    found = opened.run(
        "return [...document.querySelectorAll('main section:not(#traces) :is(table, svg[role])')]"
        ".map(e => [e.closest('figure')?.querySelector('figcaption')?.textContent || '',"
        " e.nodeName === 'TABLE' ? (e.closest('details')?.querySelector('summary')"
        " || e.closest('figure').querySelector('h3') || e.closest('figure').previousElementSibling)"
        ".textContent : e.querySelector('text').textContent])"
    )
    assert len(found) >= 10
    assert all(len(caption) > 20 and title for caption, title in found)


# --- keys ---------------------------------------------------------------------------------------

CHOSEN = "return document.querySelector('#list [aria-current=true]')?.dataset.id"
FOCUS = """
const e = document.activeElement, step = e.closest('.step'), side = e.closest('.side');
if (step) return side.dataset.run + ' ' + [...side.querySelectorAll('.step')].indexOf(step);
return e.dataset.id || e.id || e.nodeName;
"""


def settle(page, id):
    page.wait("return document.querySelector('#detail dl')?.textContent.includes(arguments[0])", id)


def test_keys_go_through_the_list_into_the_steps_and_back(opened):
    opened.press("j")
    assert opened.run(CHOSEN) == opened.run(FOCUS) == "q6"
    opened.press("j", "ArrowDown", "k", "ArrowUp", "ArrowUp")
    assert opened.run(CHOSEN) == opened.run(FOCUS) == "q6", "there is nothing before the first"
    opened.press("j")
    settle(opened, "q7")
    opened.press("Enter")
    opened.wait("return document.activeElement.matches('.step')")
    assert opened.run(FOCUS) == "user 0"
    for key, place in (("j", "user 1"), ("ArrowDown", "log_kv 0"), ("k", "user 1"),
                       ("ArrowRight", "log_kv 1"), ("ArrowLeft", "user 1"),
                       ("ArrowUp", "user 0"), ("k", "user 0")):  # fmt: skip
        opened.press(key)
        assert opened.run(FOCUS) == place, key
    opened.press("Escape")
    assert opened.run(FOCUS) == "q7"


def test_keys_in_form_fields_stay_theirs(opened):
    opened.run("document.getElementById('search').focus()")
    opened.press("j", "k")
    assert opened.run("return document.getElementById('search').value") == "jk"
    assert opened.run(CHOSEN) is None
    opened.run("document.getElementById('state').focus()")
    opened.press("ArrowDown", "j")
    assert opened.run(FOCUS) == "state" and opened.run(CHOSEN) is None


def test_arrows_scroll_the_page_until_the_list_has_the_focus(opened):
    opened.run("document.activeElement.blur()")
    opened.press("ArrowDown")
    assert opened.run(CHOSEN) is None and opened.run(FOCUS) == "BODY"
    opened.run("document.querySelector('#keys').open = true")
    text = opened.run("return document.getElementById('keys').innerText")
    for key in ("j", "k", "Enter", "Esc", "↓", "↑", "←", "→"):
        assert key in text


def test_on_a_phone_a_question_opens_on_enter_and_closes_on_escape(opened):
    opened.look(*PHONE)
    shown = "return document.getElementById('detail').checkVisibility()"
    opened.press("j", "j")
    assert opened.run(FOCUS) == "q7" and not opened.run(shown)
    opened.press("Enter")
    opened.wait("return document.activeElement.matches('.step')")
    assert opened.run(shown)
    opened.press("Escape")
    assert opened.run(FOCUS) == "q7" and not opened.run(shown)


# --- prompts ------------------------------------------------------------------------------------


def rebuilt(paths, run, id):
    (found,) = runs_of_files([paths.run("test", run)])
    made = RunPrompts(found, Evaluator(Catalogue(paths.root), Sampling(1, 100)))
    return [one.prompt for one in made.prompts_of(found.traces[id])]


def open_prompts(page, id):
    """Open all prompts of a question; per run and step what it shows, part by part."""
    page.press("j")
    page.run(
        "[...document.querySelectorAll('#list button')].find(b => b.dataset.id === arguments[0]).click()",
        id,
    )
    settle(page, id)
    page.run("document.querySelectorAll('.prompt').forEach(e => e.open = true)")
    page.wait(
        "return [...document.querySelectorAll('.prompt')].every(e => e.childElementCount > 1)"
    )
    return page.run(
        "return Object.fromEntries([...document.querySelectorAll('.side')].map(side =>"
        "[side.dataset.run, [...side.querySelectorAll('.prompt')].map(p =>"
        "[...p.querySelectorAll('[data-part]')].map(e => [e.dataset.part, e.textContent]))]))"
    )


def test_a_prompt_stands_in_the_page_word_for_word(opened, paths):
    shown = open_prompts(opened, "q9")
    for step, prompt in zip(shown["user"], rebuilt(paths, "user", "q9"), strict=True):
        assert prompt.user.startswith(prompts.LOGS_HEADER) and HOSTILE in prompt.user
        wanted = [["system", prompt.system], ["user", prompt.user], ["prefill", prompt.prefill]]
        assert step == wanted
    for step, prompt in zip(shown["log_kv"], rebuilt(paths, "log_kv", "q9"), strict=True):
        notes = [pair for n in prompt.notes for pair in (["note", n.keep], ["after", n.after])]
        assert len(notes) == 4 and all(text for _, text in notes)
        assert step == [["system", prompt.system], *notes, ["user", prompt.user],
                        ["prefill", prompt.prefill]]  # fmt: skip


def test_logs_are_marked_as_kv_or_as_text_and_what_of_them_is_hidden(opened):
    open_prompts(opened, "q9")
    text = opened.run("return document.querySelector('[data-run=log_kv] .prompt').innerText")
    for words in ("Log q0, KV from the store: these words are kept", "Log q1, KV encoded on the spot",
                  "Hidden: the text that it was encoded after", "The first 4 tokens of a chat",
                  "The first 2 tokens of each log"):  # fmt: skip
        assert words in text
    marks = opened.run(
        "return [...document.querySelectorAll('[data-run=user] .prompt')].map(p =>"
        "[...p.querySelectorAll('.from')].map(e => e.title))"
    )
    logs = ["log, as text, q0", "log, as text, q1"]
    assert marks == [[*logs, "document d1"], [*logs, "document d1", "document d2"]]
    folded = "return [...document.querySelectorAll('.prompt details')].some(e => e.open)"
    assert not opened.run(folded)


def test_a_prompt_is_folded_until_it_is_wanted_and_holds_no_markup(opened):
    title = opened.run("return document.title")
    opened.press("j")
    settle(opened, "q6")
    assert opened.run("return document.querySelectorAll('.prompt').length") == 4
    assert not opened.run(
        "return document.querySelectorAll('.prompt[open], .prompt [data-part]').length"
    )
    open_prompts(opened, "q9")
    assert opened.run("return [document.title, document.images.length]") == [title, 0]
    assert opened.run("return document.querySelectorAll('.prompt script, .prompt img').length") == 0


def test_tokens_that_were_reused_stand_in_each_step(opened):
    opened.press("j")
    settle(opened, "q6")
    told = opened.run("return [...document.querySelectorAll('.tokens')].map(e => e.textContent)")
    assert len(told) == 4 and all("20 of them cached, 7 reused; 10 new" in text for text in told)
    drafted = [", 4 of them among 6 drafted;" in text for text in told]
    assert drafted == [False, False, True, True], "user stands to the left, log_kv to the right"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_an_open_prompt_is_readable_and_no_wider_than_its_page(opened, scheme, size):
    opened.look(*size, scheme)
    open_prompts(opened, "q9")
    opened.run("document.querySelectorAll('details').forEach(e => e.open = true)")
    opened.run(f"{COSTS}.querySelector('button').click()")
    assert opened.run(CONTRAST) == []
    assert opened.run("return document.documentElement.scrollWidth <= innerWidth")


def test_a_prompt_that_is_not_known_says_why(paths, page, tmp_path):
    path = paths.manifest("test", "user")
    before = path.read_text()
    path.write_text(before.replace(prompts.digest(), "another"))
    try:
        report = make_report(paths, tmp_path / "report.html")
    finally:
        path.write_text(before)
    page.look(*LAPTOP)
    page.open(report, "#left=user&right=log_kv")
    shown = open_prompts(page, "q9")
    assert shown["user"] == [[], []] and len(shown["log_kv"][0]) == 7
    text = page.run("return document.querySelector('[data-run=user] .prompt').innerText")
    assert "Not shown: the wording of the prompts has changed since this run" in text
    assert page.console() == []


def test_prompts_that_would_cut_texts_shorter_are_left_out(paths):
    evaluator = Evaluator(Catalogue(paths.root), Sampling(1, 100))
    results = evaluator.results(runs_of_files([paths.run("test", run) for run in RUNS]))
    whole = bundle(results, evaluator, False)
    extra = sum(len(text) for name, text in whole.pieces.items() if name.startswith("prompts-"))
    assert extra and not whole.limit and "prompts are left out" not in whole.note
    small = bundle(results, evaluator, False, whole.size - extra // 2)
    assert not [name for name in small.pieces if name.startswith("prompts-")]
    assert not small.limit and "prompts are left out" in small.note
    assert small.size <= whole.size - extra // 2


def test_a_page_without_prompts_shows_the_rest(page, report, tmp_path):
    text = report.read_text()
    (index,) = re.findall(r'id="piece-index">(.*?)<', text)
    known = json.loads(gzip.decompress(base64.b64decode(index)))
    path = tmp_path / "report.html"
    path.write_text(text.replace(index, packed(known | {"prompts": False})))
    page.look(*LAPTOP)
    page.open(path)
    page.press("j")
    settle(page, "q6")
    assert page.run("return document.querySelectorAll('.step').length") == 4
    assert page.run("return document.querySelectorAll('.prompt').length") == 0
    assert page.console() == []


def test_a_printed_page_holds_its_tables_and_the_question_that_is_open(opened):
    visible = "return arguments[0].map(s => document.querySelector(s).checkVisibility())"
    parts = ["#part-0 table", "#traces", "nav", "#filters", "#found"]
    opened.look(*LAPTOP, media="print")
    assert opened.run(visible, parts) == [True, False, False, False, False]
    opened.press("j")
    settle(opened, "q6")
    assert opened.run(visible, [*parts, ".step"]) == [True, True, False, False, False, True]
