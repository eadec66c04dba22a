"""One row per setting: everything that a flag is, is said where it stands, and nowhere else."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import agentic
from lag.evaluation.compare import differing
from lag.evaluation.find_runs import Run
from lag.modes import MODES
from lag.runs.config import (
    COMPARED,
    DEFAULTS,
    FLAGS,
    IDENTITY,
    PROVIDERS,
    RunConfig,
    spelling,
    with_defaults,
)
from lag.runs.flags import flag_table
from lag.runs.providers import LOADERS
from lag.solvers import SOLVERS
from lag.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]

# A flag of tomorrow: in the whole toolkit nothing else is said of it.
DUMMY = """    patience: int = row("the loop", "how often to ask again", number(0), "N", 7, named="p{}", unread=by_several_steps, everyday=True)
"""
PROBE = """
import json, agentic
from lag.evaluation.compare import differing
from lag.evaluation.find_runs import Run
from lag.evaluation.results import IDENTITY
from lag.runs.flags import flag_table

def runs(*words):
    return agentic.parse_args(["-m", "log_kv", "-d", "wikihop", *words]).runs()

def refused(*words):
    try:
        runs(*words)
    except (ValueError, SystemExit) as error:
        return str(error)

(plain,), (patient,) = runs(), runs("--patience", "9")
sides = [Run("x", "wikihop", "test", (), {**one.identity(), "model_digest": "m"}) for one in (patient, plain)]
older = {name: value for name, value in plain.identity().items() if name != "patience"}
print(json.dumps({
    "name": patient.name,
    "recorded": patient.recorded()["patience"],
    "identity": patient.identity()["patience"],
    "not of one step": "patience" in runs("--solver", "direct")[0].recorded(),
    "typed": patient.typed("patience"),
    "wrong": refused("--patience", "-1"),
    "unread": refused("--solver", "direct", "--patience", "3"),
    "older": [plain.differences(older, plain.identity()), patient.differences(older, patient.identity())],
    "compared": differing(*sides),
    "results": "patience" in IDENTITY,
    "table": "| `--patience N` | how often to ask again | 7 |" in flag_table(),
}))
"""


def test_a_new_flag_is_one_row(tmp_path):
    """A flag was six to eight edits, and `max_new_tokens` was forgotten in two of them."""
    shutil.copytree(ROOT / "lag", tmp_path / "lag", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "agentic.py", tmp_path)
    path = tmp_path / "lag" / "runs" / "config.py"
    before = "    temperature: float = row("
    path.write_text(path.read_text().replace(before, DUMMY + before))
    (tmp_path / "probe.py").write_text(PROBE)

    def python(*words):
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert json.loads(python("probe.py")) == {
        "name": "log_kv_p9",
        "recorded": 9,
        "identity": 9,
        "not of one step": True,
        "typed": " --patience 9",
        "wrong": "2",
        "unread": "--patience 3: --solver direct takes one step; leave it out",
        "older": [[], ["patience: 7 -> 9"]],
        "compared": ["patience differs from the baseline's: 9 instead of 7"],
        "results": True,
        "table": True,
    }
    assert "--patience N" in python("agentic.py", "--help")


def test_the_readme_s_table_of_flags_is_that_of_the_record():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("<!-- flags -->\n")[2].partition("<!-- /flags -->")[0]
    assert table == flag_table()


def test_help_shows_what_everyone_uses_and_help_all_the_rest(capsys):
    shown = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as end:
            agentic.main([flag])
        assert end.value.code == 0
        shown[flag] = capsys.readouterr().out
    everyday = [name for name, flag in FLAGS.items() if flag.everyday]
    assert len(everyday) < 18
    for name, flag in FLAGS.items():
        typed = f"{spelling(name)} "
        assert typed in shown["--help-all"].replace("\n", " ")
        assert (typed in shown["--help"].replace("\n", " ")) == flag.everyday
        assert flag.help and "%" not in flag.help


def test_every_default_is_one_that_its_own_flag_takes():
    """A default that the flag refuses could not be given back by `--config run.json`."""
    for name, flag in FLAGS.items():
        default = DEFAULTS[name]
        if flag.choices:
            assert default is None or default in flag.choices
        elif flag.kind and default is not None and name != "dataset":
            assert flag.kind(str(default)) == default
    provided = {layout for row in PROVIDERS.values() for layout in row.layouts}
    assert provided == {*FLAGS["layout"].choices}
    prefills = {prefill for row in PROVIDERS.values() for prefill in row.prefills}
    assert prefills == {*FLAGS["prefill"].choices}
    assert LOADERS.keys() == PROVIDERS.keys()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("mode", MODES)
def test_a_recorded_run_is_the_same_run_again(tmp_path, mode, solver):
    flags = ["-m", mode, "-d", "musique", "--solver", solver, "--seed", "3", "--split", "test"]
    (config,) = agentic.parse_args(flags).runs()
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"provenance": {"flags": config.recorded()}}))
    (again,) = agentic.parse_args(["--config", str(path)]).runs()
    assert replace(again, config=None) == config
    assert again.name == config.name and again.identity() == config.identity()


def test_flags_that_were_renamed_are_read_in_an_older_run_json(tmp_path):
    path = tmp_path / "run.json"
    flags = {"dataset": "wikihop", "mode": ["base"], "concurrency": None, "timeout": None}
    path.write_text(json.dumps({"provenance": {"flags": flags}}))
    assert agentic.parse_args(["--config", str(path)]).timeout == 120
    path.write_text(json.dumps({**flags, "batch_size": 8, "concurrency": 4}))
    assert agentic.parse_args(["--config", str(path)]).batch_size == 4


@pytest.mark.parametrize("flag", [name for name, flag in FLAGS.items() if flag.choices])
def test_a_config_s_choices_are_checked(tmp_path, flag, capsys):
    """`{"log_control": "bogus"}` ran, as if there were no control, under a name that told of one."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"dataset": "wikihop", flag: "bogus"}))
    with pytest.raises(SystemExit) as end:
        agentic.parse_args(["--config", str(path)])
    assert end.value.code == 2 and "invalid choice: 'bogus'" in capsys.readouterr().err


def test_what_one_of_several_runs_reads_is_not_in_vain():
    configs = agentic.parse_args(
        [
            "-m",
            "base,log_kv",
            "-d",
            "wikihop",
            "--solver",
            "direct,rag",
            "--num-docs",
            "6",
            "--sink",
            "4",
        ]
    ).runs()
    assert [config.name for config in configs] == [
        "base_direct", "log_kv_direct_sink4", "base_rag_d6", "log_kv_rag_d6_sink4",
    ]  # fmt: skip


def test_an_identity_field_that_this_toolkit_does_not_know_is_named():
    config = RunConfig(dataset="wikihop", split="test").settled()
    new = config.identity() | {"prompts": "a"}
    assert config.differences({**new, "fancy": 1}, new) == ["fancy: 1 -> None"]
    assert config.differences(config.identity(), new) == ["prompts: None -> a"]
    del (old := dict(new))["max_new_tokens"]
    assert config.differences(old, new) == []
    assert config.differences(old, new | {"max_new_tokens": 7}) == ["max_new_tokens: 1024 -> 7"]


def found(**meta):
    return Run("x", "wikihop", "test", (), meta=meta)


@pytest.mark.parametrize("name", ["max_new_tokens", "trace_tokens", "provider"])
def test_every_setting_of_the_identity_is_compared(name):
    """Runs of 32 and 1,024 new tokens were compared without a word; so were 0 and 5 earlier steps."""
    config = RunConfig(dataset="wikihop", split="test").settled()
    known = {**config.identity(), "model_digest": "m"}
    other = {**known, name: {"provider": "openai"}.get(name, 9)}
    (said,) = differing(found(**other), found(**known))
    assert said.startswith(f"{name} differs from the baseline's")
    assert differing(found(**known), found(**known)) == []
    del (older := dict(known))[name]
    assert differing(found(**known), found(**older)) == []
    assert len(differing(found(**other), found(**older))) == 1


def test_what_only_logs_read_is_not_held_against_a_run_without_logs():
    assert {"num_logs", "sink", "layout", "mode"}.isdisjoint(COMPARED) and set(COMPARED) < {
        *IDENTITY
    }


def test_others_runs_say_what_they_say():
    meta = {"dataset": "wikihop", "mode": "base", "model": "m", "max_steps": None}
    assert with_defaults(meta) == {"dataset": "wikihop", "mode": "base", "model": "m"}
    strange = {**meta, "model_digest": "m", "solver": "of tomorrow", "max_steps": 2}
    assert with_defaults(strange) == strange


@pytest.mark.parametrize(
    ("dataset", "solver", "given", "shown", "piece"),
    [
        ("miniwiki", "react", [], 8, ""),
        ("miniwiki", "react", ["8"], 8, ""),
        ("miniwiki", "react", ["0"], 0, "_earlier0"),
        ("miniwiki", "react", ["2"], 2, "_earlier2"),
        ("miniwiki", "direct", [], 0, "_direct"),
        ("miniwiki", "icl", [], 0, "_icl"),
        ("miniwiki", "rag", [], 0, "_rag"),
        ("miniwiki", "exsearch", [], 0, "_exsearch"),
        ("musique", "react", [], 0, ""),
        ("musique", "react", ["0"], 0, ""),
        ("musique", "react", ["8"], 8, "_earlier8"),
        ("mmlupro", "react", [], 0, ""),
    ],
)
def test_how_many_earlier_steps_are_shown(dataset, solver, given, shown, piece):
    """A given 0 must not fall back to the data set's number, nor a default change a run's name."""
    flags = ["--trace-steps", *given] if given else []
    words = ["-m", "base", "-d", dataset, "--split", "train", "--solver", solver, *flags]
    (config,) = agentic.parse_args(words).runs()
    assert config.trace_steps == shown
    assert config.name == f"base{piece}"
    assert config.identity().get("trace_steps", 0) == shown


@pytest.mark.parametrize("dataset", [name for name in TASKS if name != "miniwiki"])
def test_other_data_sets_show_no_earlier_steps(dataset):
    """The number of one data set was that of all: their runs would go on under another identity."""
    words = ["-m", "base", "-d", dataset, "--split", "train"]
    assert [config.trace_steps for config in agentic.parse_args(words).runs()] == [0]


def test_steps_that_are_shown_by_default_can_be_bounded_in_tokens():
    """`--trace-tokens` was refused unless --trace-steps was given, too."""
    words = ["-m", "base", "-d", "miniwiki", "--split", "train", "--trace-tokens", "50"]
    (config,) = agentic.parse_args(words).runs()
    assert (config.trace_steps, config.trace_tokens) == (8, 50)
    with pytest.raises(ValueError, match="--trace-steps"):
        agentic.parse_args([*words, "--trace-steps", "0"]).runs()
