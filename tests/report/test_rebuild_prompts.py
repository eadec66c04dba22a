"""The prompts that a report shows are, word for word, those that the model got."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import small
from scripted import ScriptedLLM

import agentic
from lag import prompts
from lag.evaluation.compare import Sampling
from lag.evaluation.find_runs import runs_of_files
from lag.evaluation.gold import Catalogue
from lag.evaluation.results import Evaluator
from lag.files import read_json, write_json
from lag.modes import MODES
from lag.paths import Paths
from lag.report.rebuild_prompts import Rebuilt, RunPrompts
from lag.solvers import SOLVERS
from lag.trace_files import read_rows

TEXT = "log_text,log_text_all"
HIDING = ",".join(name for name, mode in MODES.items() if mode.hides)
EVERY = ",".join(MODES)
SOLVED = ",".join(SOLVERS)
# Every column of `MODES` and `SOLVERS`, then every flag that changes what a prompt says.
COMMANDS = [
    f"-m {EVERY} --solver {SOLVED}",
    f"-m {EVERY} --split train --num-docs 0",
    f"-m base,{TEXT},log_cheatsheet --layout user --solver react,rag",
    f"-m {EVERY} --layout system-first --prefill folded",
    f"-m {EVERY} --trace-steps 2",
    f"-m {EVERY} --trace-steps 9 --trace-tokens 30",
    f"-m {EVERY} --log-order entered --log-tokens 20",
    f"-m {EVERY} --log-order similar-first --min-similarity 0.2",
    f"-m {TEXT},log_kv --split train --exclude-self --num-logs 7",
    f"-m {TEXT},log_kv --log-control random --seed 7",
    f"-m {TEXT},log_kv --log-control shuffled",
    f"-m {HIDING} --log-control wrong-context --seed 7 --log-limit 6",
    f"-m {EVERY} --num-partitions 2 -p 1",
]


class Recorder(ScriptedLLM):
    """Keeps the last prompt of every call, run by run; a call that fails is asked again later."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.runs = []

    def fingerprint(self, cache=None):
        self.runs.append({})  # asked once at the beginning of each run
        return super().fingerprint(cache)

    def generate(self, asked):
        self.runs[-1] |= {prompt.key: prompt for prompt in asked}
        return super().generate(asked)


def wordy(prompt):
    """Replies that differ from call to call, with blanks around and a tag within."""
    if "cheatsheet" in prompt.user[:300]:
        return f"So: <cheatsheet>\nSheet of {prompt.key}, as documents have it. </cheatsheet>"
    return f"\n Thought {prompt.key}.\n{small.stepwise(prompt)} Done \n"


def call(root, embedder, command, reply=wordy, room=1 << 30):
    """Run a command; the folders of its runs, each with the prompts that the model got."""
    llm = Recorder(reply, room=room)
    dataset = "" if "-d " in command else "-d wikihop"
    split = "" if "--split" in command else "--split test"
    steps = "" if "--solver" in command else "--max-steps 3"
    flags = ["--data", str(root), "--embedder", str(embedder)]
    agentic.main(f"{command} {dataset} {split} {steps}".split() + flags, llm)
    return llm.runs


@pytest.fixture(scope="module")
def root(tmp_path_factory, small_root, embedder_folder):
    """Both small data sets with a log store each; questions bring paragraphs, texts are awkward."""
    root = Path(shutil.copytree(small_root, tmp_path_factory.mktemp("rebuilt") / "data"))
    paths = Paths(root, "wikihop")
    for split in ("", "train", "test"):
        rows = read_json(paths.questions(split))
        for n, row in enumerate(rows):
            row["paragraph_ids"] = [f"q{n}", f"p{n}", "aldburg"]
        write_json(paths.questions(split), rows)
    for dataset in ("wikihop", "mmlupro"):
        for flags in ("", "--merge --as-log"):
            call(root, embedder_folder, f"-m base --split train -d {dataset} {flags}")
    return root


@pytest.fixture
def data(root, tmp_path):
    return Path(shutil.copytree(root, tmp_path / "data"))


def rebuilt(folder, root):
    """By question what is made of each of its steps."""
    (run,) = runs_of_files([folder])
    evaluator = Evaluator(Catalogue(root), Sampling(1, 100))
    made = RunPrompts(run, evaluator)
    return {id: (trace, made.prompts_of(trace)) for id, trace in run.traces.items()}


def plain(prompt):
    """What a prompt says, without what names the call and bounds its reply."""
    return replace(prompt, key="", max_new_tokens=0)


def compare(folder, root, seen):
    """Every step's prompt is the one that the model got; returns how many there were."""
    count = 0
    for id, (trace, found) in rebuilt(folder, root).items():
        number = 0
        for step, made in zip(trace.steps, found, strict=True):
            number += step.action != "curate"
            key = f"{id} {0 if step.action == 'curate' else number}"
            assert isinstance(made, Rebuilt), made
            assert plain(made.prompt) == plain(seen[key]), key
            count += 1
    return count


def folders(capsys):
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    return [Path(run["run"]) for run in said.get("runs", [said])]


def check(root, embedder, capsys, command, **options):
    """Run a command and compare all its runs; returns the prompts, and how many were compared."""
    runs = call(root, embedder, command, **options)
    counts = [
        compare(folder, root, seen) for folder, seen in zip(folders(capsys), runs, strict=True)
    ]
    assert all(counts)
    return runs, sum(counts)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_prompt_is_made_again_word_for_word(data, embedder_folder, capsys, command):
    runs, count = check(data, embedder_folder, capsys, command)
    assert count == sum(map(len, runs)), "a call without a step"


@pytest.mark.parametrize(
    ("flags", "shown"), [("", True), ("--trace-steps 0", False), ("--trace-steps 1", True)]
)
def test_steps_that_a_data_set_shows_by_default_are_in_the_prompts(
    data, embedder_folder, capsys, flags, shown
):
    """Rows that say nothing of --trace-steps were made again without any; those with 0 had 8."""
    shutil.copytree(data / "wikihop", data / "miniwiki")
    command = f"-d miniwiki -m base,log_kv,log_cheatsheet {flags}"
    runs, _ = check(data, embedder_folder, capsys, command)
    for seen in runs:
        late = [p.user for key, p in seen.items() if key.endswith(" 3")]
        assert [prompts.STEPS_HEADER in user for user in late] == [shown] * len(late)
        assert all(
            user.count("Query: ") == {"": 2, "--trace-steps 0": 0}.get(flags, 1) for user in late
        )
        assert late
    if not flags:  # every solver, those that show none included
        check(data, embedder_folder, capsys, f"-d miniwiki -m base --solver {SOLVED}")


@pytest.mark.parametrize(
    "command", [f"-m {EVERY} --solver react,direct", f"-m {EVERY} --trace-steps 2"]
)
def test_multiple_choice_with_its_options_and_the_reply_before(
    data, embedder_folder, capsys, command
):
    def reply(prompt):
        number = int(prompt.key.split()[1])
        tag = "<ans>(A)</ans>" if number == 3 else "<subquestion>What is a sum?</subquestion>"
        curated = "cheatsheet" in prompt.user[:300]
        return wordy(prompt) if curated else f" Thought {prompt.key}. {tag}\n"

    runs, _ = check(data, embedder_folder, capsys, f"{command} -d mmlupro", reply=reply)
    carried = [p for seen in runs for p in seen.values() if "Thought" in p.user]
    assert carried


@pytest.mark.parametrize(
    ("room", "kinds"), [(88, {"docs", "logs", "sheet", "steps"}), (140, {"logs", "sheet", "steps"})]
)
def test_what_had_no_room_is_in_no_prompt(data, embedder_folder, capsys, room, kinds):
    modes = EVERY if room > 112 else EVERY.replace(",log_playbook", "")  # its rules alone are 112
    for command in (f"-m {modes}", f"-m {modes} --trace-steps 3"):
        check(data, embedder_folder, capsys, command, room=room)
    parts = data.glob("wikihop/preds/test/*/part-0.jsonl")
    dropped = [item for part in parts for row in read_rows(part) for item in row.get("dropped", ())]
    found = {name for item in dropped for name in item} - {"step"}
    assert found | {"sheet" for item in dropped if item.get("logs") == ["sheet"]} == kinds


@pytest.mark.parametrize("flags", ["", "--prefill folded --trace-steps 2", "--solver direct"])
def test_a_prompt_with_a_reminder_is_made_again(data, embedder_folder, capsys, flags):
    def reply(prompt):
        return wordy(prompt) if "End your reply" in prompt.user else "Hm."

    (seen,) = call(data, embedder_folder, f"-m base --format-retries 1 {flags}", reply=reply)
    (folder,) = folders(capsys)
    for id, (trace, found) in rebuilt(folder, data).items():
        asked = [plain(prompt) for key, prompt in seen.items() if key.split()[0] == id]
        assert [plain(made.prompt) for made in found] == asked
        assert [step.action for step in trace.steps][::2] == ["retry"] * len(trace.replies)


def failing(prompt):
    """The second and the last question break at their second step, the third at once."""
    if prompt.key in ("w11 2", "w15 1", "w12 1"):
        raise RuntimeError("the model broke")
    return wordy(prompt)


@pytest.mark.parametrize("mode", MODES)
def test_prompts_of_rows_that_failed_and_were_asked_again(data, embedder_folder, capsys, mode):
    """Of a failed row the steps before the failure are known; of the next try its own steps."""
    (first,) = call(data, embedder_folder, f"-m {mode}", reply=failing)
    (folder,) = folders(capsys)
    done = compare(folder, data, first)
    (again,) = call(data, embedder_folder, f"-m {mode}")
    assert compare(folder, data, first | again) > done


def test_a_carried_sheet_is_known_from_row_to_row(data, embedder_folder, capsys):
    flags = "-m log_cheatsheet --sheet carried"
    runs, _ = check(data, embedder_folder, capsys, flags)
    assert sum("so far:\nSheet of" in prompt.user for prompt in runs[0].values()) == 5
    check(data, embedder_folder, capsys, f"{flags} --run parts --num-partitions 2 -p 1")


def test_a_carried_sheet_that_nobody_can_tell_is_not_made_up(data, embedder_folder, capsys):
    """A question asked again went on from the last sheet of its share, or of the one before it."""
    flags = "-m log_cheatsheet --sheet carried --split train"

    def broken(prompt):
        if prompt.key in ("w2 1", "w5 1"):
            raise RuntimeError("the model broke")
        return wordy(prompt)

    (first,) = call(data, embedder_folder, flags, reply=broken)
    (again,) = call(data, embedder_folder, flags)
    folder = folders(capsys)[-1]
    seen, told = first | again, {}
    for id, (_, found) in rebuilt(folder, data).items():
        if isinstance(found[0], str):
            told[id] = found[0]
        else:
            assert plain(found[0].prompt) == plain(seen[f"{id} 0"]), id
        assert plain(found[1].prompt) == plain(seen[f"{id} 1"]), id
    assert list(told) == ["w5"] and "interrupted" in told["w5"]
    for part in folder.glob("part-*"):
        call(data, embedder_folder, f"{flags} --merge")
        part.unlink()
    found = rebuilt(folder, data)
    assert all("only the parts" in made[0] for _, made in found.values())


def test_partitions_that_changed_leave_no_carried_sheet_known(data, embedder_folder, capsys):
    flags = "-m log_cheatsheet --sheet carried --run cut"
    call(data, embedder_folder, f"{flags} --limit 2")
    for partition in (0, 1):
        call(data, embedder_folder, f"{flags} -p {partition} --num-partitions 2")
    folder = folders(capsys)[-1]
    first = [made[0] for _, made in rebuilt(folder, data).values()]
    assert any(isinstance(made, str) and "in one order" in made for made in first)


# --- what has changed since is told, and nothing else is shown -----------------------------------


def reasons(folder, root):
    return {
        made if isinstance(made, str) else ""
        for _, all in rebuilt(folder, root).values()
        for made in all
    }


def append(path):
    path.write_bytes(path.read_bytes() + b"\n")


def other_reply(path):
    content = read_json(path)
    content["results"]["w1"]["trace"][0]["reply"] += " changed"
    write_json(path, content)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("docs", append, "dev_docs.json has changed since this run"),
        ("docs", Path.unlink, "dev_docs.json is not there any more"),
        ("log_store", other_reply, "log.json has changed since this run"),
        ("log_store", Path.unlink, "log.json is not there any more"),
    ],
)
def test_a_file_that_has_changed_is_told(data, embedder_folder, capsys, name, change, told):
    call(data, embedder_folder, "-m log_kv --limit 2")
    (folder,) = folders(capsys)
    assert reasons(folder, data) == {""}
    change(getattr(Paths(data, "wikihop"), name))
    (reason,) = reasons(folder, data)
    assert told in reason


def test_a_change_of_what_a_prompt_does_not_hold_hides_nothing(data, embedder_folder, capsys):
    call(data, embedder_folder, "-m base --limit 2")
    (folder,) = folders(capsys)
    Paths(data, "wikihop").log_store.unlink()
    append(Paths(data, "wikihop").questions("test"))
    assert reasons(folder, data) == {""}


def test_options_that_may_have_changed_are_not_shown(data, embedder_folder, capsys):
    call(data, embedder_folder, "-m base --limit 2 -d mmlupro")
    (folder,) = folders(capsys)
    assert reasons(folder, data) == {""}
    append(Paths(data, "mmlupro").questions("test"))
    (reason,) = reasons(folder, data)
    assert "dev_test.json has changed since this run" in reason


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("prompts", "0" * 16, "wording of the prompts has changed"),
        ("prompts", None, "do not tell which wording"),
        ("mode", "log_new", "log_new"),
        ("solver", "new", "new"),
        ("documents", "", "does not tell what"),
    ],
)
def test_another_wording_or_a_table_s_row_that_is_gone_is_told(
    data, embedder_folder, capsys, field, value, told
):
    call(data, embedder_folder, "-m base --limit 2")
    (folder,) = folders(capsys)
    known = read_json(folder / "run.json")
    assert known["identity"]["prompts"] == prompts.digest()
    known["identity"][field] = value
    write_json(folder / "run.json", known)
    (reason,) = reasons(folder, data)
    assert told in reason


def test_documents_that_only_a_server_had_are_taken_from_the_run(data, embedder_folder, capsys):
    call(data, embedder_folder, "-m base --limit 2")
    (folder,) = folders(capsys)
    paths = Paths(data, "wikihop")
    shutil.copy(paths.docs, folder / "documents-0.json")
    paths.docs.unlink()
    assert reasons(folder, data) == {""}
