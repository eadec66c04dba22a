"""The finished rows of a run, the settings that decided its prompts, and which rows are learned from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lag import metrics, trace_files
from lag.files import digest_of, read_json
from lag.records import Question, Trace
from lag.tasks import Task


def correct(trace: Trace, question: Question, task: Task) -> bool:
    """
    Raises:
        ValueError: there is no gold answer to tell.
    """
    golds = question.answers
    if not any(golds):
        raise ValueError(f"question {question.id!r} has no gold answer; give --filter answered")
    return metrics.score(task.scorer, trace.pred, golds, question.options)["em"] == 1


ADVICE = "give a predictions file, a log store or the folder of a run"
FILTERS: dict[str, Callable[[Trace, Question, Task], bool]] = {
    "correct": correct,
    "answered": lambda trace, question, task: trace.status == "answered",
    "all": lambda trace, question, task: True,
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
