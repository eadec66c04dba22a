"""Examples from past traces: the prompt of each step as the loop built it, the reply as the target.

What was retrieved is context; only what the model wrote is ever a target. A prompt is made again from
the row and the data files, which have to be those that the run had.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lag import prompts, reminder, solvers
from lag.logs.store import LogStore
from lag.modes import MODES, Mode
from lag.paths import Paths
from lag.prompts import Prompt
from lag.records import ASIDE, Document, Log, Question, Trace
from lag.runs.config import adapter_digest
from lag.solvers import DEFAULT_SOLVER, SOLVERS
from lag.step_prompt import StatedSettings, made_again, note_of
from lag.tasks import kept_documents, read_documents, read_questions, task_of
from lag.train.examples import Format, TrainingExample
from lag.train.markers import Span, marked
from lag.train.past_run import FILTERS, PastRun, correct, with_gold

FORMS = ("none", "text", "kv")  # how logs can stand in an example


@dataclass
class ExampleMaker:
    """Makes the examples of one past run.

    forms: how its logs stand in them; as in the run if empty. layout: the run's if empty.
    labels: the parts of replies that get markers, by row and step; None: no markers.
    gold: a wrong answer is exchanged for the gold one, as in the M-step of EM (`lag.train.em`).
    counts: rows and steps that became none, with the reason.
    """

    run: PastRun
    paths: Paths
    forms: Sequence[str] = ()
    layout: str = ""
    log_store: Path | None = None
    labels: Mapping[tuple[str, int], tuple[Span, ...]] | None = None
    tokens_per_marker: int = 1
    gold: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def check_adapter(self, folder: Path | None) -> None:
        """
        Raises:
            ValueError: the rows were made with another adapter, or with none.
        """
        made = self.run.settings.get("adapter")
        if adapter_digest(folder) != made:
            told = f"with adapter {made}" if made else "without an adapter"
            raise ValueError(
                f"{self.run.path} was made {told}; its weights are those of the model that made it: "
                f"{'give --adapter' if made else 'leave out --adapter'}"
            )

    def check(self) -> None:
        """
        Raises:
            ValueError: prompts of another wording, of the test split, or logs that cannot be laid so.
        """
        known, name = self.run.settings, self.run.path
        if known.get("dataset") != self.paths.dataset:
            raise ValueError(f"--from {name} answers {known.get('dataset')}, not -d's data set")
        if known.get("split") != "train":
            raise ValueError(
                f"--from {name} is of the {known.get('split')} split; what is trained on is no "
                "longer unseen: give a run of --split train"
            )
        texts = {"solver_prompts": solvers.digest(), "reminder": reminder.digest()}
        same = all(known.get(name, digest) == digest for name, digest in texts.items())
        if known.get("prompts") != prompts.digest() or not same:
            raise ValueError(
                f"--from {name}: the wording of the prompts has changed since; run it again"
            )
        if known.get("log_control", "none") == "wrong-context":
            raise ValueError(f"--from {name} has hidden texts exchanged; expected a plain run")
        for settings in self.settings:
            if settings.mode.enters == "kv" and settings.layout == "user":
                raise ValueError("--logs kv: --layout user holds text only; give another --layout")

    @cached_property
    def settings(self) -> list[StatedSettings]:
        """One per form."""
        known = self.run.settings
        mode, solver = MODES[known["mode"]], SOLVERS[known.get("solver") or DEFAULT_SOLVER]
        said = known | ({"layout": self.layout} if self.layout else {})
        return [
            StatedSettings.of(
                task_of(self.paths), mode_of(mode, form) if form else mode, solver, said
            )
            for form in self.forms or [""]
        ]

    @cached_property
    def questions(self) -> dict[str, Question]:
        task = self.settings[0].task
        return {q.id: q for q in read_questions(self.paths, task, "train")}

    @cached_property
    def documents(self) -> dict[str, Document]:
        """The corpus, and what the run kept of documents that only a server had."""
        found = read_documents(self.paths) if self.paths.docs.exists() else {}
        folder = self.run.path if self.run.path.is_dir() else self.run.path.parent
        return found | kept_documents(folder)

    @cached_property
    def logs(self) -> Mapping[str, Log]:
        """
        Raises:
            ValueError: not the logs that the run had.
        """
        path = self.log_store or self.paths.log_store
        limit = self.run.settings.get("log_limit") or None
        store = LogStore.load(path, list(self.questions.values()), limit)
        if store.digest != self.run.settings.get("logs"):
            raise ValueError(f"{path} has changed since {self.run.path}; give --log-store")
        return store.logs

    def examples(self, wanted: str, weights: Mapping[str, float] | None) -> dict[str, list]:
        """Examples by the id of their question.

        wanted: a row of `FILTERS`. weights: by the row's id; None weighs all alike.

        Raises:
            ValueError: no row is left, or one has no weight.
        """
        self.check()
        found: dict[str, list[TrainingExample]] = {}
        rows = [(trace, self.question_of(trace)) for trace in self.run.traces()]
        kept = FILTERS[wanted](rows, self.settings[0].task)
        for trace, question in rows:
            if trace.id not in kept:
                self.counts[f"not {wanted}"] += 1
                continue
            weight = weight_of(trace.id, weights)
            mine = [replace(e, weight=weight) for e in self.of_trace(trace, question)]
            found.setdefault(question.id, []).extend(mine)
        self.counts["failed"] = len(self.run.rows) - len(rows)
        if not found:
            raise ValueError(
                f"--from {self.run.path}: none of its {len(self.run.rows)} rows is {wanted}; "
                "there is nothing to learn from"
            )
        return found

    def question_of(self, trace: Trace) -> Question:
        id = self.run.rows[trace.id].get("question_id", trace.id)
        if id not in self.questions:
            raise ValueError(f"--from {self.run.path}: {id!r} is no train question of -d")
        return self.questions[id]

    def of_trace(self, trace: Trace, question: Question) -> Iterator[TrainingExample]:
        """The steps of a trace, in each form; a curator's calls are left out."""
        most = self.run.settings.get("max_new_tokens") or 0
        for number, step in enumerate(trace.steps):
            if step.action == "curate":
                self.counts["a curator's"] += 1
                continue
            for settings in self.settings if step.action != "select" else self.settings[:1]:
                prompt = self.prompt(trace, number, question, settings)
                format = Format(settings.mode.name, settings.layout, prefill=settings.prefill)
                ended = not most or step.new_tokens < most
                reply = self.target(trace, number, question)
                yield TrainingExample(prompt, reply, format, ended=ended)

    def target(self, trace: Trace, number: int, question: Question) -> str:
        """What is learned to say in a step."""
        step, task = trace.steps[number], self.settings[0].task
        if self.gold and step.action == "answer" and not correct(trace, question, task):
            return with_gold(step.reply, question)
        return self.marked(trace, number)

    def marked(self, trace: Trace, number: int) -> str:
        """A reply with its markers; one without a label, or no step of the loop, stays as it is."""
        step = trace.steps[number]
        if self.labels is None or step.action in ASIDE:
            return step.reply
        spans = self.labels.get((trace.id, number))
        if spans is None:
            self.counts["kept without a label"] += 1
            return step.reply
        return marked(step.reply, spans, self.tokens_per_marker)

    def last_prompt(self, trace: Trace, question: Question) -> tuple[Prompt, str, StatedSettings]:
        """The prompt of the last step of the loop, in the first form, and the reply to it.

        Raises:
            ValueError: a row without a step.
        """
        places = [n for n, step in enumerate(trace.steps) if step.action not in ASIDE]
        if not places:
            raise ValueError(f"--preds {self.run.path}: row {trace.id!r} has no step")
        last, settings = places[-1], self.settings[0]
        return self.prompt(trace, last, question, settings), trace.steps[last].reply, settings

    def prompt(
        self, trace: Trace, number: int, question: Question, settings: StatedSettings
    ) -> Prompt:
        """The prompt of a step, by its place in the trace."""
        step, mode = trace.steps[number], settings.mode
        if gone := [id for id in step.docs if id not in self.documents]:
            raise ValueError(
                f"--from {self.run.path}: document {gone[0]!r} is not in {self.paths.docs}; expected "
                "the data files that the run had"
            )
        documents = [self.documents[id] for id in step.docs]
        logs = [(self.logs[used.id], used.similarity) for used in step.logs if mode.enters]
        notes = [note_of(mode, log, log, similarity) for log, similarity in logs]
        return made_again(trace, number, question, settings, documents, notes)[0]


def maker_of(path: Path, dataset: str, data: Path, **more: Any) -> ExampleMaker:
    """Of the rows of a path; `more` as `ExampleMaker` takes it."""
    return ExampleMaker(PastRun.read(path), Paths(data, dataset), **more)


def mode_of(mode: Mode, form: str) -> Mode:
    """The mode that brings back the same words in another form.

    Raises:
        ValueError: there is none.
    """
    if form == (mode.enters or "none"):
        return mode
    wanted = "" if form == "none" else form
    same = [m for m in MODES.values() if m.enters == wanted and (not wanted or m.keep is mode.keep)]
    if not same or (wanted and not mode.enters):
        raise ValueError(
            f"--logs {form}: the rows are of mode {mode.name}, whose logs cannot stand so; give "
            "--from a run of a mode with logs"
        )
    return same[0]


def weight_of(id: str, weights: Mapping[str, float] | None) -> float:
    if weights is None:
        return 1.0
    if id not in weights:
        raise ValueError(f"--weights: no weight for row {id!r}; weigh these predictions first")
    return weights[id]


def read_weights(path: Path) -> dict[str, float]:
    """Weights by row, times how many samples their question has, so that their mean is 1.

    A row's id is `<question>#<sample>`; one without a sample is the question's only one.

    Raises:
        FileNotFoundError, ValueError: no such file, or a line that is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--weights {path} not found; run: python train.py weigh")
    weights, questions = {}, {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            weights[row["id"]] = float(row["weight"])
            questions[row["id"]] = row["id"].removesuffix(f"#{row.get('sample')}")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"--weights {path} line {number}: expected id and weight") from error
    samples = Counter(questions.values())
    return {id: weight * samples[questions[id]] for id, weight in weights.items()}


def split(examples: Mapping[str, list], share: float, seed: int) -> tuple[list, list]:
    """Training and validation examples; whole questions go to one or the other."""
    ids = sorted(examples)
    held, parts = {*held_out(ids, share, seed)[: len(ids) - 1]}, ([], [])
    for id in ids:
        parts[id in held].extend(examples[id])
    return parts


def held_out(ids: Sequence[str], share: float, seed: int) -> list[str]:
    """A share of the questions, drawn; one at the least, unless the share is 0."""
    count = min(round(share * len(ids)) or int(share > 0), len(ids))
    return random.Random(f"validation {seed}").sample(ids, count)
