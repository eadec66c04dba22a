"""Rows of predictions files, ours or of the same envelope by others, read as traces.

A row may come from anywhere, so nothing of it is taken on trust: what can be read as meant is, and
the rest is refused with the file, the id and the field.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lag.json_checks import (
    SURROGATE,
    check_encodable,
    clip,
    mapping,
    number,
    objects,
    parsed,
    text,
    texts,
)
from lag.records import COUNTS, SECONDS, Step, Trace, UsedLog
from lag.trace_files import read_rows

GOLD_FIELDS = ("gold_answer", "gold_answers", "answers", "true")


# `test_seed=1_bn=2_bs=50.json`: what a batch file's name says where its metadata does not.
BATCH_NAME = re.compile(
    r"(?P<split>.+?)_seed=(?P<seed>\d+)(?:_bn=\d+)?(?:_bs=(?P<batch_size>\d+))?"
)


@dataclass(slots=True)
class Predictions:
    """One file: what it says of itself, and its traces by id.

    options: of the rows that bring the options of a multiple-choice question along.
    """

    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    traces: dict[str, Trace] = field(default_factory=dict)
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def golds_of(row: dict[str, Any]) -> tuple[str, ...]:
    """The gold answers under whichever name they stand, none if under none.

    One text of several lines is several answers that a writer has joined; the whole stays first,
    for an option may have lines.
    """
    for name in GOLD_FIELDS:
        golds = texts(row.get(name))
        if len(golds) == 1 and not isinstance(row[name], list) and "\n" in golds[0]:
            return texts([golds[0], *golds[0].splitlines()])
        if golds:
            return golds
    return ()


def error_of(row: dict[str, Any], steps: list[dict[str, Any]]) -> dict[str, str] | None:
    """What went wrong, in the row's own words; a last step that failed without an answer counts."""
    error = row.get("error")
    if not error and steps and steps[-1].get("error") and not text(row.get("pred")).strip():
        error = steps[-1]["error"]
    if isinstance(error, dict):
        return {str(key): str(value) for key, value in error.items()}
    if error or row.get("status") == "error":
        return {"stage": "", "type": "error", "message": str(error or "not told"), "traceback": ""}
    return None


def used_log(value: dict[str, Any]) -> UsedLog:
    similarity = value.get("similarity") or 0.0
    if not isinstance(similarity, int | float) or not abs(similarity) < 1e18:
        raise ValueError(f"holds similarity {clip(similarity)}; expected a number")
    return UsedLog(text(value.get("id")), similarity, text(value.get("source")) or "text")


def step_of(value: dict[str, Any]) -> Step:
    """A step; in others' files the reply is called `answer` or `output`."""
    reply = next((value[name] for name in ("reply", "answer", "output") if value.get(name)), "")
    seconds = mapping(value.get("seconds"))
    return Step(
        query=text(value.get("query")),
        action=text(value.get("action")),
        docs=texts(value.get("docs") or []),
        logs=tuple(map(used_log, objects(value.get("logs")))),
        reply=text(reply),
        seconds={part: number(seconds.get(part)) for part in SECONDS},
        **{name: number(value.get(name)) for name in COUNTS},
    )


def trace_of(id: str, row: dict[str, Any]) -> Trace:
    """A row as a trace.

    Raises:
        ValueError: a field holds what it cannot.
    """
    steps = objects(row.get("trace"))
    sheet = row.get("sheet")
    return Trace(
        id=id,
        question=text(row.get("question")),
        gold_answer=golds_of(row),
        gold_evidence=texts(row.get("gold_evidence") or []) if plain_ids(row) else (),
        pred=text(row.get("pred")).strip(),
        steps=[step_of(step) for step in steps],
        sheet=None if sheet is None else text(sheet),
        dropped=objects(row.get("dropped")),
        error=error_of(row, steps),
    )


def plain_ids(row: dict[str, Any]) -> bool:
    """Whether the evidence is a list of ids; others keep records there, which name no document."""
    evidence = row.get("gold_evidence")
    return isinstance(evidence, list) and all(isinstance(item, str) for item in evidence)


def add_rows(found: Predictions, rows: Iterable[tuple[str, Any]]) -> None:
    """Read rows into a file's record.

    Raises:
        ValueError: names the file, the id and what it holds.
    """
    for id, row in rows:
        try:
            if SURROGATE.search(id) or not id:
                raise ValueError("has an id that is no text")
            row = mapping(row)
            found.traces[id] = trace_of(id, row)
            if options := texts(row.get("options") or row.get("choices") or []):
                found.options[id] = options
        except ValueError as error:
            raise ValueError(f"{found.path} row {clip(id, 60)} {error}") from error


def last_rows(found: Predictions, rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The last row of an id wins, but no error beats a finished row; repeats are told."""
    kept: dict[str, dict[str, Any]] = {}
    repeats = 0
    for row in rows:
        id = row["id"]
        if not isinstance(id, str):
            raise ValueError(f"{found.path.parent}: a row's id is {clip(id)}; expected text")
        before = kept.get(id)
        if before and not before.get("error"):
            repeats += not row.get("error")
            if row.get("error"):
                continue
        kept[id] = row
    if repeats:
        found.warnings.append(f"{repeats} finished rows are there twice; the last one counts")
    return kept


def read_parts(paths: list[Path]) -> Predictions:
    """The parts of a run, in the order given; torn last lines are told, not fatal.

    Raises:
        ValueError: a complete line that is no row; names the file and the line.
    """
    found = Predictions(paths[0])
    for path in paths:
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            found.warnings.append(f"{path.name} ends in a torn line, which is left out")
    rows = (row for path in paths for row in read_rows(path))
    try:
        add_rows(found, last_rows(found, rows).items())
    except RecursionError as error:
        raise ValueError(f"{paths[0].parent}: a row is nested too deep to be read") from error
    return found


def read_envelope(path: Path) -> Predictions:
    """A JSON file `{metadata, inference_params, results{id: row}}`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, not an envelope, an id that stands twice, or a wrong row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found; give a predictions file")
    try:
        content = parsed(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
            raise ValueError('no predictions file; expected {"metadata": .., "results": {id: row}}')
        metadata = mapping(content.get("metadata"))
        parameters = mapping(content.get("inference_params"))
        check_encodable([metadata, parameters])
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text at byte {error.start}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    named = BATCH_NAME.match(path.stem)
    said = {key: value for key, value in named.groupdict().items() if value} if named else {}
    found = Predictions(path, {**said, **parameters, **metadata})
    add_rows(found, content["results"].items())
    return found
