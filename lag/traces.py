"""The records that several modules share, and how they become JSON lines.

A question is answered in steps; the steps and their outcome are a trace; a trace without its
gold answers is a log. A run appends traces to parts, one JSON line each, so that a kill at any
point loses at most the line being written.
"""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SECONDS = ("retrieve", "prefill", "decode", "store")
COUNTS = ("prompt_tokens", "cached_tokens", "reused_tokens", "new_tokens", "kv_bytes", "near_ties")


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a data set.

    answers: the gold answer, then its aliases; of multiple choice the letter, then the option.
    evidence: ids of the documents that support the answer, where the data set knows them.
    groups: what scores are broken down by, such as `type`, `hops` or `category`.
    subquestions: the gold decomposition, where known; used to find overlap between questions.
    paragraphs: ids of the question's own context documents, in their order.
    """

    id: str
    text: str
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)
    subquestions: tuple[str, ...] = ()
    paragraphs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UsedLog:
    """A log that entered a prompt: as text, as stored KV, or as KV encoded on the spot."""

    id: str
    similarity: float
    source: str = "text"


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the model: the query before it, what entered its prompt, what it replied.

    action: `answer`, `search`, `nothing` (a reply without a tag) or `curate` (a cheatsheet).
    cached_tokens: of the prompt, placed from stored KV; reused_tokens: left from the step before, or
        from the beginning that all prompts share.
    seconds: by part, `retrieve`, `prefill` (to the first token), `decode`, `store`.
    """

    query: str
    action: str
    docs: tuple[str, ...] = ()
    logs: tuple[UsedLog, ...] = ()
    reply: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    kv_bytes: int = 0
    near_ties: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    reused_tokens: int = 0

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Step":
        logs = tuple(UsedLog(**used) for used in row.get("logs", ()))
        return cls(**{**row, "docs": tuple(row.get("docs", ())), "logs": logs})


@dataclass(slots=True)
class Trace:
    """One question answered, or not: a row of a predictions file. The only record that grows."""

    id: str
    question: str
    gold_answer: tuple[str, ...] = ()
    gold_evidence: tuple[str, ...] = ()
    pred: str = ""
    steps: list[Step] = field(default_factory=list)
    sheet: str | None = None
    dropped: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, str] | None = None

    @classmethod
    def of(cls, question: Question) -> "Trace":
        return cls(question.id, question.text, question.answers, question.evidence)

    @property
    def status(self) -> str:
        if self.error:
            return "error"
        return "answered" if self.pred else "unanswered"

    @property
    def replies(self) -> tuple[str, ...]:
        """What the agent said, step by step; a curator's sheet is not among it."""
        return tuple(step.reply for step in self.steps if step.action != "curate")

    @property
    def cost(self) -> dict[str, Any]:
        """Sums over all calls, a curator's included: tokens, bytes, seconds by part."""
        total = {"calls": len(self.steps)}
        for name in COUNTS:
            total[name] = sum(getattr(step, name) for step in self.steps)
        total["seconds"] = {
            part: sum(step.seconds.get(part, 0.0) for step in self.steps) for part in SECONDS
        }
        return total

    def to_json(self) -> dict[str, Any]:
        """The row as DESIGN's file format has it, without its id."""
        row = {
            "question": self.question,
            "pred": self.pred,
            "gold_answer": list(self.gold_answer),
            "gold_evidence": list(self.gold_evidence),
            "status": self.status,
            "error": self.error,
            "num_steps": len(self.replies),
            "trace": [asdict(step) for step in self.steps],
            "cost": self.cost,
        }
        if self.sheet is not None:
            row["sheet"] = self.sheet
        if self.dropped:
            row["dropped"] = self.dropped
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any], id: str = "") -> "Trace":
        return cls(
            id=id or row["id"],
            question=row["question"],
            gold_answer=tuple(row.get("gold_answer", ())),
            gold_evidence=tuple(row.get("gold_evidence", ())),
            pred=row.get("pred") or "",
            steps=[Step.from_json(step) for step in row.get("trace", ())],
            sheet=row.get("sheet"),
            dropped=row.get("dropped", []),
            error=row.get("error"),
        )


@dataclass(frozen=True, slots=True)
class Log:
    """What is left of a trace when it is reused: the question and the model's own words.

    It has no gold field, so nothing that reuses a log can look at one.
    """

    id: str
    question: str
    replies: tuple[str, ...]

    @classmethod
    def of(cls, trace: Trace) -> "Log":
        return cls(trace.id, trace.question, tuple(r for r in trace.replies if r.strip()))

    @property
    def key(self) -> str:
        """The text that retrieval embeds, the same in every mode."""
        return f"{self.question}\n{self.replies[-1]}"


def without_seconds(row: Any) -> Any:
    """What two runs are compared by: the row without what a clock measured.

    Near ties are left out too: whether a lead is just below or above the bound is itself rounding.
    """
    if isinstance(row, dict):
        left_out = ("seconds", "near_ties")
        return {key: without_seconds(v) for key, v in row.items() if key not in left_out}
    if isinstance(row, list):
        return [without_seconds(value) for value in row]
    return row


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, sync it, then rename: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, all or nothing."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1))


def read_json(path: Path, next_step: str = "") -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: with `next_step` as the advice.
        ValueError: not JSON; names the file, line and column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found" + (f"; {next_step}" if next_step else ""))
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all bounds
        raise ValueError(f"{path} is not usable JSON: {error}") from error


@contextlib.contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold an exclusive lock on a file while the block runs.

    Raises:
        ValueError: another process holds it; `message` says what that means.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{path} {message}") from error
        yield


def cut_torn_line(path: Path) -> None:
    """Cut what a killed writer left after the last newline."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # a file that is left alone keeps its time
            file.truncate(whole)


def append_trace(path: Path, trace: Trace) -> None:
    """Append one line and flush it to the disk."""
    line = json.dumps({"id": trace.id, **trace.to_json()}, ensure_ascii=False) + "\n"
    with open(path, "ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a part in order; a torn last line is left out.

    Raises:
        ValueError: a complete line that is not a row; names the file and the line.
    """
    content = path.read_bytes()
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            row = json.loads(line)
            row["id"], row["question"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} line {number} is not a row of a run: {error!r}") from error
        yield row


def natural(path: Path) -> list[Any]:
    """Sort key under which `part-2` comes before `part-10`."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", str(path))]


def read_parts(folder: Path) -> dict[str, dict[str, Any]]:
    """The last row of every id in all parts of a run; a finished row beats an error row."""
    rows: dict[str, dict[str, Any]] = {}
    for part in sorted(folder.glob("part-*.jsonl"), key=natural):
        for row in read_rows(part):
            if row.get("error") and row["id"] in rows and not rows[row["id"]].get("error"):
                continue
            rows[row["id"]] = row
    return rows


def merge(rows: dict[str, dict[str, Any]], order: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Rows in the order of the question file, without the id inside."""
    return {
        id: {key: value for key, value in rows[id].items() if key != "id"}
        for id in order
        if id in rows
    }
