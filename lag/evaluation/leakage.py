"""How many of a run's questions its logs had seen before.

A log made from the question itself, from its literal duplicate, or from a question that shares a
sub-question with it explains a gain in another way than reasoning that carries over.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lag.evaluation.find_runs import Run
from lag.evaluation.gold import Catalogue
from lag.evaluation.scores import Evaluation
from lag.logs.growing import every_log
from lag.logs.store import LogStore
from lag.metrics import normalize
from lag.modes import MODES
from lag.paths import Paths
from lag.records import Question


@dataclass(frozen=True, slots=True)
class Leakage:
    """Counts of questions of one run.

    own_possible, own_entered: its own log could be retrieved; its own log entered a prompt.
    duplicates: a logged question has the same text but another id.
    shared: a logged question, not itself, has a sub-question in common; None: none is known.
    logs: how many the store holds; note: what makes these counts doubtful, or "".
    """

    count: int
    logs: int
    own_possible: int
    own_entered: int
    duplicates: int
    shared: int | None
    note: str = ""

    def line(self) -> str:
        """The counts as one sentence."""
        shared = "sub-questions are not known" if self.shared is None else (
            f"{self.shared} share a sub-question with a logged question"
        )  # fmt: skip
        return (
            f"of {self.count} questions {self.own_possible} could retrieve their own log, "
            f"{self.own_entered} did; {self.duplicates} are literal duplicates of a logged "
            f"question; {shared}; {self.logs} logs{'; ' if self.note else ''}{self.note}"
        )


def uses_logs(evaluation: Evaluation) -> bool:
    """Whether logs can enter: what its mode says, or, of a mode not ours, its rows."""
    if mode := MODES.get(evaluation.run.mode):
        return bool(mode.enters)
    return any(outcome.logs for outcome in evaluation.outcomes.values())


def store_path(run: Run, data: Path) -> Path:
    """A predictions file; of a store that grew with the run, its folder."""
    if run.meta.get("grow"):
        return Paths(data, run.dataset).grown(run.folder.name).parent
    return Path(str(run.meta.get("log_store") or Paths(data, run.dataset).log_store))


class Stores:
    """Log stores, read once each."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue = catalogue
        self.known: dict[tuple[Path, int | None], LogStore | None] = {}

    def of(self, run: Run) -> LogStore | None:
        """The store that a run names, as far as it is there."""
        path, limit = store_path(run, self.catalogue.data), run.meta.get("log_limit")
        limit = limit if limit and isinstance(limit, int) else None
        if (path, limit) not in self.known:
            self.known[path, limit] = self.read(path, limit, run)
        return self.known[path, limit]

    def read(self, path: Path, limit: int | None, run: Run) -> LogStore | None:
        if path.is_dir():
            return every_log(path)
        train = self.catalogue.questions(run.dataset, "train")
        return LogStore.load(path, train, limit) if path.is_file() else None


def leakage(evaluation: Evaluation, stores: Stores) -> Leakage | None:
    """Count what a run's logs had seen; None where no log can enter or the store is not there."""
    run = evaluation.run
    store = stores.of(run) if uses_logs(evaluation) else None
    if store is None:
        return None
    questions = [outcome.question for outcome in evaluation.outcomes.values()]
    asked = {q.id: q for q in [*stores.catalogue.questions(run.dataset), *questions]}
    owners = {id: log.question_id or id for id, log in store.logs.items()}  # of several samples one
    logged = [
        asked.get(owner) or Question(owner, store.logs[id].question) for id, owner in owners.items()
    ]
    known, grown = {*owners.values()}, bool(run.meta.get("grow"))
    # where a store grows, a question's own log comes after it, unless it has several samples
    excluded = run.meta.get("exclude_self") or (grown and (run.meta.get("samples") or 1) == 1)
    changed = not grown and run.meta.get("logs") not in (None, "", store.digest)
    note = "the store grew: logs that came after a question are counted, too" if grown else ""
    return Leakage(
        count=len(questions),
        logs=len(store.logs),
        own_possible=0 if excluded else sum(q.id in known for q in questions),
        own_entered=sum(
            any(owners.get(id, id) == outcome.question.id for id in outcome.logs)
            for outcome in evaluation.outcomes.values()
        ),
        duplicates=count_shared(questions, logged, lambda q: [q.text]),
        shared=count_shared(questions, logged, lambda q: q.subquestions)
        if any(question.subquestions for question in questions)
        else None,
        note="the log store has changed since this run" if changed else note,
    )


def count_shared(
    questions: Sequence[Question],
    logged: Iterable[Question],
    parts: Callable[[Question], Sequence[str]],
) -> int:
    """How many questions have a part in common with a logged question other than themselves."""
    owners: dict[str, set[str]] = {}
    for question in logged:
        for part in map(normalize, parts(question)):
            owners.setdefault(part, set()).add(question.id)
    return sum(
        any(owners.get(normalize(part), set()) - {question.id} for part in parts(question))
        for question in questions
    )
