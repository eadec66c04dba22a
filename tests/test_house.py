"""The house itself: quick help, small functions, one-way imports, a README that is true."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from lag.modes import MODES
from lag.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(ROOT.glob("*.py"))
MODULES = sorted((ROOT / "lag").glob("*.py"))
HEAVY = ("torch", "transformers", "sentence_transformers", "faiss", "datasets", "matplotlib")

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


def functions(path: Path) -> list[ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def test_functions_and_modules_stay_small():
    lengths = [
        f.end_lineno - f.lineno + 1 for path in [*SCRIPTS, *MODULES] for f in functions(path)
    ]
    assert statistics.median(lengths) <= 12
    long = {p.name: n for p in MODULES if (n := len(p.read_text().splitlines())) > 400}
    assert not long


@pytest.mark.parametrize("path", [*SCRIPTS, *MODULES], ids=lambda path: path.name)
def test_scripts_are_imported_by_nobody_and_every_module_says_why_it_exists(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    scripts = {script.stem for script in SCRIPTS}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not scripts & {name.split(".")[0] for name in names}
    assert path.name == "__init__.py" or ast.get_docstring(tree)


def test_nothing_is_pickled():
    """Loading somebody's log store must never run their code."""
    for path in [*SCRIPTS, *MODULES]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                named = getattr(node.value, "id", ""), node.attr
                assert named not in {("torch", "load"), ("torch", "save"), ("pickle", "load")}
            if isinstance(node, ast.Import):
                assert "pickle" not in [alias.name for alias in node.names]


def test_the_readme_knows_every_mode_data_set_and_script():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [name for name in [*MODES, *TASKS] if f"`{name}`" not in readme]
    missing += [path.name for path in [*SCRIPTS, *MODULES[1:]] if path.name not in readme]
    assert not missing


def test_the_readme_says_what_was_measured():
    """Its table is what `benchmarks/table.py` prints from the result files."""
    path = ROOT / "benchmarks" / "table.py"
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True)
    table = done.stdout.splitlines()
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    start = readme.index(table[0])
    assert readme[start : start + len(table)] == table and len(table) > 40
