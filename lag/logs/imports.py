"""Read log stores that other code wrote."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lag.json_checks import check_encodable, clip, located, objects
from lag.records import Log, Question
from lag.trace_files import results_of, trace_of

logger = logging.getLogger(__name__)

# What an imported reply may end with: its model's end of turn, decoded as text.
ENDS = re.compile(
    r"(?:\s*(?:<\|[\w-]{1,40}\|>|</s>|<eos>|<end_of_turn>|<｜end▁of▁sentence｜>))+\s*\Z"
)

# In Disentangling Memory and Reasoning's outputs: its token rows, which no other model knows, and
# where a question's options begin.
MARKERS = re.compile(r"(?:<[a-z]+_\d+>)+[ \t]*")
OPTIONS = re.compile(r"\sA\. ")


def keyed_rows(path: Path, content: Any) -> dict[str, Log | None]:
    """Rows of a predictions file, ours or another toolkit's with the same envelope.

    Raises:
        ValueError: no `results`, or a row that cannot be read; names it.
    """
    rows = {}
    for id, row in results_of(path, content).items():
        try:
            rows[id] = log_of_row(id, row)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} row {clip(id, 80)} is not a trace ({error}); "
                "expected question, trace and status as agentic.py writes them"
            ) from error
    return rows


def log_of_row(id: str, row: Any) -> Log | None:
    """The log of one row, or None if the question failed; others say so in a step.

    Raises:
        ValueError: not a trace; says what it holds.
    """
    if not isinstance(row, dict) or not isinstance(row.get("question"), str):
        held = row.get("question") if isinstance(row, dict) else row
        raise ValueError(f"it holds {type(held).__name__} where a text 'question' is expected")
    check_encodable([id, row])
    trace, steps = trace_of(id, row), objects(row.get("trace"))
    if trace.error or any(step.get("error") for step in steps):
        return None
    if "trace" not in row:
        raise ValueError("it has no 'trace'")
    if any("action" not in step for step in steps):
        raise ValueError("a step has no 'action', so nobody knows whether it is a curator's")
    if all("reply" in step for step in steps):
        return Log.of(trace)
    return Log(id, trace.question, said(trace.replies), trace.question_id)


def generated_rows(
    path: Path, rows: list[Any], questions: Sequence[Question] | None
) -> dict[str, Log | None]:
    """Rows of Disentangling Memory and Reasoning's outputs (arXiv 2411.13504, released code).

    A row is `{"generated_text": "Question: ..\\n reply", "result"}`; its id is that of the train
    question of the same words, else `row` and its number, which no data set calls a question. Of
    several rows on one train question the last counts.

    Raises:
        ValueError: not such a row; names it (from 1).
    """
    ids, logs = {question.text: question.id for question in questions or ()}, {}
    for number, row in enumerate(rows, 1):
        with located(f"{path} row {number}:"):
            text = row.get("generated_text") if isinstance(row, dict) else None
            if not isinstance(text, str) or not text.startswith("Question: "):
                raise ValueError("expected a 'generated_text' that begins with 'Question: '")
            first, _, reply = text.partition("\n")
            asked = OPTIONS.split(first.removeprefix("Question: "), maxsplit=1)[0].strip()
            id = ids.get(asked, f"row {number}")
            logs[id] = Log(id, asked, said([MARKERS.sub("", reply).strip()]))
    return logs


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
        with located(f"{path} row {number}:"):
            logs[question.id] = log_of_position(row, question)
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
    first = [row[0][0] if row and row[0] else "" for row in rows]
    prompts = [prompt if isinstance(prompt, str) else "no text" for prompt in first]
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
        ValueError: a reply that is not a text, or one that no encoder takes.
    """
    replies = list(replies)
    for reply in replies:
        if not isinstance(reply, str):
            raise ValueError(f"a response is {type(reply).__name__}; expected a text")
    check_encodable(replies)
    cut = (ENDS.sub("", reply) for reply in replies)
    return tuple(reply for reply in cut if reply.strip())
