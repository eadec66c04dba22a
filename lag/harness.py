"""One run, from its flags to its rows: what `agentic.py` does once it knows what is wanted."""

import argparse
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lag import cli, controls, manifest, metrics, prompts, traces
from lag.evidence import load_evidence
from lag.modes import Mode
from lag.paths import Paths
from lag.providers import PROVIDERS, find_prefill
from lag.solvers import SOLVERS
from lag.tasks import TASKS, Task, read_questions
from lag.traces import Question, Trace

log = logging.getLogger(__name__)

# What the loop takes from the flags as it is.
LOOP_FLAGS = (
    "max_steps",
    "num_docs",
    "num_logs",
    "trace_steps",
    "trace_tokens",
    "prefill",
    "layout",
    "log_order",
    "log_tokens",
    "min_similarity",
    "exclude_self",
)


@dataclass(slots=True)
class Run:
    """One solver and mode on one split: where it lies and what it is made of."""

    args: argparse.Namespace
    mode: Mode
    split: str
    task: Task = field(init=False)
    paths: Paths = field(init=False)
    name: str = field(init=False)
    questions: list[Question] = field(init=False)

    def __post_init__(self) -> None:
        args = self.args
        self.task, self.paths = TASKS[args.dataset], Paths(args.data, args.dataset)
        self.name = args.run or manifest.run_name(self.mode, vars(args), args.defaults)
        self.questions = in_scope(read_questions(self.paths, self.task, self.split), args)

    @property
    def folder(self) -> Path:
        return self.paths.run(self.split, self.name)

    @property
    def manifest(self) -> Path:
        return self.paths.manifest(self.split, self.name)

    @property
    def log_store(self) -> Path:
        return self.args.log_store or self.paths.log_store

    @property
    def scope(self) -> dict[str, Any]:
        return {"n": len(self.questions), "limit": self.args.limit, "ids": self.args.ids}


def in_scope(questions: list[Question], args: argparse.Namespace) -> list[Question]:
    """The questions that `--limit` and `--ids` leave.

    Raises:
        ValueError: an id that the split does not have.
    """
    if not args.ids:
        return questions[: args.limit]
    wanted = args.ids.split(",")
    known = {question.id: question for question in questions}
    unknown = [id for id in wanted if id not in known]
    if unknown:
        raise ValueError(f"--ids: not in this split: {', '.join(unknown)}")
    return [known[id] for id in wanted]


class Worker:
    """Answers the questions of runs; what is loaded once serves every run."""

    def __init__(self, args: argparse.Namespace, llm: Any = None):
        self.args, self.llm, self.embedder = args, llm, None

    def load_llm(self) -> Any:
        if self.llm is None:
            self.llm = PROVIDERS[self.args.provider].load(self.args)
        return self.llm

    def load_embedder(self) -> Any:
        from lag.llm import resolve_device
        from lag.retrieve import Embedder

        if self.embedder is None:
            args = self.args
            device = None if args.device == "map" else resolve_device(args.device)
            self.embedder = Embedder.load(
                args.embedder, device=device, trust_remote_code=args.trust_remote_code
            )
        return self.embedder

    def answer(self, run: Run) -> dict[str, Any]:
        """Answer this partition's share of a run; what is done already is skipped."""
        self.args = run.args
        part = run.paths.part(run.split, run.name, self.args.partition)
        agent, identity = self.make_agent(run)
        with traces.locked(part, "is being written by another process; start each partition once"):
            manifest.begin(run.manifest, identity, flags_of(self.args), run.scope)
            self.note(run, agent, start=manifest.now())
            traces.cut_torn_line(part)
            tally = self.fill(run, part, agent)
            self.note(run, agent, end=manifest.now(), **served(agent))
            keep_documents(run, agent)
        counts = {"run": str(run.folder), "kv": store_counts(agent), **served(agent)}
        return tally.summary() | counts

    def note(self, run: Run, agent: Any, **facts: Any) -> None:
        args = self.args
        in_flight = getattr(agent.llm, "concurrency", args.batch_size)
        facts |= {"num_partitions": args.num_partitions, "batch_size": in_flight}
        facts["device"] = agent.llm.device
        manifest.note_part(run.manifest, args.partition, facts)

    def fill(self, run: Run, part: Path, agent: Any) -> "Tally":
        """Answer what no part holds yet; append each trace as it ends."""
        rows = traces.read_parts(run.folder)
        share = run.questions[self.args.partition :: self.args.num_partitions]
        tally = Tally(run.task, share, rows)
        todo = [question for question in share if question.id not in tally.finished]
        if agent.carried:
            agent.sheet = last_sheet(share, rows)
        progress = cli.Progress(len(share), run.name, len(share) - len(todo))
        for trace in answered(todo, agent, self.args.batch_size):
            traces.append_trace(part, trace)
            tally.add(trace)
            progress.update(**tally.shown())
        progress.close()
        return tally

    def make_agent(self, run: Run) -> tuple[Any, dict[str, Any]]:
        """Load what a run needs, cheap things first, and say what identifies it."""
        from lag import react
        from lag.logs import LogIndex

        args, mode = self.args, run.mode
        settings = {name: getattr(args, name) for name in LOOP_FLAGS}
        logs = self.load_logs(run) if mode.enters else None
        documents, docs = load_evidence(args, run.paths, run.questions, self.load_embedder)
        index = LogIndex(logs, self.load_embedder(), run.paths) if logs else None
        llm = self.load_llm()
        settings["prefill"] = find_prefill(args.prefill, llm)
        if mode.enters == "kv":
            llm.open_store(run.paths.kv, mode)
        agent = react.Agent(
            task=run.task,
            mode=mode,
            llm=llm,
            documents=documents,
            docs=docs,
            evidence=SOLVERS[args.solver].evidence,
            store=logs.logs if logs else {},
            logs=index,
            carried=mode.enters == "sheet" and args.sheet == "carried",
            **settings,
        )
        self.set_control(run, agent)
        return agent, self.identity(run, agent, logs.digest if logs else "")

    def load_logs(self, run: Run) -> Any:
        from lag.logs import LogStore

        questions = read_questions(run.paths, run.task, "train")
        store = LogStore.load(run.log_store, questions=questions, limit=self.args.log_limit or None)
        log.info("%s: %d logs (%d rows without one)", run.log_store, len(store.logs), store.skipped)
        return store

    def set_control(self, run: Run, agent: Any) -> None:
        """Put the control in place that `--log-control` asks for."""
        kind, seed = self.args.log_control, self.args.seed
        if kind == "random":
            agent.control = controls.random_logs(sorted(agent.store), seed)
        elif kind == "shuffled":
            everyone = read_questions(run.paths, run.task, run.split)
            agent.control = controls.shuffled_logs(agent.logs, everyone, seed)
        elif kind == "wrong-context":
            if not any(run.mode.after(log) for log in agent.store.values()):
                raise ValueError("--log-control wrong-context: no log of this store hides any text")
            agent.foreign_context = controls.foreign_context(agent.store, seed)

    def identity(self, run: Run, agent: Any, logs: str) -> dict[str, Any]:
        """Everything that could change a row."""
        args, paths = self.args, run.paths
        identity = {
            "dataset": args.dataset,
            "split": run.split,
            "mode": run.mode.name,
            "model": agent.llm.name,
            "model_digest": agent.llm.fingerprint(paths.kv)["digest"],
            "prompts": prompts.digest(),
            "questions": manifest.file_digest(paths.questions(run.split)),
            "documents": manifest.file_digest(paths.docs) if agent.documents else "",
            "embedder": self.embedder.digest if self.embedder else "",
            "logs": logs,
            "max_new_tokens": args.max_new_tokens,
        }
        read = [name for name in manifest.named_flags(run.mode) if name != "log_store"]
        return identity | {name: getattr(args, name) for name in read} | {"prefill": agent.prefill}


def flags_of(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as `--config` reads them; those of one process are left out."""
    own = (
        "defaults",
        "runs",
        "partition",
        "merge",
        "as_log",
        "export_batches",
        "export_to",
        "config",
        "verbose",
    )
    flags = {name: value for name, value in vars(args).items() if name not in own}
    return {name: str(v) if isinstance(v, Path) else v for name, v in flags.items()}


def answered(todo: list[Question], agent: Any, batch_size: int) -> Iterator[Trace]:
    """The traces of questions as they end; a carried sheet allows one in flight."""
    from lag import inflight, react

    concurrency = getattr(agent.llm, "concurrency", 0)
    if concurrency:
        return inflight.run_concurrently(todo, agent, 1 if agent.carried else concurrency)
    return react.run(todo, agent, 1 if agent.carried else batch_size)


def served(agent: Any) -> dict[str, Any]:
    """What a server was asked, so far as this process knows; nothing for a model in it."""
    counts = getattr(agent.llm, "counts", None)
    if counts is None:
        return {}
    return {"served": dict(counts) | {"failed_tries": agent.llm.client.retried}}


def keep_documents(run: Run, agent: Any) -> None:
    """Keep texts that a server found and our corpus lacks: without them no row can be rebuilt."""
    foreign = getattr(agent.docs, "foreign", {})
    path = run.folder / f"documents-{run.args.partition}.json"
    if foreign:
        known = traces.read_json(path) if path.exists() else {}
        found = {id: {"title": doc.title, "content": doc.content} for id, doc in foreign.items()}
        traces.write_json(path, known | found)


def last_sheet(share: list[Question], rows: dict[str, dict[str, Any]]) -> str:
    """The cheatsheet as the last finished question of this share left it."""
    sheets = [rows[q.id].get("sheet") for q in share if q.id in rows]
    return next((sheet for sheet in reversed(sheets) if sheet), "")


def store_counts(agent: Any) -> dict[str, int]:
    """How often KV came from the store, was encoded on the spot, or was found damaged."""
    store = getattr(agent.llm, "store", None)
    return dict(store.counts) if store is not None and agent.mode.enters == "kv" else {}


class Tally:
    """The figures of a share so far: what resumed rows and new traces add up to."""

    def __init__(self, task: Task, share: list[Question], rows: dict[str, dict[str, Any]]):
        self.task, self.questions = task, {question.id: question for question in share}
        self.counts: Counter[str] = Counter()
        self.finished = {id for id in self.questions if id in rows and not rows[id].get("error")}
        for id in self.finished:
            self.add(Trace.from_json(rows[id]))

    def add(self, trace: Trace) -> None:
        question = self.questions[trace.id]
        scored = metrics.score(self.task.scorer, trace.pred, question.answers, question.options)
        cost = trace.cost
        self.counts.update(
            {
                trace.status: 1,
                "steps": len(trace.replies),
                "em": scored["em"],
                "near_ties": int(cost["near_ties"] > 0),
                "dropped": int(bool(trace.dropped)),
                "new_tokens": cost["new_tokens"],
            }
        )

    @property
    def done(self) -> int:
        return sum(self.counts[status] for status in ("answered", "unanswered", "error"))

    def shown(self) -> dict[str, str]:
        counts, done = self.counts, max(self.done, 1)
        return {
            "answered": str(counts["answered"]),
            "failed": str(counts["error"]),
            "steps": f"{counts['steps'] / done:.2f}",
            "EM": f"{100 * counts['em'] / done:.1f}",
        }

    def summary(self) -> dict[str, Any]:
        """near_ties: rows whose reply could differ in another batch (rule 7)."""
        counts = self.counts
        return {
            "questions": len(self.questions),
            "answered": counts["answered"],
            "unanswered": counts["unanswered"],
            "failed": counts["error"],
            "near_ties": counts["near_ties"],
            "dropped": counts["dropped"],
            "em": round(counts["em"] / max(self.done, 1), 4),
            "steps": round(counts["steps"] / max(self.done, 1), 4),
        }


def merge_run(run: Run) -> dict[str, Any]:
    """Write `preds.json` from the parts; say which questions are missing.

    Raises:
        FileNotFoundError: the run has no parts; lists the runs that are there.
    """
    rows = traces.read_parts(run.folder)
    if not rows:
        there = sorted(p.parent.name for p in run.folder.parent.glob("*/run.json"))
        raise FileNotFoundError(
            f"{run.folder} holds no parts to merge; runs of this split: {', '.join(there) or 'none'}"
        )
    known = traces.read_json(run.manifest)
    results = traces.merge(rows, [question.id for question in run.questions])
    missing = [question.id for question in run.questions if question.id not in results]
    failed = sum(row["status"] == "error" for row in results.values())
    identity = known["identity"]
    named = ("dataset", "split", "mode", "solver", "model", "seed")
    merged = {
        "metadata": {name: identity[name] for name in named}
        | {"run": run.name, "n": len(results), "missing": missing, "scope": known["scope"]},
        "inference_params": {k: v for k, v in identity.items() if k not in named},
        "results": results,
    }
    target = run.paths.merged(run.split, run.name)
    traces.write_json(target, merged)
    if missing:
        more = f" and {len(missing) - 20} more; preds.json lists all" if len(missing) > 20 else ""
        log.warning("missing in %s: %s%s", run.folder, ", ".join(missing[:20]), more)
    if run.args.as_log:
        as_log(run, target)
    counts = {"n": len(results), "missing": len(missing), "failed": failed}
    return {"merged": str(target), **counts, **export_batches(run, merged)}


def export_batches(run: Run, merged: dict[str, Any]) -> dict[str, Any]:
    """Write the batch files that `--export-batches` asks for; tells their folder and number."""
    from lag.export import export

    size = run.args.export_batches
    if not size:
        return {}
    paths = export(merged, run.questions, run.paths.meta, run.args.export_to, size)
    return {"exported": str(paths[0].parent), "batches": len(paths)}


def as_log(run: Run, merged: Path) -> None:
    """Make a merged run the log store, in one rename."""
    if run.split != "train":
        log.warning(
            "the log store is now made from the %s split: it is no longer unseen", run.split
        )
    temporary = run.paths.log_store.with_suffix(".tmp")
    shutil.copyfile(merged, temporary)
    temporary.replace(run.paths.log_store)
