"""One run, from its flags to its rows: what `agentic.py` does once it knows what is wanted."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lag import cli, files, prompts, reminder, solvers, trace_files
from lag.agent import crossfit, driver
from lag.agent.agent import LoopSettings
from lag.logs import controls, playbook
from lag.logs.ablation import by_version, harmed, row_id
from lag.logs.growing import GrowingLogs
from lag.logs.store import LogStore
from lag.records import Counts, Log, Question, Trace
from lag.runs import heartbeat, manifest
from lag.runs.providers import Models, find_prefill, oldest
from lag.runs.run import Rows, Run, baseline_rows, carried_sheet, models_of, stream_of
from lag.runs.tally import Tally
from lag.solvers import SOLVERS
from lag.step_prompt import note_of
from lag.trace_files import read_parts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """What a run needs, loaded.

    agents: by the digest of their adapter where there are several; else one, under "".
    owners: by question the one of several adapters that answers it; else empty.
    logs: the store, or what one that grows begins with; None where no log enters.
    """

    agents: Mapping[str, LoopSettings]
    owners: Mapping[str, crossfit.Fitted]
    identity: dict[str, Any]
    logs: LogStore | None
    grown: GrowingLogs | None

    @property
    def agent(self) -> LoopSettings:
        """One of them, for what all have in common."""
        return next(iter(self.agents.values()))

    @property
    def shown(self) -> dict[str, Any] | None:
        """What a row names of the store that grows."""
        return self.grown.versions.shown_as if self.grown else None

    def answers(self, questions: Sequence[Question], slots: int) -> Iterator[Trace]:
        """Traces as they end; each question goes to the agent that was not trained on it."""
        for digest, agent in self.agents.items():
            mine = [q for q in questions if not digest or self.owners[q.id].digest == digest]
            for trace in driver.run(mine, agent, slots):
                trace.adapter, trace.store = digest, self.shown
                agent.sheet = playbook.sheet_after(agent.mode, trace) or agent.sheet
                yield trace

    def make_kv(self, logs: Sequence[Log]) -> int:
        """Make the KV of new logs, where logs enter as KV; returns of how many."""
        mode = self.agent.mode
        if mode.enters != "kv":
            return 0
        notes = [note_of(mode, log, log, 1.0) for log in logs]
        return sum(agent.llm.make_kv(notes) for agent in self.agents.values())


class Worker(Models):
    """Answers the questions of runs."""

    def answer(self, run: Run) -> dict[str, Any]:
        """Answer this partition's share of a run; what is done already is skipped."""
        part = run.part(run.config.partition)
        only = heartbeat.only_writer(part, run.config.num_partitions)
        with only, only_grower(run):  # before a model is loaded, which takes minutes
            ready = self.prepare(run)
            manifest.begin(run.manifest, ready.identity, run.config, len(run.questions))
            if ready.grown:
                made_by = ready.agent.llm.fingerprint(run.paths.kv)
                models = models_of(made_by, crossfit.several(run.config.adapter))
                ready.grown.begin(stream_of(run, ready.identity | models), ready.logs.logs)
            self.note(run, ready.agent, start=manifest.now())
            trace_files.cut_torn_line(part)
            tally = self.fill(run, part, ready)
            stats = sums([stats_of(agent) for agent in ready.agents.values()])
            self.note(run, ready.agent, end=manifest.now(), **stats)
            for agent in ready.agents.values():
                keep_documents(run, agent)
            stats |= {"store": ready.grown.summary()} if ready.grown else {}
        return tally.summary() | {"run": str(run.folder), **stats}

    def note(self, run: Run, agent: LoopSettings, **facts: Any) -> None:
        config = run.config
        in_flight = agent.llm.concurrency or config.batch_size
        facts |= {"num_partitions": config.num_partitions, "batch_size": in_flight}
        facts["device"] = agent.llm.device
        manifest.note_part(run.manifest, config.partition, facts)

    def fill(self, run: Run, part: Path, ready: Ready) -> Tally:
        """Answer what no part holds yet; append each trace as it ends."""
        rows, agent = read_parts(run.folder), ready.agent
        tally = Tally(run.task, run.share, rows)
        for digest, one in ready.agents.items():
            one.sheet = carried_sheet(run, digest) if one.carried else ""
        slots = 1 if agent.carried else agent.llm.concurrency or run.config.batch_size
        models = [one.llm for one in ready.agents.values()]
        progress = cli.Progress(
            len(run.share),
            run.name,
            len(tally.finished),
            lambda: sum(llm.new_tokens for llm in models),
            enough=slots,
        )
        ended: dict[str, Trace] = {}
        for questions in self.rounds(run, ready, rows, ended):
            todo = [question for question in questions if question.row_id not in tally.finished]
            for trace in ready.answers(todo, slots):
                trace_files.append_trace(part, trace)
                ended |= {trace.id: trace} if ready.grown else {}
                tally.add(trace)
                progress.update(trace.cost["new_tokens"], **tally.shown())
        progress.close()
        if advice := tally.advice():
            logger.warning("%s: %s", run.name, advice)
        return tally

    def ablate(self, run: Run) -> dict[str, Any]:
        """Answer again what a run turned from right to wrong, once without each log that entered.

        Raises:
            ValueError: its answers depend on the questions before.
        """
        part = run.paths.ablated(run.split, run.name, run.config.partition)
        only = heartbeat.only_writer(part, run.config.num_partitions)
        with only, only_grower(run):
            found = harmed(run.task.scorer, run.share, baseline_rows(run), read_parts(run.folder))
            ready = self.prepare(run)
            if ready.agent.carried:
                raise ValueError(
                    f"--ablate {run.name}: its sheet lives on from one question to the next, so "
                    "none can be answered again alone; give a run whose sheets are fresh"
                )
            manifest.check(run.manifest, ready.identity, run.config)
            for agent in ready.agents.values():
                agent.shared_logs = False  # prompts without a log begin in another way
            trace_files.cut_torn_line(part)
            done = {id for id, row in read_parts(part.parent).items() if not row.get("error")}
            for version, questions in by_version(found).items():
                if ready.grown:
                    self.show(run, ready, version)
                todo = [q for q in questions if row_id(q.row_id, q.without) not in done]
                for trace in ready.answers(todo, run.config.batch_size):
                    trace.id = row_id(trace.id, trace.without)
                    trace_files.append_trace(part, trace)
        rows = read_parts(part.parent)
        failed = sum(row["status"] == "error" for row in rows.values())
        return dict(harmed=len(found), rows=len(rows), failed=failed, run=str(part.parent))

    def rounds(
        self, run: Run, ready: Ready, rows: Rows, ended: dict[str, Trace]
    ) -> Iterator[list[Question]]:
        """The share at once; with a store that grows, what is asked between two versions.

        rows, ended: of questions that earlier calls answered, and this one; read when those of a
        round are all there. A question that failed and is asked again later retrieves from its
        own version, which stays as it is.
        """
        grown, every = ready.grown, run.config.grow_every
        if not grown:
            yield run.share
            return
        first = grown.first_of(run.split)
        for number, start in enumerate(range(0, len(run.share), every), first):
            questions = run.share[start : start + every]
            self.show(run, ready, number)
            yield questions
            if number == grown.versions.newest.number:
                ids = [question.row_id for question in questions]
                traces = [ended.get(id) or trace_files.trace_of(id, rows[id]) for id in ids]
                grown.grow(run.split, traces, ready.make_kv)
            ended.clear()

    def show(self, run: Run, ready: Ready, number: int) -> None:
        """Let the questions that come see a version of the store."""
        versions = ready.grown.versions
        versions.show(number)
        for agent in ready.agents.values():
            if run.config.num_logs == "all":
                agent.logs, agent.num_logs = oldest(run, versions, agent.llm), len(versions)
            self.set_control(run, agent)

    def prepare(self, run: Run) -> Ready:
        """Load what a run needs, cheap things first, and say what identifies it.

        One agent for each adapter that answers, else one in all.
        """
        owners = crossfit.owners(run.questions, crossfit.several(run.config.adapter))
        folders = {one.digest: one.folder for one in owners.values()}
        logs = self.load_logs(run) if run.mode.enters else None
        grown = self.open_grown(run) if run.grows else None
        agents = {
            digest: self.make_agent(run, logs, grown, folders.get(digest))
            for digest in sorted(folders) or [""]
        }
        digest = logs.digest if logs else ""
        identities = [self.identity(run, agent, digest) for agent in agents.values()]
        identity = identities[0]
        if folders:
            models = [one["model_digest"] for one in identities]
            identity |= {"model_digest": files.digest_of(models, 24)}
        return Ready(agents, owners, identity, logs, grown)

    def make_agent(
        self, run: Run, logs: LogStore | None, grown: GrowingLogs | None, adapter: Path | None
    ) -> LoopSettings:
        """One agent; `adapter` is its one of several."""
        config, mode = run.config, run.mode
        settings = config.taken_by(LoopSettings) | {"mode": mode, "sheet": ""}
        found = self.load_documents(run)
        index = grown.index if grown else self.rank_logs(run, logs, adapter) if logs else None
        store = grown.versions if grown else logs.logs if logs else {}
        llm = self.load_llm(config, adapter)
        settings["prefill"] = find_prefill(config.prefill, llm)
        if config.num_logs == "all":
            settings |= {"num_logs": len(store), "log_order": "entered"}
            settings |= {"shared_logs": not config.exclude_self and config.log_control == "none"}
        if mode.enters == "kv":
            llm.open_store(run.paths.kv, mode)
        agent = LoopSettings(
            task=run.task,
            llm=llm,
            documents=found.documents,
            docs=found.ranking,
            foreign=found.foreign,
            documents_from=SOLVERS[config.solver].documents_from,
            records=SOLVERS[config.solver].records,
            store=store,
            logs=index,
            carried=mode.enters == "sheet" and (mode.playbook or config.sheet == "carried"),
            **settings,
        )
        if not grown:
            self.set_control(run, agent)
        return agent

    def set_control(self, run: Run, agent: LoopSettings) -> None:
        """Put the control in place that `--log-control` asks for."""
        kind, seed = run.config.log_control, run.config.seed
        if kind == "random":
            agent.control = controls.random_logs(sorted(agent.store), seed)
        elif kind == "shuffled":
            agent.control = controls.shuffled_logs(agent.logs, run.every_question, seed)
        elif kind == "wrong-context":
            if not any(run.mode.after(log) for log in agent.store.values()):
                raise ValueError("--log-control wrong-context: no log of this store hides any text")
            agent.foreign_context = controls.foreign_context(agent.store, seed)

    def identity(self, run: Run, agent: LoopSettings, logs: str) -> dict[str, Any]:
        """Everything that could change a row."""
        paths = run.paths
        texts = {"reminder": reminder.digest()} if run.config.format_retries else {}
        texts |= {"like": run.task.like} if run.task.like else {}
        texts |= {"solver_prompts": solvers.digest()} if agent.records else {}
        if run.mode.playbook:
            texts["playbook"] = playbook.digest()
        if run.grows:  # each partition has a store of its own
            texts["num_partitions"] = run.config.num_partitions
        return (
            run.config.identity()
            | texts
            | {
                "model": agent.llm.name,
                "model_digest": agent.llm.fingerprint(paths.kv)["digest"],
                "prompts": prompts.digest(),
                "questions": manifest.file_digest(paths.questions(run.split)),
                "documents": manifest.file_digest(paths.docs) if agent.documents else "",
                "embedder": self.embedder.digest if self.embedder else "",
                "logs": logs,
                "prefill": agent.prefill,
            }
        )


def only_grower(run: Run) -> contextlib.AbstractContextManager[None]:
    """Hold the store that grows with a run, where one does."""
    if not run.grows:
        return contextlib.nullcontext()
    return heartbeat.held(run.grown, "grows in another process; wait for it, or give --run NAME")


def stats_of(agent: LoopSettings) -> dict[str, Counts]:
    """What the model says of its work; of KV only where this run has some."""
    return agent.llm.stats() | ({} if agent.mode.enters == "kv" else {"kv": {}})


def sums(stats: Sequence[dict[str, Counts]]) -> dict[str, Counts]:
    """What several models say of their work, added up."""
    total: dict[str, Counts] = {}
    for one in stats:
        for subject, counts in one.items():
            mine = total.setdefault(subject, {})
            mine.update({name: mine.get(name, 0) + count for name, count in counts.items()})
    return total


def keep_documents(run: Run, agent: LoopSettings) -> None:
    """Keep texts that a server found and our corpus lacks: without them no row can be rebuilt."""
    path = run.folder / f"documents-{run.config.partition}.json"
    if agent.foreign:
        known = files.read_json(path) if path.exists() else {}
        found = {
            id: {"title": document.title, "content": document.content}
            for id, document in agent.foreign.items()
        }
        files.write_json(path, known | found)
