"""The words of a step's prompt, made from what entered it and from one row of each table.

The loop asks with them, and the report makes again with them what was asked, so that the two cannot
part. What enters, and what has no room, is decided elsewhere: nothing here ranks or counts tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from lag import prompts
from lag.modes import BLANK, Mode
from lag.prompts import Note, Prompt
from lag.records import ASIDE, Document, Log, Question, Step, Trace
from lag.reminder import reminded
from lag.solvers import Solver, choose_prompt, limits, record_prompt
from lag.tasks import Task


class PromptSettings(Protocol):
    """What of a run's settings decides the words of its prompts: `LoopSettings` says what each is."""

    task: Task
    mode: Mode
    documents_from: str
    records: bool
    max_steps: int
    trace_steps: int
    prefill: str
    layout: str


@dataclass(frozen=True, slots=True)
class StatedSettings:
    """The `PromptSettings` of a run that is over, as its files state them."""

    task: Task
    mode: Mode
    documents_from: str
    records: bool
    max_steps: int
    trace_steps: int
    prefill: str
    layout: str

    @classmethod
    def of(cls, task: Task, mode: Mode, solver: Solver, said: Mapping[str, Any]) -> Self:
        """What is not said has the default."""
        stated = said.get("trace_steps")
        return cls(
            task,
            mode,
            solver.documents_from,
            solver.records,
            said.get("max_steps") or limits(solver, task)["max_steps"],
            limits(solver, task)["trace_steps"] if stated is None else stated,
            said.get("prefill") or "turn",
            said.get("layout") or "paper",
        )


@dataclass(frozen=True, slots=True)
class Entered:
    """What one prompt is made from.

    steps: the earlier steps that it shows, the last one last.
    """

    docs: list[Document]
    notes: list[Note]
    steps: list[Step] = field(default_factory=list)


def note_of(mode: Mode, log: Log, context: Log, similarity: float) -> Note:
    """The words of a log that come back; as KV they are encoded after hidden words of `context`."""
    kv = mode.enters == "kv"
    return Note(log.id, mode.keep(log), mode.after(context) if kv else "", kv, similarity)


def sheet_notes(sheet: str) -> list[Note]:
    """A cheatsheet as what stands before a chat; an empty one does not."""
    return [Note("sheet", sheet + BLANK, similarity=1.0)] if sheet else []


def last_sheet(ids: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The cheatsheet as the last finished question of a share left it (`--sheet carried`)."""
    sheets = (rows[id].get("sheet") for id in reversed(ids) if id in rows)
    return next(filter(None, sheets), "")


def loop_steps(steps: Sequence[Step]) -> list[Step]:
    """The steps of the loop; a curator's call and a reply that was asked again are none."""
    return [step for step in steps if step.action not in ASIDE]


def build(
    question: Question,
    before: Sequence[Step],
    settings: PromptSettings,
    held: Entered,
    again: bool = False,
) -> Prompt:
    """The prompt of one step.

    before: all earlier steps; the last reply of them is carried on where the task says so.
    again: whether it reminds of the format, as the reply before had no tag.
    """
    documents = None if settings.documents_from == "none" else held.docs
    carried = before and settings.task.carries_reply and not settings.trace_steps
    if settings.records:
        prompt = record_prompt(question.text, held.docs, before, settings.max_steps)
    else:
        prompt = settings.task.prompt(question, documents, before[-1].reply if carried else "")
    prompt = prompts.with_steps(prompt, [(step.query, step.reply) for step in held.steps])
    if again:
        prompt = reminded(prompt, settings.task.query_tag if documents is not None else "")
    if settings.prefill == "folded":
        prompt = prompts.folded(prompt)
    header = prompts.SHEET_HEADER if settings.mode.enters == "sheet" else prompts.LOGS_HEADER
    return prompts.with_notes(prompt, held.notes, settings.layout, header)


def is_reminded(trace: Trace, number: int) -> bool:
    """Whether the prompt of a step reminds of the format, as the reply before had no tag."""
    return number > 0 and trace.steps[number - 1].action == "retry"


def left_out(trace: Trace, number: int) -> Mapping[str, Sequence[Any]]:
    """What had no room at a step: lists of ids of `logs` and `docs`, and of numbers of `steps`."""
    rows = [row for row in trace.dropped if row.get("step") == number]
    return {name: found for row in rows for name, found in row.items() if isinstance(found, list)}


def made_again(
    trace: Trace,
    number: int,
    question: Question,
    settings: PromptSettings,
    docs: list[Document],
    notes: list[Note],
) -> tuple[Prompt, Entered]:
    """The prompt of a past step that is no curator's, and what it was made from.

    number: the step's place in its row, from 0. docs, notes: what the row says has entered.
    """
    step, before = trace.steps[number], loop_steps(trace.steps[:number])
    if step.action == "select":
        return choose_prompt(question.text, step.query, docs), Entered(docs, [])
    dropped = left_out(trace, len(before) + 1)
    if settings.mode.enters == "sheet" and "sheet" not in dropped.get("logs", ()):
        notes = sheet_notes(trace.sheet or "")
    shown = before[len(dropped.get("steps", ())) :] if settings.trace_steps else []
    held = Entered(docs, notes, shown)
    return build(question, before, settings, held, is_reminded(trace, number)), held


def curator(
    question: Question, sheet: str, logs: Mapping[str, Log], max_new_tokens: int, held: Entered
) -> Prompt:
    """Ask for a cheatsheet from logs; `sheet` is the one that it goes on from, or empty."""
    pairs = [(logs[note.id].question, note.keep.removesuffix(BLANK)) for note in held.notes]
    return prompts.curator_prompt(question.text, pairs, sheet, max_new_tokens)
