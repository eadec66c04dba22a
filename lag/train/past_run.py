"""The finished rows of a run, the settings of its prompts, which rows are learned from, and gold answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lag import metrics, trace_files
from lag.actions import tags
from lag.files import digest_of, read_json
from lag.records import Question, Trace
from lag.tasks import Task

CLOSE = "</ans>"


def correct(trace: Trace, question: Question, task: Task) -> bool:
    """
    Raises:
        ValueError: there is no gold answer to tell.
    """
    golds = question.answers
    if not any(golds):
        raise ValueError(f"question {question.id!r} has no gold answer; give --filter answered")
    return metrics.score(task.scorer, trace.pred, golds, question.options)["em"] == 1


def answered(trace: Trace, question: Question, task: Task) -> bool:
    return trace.status == "answered"


Rows = Sequence[tuple[Trace, Question]]


def each(test: Callable[[Trace, Question, Task], bool]) -> Callable[[Rows, Task], set[str]]:
    """The filter that asks of every row by itself."""
    return lambda rows, task: {trace.id for trace, question in rows if test(trace, question, task)}


def solved(rows: Rows, task: Task) -> set[str]:
    """Rows of questions that at least one row has right: of others no weight can say what helped."""
    right = {question.id for trace, question in rows if correct(trace, question, task)}
    return {trace.id for trace, question in rows if question.id in right}


ADVICE = "give a predictions file, a log store or the folder of a run"
# rows with their questions -> ids of those that are learned from
FILTERS: dict[str, Callable[[Rows, Task], set[str]]] = {
    "correct": each(correct),
    "solved": solved,
    "answered": each(answered),
    "all": each(lambda trace, question, task: True),
}


@dataclass(frozen=True, slots=True)
class PastRun:
    """A run's finished rows, and the settings that decided its prompts."""

    path: Path
    settings: dict[str, Any]
    rows: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "PastRun":
        """Read a predictions file, or the folder of a run.

        Raises:
            FileNotFoundError, ValueError: there is none, or rows that name no settings of ours.
        """
        path = Path(path)
        if path.is_dir() and not trace_files.is_merged(path):
            known = read_json(path / "run.json", ADVICE)["identity"]
            return cls(path, known, trace_files.read_parts(path))
        found = read_json(path / "preds.json" if path.is_dir() else path, ADVICE)
        parts = found if isinstance(found, dict) else {}
        named = parts.get("metadata"), parts.get("inference_params"), parts.get("results")
        if not all(isinstance(part, dict) for part in named):
            raise ValueError(
                f"{path} holds no metadata, inference_params and results; expected what "
                "agentic.py --merge writes: foreign rows do not tell their prompts"
            )
        return cls(path, {**named[0], **named[1]}, named[2])

    def traces(self) -> Iterator[Trace]:
        """Rows that did not fail."""
        for id, row in self.rows.items():
            trace = trace_files.trace_of(id, row)
            if trace.error is None:
                yield trace

    @property
    def digest(self) -> str:
        return digest_of([self.settings, trace_files.without_seconds(self.rows)])[:16]


def up_to_answer(reply: str) -> str:
    """A reply up to where its answer's text begins; an answer is opened in one that has none."""
    answers = [tag for tag in tags(reply) if tag.name == "ans"]
    before = reply[: answers[-1].start] if answers else f"{reply.rstrip()}\n"
    return f"{before}<ans>"


def spellings(question: Question) -> tuple[str, ...]:
    """The gold answer and its aliases; of multiple choice the letter, bare and as prompts have it.

    Raises:
        ValueError: there is none.
    """
    golds = tuple(dict.fromkeys(filter(str.strip, question.answers)))
    if not golds:
        raise ValueError(f"question {question.id!r} has no gold answer to weigh samples by")
    letters = {metrics.letter_at(n) for n in range(len(question.options))}
    shown = [f"({gold})" for gold in golds if gold in letters]
    return (*shown, *golds)


def with_gold(reply: str, question: Question) -> str:
    """The reply as far as its answer, and the gold answer; what else it says stays.

    Raises:
        ValueError: there is none.
    """
    return f"{up_to_answer(reply)}{spellings(question)[0]}{CLOSE}"
