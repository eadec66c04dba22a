"""One solver and mode on one split: where it lies and what it is made of."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lag.modes import Mode
from lag.paths import Paths
from lag.records import Question
from lag.runs.manifest import run_name
from lag.tasks import TASKS, Task, read_questions


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
        self.name = args.run or run_name(self.mode, vars(args), args.defaults)
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
