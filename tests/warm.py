"""Scripts in processes of their own that need not load the libraries first: a server forks them.

Loading takes seconds, in which a test sees nothing but torch.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["agentic", "lag.model.llm", "lag.retrieval.embedder", "sentence_transformers", "tiny"]
)
Before = Callable[[], object]


def start(work: Callable[..., object], *args: Any) -> BaseProcess:
    process = CONTEXT.Process(target=work, args=args)
    process.start()
    return process


def start_script(
    folder: Path, script: str, *words: object, before: Before | None = None
) -> BaseProcess:
    """Start a script of the repository as a user does; what it says is in `out` and `err` there.

    before: what the process does first; a function of a module.
    """
    return start(become, folder, script, [*map(str, words)], before)


def run_script(
    script: str, *words: object, before: Before | None = None
) -> subprocess.CompletedProcess[str]:
    """As `start_script`, until it has ended."""
    with tempfile.TemporaryDirectory() as name:
        ends = []
        for path in (Path(name) / "out", Path(name) / "err"):
            os.mkfifo(path)  # no file, which might be meant to have a limit
            ends.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        process = start_script(Path(name), script, *words, before=before)
        process.join()
        out, err = (os.read(end, 1 << 16).decode() for end in ends)
        for end in ends:
            os.close(end)
    return subprocess.CompletedProcess([script, *words], process.exitcode, out, err)


def become(folder: Path, script: str, words: list[str], before: Before | None) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.chdir(ROOT)
    sys.argv = [script, *words]
    sys.path.insert(0, str((ROOT / script).parent))
    if before:
        before()
    runpy.run_path(script, run_name="__main__")
