"""What only some users need is no condition for the rest; what is missing is named with its extra."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lag.cli import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*ROOT.glob("*.py"), *(ROOT / "lag").rglob("*.py")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"faiss-cpu": "faiss", "pytest-xdist": "xdist"}  # by package, where the names differ


def modules(requirements: list[str]) -> set[str]:
    names = [re.match(r"[\w-]+", requirement)[0] for requirement in requirements]
    return {MODULES.get(name, name).replace("-", "_") for name in names}


CORE = modules(PROJECT["dependencies"])
OPTIONAL = {name: modules(rows) for name, rows in PROJECT["optional-dependencies"].items()}


def needed(requirements: list[str]) -> dict[str, Distribution]:
    """Distributions that requirements come to, with all that those need, by name."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(requirement) for requirement in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name not in found and (not requirement.marker or requirement.marker.evaluate()):
            found[name] = distribution(name)
            waiting += [Requirement(line) for line in found[name].requires or ()]
    return found


@pytest.fixture(scope="module")
def core_only(tmp_path_factory) -> Path:
    """A folder of installed packages with the core's and theirs, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    for package in needed(PROJECT["dependencies"]).values():
        for top in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(package.locate_file(top))
    return folder


@pytest.fixture(scope="module")
def script(core_only):
    """Run a script where the core alone is installed."""

    def run(*argv) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-S", *map(str, argv)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(core_only)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


# What a process imports takes longer than what it does.
IN_ONE_PROCESS = """
import importlib, json, sys
for command in sys.argv[1:]:
    name, *words = json.loads(command)
    assert importlib.import_module(name).main(words) == 0, command
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, script) -> Path:
    """The embedded data set with vectors and four answers, all made by the core alone."""
    root = tmp_path_factory.mktemp("core") / "data"
    made = ("preds", "kv", "embeds", "results", "training")
    leave = shutil.ignore_patterns(*made)
    shutil.copytree(ROOT / "data" / "miniwiki", root / "miniwiki", ignore=leave)
    flags = ["-d", "miniwiki", "--data", root]
    commands = (
        ["embed", *flags],
        ["agentic", *flags, "-m", "base", "--limit", "4", "--device", "cpu"],
        ["agentic", *flags, "-m", "base", "--limit", "4", "--merge", "--as-log"],
        ["store_log_kv", *flags],
        ["agentic", *flags, "-m", "log_kv", "--split", "test", "--limit", "2"],
    )
    done = script("-c", IN_ONE_PROCESS, *(json.dumps([*map(str, argv)]) for argv in commands))
    assert done.returncode == 0, done.stderr
    return root


def test_the_core_alone_answers_stores_and_scores(script, world, tmp_path):
    files = ["--outdir", tmp_path, "--table", tmp_path / "table.md"]
    done = script("evaluate.py", "-d", "miniwiki", "--data", world, *files)
    assert done.returncode == 0 and "log_kv" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "flags", "extra"),
    [
        ("evaluate.py", ["--report", "{tmp}/report.html"], "plot"),
        ("evaluate.py", ["--figures", "{tmp}/figures"], "plot"),
        ("dataset.py", ["--from", "{tmp}/dev.parquet"], "hub"),
    ],
)
def test_what_needs_an_extra_names_it_in_one_line(script, world, tmp_path, name, flags, extra):
    (tmp_path / "dev.parquet").write_bytes(b"PAR1")
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    if name == "evaluate.py":
        flags += ["-d", "miniwiki", "--data", world, "--outdir", tmp_path]
    else:
        flags += ["-d", "musique", "--data", tmp_path / "data"]
    done = script(name, *flags)
    assert done.returncode == 2, done.stdout + done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert f"pip install '.[{extra}]'" in line and "Traceback" not in done.stderr
    assert not (tmp_path / "report.html").exists() and not (tmp_path / "data").exists()


def test_the_hub_s_library_is_named_where_it_is_missing(script, tmp_path):
    repo = tmp_path / "repo"
    repo.mkdir()
    flags = ["-d", "musique", "--hub", repo, "--data", tmp_path / "data"]
    done = script("dataset.py", *flags)
    assert done.returncode == 2 and "pip install '.[hub]'" in done.stderr


def imported() -> set[str]:
    """Top-level names of all third-party modules that the toolkit imports."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").split(".")[0])
    return found - set(sys.stdlib_module_names) - {"lag"}


# It imports us, in an environment of its own: no extra brings it.
ENGINE = {"vllm"}


def test_every_import_is_declared_and_every_extra_is_known_to_the_message():
    users = set().union(*(rows for name, rows in OPTIONAL.items() if name != "dev"))
    assert imported() <= CORE | users | ENGINE
    assert not CORE & users
    assert set(EXTRAS) == users
    assert all(module in OPTIONAL[extra] for module, extra in EXTRAS.items())


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_the_lock_holds_what_is_declared(name):
    lines = (ROOT / name).read_text().split()
    locked = {re.sub("[-_]", "-", line.split("==")[0]).lower() for line in lines if "==" in line}
    extras = PROJECT["optional-dependencies"]
    wanted = extras["dev"]
    if name == "requirements.txt":
        wanted = [*PROJECT["dependencies"], *extras["hub"], *extras["plot"], *extras["train"]]
    names = {re.match(r"[\w-]+", requirement)[0].replace("_", "-") for requirement in wanted}
    assert names <= locked
