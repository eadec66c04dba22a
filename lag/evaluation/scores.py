"""Score a run: every question it was asked, in groups, with what it cost. No numpy, no model.

An outcome is what became of one question. Unanswered, failed and missing questions count as wrong
whatever the official rule says of an empty answer; they are never left out of a denominator.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from statistics import fmean

from lag.evaluation.find_runs import Run
from lag.json_checks import Row, unique
from lag.metrics import METRICS, SCORERS, ZERO, chosen_letter, gold_letter, score
from lag.records import DRAFTS, MARKED, SECONDS, Document, Question, Step, Trace

STATES = ("right", "wrong", "unanswered", "error", "missing")
TOKENS = ("prompt_tokens", "cached_tokens", "reused_tokens", "new_tokens")
DEPTHS = (2, 5, 10)  # documents, in the order in which they entered
SIMILARITIES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
NO_LOG = "none"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one question.

    state: right (exact match), wrong, unanswered, error or missing.
    scores: all 0 unless the question was answered.
    """

    question: Question
    trace: Trace | None
    state: str
    scores: Mapping[str, float]

    @property
    def num_steps(self) -> int:
        return len(self.trace.replies) if self.trace else 0

    @property
    def steps(self) -> Sequence[Step]:
        return self.trace.steps if self.trace else ()

    @property
    def logs(self) -> dict[str, float]:
        """Logs that entered any of its prompts, with their similarity."""
        return {used.id: used.similarity for step in self.steps for used in step.logs}

    @property
    def docs(self) -> tuple[str, ...]:
        """Documents in the order in which they first entered."""
        return unique(id for step in self.steps for id in step.docs)


def outcome_of(scorer: str, question: Question, trace: Trace | None) -> Outcome:
    """Score one row, or the lack of one."""
    if trace is None:
        return Outcome(question, None, "missing", ZERO)
    if trace.status != "answered":
        return Outcome(question, trace, trace.status, ZERO)
    scores = score(scorer, trace.pred, question.answers, question.options)
    return Outcome(question, trace, "right" if scores["em"] else "wrong", scores)


def means(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """The mean of every metric over all questions, whatever became of them; 0 over none."""
    scores = [outcome.scores for outcome in outcomes]
    return {name: average(found[name] for found in scores) for name in METRICS}


def binned(similarity: float) -> str:
    """The bin of a similarity, as a range that sorts by its text."""
    for low, high in pairwise(SIMILARITIES):
        if low <= similarity < high:
            return f"{low:.2f} to {high:.2f}"
    return f"{SIMILARITIES[-1]:.2f} up" if similarity >= SIMILARITIES[-1] else "below 0"


def groups_of(outcome: Outcome) -> dict[str, str]:
    """What an outcome is broken down by: what the data set says, and the logs that entered."""
    logs = outcome.logs
    return {
        **outcome.question.groups,
        "logs": str(len(logs)),
        "similarity": binned(max(logs.values())) if logs else NO_LOG,
    }


@dataclass(frozen=True)
class Evaluation:
    """A run with the outcome of every question it was asked, by id; figures are made once.

    run: its traces; outcomes: in the order of the data set.
    """

    run: Run
    scorer: str
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, scorer: str, questions: Iterable[Question]) -> "Evaluation":
        outcomes = {q.row_id: outcome_of(scorer, q, run.traces.get(q.row_id)) for q in questions}
        return cls(run, scorer, outcomes)

    @property
    def traces(self) -> list[Trace]:
        return [outcome.trace for outcome in self.outcomes.values() if outcome.trace]

    @cached_property
    def metrics(self) -> Row:
        """Scores as fractions of all questions, and what became of these."""
        outcomes = list(self.outcomes.values())
        states = Counter(outcome.state for outcome in outcomes)
        answered = states["right"] + states["wrong"]
        return {
            "count": len(outcomes),
            **means(outcomes),
            "answered": answered,
            "unanswered": states["unanswered"],
            "errors": states["error"],
            "missing": states["missing"],
            "answer_rate": answered / len(outcomes) if outcomes else 0.0,
            **self.choice(),
            **self.markers(),
        }

    def markers(self) -> Row:
        """Where replies hold markers: the share of each, and of the rows that have any."""
        found = Counter(kind for trace in self.traces for kind in trace.markers)
        if not found:
            return {}
        marked = sum(bool(trace.markers) for trace in self.traces)
        shares = {kind: found[kind] / found.total() for kind in MARKED}
        return {"markers": shares | {"rows": marked / len(self.traces)}}

    def choice(self) -> Row:
        """Of multiple choice: answers that name no option, and what needs no model.

        majority: always the letter that is right most often here. random: any option.
        """
        if self.scorer != "choice":
            return {}
        questions = [outcome.question for outcome in self.outcomes.values()]
        letters = Counter(gold_letter(q.answers, q.options) for q in questions)
        letters.pop("", None)
        hits, letter = max(((n, letter) for letter, n in letters.items()), default=(0, ""))
        known = [1 / len(question.options) for question in questions if question.options]
        return {
            "invalid": sum(
                o.state == "wrong" and not chosen_letter(o.trace.pred, o.question.options)
                for o in self.outcomes.values()
            ),
            "majority_letter": letter,
            "majority": hits / len(questions) if questions else 0.0,
            "random": fmean(known) if known else None,
        }

    @cached_property
    def groups(self) -> dict[str, dict[str, dict[str, float]]]:
        """By group and value: how many questions, and their scores."""
        found: dict[str, dict[str, list[Outcome]]] = {}
        for outcome in self.outcomes.values():
            for name, value in groups_of(outcome).items():
                found.setdefault(name, {}).setdefault(value, []).append(outcome)
        return {
            name: {value: summary(values[value]) for value in sorted(values, key=by_number)}
            for name, values in found.items()
        }

    @cached_property
    def cost(self) -> Row:
        """Means per question that has a row: calls (a curator's too), steps, tokens, seconds.

        prefilled_tokens: of the prompt what had to be computed, neither cached nor left from the step
        before. kv_bytes: KV read into the prompt. encoded: logs whose KV were not in the store.
        tokens_per_forward: of a reply; None where nothing was drafted.
        """
        costs = [{"reused_tokens": 0, **trace.cost} for trace in self.traces]
        steps = [len(trace.replies) for trace in self.traces]
        mean = {name: average(c[name] for c in costs) for name in ("calls", *TOKENS, "kv_bytes")}
        seconds = {part: average(c["seconds"][part] for c in costs) for part in SECONDS}
        used = [log for t in self.traces for step in t.steps for log in step.logs]
        mean |= {name: average(c.get(name, 0) for c in costs) for name in DRAFTS}
        forwards = mean["new_tokens"] - mean["accepted_tokens"]
        prefilled = mean["prompt_tokens"] - mean["cached_tokens"] - mean["reused_tokens"]
        return {
            **mean,
            "prefilled_tokens": prefilled,
            "tokens_per_forward": mean["new_tokens"] / forwards if mean["drafted_tokens"] else None,
            "steps": average(steps),
            "computed_tokens": prefilled + mean["new_tokens"],
            "seconds": {**seconds, "all": sum(seconds.values())},
            "encoded": sum(log.source == "encoded" for log in used) / max(len(self.traces), 1),
        }

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """What the scores would be if so many steps were allowed and the rest cut off."""
        outcomes = list(self.outcomes.values())
        points = []
        for allowed in range(1, max((o.num_steps for o in outcomes), default=0) + 1):
            kept = [outcome for outcome in outcomes if 0 < outcome.num_steps <= allowed]
            done = sum(outcome.state in ("right", "wrong") for outcome in kept)
            share, scores = len(kept) / len(outcomes), means(kept)
            found = {name: scores[name] * share for name in ("em", "f1")}
            points.append({"steps": allowed, **found, "answered": done / len(outcomes)})
        return points

    def retrieval(self, documents: Mapping[str, Document]) -> dict[str, float]:
        """Recall and precision at k of the documents that entered, where the support is known."""
        known = [outcome for outcome in self.outcomes.values() if outcome.question.supporting_ids]
        if not any(outcome.docs for outcome in known):
            return {}
        found = [hits_of(outcome, documents) for outcome in known]
        table: dict[str, float] = {"count": len(known)}
        for depth in (*DEPTHS, None):
            table[f"recall@{depth or 'all'}"] = fmean(hits.recall(depth) for hits in found)
            table[f"precision@{depth or 'all'}"] = fmean(hits.precision(depth) for hits in found)
        return table


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    scores = means(outcomes)
    return {"count": len(outcomes), "em": scores["em"], "f1": scores["f1"]}


def average(values: Iterable[float]) -> float:
    return fmean(found) if (found := list(values)) else 0.0


def by_number(value: str) -> tuple[float, str]:
    """Sort key: numbers by size, then texts."""
    return (float(value), "") if value.isdecimal() else (float("inf"), value)


@dataclass(frozen=True, slots=True)
class Hits:
    """What supports one question, and which of it each document that entered stands for.

    wanted: supporting documents by id, or their titles where ids are not known.
    entered: in order, the one of `wanted` that each document is, or "".
    """

    wanted: frozenset[str]
    entered: tuple[str, ...]

    def recall(self, depth: int | None) -> float:
        return len(set(self.entered[:depth]) - {""}) / len(self.wanted)

    def precision(self, depth: int | None) -> float:
        """Of the documents that did enter; 0 if none did."""
        top = self.entered[:depth]
        return len(set(top) - {""}) / len(top) if top else 0.0


def hits_of(outcome: Outcome, documents: Mapping[str, Document]) -> Hits:
    """Compare by id where the support is known by id: titles repeat, in MuSiQue for one."""
    wanted = frozenset(outcome.question.supporting_ids)
    name: Callable[[str], str] = str
    if not wanted & documents.keys():
        titles = {id: document.title for id in outcome.docs if (document := documents.get(id))}
        name = titles.get if titles else str
    names = (name(id) or "" for id in outcome.docs)
    return Hits(wanted, tuple(found if found in wanted else "" for found in names))


def scorer_of(run: Run, wanted: str) -> str:
    """The scorer of a run; `auto` is its data set's official one.

    Raises:
        ValueError: `auto`, and the data set is not known.
    """
    if wanted != "auto":
        return wanted
    if run.task is None:
        raise ValueError(
            f"{run.paths[0]}: --scorer auto needs a known data set, this says {run.dataset!r}; "
            f"give -d DATASET, or --scorer {'|'.join(SCORERS)}"
        )
    return run.task.scorer
