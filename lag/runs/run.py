"""One solver and mode on one split: where it lies and what it is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lag import files, trace_files
from lag.agent import crossfit
from lag.logs.growing import in_order
from lag.logs.playbook import sheet_after
from lag.modes import MODES, Mode
from lag.paths import Paths
from lag.records import Question
from lag.runs.config import RunConfig
from lag.runs.flags import make_parser, parse
from lag.tasks import Task, read_questions

Rows = dict[str, dict[str, Any]]


@dataclass(slots=True)
class Run:
    """One solver and mode on one split: where it lies and what it is made of.

    place: its folder, where that is not among the data set's predictions.
    questions: one per row; a question of several samples comes as often.
    """

    config: RunConfig
    place: Path | None = None
    mode: Mode = field(init=False)
    split: str = field(init=False)
    name: str = field(init=False)
    task: Task = field(init=False)
    paths: Paths = field(init=False)
    every_question: list[Question] = field(init=False)
    questions: list[Question] = field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        self.mode, self.split, self.name = MODES[config.mode], config.split or "", config.name
        self.task, self.paths = config.task, Paths(config.data, config.dataset)
        self.every_question = read_questions(self.paths, self.task, self.split)
        asked = in_scope(self.every_question, **config.scope)
        asked = in_order(asked, config.order_seed) if self.grows else asked
        self.questions = [one for question in asked for one in question.samples(config.samples)]

    @property
    def folder(self) -> Path:
        return self.place or self.paths.run(self.split, self.name)

    @property
    def manifest(self) -> Path:
        return self.folder / "run.json"

    @property
    def merged(self) -> Path:
        return self.folder / "preds.json"

    def part(self, partition: int) -> Path:
        return self.folder / f"part-{partition}.jsonl"

    @property
    def grows(self) -> bool:
        """Whether its traces become logs while it runs."""
        return bool(self.config.grow and self.mode.enters)

    @property
    def share(self) -> list[Question]:
        """What this partition answers, in order."""
        return self.questions[self.config.partition :: self.config.num_partitions]

    @property
    def grown(self) -> Path:
        """The versions of this partition's store."""
        config = self.config
        return self.paths.grown(self.name, config.partition, config.num_partitions)

    @property
    def log_store(self) -> Path:
        return self.config.log_store or self.paths.log_store


def in_scope(
    questions: list[Question], limit: int | None = None, ids: str | None = None, **more: Any
) -> list[Question]:
    """The questions that `--limit` and `--ids` leave; `more` is what else a manifest knows.

    Raises:
        ValueError: an id that the split does not have.
    """
    if not ids:
        return questions[:limit]
    wanted = ids.split(",")
    known = {question.id: question for question in questions}
    unknown = [id for id in wanted if id not in known]
    if unknown:
        raise ValueError(f"--ids: not in this split: {', '.join(unknown)}")
    return [known[id] for id in wanted]


def stream_of(run: Run, identity: dict[str, Any]) -> dict[str, Any]:
    """What identifies a stream: its settings, and what is asked in it, in which order."""
    asked = {
        split: files.digest_of([q.row_id for q in Run(replace(run.config, split=split)).share], 16)
        for split in run.config.grow.split(",")
    }
    shared = {name: v for name, v in identity.items() if name not in ("split", "questions")}
    return shared | {"asked": asked}


def models_of(made_by: Mapping[str, str], adapters: Sequence[crossfit.Fitted]) -> dict[str, str]:
    """What identifies a base model with each of several adapters, whichever answer; else nothing.

    made_by: the fingerprint of the model with one of them; it names no adapter where they are readers.
    """
    from lag.kv_store.fingerprint import with_adapter

    if not adapters:
        return {}
    digests = sorted(one.digest for one in adapters)
    if "adapter" in made_by:
        models = [with_adapter(made_by, digest)["digest"] for digest in digests]
    else:
        models = [made_by["digest"]] * len(digests)
    return {"model_digest": files.digest_of(models, 24)}


def carried_sheet(run: Run, adapter: str) -> str:
    """The cheatsheet as the last finished question left it, in this split or in one before it.

    adapter: digest of the one of several that answered it; else empty.
    """
    splits = (run.config.grow or run.split).split(",")
    for split in reversed(splits[: splits.index(run.split) + 1]):
        part = Run(replace(run.config, split=split))
        rows = trace_files.read_parts(part.folder)
        for question in reversed(part.share):
            row = rows.get(question.row_id)
            if row and row.get("adapter", "") == adapter:
                trace = trace_files.trace_of(question.row_id, row)
                if sheet := sheet_after(run.mode, trace):
                    return sheet
    return ""


def baseline_rows(run: Run) -> Rows:
    """The rows of the run without logs that is like this one.

    Raises:
        FileNotFoundError: it is not there; tells the command.
    """
    config = replace(run.config, mode="base", run=None).settled()
    rows = trace_files.read_parts(run.paths.run(run.split, config.name))
    if not rows:
        command = f"agentic.py -m base {run.paths.flags} --split {run.split}"
        raise FileNotFoundError(
            f"{run.paths.run(run.split, config.name)} holds no rows to compare with; "
            f"run: python {command}, with the other flags of {run.name}"
        )
    return rows


def recorded_runs(config: RunConfig, name: str, split: str) -> list[Run]:
    """A run as its manifest has it, once per partition that grew a store; this machine's settings
    are those of `config`.

    Raises:
        FileNotFoundError: there is no such run; lists those that are there.
    """
    paths = Paths(config.data, config.dataset)
    path = paths.manifest(split, name)
    if not path.exists():
        there = sorted(p.parent.name for p in path.parent.parent.glob("*/run.json"))
        raise FileNotFoundError(
            f"{path} not found; runs of this split: {', '.join(there) or 'none'}"
        )
    count = files.read_json(path)["identity"].get("num_partitions", 1)
    here = ("data", "device", "batch_size", "kv_memory", "kv_disk", "base_url", "stop_after")
    flags = {name: getattr(config, name) for name in here}
    (found,) = (
        one
        for one in parse(make_parser(None), ["--config", str(path)]).runs()
        if (one.split, one.name) == (split, name)
    )
    shares = (replace(found, partition=n, num_partitions=count, **flags) for n in range(count))
    return [Run(one) for one in shares]
