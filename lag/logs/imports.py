"""Read log stores that other code wrote."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lag.records import Log, Question, Trace

logger = logging.getLogger(__name__)

# What an imported reply may end with: its model's end of turn, decoded as text.
ENDS = re.compile(
    r"(?:\s*(?:<\|[\w-]{1,40}\|>|</s>|<eos>|<end_of_turn>|<｜end▁of▁sentence｜>))+\s*\Z"
)


def keyed_rows(path: Path, content: Any) -> dict[str, Log | None]:
    """Rows of a predictions file, ours or another toolkit's with the same envelope.

    Raises:
        ValueError: no `results`, or a row that cannot be read; names it.
    """
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        kind = type(content).__name__
        raise ValueError(
            f"{path} is a JSON {kind} without 'results'; expected a predictions file: "
            '{"metadata": .., "results": {id: row}}; make one with agentic.py --merge --as-log'
        )
    rows = {}
    for id, row in results.items():
        try:
            rows[id] = checked(log_of_row(id, row))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            problem = " ".join(str(error).split())[:150]
            raise ValueError(
                f"{path} row {id[:80]!r} is not a trace ({type(error).__name__}: {problem}); "
                "expected question, trace and status as agentic.py writes them"
            ) from error
    return rows


def log_of_row(id: str, row: dict[str, Any]) -> Log | None:
    """The log of one row, or None if the question failed."""
    if row.get("error") or row.get("status") == "error":
        return None
    steps = row["trace"]
    if any("reply" not in step for step in steps):
        return log_of_envelope(id, row["question"], steps)
    return Log.of(Trace.from_json({**row, "id": id}))


def log_of_envelope(id: str, question: str, steps: Sequence[dict[str, Any]]) -> Log | None:
    """A row whose steps are `{prompt, answer, action, error, ..}`; an error there ended it."""
    if any(step.get("error") for step in steps):
        return None
    return Log(id, question, said(step["answer"] or "" for step in steps))


def positional_rows(
    path: Path, rows: list[Any], questions: Sequence[Question] | None
) -> dict[str, Log | None]:
    """Rows of LAG's `log.json`: one list per train question, in order, "" where it failed.

    A row is `[[prompt, response, prompt, response, ..], state, steps, 0, 0, sheet]`.

    Raises:
        ValueError: not the rows of these questions; names the row (from 1).
    """
    if questions is None:
        raise ValueError(
            f"{path} is a list, so its rows go by position; the train questions must be there "
            "to name them: run dataset.py first"
        )
    if len(rows) != len(questions):
        raise ValueError(
            f"{path} has {len(rows)} rows for {len(questions)} train questions; expected one "
            "for each, in their order; split the data set as it was when the file was made"
        )
    logs = {}
    for number, (row, question) in enumerate(zip(rows, questions), 1):
        try:
            logs[question.id] = checked(log_of_position(row, question))
        except ValueError as error:
            raise ValueError(f"{path} row {number}: {error}") from error
    check_order(path, rows, questions)
    return logs


def log_of_position(row: Any, question: Question) -> Log | None:
    if row is None or row == "":
        return None
    trace = row[0] if isinstance(row, list) and row else None
    if not isinstance(trace, list) or len(trace) % 2:
        raise ValueError("expected [[prompt, response, ..], ..], or an empty text for a failure")
    return Log(question.id, question.text, said(trace[1::2]))


def check_order(path: Path, rows: list[Any], questions: Sequence[Question]) -> None:
    """Refuse rows that belong to other questions: each prompt repeats its own.

    Raises:
        ValueError: a prompt holds another train question instead.
    """
    prompts = [str(row[0][0]) if row and row[0] else "" for row in rows]
    strange = [
        n for n, prompt in enumerate(prompts) if prompt and questions[n].text.strip() not in prompt
    ]
    for n in strange[:20]:
        owner = next((q for q in questions if q.text.strip() in prompts[n]), None)
        if owner:
            raise ValueError(
                f"{path} row {n + 1} answers question '{owner.id}', not '{questions[n].id}'; "
                "split the data set as it was when the file was made"
            )
    if strange:
        logger.warning(
            "%s: %d prompts do not repeat their question; taken on trust", path, len(strange)
        )


def said(replies: Any) -> tuple[str, ...]:
    """Imported replies without end-of-turn tokens; blank ones are left out.

    Raises:
        ValueError: a reply that is not a text.
    """
    replies = list(replies)
    for reply in replies:
        if not isinstance(reply, str):
            raise ValueError(f"a response is {type(reply).__name__}; expected a text")
    cut = (ENDS.sub("", reply) for reply in replies)
    return tuple(reply for reply in cut if reply.strip())


def checked(entry: Log | None) -> Log | None:
    """The log, if its texts are texts.

    Raises:
        ValueError: not a text, or one that no encoder takes.
    """
    for text in (entry.id, entry.question, *entry.replies) if entry else ():
        if not isinstance(text, str):
            raise ValueError(f"holds {type(text).__name__} where a text is expected")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds half a character (a lone surrogate)") from error
    return entry
