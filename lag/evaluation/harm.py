"""Harm: which log turned an answer wrong, from the rows that `agentic.py --ablate` wrote.

A log did it if the question is right again without it. Whether the log's own answer was right is
known to the scorer alone: a log that is right can mislead, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lag.evaluation.leakage import store_path
from lag.evaluation.results import Result
from lag.evaluation.scores import Outcome, outcome_of
from lag.evaluation.tables import aligned
from lag.files import read_json
from lag.json_checks import Row
from lag.paths import Paths
from lag.records import Question, Trace
from lag.tasks import SPLITS
from lag.trace_files import checked_trace, read_parts, results_of

BOUNDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # of --min-similarity


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A harmed question without one of its logs.

    similarity: the highest that the log entered with. without: what became of the question.
    log_was: what became of the log's own question; "" where nobody knows.
    """

    question: str
    log: str
    similarity: float
    without: str
    log_was: str

    @property
    def is_to_blame(self) -> bool:
        return self.without == "right"


@dataclass(frozen=True, slots=True)
class Bound:
    """What `--min-similarity` would have done: how many of the harmed questions have a log to
    blame below it, and how many of those that logs turned right have a log below it, too.
    """

    bound: float
    saved: int
    at_risk: int


@dataclass(frozen=True, slots=True)
class Harm:
    """The harm of one run. explained: questions for which one log is to blame."""

    dataset: str
    split: str
    run: str
    harmed: int
    explained: int
    logs: list[LeftOut] = field(default_factory=list)
    min_similarity: list[Bound] = field(default_factory=list)

    def of(self, question: str) -> list[LeftOut]:
        return [one for one in self.logs if one.question == question]

    def to_json(self) -> Row:
        return asdict(self)

    def __str__(self) -> str:
        head = f"{self.dataset} {self.split} {self.run}: {self.harmed} questions harmed, "
        head += f"{self.explained} of them right again without one log"
        names = ("question", "without log", "similarity", "log was", "then")
        rows = [
            (one.question, one.log, f"{one.similarity:.3f}", one.log_was or "?", one.without)
            for one in self.logs
            if one.is_to_blame
        ]
        bounds = [(f"{b.bound:g}", str(b.saved), str(b.at_risk)) for b in self.min_similarity]
        told = (
            "--min-similarity",
            "harmed with a log to blame below it",
            "helped with a log below it",
        )
        tables = [aligned(names, rows)] * bool(rows) + [aligned(told, bounds)]
        return "\n" + "\n\n".join([head, *tables]) + "\n"


def harm_of(result: Result, data: Path, golds: "Golds") -> Harm | None:
    """The harm that a run did, as far as it was ablated; None if it was not."""
    run = result.run
    if run.split not in SPLITS:
        return None
    folder = Paths(data, run.dataset).ablated(run.split, run.folder.name).parent
    outcomes, scorer, found = result.evaluation.outcomes, result.evaluation.scorer, []
    for id, row in read_parts(folder).items():
        trace = checked_trace(folder, id, row)
        question = id.removesuffix(f" without {trace.without}")
        if question not in outcomes:
            continue
        outcome = outcomes[question]
        state = outcome_of(scorer, outcome.question, trace).state
        similarity = outcome.logs.get(trace.without, 0.0)
        was = golds.state_of(result, trace.without)
        found.append(LeftOut(question, trace.without, similarity, state, was))
    if not found:
        return None
    blamed = {one.question for one in found if one.is_to_blame}
    bounds = [bound_of(bound, found, helped(result)) for bound in BOUNDS]
    harmed = len({one.question for one in found})
    name = run.folder.name
    return Harm(run.dataset, run.split, name, harmed, len(blamed), found, bounds)


def helped(result: Result) -> list[Outcome]:
    """Questions that the run has right and its baseline has not."""
    flips = result.comparison.flips if result.comparison else {}
    ids = [id for change, some in flips.items() if change.endswith("> right") for id in some]
    return [result.evaluation.outcomes[id] for id in ids]


def bound_of(bound: float, found: Sequence[LeftOut], gained: Sequence[Outcome]) -> Bound:
    saved = {one.question for one in found if one.is_to_blame and one.similarity < bound}
    risk = sum(any(value < bound for value in outcome.logs.values()) for outcome in gained)
    return Bound(bound, len(saved), risk)


class Golds:
    """What became of the questions that logs are made of; read once per store."""

    def __init__(self, results: Sequence[Result], data: Path):
        self.data, self.known = data, {}
        self.outcomes: dict[tuple[str, str], Mapping[str, Outcome]] = {}
        for result in results:
            key = (result.run.dataset, result.run.folder.name)
            self.outcomes[key] = {**self.outcomes.get(key, {}), **result.evaluation.outcomes}

    def state_of(self, result: Result, log: str) -> str:
        """right, wrong, unanswered; "" where nobody knows."""
        run = result.run
        if run.meta.get("grow"):
            outcome = self.outcomes[run.dataset, run.folder.name].get(log)
            return outcome.state if outcome else ""
        path = store_path(run, self.data)
        if path not in self.known:
            self.known[path] = results_of(path, read_json(path)) if path.is_file() else {}
        if log not in self.known[path]:
            return ""
        trace = checked_trace(path, log, self.known[path][log])
        return outcome_of(result.evaluation.scorer, question_of(trace), trace).state


def question_of(trace: Trace) -> Question:
    return Question(trace.id, trace.question, trace.gold_answer)


def harm_of_all(results: Sequence[Result], data: Path) -> list[Harm]:
    """The harm of every run that was ablated."""
    golds = Golds(results, data)
    return [found for result in results if (found := harm_of(result, data, golds))]
