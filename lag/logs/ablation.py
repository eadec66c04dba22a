"""Which logs did harm: questions that a run with logs turned from right to wrong, log by log.

Each is answered again once without each log that entered; what was retrieved stays, so that the log
that is left out is replaced by nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lag import metrics
from lag.logs.growing import entered
from lag.records import Question, Trace
from lag.trace_files import trace_of

Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Harmed:
    """A question that logs turned from right to wrong, and how the run answered it."""

    question: Question
    trace: Trace

    @property
    def version(self) -> int | None:
        """Of a store that grew, the one that it retrieved from."""
        return self.trace.store["version"] if self.trace.store else None

    @property
    def variants(self) -> list[Question]:
        """The question once without each log that entered, in the order of their ids."""
        return [replace(self.question, without=log) for log in sorted(entered(self.trace))]


def is_right(scorer: str, question: Question, trace: Trace) -> bool:
    if trace.status != "answered":
        return False
    return metrics.score(scorer, trace.pred, question.answers, question.options)["em"] == 1


def harmed(scorer: str, questions: Iterable[Question], baseline: Rows, rows: Rows) -> list[Harmed]:
    """The questions that the baseline has right and a run has not, without those that failed."""
    found = []
    for question in questions:
        id = question.row_id
        if id not in baseline or id not in rows:
            continue
        before, after = (trace_of(id, side[id]) for side in (baseline, rows))
        lost = is_right(scorer, question, before) and not is_right(scorer, question, after)
        if lost and not after.error:
            found.append(Harmed(question, after))
    return found


def by_version(found: Sequence[Harmed]) -> dict[int | None, list[Question]]:
    """All variants by the version that they retrieve from."""
    groups: dict[int | None, list[Question]] = {}
    for one in found:
        groups.setdefault(one.version, []).extend(one.variants)
    return groups


def row_id(question: str, log: str) -> str:
    """The id of the row of a question without a log."""
    return f"{question} without {log}"
