"""The prompt of every step as the model got it, made again from a run's rows and the data files.

What cannot be made again exactly is told with its reason: a file is gone or has changed since the
run, or nothing tells. A guess is never shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from lag import prompts, reminder, solvers
from lag.data.dataset_files import file_digest
from lag.evaluation.find_runs import Run, parts_of
from lag.evaluation.gold import in_scope, rows_of
from lag.evaluation.leakage import store_path
from lag.evaluation.results import Evaluator
from lag.files import read_json
from lag.json_checks import clip, mapping
from lag.logs import playbook
from lag.logs.controls import foreign_context
from lag.logs.growing import in_order
from lag.modes import MODES, Mode
from lag.paths import Paths
from lag.prompts import Note, Prompt
from lag.records import Document, Question, Step, Trace, UsedLog
from lag.solvers import DEFAULT_SOLVER, SOLVERS
from lag.step_prompt import (
    Entered,
    StatedSettings,
    curator,
    is_reminded,
    last_sheet,
    loop_steps,
    made_again,
    note_of,
)
from lag.tasks import kept_documents, read_questions
from lag.trace_files import read_rows, trace_of


class NotKnown(Exception):
    """Why a prompt cannot be made again; the page shows it in its place."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A prompt and what it was made from.

    before: the steps before it; sheet: the cheatsheet that a curator went on from, or empty.
    """

    prompt: Prompt
    held: Entered
    before: Sequence[Step] = ()
    sheet: str = ""


class RunPrompts:
    """Makes the prompts of one run again; what is checked or read for it, is so once.

    foreign: documents that only a server had, as the run kept them.
    """

    def __init__(self, run: Run, evaluator: Evaluator):
        self.run, self.catalogue = run, evaluator.catalogue
        self.paths = Paths(self.catalogue.data, run.dataset)
        self.folder = run.paths[0].parent
        self.corpus, self.store = evaluator.documents_for(run), evaluator.stores.of(run)
        self.foreign = kept_documents(self.folder)

    @cached_property
    def settings(self) -> StatedSettings:
        """Raises NotKnown: other prompts, or rows that name nothing of ours."""
        run, meta = self.run, self.run.meta
        if not meta.get("prompts"):
            raise NotKnown("these rows do not tell which wording of the prompts they were asked in")
        if meta["prompts"] != prompts.digest():
            raise NotKnown("the wording of the prompts has changed since this run")
        solver = run.solver or DEFAULT_SOLVER
        if run.task is None or run.mode not in MODES or solver not in SOLVERS:
            raise NotKnown(f"{run.dataset}, {run.mode} or {solver} is not known here")
        return StatedSettings.of(run.task, MODES[run.mode], SOLVERS[solver], meta)

    @cached_property
    def lost_logs(self) -> str:
        path = store_path(self.run, self.catalogue.data)
        if self.store is None:
            return f"{path} is not there any more"
        if self.run.meta.get("grow"):  # what a version holds was checked when it was read
            return ""
        same = self.store.digest == self.run.meta.get("logs")
        return "" if same else f"{path} has changed since this run"

    @cached_property
    def contexts(self) -> Any:
        """For a log's id the log whose hidden words it is encoded after; raises NotKnown."""
        if self.run.meta.get("log_control") != "wrong-context":
            return self.store.logs.__getitem__
        if "seed" not in self.run.meta:
            raise NotKnown("the run does not tell its seed, by which hidden texts were exchanged")
        return foreign_context(self.store.logs, self.run.meta["seed"])

    @cached_property
    def options(self) -> dict[str, tuple[str, ...]]:
        """Of multiple choice the options as they were shown; raises NotKnown if they have changed."""
        path = self.paths.questions(self.run.split)
        if reason := self.changed("questions", path):
            raise NotKnown(reason)
        questions = read_questions(self.paths, self.settings.task, self.run.split)
        return {question.id: question.options for question in questions}

    @cached_property
    def sheets(self) -> dict[str, set[str]]:
        """By question the cheatsheets that its curator may have gone on from."""
        manifest = self.folder / "run.json"
        known = read_json(manifest) if manifest.is_file() else {}
        facts = mapping(mapping(known.get("provenance")).get("partitions")).values()
        counts = {mapping(fact).get("num_partitions") for fact in facts}
        questions = self.catalogue.questions(self.run.dataset, self.run.split)
        asked = in_scope(questions, self.run.scope)
        if self.run.meta.get("grow"):
            asked = in_order(asked, self.run.meta["order_seed"])
        ids = [one.row_id for one in rows_of(asked, self.run)]
        found: dict[str, set[str]] = {}
        for part in parts_of(self.folder) if len(counts) == 1 else ():
            number = int(part.stem.removeprefix("part-"))
            found |= carried_sheets(part, ids[number :: next(iter(counts))], self.settings.mode)
        return found

    def changed(self, name: str, path: Path) -> str:
        """What is wrong with a file whose digest the run's identity holds; "" if nothing is."""
        known = self.run.meta.get(name)
        if not known:
            return f"the run does not tell what {path} held"
        if not path.is_file():
            return f"{path} is not there any more"
        same = digest_at(path, path.stat().st_mtime_ns) == known
        return "" if same else f"{path} has changed since this run"

    def prompts_of(self, trace: Trace) -> list[Rebuilt | str]:
        """The prompt of each step, or the reason why it is not known."""
        found: list[Rebuilt | str] = []
        for number in range(len(trace.steps)):
            try:
                found.append(self.rebuilt(trace, number))
            except NotKnown as reason:
                found.append(str(reason))
        return found

    def rebuilt(self, trace: Trace, number: int) -> Rebuilt:
        """The prompt of one step; raises NotKnown."""
        step, before = trace.steps[number], loop_steps(trace.steps[:number])
        settings = self.settings
        notes = [self.note(used) for used in step.logs]
        options = (
            self.options.get(trace.question_id or trace.id, ())
            if settings.task.scorer == "choice"
            else ()
        )
        question = Question(trace.id, trace.question, options=options)
        if step.action == "curate":
            sheet, held = self.sheet_before(trace.id), Entered([], notes)
            if settings.mode.playbook and self.run.meta.get("playbook") != playbook.digest():
                raise NotKnown("the wording of the playbook has changed since this run")
            ask = playbook.editor if settings.mode.playbook else curator
            return Rebuilt(ask(question, sheet, self.store.logs, 0, held), held, (), sheet)
        if settings.records and self.run.meta.get("solver_prompts") != solvers.digest():
            raise NotKnown("the wording of the solver's prompts has changed since this run")
        if is_reminded(trace, number) and self.run.meta.get("reminder") != reminder.digest():
            raise NotKnown("the wording of the reminder has changed since this run")
        docs = [self.document(id) for id in step.docs]
        prompt, held = made_again(trace, number, question, settings, docs, notes)
        return Rebuilt(prompt, held, before)

    def note(self, used: UsedLog) -> Note:
        if self.lost_logs:
            raise NotKnown(self.lost_logs)
        log = self.store.logs.get(used.id)
        if log is None or self.settings.mode.keep is None:
            raise NotKnown(f"{self.store.path} has no log {clip(used.id)}")
        return note_of(self.settings.mode, log, self.contexts(used.id), used.similarity)

    def document(self, id: str) -> Document:
        if id in self.foreign:
            return self.foreign[id]
        if reason := self.changed("documents", self.paths.docs):
            raise NotKnown(reason)
        if id not in self.corpus:
            raise NotKnown(f"{self.paths.docs} has no document {clip(id)}")
        return self.corpus[id]

    def sheet_before(self, id: str) -> str:
        """The cheatsheet that a question's curator was given; empty unless it is carried on."""
        if self.run.meta.get("sheet") != "carried" and not self.settings.mode.playbook:
            return ""
        if "," in str(self.run.meta.get("grow")):
            raise NotKnown(
                "the sheet was carried through several splits, each in a file of its own"
            )
        if id not in self.sheets:
            raise NotKnown("only the parts of the run, in one order, tell which sheet was carried")
        if len(self.sheets[id]) > 1:
            raise NotKnown("the run was interrupted: nothing tells which sheet was carried here")
        return next(iter(self.sheets[id]))


@cache
def digest_at(path: Path, time: int) -> str:
    """A file's digest as identities have it; `time` is when the file was changed."""
    return file_digest(path)[:16]


def carried_sheets(part: Path, share: Sequence[str], mode: Mode) -> dict[str, set[str]]:
    """By question the cheatsheets that its curator may have gone on from; none if shares changed.

    A process hands its sheet on from row to row; one that resumes begins with the last of its share.
    """
    rows: dict[str, Any] = {}
    found: dict[str, set[str]] = {}
    known, carried = set(share), {""}
    for row in read_rows(part):
        id = row["id"]
        if id not in known:
            return {}
        carried = carried | {last_sheet(share, rows)}
        sheet = playbook.sheet_after(mode, trace_of(id, row))
        rows[id], found[id] = row | {"sheet": sheet}, carried
        if sheet is not None:
            carried = {sheet}
    return found
