"""Predictions on disk, parts and merged files: how they are written, and the only reader of them.

A part has one JSON line per trace, appended, so that a kill loses only the line being written. A
row may come from anywhere, so nothing of it is taken on trust: a row that cannot be read as meant
is refused with its file, its id and what it holds.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lag.files import append_bytes
from lag.json_checks import (
    SURROGATE,
    Row,
    check_encodable,
    clip,
    located,
    mapping,
    number,
    objects,
    parsed,
    text,
    texts,
)
from lag.records import COUNTS, DRAFTS, SECONDS, Step, Trace, UsedLog


def without_seconds(row: Any) -> Any:
    """What two runs are compared by: the row without what a clock measured.

    Near ties are left out too: whether a lead is just below or above the bound is itself rounding;
    and drafts, which others in flight help to guess.
    """
    if isinstance(row, dict):
        left_out = ("seconds", "near_ties", *DRAFTS)
        return {key: without_seconds(v) for key, v in row.items() if key not in left_out}
    if isinstance(row, list):
        return [without_seconds(value) for value in row]
    return row


# --- parts --------------------------------------------------------------------------------------
def whole_bytes(path: Path) -> int:
    """How many bytes of a part stand before the end of its last whole line."""
    with open(path, "rb") as file:
        return sum(len(line) for line in file if line.endswith(b"\n"))


def cut_torn_line(path: Path) -> None:
    """Cut what a killed writer left after the last newline; a whole file keeps its time."""
    if path.exists() and (whole := whole_bytes(path)) < path.stat().st_size:
        with open(path, "rb+") as file:
            file.truncate(whole)


def append_trace(path: Path, trace: Trace) -> None:
    """Append one line and bring it to the disk.

    Raises:
        DiskFull, OSError: it cannot be written; nothing of it is.
    """
    line = json.dumps({"id": trace.id, **trace.to_json()}, ensure_ascii=False) + "\n"
    append_bytes(path, line.encode())


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a part in order; a torn last line is left out.

    Raises:
        ValueError: a complete line that is not a row; names the file and the line.
    """
    with open(path, "rb") as file:
        for count, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            with located(f"{path} line {count} is not a row of a run:"):
                row = parsed(line.decode())
                named = isinstance(row, dict) and isinstance(row.get("id"), str)
                if not named or "question" not in row:
                    wanted = "an object with a text 'id' and 'question'"
                    raise ValueError(f"holds {clip(row)}; expected {wanted}")
            yield row


def natural(path: Path) -> list[Any]:
    """Sort key under which `part-2` comes before `part-10`."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", str(path))]


def parts_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.jsonl"), key=natural)


def is_merged(folder: Path) -> bool:
    """Whether a run has a merged file, and no part of it is newer."""
    merged = folder / "preds.json"
    written = merged.stat().st_mtime_ns if merged.is_file() else -1
    return written >= 0 and all(p.stat().st_mtime_ns <= written for p in parts_of(folder))


def last_rows(rows: Iterable[Row]) -> tuple[dict[str, Row], int]:
    """The row of each id that counts: the last one, but no error row beats a finished one.

    Returns:
        The rows, and how many finished rows were replaced by a later finished one.
    """
    kept: dict[str, Row] = {}
    repeats = 0
    for row in rows:
        finished = row["id"] in kept and not kept[row["id"]].get("error")
        if not (finished and row.get("error")):
            repeats += finished
            kept[row["id"]] = row
    return kept, repeats


def read_parts(folder: Path) -> dict[str, Row]:
    """The rows of a run that count, by id, as they stand in its parts; they can be written again.

    Raises:
        ValueError: a line that is no row, or a row that is no trace; names it.
    """
    rows, _ = last_rows(row for part in parts_of(folder) for row in read_rows(part))
    for id, row in rows.items():
        checked_trace(folder, id, row)
        with located(f"{folder} row {clip(id, 60)}"):
            check_encodable(row)
    return rows


def merge(rows: dict[str, Row], order: Iterable[str]) -> dict[str, Row]:
    """Rows in the order of the question file, without the id inside."""
    found = {id: rows[id] for id in order if id in rows}
    return {id: {k: v for k, v in row.items() if k != "id"} for id, row in found.items()}


# --- merged files -------------------------------------------------------------------------------
def results_of(path: Path, content: Any) -> Row:
    """The rows of a predictions file by id, ours or another toolkit's with the same envelope.

    Raises:
        ValueError: there are none; says what was expected.
    """
    if is_exsearch(content):
        content = exsearch_file(path, content)
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise ValueError(
            f"{path} is a JSON {type(content).__name__} without 'results'; expected a predictions file: "
            '{"metadata": .., "results": {id: row}}; make one with agentic.py --merge'
        )
    return results


def is_exsearch(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("output"), list)


def exsearch_file(path: Path, content: Row) -> Row:
    """ExSearch's predictions `{score, output[{query_id, answer, pred, messages}], config}` as ours.

    Raises:
        ValueError: a row without an id or messages; names it.
    """
    results = {}
    for place, row in enumerate(content["output"], 1):
        try:
            results[text(row["query_id"])] = exsearch_row(row)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path} row {place} of 'output' is no ExSearch prediction ({error}); expected "
                "query_id, pred, and messages with role and content"
            ) from error
    metadata = {"method": "exsearch", "mode": "base", "solver": "exsearch"}
    return {"metadata": metadata, "inference_params": {}, "results": results}


def exsearch_row(row: Row) -> Row:
    """Its turns of the model become steps; a search asks for what the turn before has thought of."""
    first = row["messages"][0]["content"]
    said = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
    question, steps = first.partition("<USER QUERY>")[2].strip() or first, []
    query = question
    for place, reply in enumerate(said, 1):
        last = place == len(said)
        action = "answer" if last else "search"
        steps.append({"query": query, "action": action, "reply": reply})
        thought = re.split(r"<(?:QUERY|THINK)>", reply)
        query = thought[-1].strip() if len(thought) > 1 else query
    golds = row.get("answer") or []
    golds = [golds] if isinstance(golds, str) else list(golds)
    return {"question": question, "pred": row.get("pred"), "gold_answer": golds, "trace": steps}


# --- rows ---------------------------------------------------------------------------------------
def checked_trace(path: Path, id: str, row: Any) -> Trace:
    """A row as a trace.

    path: the file or folder that it is from, for messages.

    Raises:
        ValueError: a field holds what it cannot; names the file, the id and what it holds.
    """
    with located(f"{path} row {clip(id, 60)}"):
        if not id or SURROGATE.search(id):
            raise ValueError("has an id that is no text")
        return trace_of(id, mapping(row))


def trace_of(id: str, row: Row) -> Trace:
    """As `checked_trace`, but messages name neither file nor id."""
    steps, sheet = objects(row.get("trace")), row.get("sheet")
    evidence = row.get("gold_evidence")
    # others keep records there, which name no document
    plain = isinstance(evidence, list) and all(isinstance(item, str) for item in evidence)
    return Trace(
        id=id,
        question=text(row.get("question")),
        gold_answer=texts(row.get("gold_answer") or []),
        gold_evidence=texts(evidence) if plain else (),
        pred=text(row.get("pred")).strip(),
        steps=[step_of(step) for step in steps],
        sheet=None if sheet is None else text(sheet),
        dropped=objects(row.get("dropped")),
        ended=row["ended"] if isinstance(row.get("ended"), str) else "",
        adapter=row["adapter"] if isinstance(row.get("adapter"), str) else "",
        store=mapping(row.get("store")) or None,
        without=row["without"] if isinstance(row.get("without"), str) else "",
        error=error_of(row, steps),
        question_id=text(row.get("question_id")),
        sample=row["sample"] if isinstance(row.get("sample"), int) else None,
    )


def step_of(value: Row) -> Step:
    """A step; in others' files the reply is called `answer` or `output`."""
    reply = next((value[name] for name in ("reply", "answer", "output") if value.get(name)), "")
    seconds = mapping(value.get("seconds"))
    return Step(
        query=text(value.get("query")),
        action=text(value.get("action")),
        docs=texts(value.get("docs") or []),
        logs=tuple(map(used_log, objects(value.get("logs")))),
        reply=text(reply),
        seconds={part: number(seconds[part]) for part in SECONDS if part in seconds},
        **{name: number(value.get(name)) for name in COUNTS},
    )


def used_log(value: Row) -> UsedLog:
    similarity = value.get("similarity") or 0.0
    if not isinstance(similarity, int | float) or not abs(similarity) < 1e18:
        raise ValueError(f"holds similarity {clip(similarity)}; expected a number")
    return UsedLog(text(value.get("id")), similarity, text(value.get("source")) or "text")


def error_of(row: Row, steps: list[Row]) -> dict[str, str] | None:
    """What went wrong, in the row's own words; a last step that failed without an answer counts."""
    error = row.get("error")
    if not error and steps and steps[-1].get("error") and not text(row.get("pred")).strip():
        error = steps[-1]["error"]
    if isinstance(error, dict):
        return {str(key): str(value) for key, value in error.items()}
    if error or row.get("status") == "error":
        return {"stage": "", "type": "error", "message": str(error or "not told"), "traceback": ""}
    return None
