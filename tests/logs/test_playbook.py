"""A playbook: edits, counts, and a run in which they live on."""

import json
import re
import shutil

import pytest
import small
from hypothesis import given
from hypothesis import strategies as st
from scripted import ScriptedLLM

import agentic
from lag.logs import playbook
from lag.logs.playbook import EDITOR_RULES, MOST_ENTRIES, Playbook, sheet_after
from lag.modes import MODES
from lag.paths import Paths
from lag.prompts import Note
from lag.records import Log, Question, Step, Trace
from lag.step_prompt import Entered
from lag.trace_files import read_parts, trace_of, without_seconds

MODE = MODES["log_playbook"]


def book(*replies):
    found = Playbook({})
    for reply in replies:
        found = found.edited(reply)
    return found


def lines(found):
    return str(found).splitlines()[1:]


def test_edits_add_change_and_remove_and_no_id_comes_twice():
    found = book("<add>one</add> so <add>two\nlines</add>", '<change id="p1">uno</change>')
    assert lines(found) == ["[p1] (+0 -0) uno", "[p2] (+0 -0) two lines"]
    found = found.edited("<remove id='p2'></remove>").edited("<ADD>three")
    assert lines(found) == ["[p1] (+0 -0) uno", "[p3] (+0 -0) three"]
    assert str(Playbook.parse(str(found))) == str(found) and "up to [p3]" in str(found)
    gone = found.edited('<remove id="p3"/><remove id="p3"></remove><remove id="p1"></remove>')
    assert lines(gone) == [] and gone.edited("<add>four</add>").last == 4


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "<keep></keep>",
        "<add></add>",
        '<change id="p9">x</change>',
        "<remove>p1</remove>",
        "add p1",
        "<change>x</change>",
    ],
)
def test_what_is_no_edit_changes_nothing(reply):
    before = book("<add>one</add>")
    assert before.edited(reply) == before


def test_only_a_few_edits_at_a_time_and_only_so_many_entries():
    assert len(book("<add>x</add>" * 9).entries) == 3
    found = book(*[f"<add>lesson {n}</add>" for n in range(MOST_ENTRIES)])
    trace = Trace("q", "q", pred="a", steps=[Step("q", "answer", reply="[p1] says so")])
    trace_bad = Trace("q", "q", steps=[Step("q", "nothing", reply="as [p3] has it")])
    full = found.counted(trace).counted(trace_bad).edited("<add>one more</add>")
    assert len(full.entries) == MOST_ENTRIES and 3 not in full.entries and 1 in full.entries
    assert 2 not in full.edited("<add>and more</add>").entries


@pytest.mark.parametrize(
    "pred, error, counts", [("x", None, (1, 0)), ("", None, (0, 1)), ("", {"stage": "s"}, (0, 0))]
)
def test_help_and_harm_go_by_whether_the_question_ended_answered(pred, error, counts):
    found = book("<add>one</add><add>two</add>")
    steps = [Step("q", "curate", reply="[p2]"), Step("q", "search", reply="[p1] and [p1], [p77]")]
    after = found.counted(Trace("q", "q", pred=pred, steps=steps, error=error))
    one, two = after.entries.values()
    assert (one.helped, one.harmed) == counts and (two.helped, two.harmed) == (0, 0)


@given(
    st.lists(
        st.sampled_from(
            [
                "<add>",
                "</add>",
                "<change id=",
                '"p1"',
                ">",
                "<remove",
                "p1",
                "\n",
                "[p1] (+1 -2) x",
                "<",
                "up to [p9]",
                "é",
            ]
        ),
        max_size=30,
    )
)
def test_no_reply_breaks_it(pieces):
    found = book("<add>one</add>", "".join(pieces))
    assert str(Playbook.parse(str(found))) == str(found)
    assert found.last >= max(found.entries, default=0)


def test_the_prompt_is_the_golden_one():
    held = Entered([], [Note("a", "It was so.\n\n")])
    logs, sheet = {"a": Log("a", "Old?", ("It was so.",))}, str(book("<add>Be brief.</add>"))
    made = playbook.editor(Question("q", "New?"), sheet, logs, 512, held)
    assert made.user == (
        f"{EDITOR_RULES}\n\nThe entries:\n[p1] (+0 -0) Be brief.\n\n"
        "Question: Old?\nReply: It was so.\n\nNew question: New?"
    )
    assert playbook.digest() == "0bbc526f5b073c86"


def editing(prompt):
    """Adds an entry for each question; names the entries in every reply."""
    if prompt.user.startswith(EDITOR_RULES):
        name = re.search(r"New question: .*does (\w+) live", prompt.user)[1]
        return f"<add>{name} lives somewhere.</add>"
    shown = "".join(note.keep for note in prompt.notes)
    return " ".join(re.findall(r"\[p\d+\](?= \()", shown)[:2]) + " " + small.stepwise(prompt)


@pytest.fixture
def run(small_data, embedder_folder, capsys):
    def call(command, root=small_data, reply=editing):
        words = f"-d wikihop --data {root} --embedder {embedder_folder} --max-steps 3 --run x"
        llm = ScriptedLLM(reply)
        agentic.main([*command.split(), *words.split()], llm)
        return llm, json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


GROW = "-m log_playbook --grow --grow-every 4 --split train,test"


def rows_of(root, split):
    return read_parts(Paths(root, "wikihop").run(split, "x"))


def test_a_playbook_lives_on_through_a_stream(run, small_data):
    run(GROW)
    rows = [row for split in ("train", "test") for row in rows_of(small_data, split).values()]
    assert [row["sheet"] for row in rows[:4]] == [""] * 4, "there are no logs yet"
    before = ""
    for row in rows:
        trace = trace_of(row["id"], row)
        curated = [step for step in trace.steps if step.action == "curate"]
        expected = playbook.edited(before, curated[0].reply) if curated else before
        assert trace.sheet == expected
        before = sheet_after(MODE, trace)
    final = Playbook.parse(before)
    assert len(final.entries) == 12 and final.last == 12
    counts = [(one.helped, one.harmed) for one in final.entries.values()]
    assert sum(h for h, _ in counts) and sum(h for _, h in counts)


def test_gold_answers_and_the_batch_size_and_a_stop_change_nothing(run, small_data, tmp_path):
    """Stopped in the middle, with other gold answers, and with questions side by side."""
    others = [shutil.copytree(small_data, tmp_path / name) for name in ("gold", "batch", "stop")]
    run(GROW)
    for split in ("train", "test"):
        path = Paths(others[0], "wikihop").questions(split)
        rows = json.loads(path.read_text())
        path.write_text(json.dumps([row | {"answer": "scrambled"} for row in rows]))
    run(GROW, others[0])
    run(f"{GROW} --batch-size 9", others[1])
    run(GROW, others[2])
    paths = Paths(others[2], "wikihop")
    for split, kept in (("train", 6), ("test", 0)):
        part = paths.part(split, "x", 0)
        part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[:kept]))
    store = paths.grown("x")
    store.write_bytes(b"".join(store.read_bytes().splitlines(keepends=True)[:2]))
    run(GROW, others[2])
    for root in others:
        for split in ("train", "test"):
            ours, theirs = rows_of(small_data, split), rows_of(root, split)
            assert [row["sheet"] for row in ours.values()] == [r["sheet"] for r in theirs.values()]
    assert without_seconds(rows_of(others[1], "test")) == without_seconds(
        rows_of(small_data, "test")
    )
    assert without_seconds(rows_of(others[2], "test")) == without_seconds(
        rows_of(small_data, "test")
    )


def test_prompts_are_made_again_with_the_playbook_as_it_was(run, small_data):
    from lag.evaluation.find_runs import read_folder
    from lag.evaluation.gold import Catalogue
    from lag.evaluation.intervals import Sampling
    from lag.evaluation.results import Evaluator
    from lag.report.rebuild_prompts import RunPrompts

    llm, _ = run("-m log_playbook --grow --grow-every 4 --split train --layout user")
    found = read_folder(Paths(small_data, "wikihop").run("train", "x"))
    made = RunPrompts(found, Evaluator(Catalogue(small_data), Sampling(1, 100)))
    asked = {prompt.key: prompt for prompt in llm.seen}
    for trace in found.traces.values():
        first = 0 if trace.steps[0].action == "curate" else 1
        for number, one in enumerate(made.prompts_of(trace), first):
            prompt = asked[f"{trace.id} {number}"]
            assert (one.prompt.user, one.prompt.notes) == (prompt.user, prompt.notes)


def test_its_texts_are_part_of_what_identifies_its_runs_only(run, small_data):
    run("-m log_playbook --grow --grow-every 4")
    manifest = json.loads(Paths(small_data, "wikihop").manifest("train", "x").read_text())
    assert manifest["identity"]["playbook"] == playbook.digest()
    with pytest.raises(ValueError, match="log_playbook always lives on"):
        agentic.parse_args(["-d", "wikihop", "-m", "log_playbook", "--sheet", "carried"])
