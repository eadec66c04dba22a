"""The house itself: quick help, small functions, one-way imports, a README that is true."""

import ast
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from lag.modes import MODES
from lag.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(ROOT.glob("*.py"))
MODULES = sorted(p for p in (ROOT / "lag").rglob("*.py") if p.name != "__init__.py")
HEAVY = (
    *("torch", "transformers", "sentence_transformers", "faiss", "datasets", "matplotlib"),
    *("numpy", "httpx2", "anyio"),
)

PROBE = """
import runpy, sys
sys.argv = [{script!r}, "--help"]
sys.path.insert(0, {root!r})
try:
    runpy.run_path({script!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("HEAVY:", [name for name in {heavy!r} if name in sys.modules])
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_loads_nothing_heavy(script):
    """`--help` took 6.6 s in a trial in which one module imported torch."""
    code = PROBE.format(script=str(script), root=str(ROOT), heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY: []"
    assert "--help" in done.stdout


# Who may import whom, as DESIGN has it: a room and what stands left of it.
WORDS = ("records", "files", "trace_files", "json_checks", "paths", "http", "hub", "cli", "metrics")
TABLES = ("actions", "prompts", "modes", "solvers", "tasks", "step_prompt", "reminder")
GROUND = {"words", "tables"}
ROOMS = {
    "words": set(),
    "tables": {"words"},
    "data": GROUND,
    "kv": GROUND,
    "kv_store": GROUND | {"kv"},
    "model": GROUND | {"kv", "kv_store"},
    "engine": GROUND | {"kv", "kv_store"},
    "retrieval": GROUND,
    "logs": GROUND | {"retrieval"},
    "agent": GROUND | {"retrieval", "logs"},
    "config": GROUND | {"retrieval", "logs"},  # the settings record, a layer of its own
    "evaluation": GROUND | {"data", "retrieval", "logs", "config"},
    "runs": GROUND | {"data", "kv", "kv_store", "model", "retrieval", "logs", "agent", "config"},
}
ROOMS["report"] = ROOMS["evaluation"] | {"evaluation"}
ROOMS["train"] = {*ROOMS["runs"], "runs"}
ROOMS["miniwiki"] = {*ROOMS["train"], "train"}
# Modules above 320 lines, each with its reason.
LONG = {
    "tasks.py": "the table, how rows are read, and the own data sets that bring a row along",
    "kv/cache.py": "a cache that grows, takes rows in and back, and what is placed in it",
    "miniwiki/gold_agent.py": "all that the scripted agent reads, says and writes, and its formats",
    "model/decoder.py": "a batch in flight: rows that enter in pieces, join, go on and leave",
    "model/scheduler.py": "who enters when, what is taken over, and what follows a failure",
    "miniwiki/world.py": "the whole world, with its word lists",
    "records.py": "every record and protocol that rooms share",
    "runs/config.py": "one row per setting",
}


@cache
def tree_of(path: Path) -> ast.Module:
    """Parsed once for all tests."""
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> list[ast.FunctionDef]:
    tree = tree_of(path)
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def room_of(module: str) -> str:
    parts = module.split(".")
    if module == "lag.runs.config":
        return "config"
    if len(parts) > 2:
        return parts[1]
    return "words" if parts[1] in WORDS else "tables" if parts[1] in TABLES else parts[1]


def imports() -> dict[str, set[str]]:
    """By module, the modules of this package that it imports, function-local imports included."""
    names = {name_of(path) for path in MODULES}
    found: dict[str, set[str]] = {}
    for path in MODULES:
        own = found.setdefault(name_of(path), set())
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lag":
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    target = node.module if node.module in names else whole
                    assert target in names, f"{path}: {target} is no module"
                    own.add(target)
            if isinstance(node, ast.Import):
                assert not [a for a in node.names if a.name.split(".")[0] == "lag"], path
    return found


def test_imports_flow_one_way_between_rooms():
    arrows = imports()
    assert len(arrows) > 60
    wrong = [
        f"{module} -> {target}"
        for module, targets in arrows.items()
        for target in targets
        if room_of(module) != room_of(target) and room_of(target) not in ROOMS[room_of(module)]
    ]
    assert not wrong


def test_only_the_engine_room_knows_vllm():
    """The toolkit's environment never holds it, so that any other import breaks at once."""
    knowing = set()
    for path in [*SCRIPTS, *MODULES]:
        for node in ast.walk(tree_of(path)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.split(".")[0] == "vllm" for name in names):
                knowing.add(path.relative_to(ROOT).as_posix())
    assert knowing == {"lag/engine/connector.py"}


def test_imports_have_no_circle():
    arrows = imports()
    while arrows:
        leaves = [module for module, targets in arrows.items() if not targets & arrows.keys()]
        assert leaves, f"a circle among {sorted(arrows)}"
        for leaf in leaves:
            del arrows[leaf]


def test_rooms_stay_small():
    for folder in {path.parent for path in MODULES}:
        count = sum(path.parent == folder for path in MODULES)
        assert count <= (16 if folder.name == "lag" else 14), folder
        assert (folder / "__init__.py").read_text() == ""


def test_functions_and_modules_stay_small():
    lengths = [
        f.end_lineno - f.lineno + 1 for path in [*SCRIPTS, *MODULES] for f in functions(path)
    ]
    assert statistics.median(lengths) <= 12
    lines = {
        p.relative_to(ROOT / "lag").as_posix(): len(p.read_text().splitlines()) for p in MODULES
    }
    assert {name for name, n in lines.items() if n > 320} == set(LONG)


@pytest.mark.parametrize("path", [*SCRIPTS, *MODULES], ids=lambda path: path.name)
def test_scripts_are_imported_by_nobody_and_every_module_says_why_it_exists(path):
    tree = tree_of(path)
    scripts = {script.stem for script in SCRIPTS}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not scripts & {name.split(".")[0] for name in names}
    assert ast.get_docstring(tree)


def test_settings_travel_as_a_record():
    """A Namespace four layers deep: nobody could say what a run's settings were."""
    named = [path.name for path in MODULES if "Namespace" in path.read_text(encoding="utf-8")]
    assert named == []


# Who may lock, digest or sync by itself, beside `files`; each has a reason.
BY_HAND = {
    "fcntl": {"files.py"},
    "hashlib": {"files.py", "prompts.py", "model/sampling.py"},  # a frozen digest; a seed in bytes
    "fsync": {"files.py"},
}


def test_files_are_written_locked_and_digested_in_one_place():
    """Six modules wrote files in six ways, two of them under one temporary name."""
    found: dict[str, set[str]] = {name: set() for name in BY_HAND}
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [node.attr] if isinstance(node, ast.Attribute) else []
            for name in BY_HAND.keys() & set(names):
                found[name].add(path.relative_to(ROOT / "lag").as_posix())
    assert all(found[name] <= BY_HAND[name] for name in BY_HAND), found


def test_nothing_is_pickled():
    """Loading somebody's log store must never run their code."""
    for path in [*SCRIPTS, *MODULES]:
        tree = tree_of(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                named = getattr(node.value, "id", ""), node.attr
                assert named not in {("torch", "load"), ("torch", "save"), ("pickle", "load")}
            if isinstance(node, ast.Import):
                assert "pickle" not in [alias.name for alias in node.names]


def test_the_readme_knows_every_mode_data_set_and_script():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [name for name in [*MODES, *TASKS] if f"`{name}`" not in readme]
    rooms = {f"`{path.parent.name}/`" for path in MODULES if path.parent.name != "lag"}
    missing += [name for name in [*(path.name for path in SCRIPTS), *rooms] if name not in readme]
    assert not missing
