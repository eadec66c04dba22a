"""The log store: the past traces that may be reused.

A log store is a predictions file; files of three other toolkits can be imported. A row is a log,
right or wrong, answered or not, unless it failed or says nothing.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lag.files import bytes_digest, read_json
from lag.logs.imports import generated_rows, keyed_rows, positional_rows
from lag.records import Log, Question

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogStore:
    """Logs by the id of their question, in the order of their file.

    errors, empty: rows that are no log because the question failed, or the model said nothing.
    """

    path: Path
    logs: dict[str, Log] = field(default_factory=dict)
    errors: int = 0
    empty: int = 0

    @classmethod
    def load(
        cls, path: Path, questions: Sequence[Question] | None = None, limit: int | None = None
    ) -> "LogStore":
        """Read a store.

        questions: the train questions in file order; LAG's positional file has no ids without.
        limit: use the first so many logs only; None is all.

        Raises:
            FileNotFoundError: no such file; tells the command that makes it.
            ValueError: not a store, or a row that is none; names the file and the row.
        """
        if limit is not None and limit < 0:
            raise ValueError(f"the log limit is {limit}; expected 0 or more")
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} not found: no logs to reuse; {make_command(path)}")
        content = read_json(path)
        if isinstance(content, list) and content and isinstance(content[0], dict):
            rows = generated_rows(path, content, questions)
        elif isinstance(content, list):
            rows = positional_rows(path, content, questions)
        else:
            rows = keyed_rows(path, content)
        return cls.of(path, rows, limit)

    @classmethod
    def of(cls, path: Path, rows: Mapping[str, Log | None], limit: int | None) -> "LogStore":
        """A store of rows; None stands for one that failed."""
        logs = {id: row for id, row in rows.items() if row and row.replies}
        errors = sum(row is None for row in rows.values())
        empty = len(rows) - errors - len(logs)
        return cls(path, dict(list(logs.items())[:limit]), errors, empty)

    @property
    def skipped(self) -> int:
        """Rows that are no log."""
        return self.errors + self.empty

    @property
    def digest(self) -> str:
        """Over ids, questions and replies, in order."""
        content = [[log.id, log.question, log.replies] for log in self.logs.values()]
        return bytes_digest(json.dumps(content).encode(), 16)


def make_command(path: Path) -> str:
    """How to make a store at this path."""
    if path.name != "log.json" or path.parent.name != "preds":
        return "check --log-store, which names a predictions file"
    dataset = path.resolve().parent.parent.name
    return f"run: python agentic.py -d {dataset} -m base --split train --merge --as-log"
