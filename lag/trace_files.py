"""Traces on disk: one JSON line each, appended, so that a kill loses only the line being written."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lag.records import Trace


def without_seconds(row: Any) -> Any:
    """What two runs are compared by: the row without what a clock measured.

    Near ties are left out too: whether a lead is just below or above the bound is itself rounding.
    """
    if isinstance(row, dict):
        left_out = ("seconds", "near_ties")
        return {key: without_seconds(v) for key, v in row.items() if key not in left_out}
    if isinstance(row, list):
        return [without_seconds(value) for value in row]
    return row


def cut_torn_line(path: Path) -> None:
    """Cut what a killed writer left after the last newline."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # a file that is left alone keeps its time
            file.truncate(whole)


def append_trace(path: Path, trace: Trace) -> None:
    """Append one line and flush it to the disk."""
    line = json.dumps({"id": trace.id, **trace.to_json()}, ensure_ascii=False) + "\n"
    with open(path, "ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a part in order; a torn last line is left out.

    Raises:
        ValueError: a complete line that is not a row; names the file and the line.
    """
    content = path.read_bytes()
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            row = json.loads(line)
            row["id"], row["question"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} line {number} is not a row of a run: {error!r}") from error
        yield row


def natural(path: Path) -> list[Any]:
    """Sort key under which `part-2` comes before `part-10`."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", str(path))]


def read_parts(folder: Path) -> dict[str, dict[str, Any]]:
    """The last row of every id in all parts of a run; a finished row beats an error row."""
    rows: dict[str, dict[str, Any]] = {}
    for part in sorted(folder.glob("part-*.jsonl"), key=natural):
        for row in read_rows(part):
            if row.get("error") and row["id"] in rows and not rows[row["id"]].get("error"):
                continue
            rows[row["id"]] = row
    return rows


def merge(rows: dict[str, dict[str, Any]], order: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Rows in the order of the question file, without the id inside."""
    return {
        id: {key: value for key, value in rows[id].items() if key != "id"}
        for id in order
        if id in rows
    }
