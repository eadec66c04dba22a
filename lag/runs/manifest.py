"""The `run.json` that keeps what identifies a run, and how it was made.

`identity` holds everything that could change a row; resuming compares it and names what differs.
`provenance` holds the rest: who ran what, where and when. `scope` says which questions were asked
for, so that a scorer knows what is missing.
"""

import platform
import subprocess
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from lag import files
from lag.files import read_json, write_json
from lag.runs.config import RunConfig

LIBRARIES = ("torch", "transformers", "sentence-transformers", "faiss-cpu", "numpy")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, shortened; empty where there is no file."""
    return files.file_digest(path, 16) if path.is_file() else ""


def commit_of(folder: Path) -> dict[str, Any]:
    """The commit of the code that runs, and whether it was changed since."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except FileNotFoundError:  # no git on this machine
        return {"commit": "", "dirty": False}


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide numbers."""
    return {"python": platform.python_version(), **{n: version_of(n) for n in LIBRARIES}}


@cache
def version_of(library: str) -> str:
    """As it is installed; empty if it is not."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def begin(path: Path, identity: dict[str, Any], config: RunConfig, num_questions: int) -> None:
    """Write `run.json`, or check that the run that is there is the same one.

    Raises:
        ValueError: another identity; names what differs.
    """
    with files.locked(path.with_name(".run.lock")):
        known = {"identity": identity, "provenance": {}}
        if path.exists():
            check(path, identity, config)
            known = read_json(path)
        known["scope"] = {"n": num_questions, **config.scope}
        found = {"argv": sys.argv, "flags": config.recorded(), "versions": versions()}
        known["provenance"] |= found | commit_of(Path(__file__).parent)
        write_json(path, known)


def check(path: Path, identity: dict[str, Any], config: RunConfig) -> None:
    """
    Raises:
        ValueError: another identity than that of the run that is there; names what differs.
    """
    found = config.differences(read_json(path)["identity"], identity)
    if found:
        raise ValueError(
            f"{path} is another run ({'; '.join(found)}); repeat its flags, give this one a "
            "name of its own with --run NAME, or delete the folder"
        )


def note_part(path: Path, partition: int, facts: dict[str, Any]) -> None:
    """Add what is known of one partition's work: device, batch size, start, end."""
    with files.locked(path.with_name(".run.lock")):
        known = read_json(path)
        parts = known["provenance"].setdefault("partitions", {})
        parts[str(partition)] = parts.get(str(partition), {}) | facts
        write_json(path, known)


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
