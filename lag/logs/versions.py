"""A log store in versions on disk: it is only appended to, and each version has a digest.

Three files grow side by side: `store.jsonl` has a line per version, `logs.jsonl` a line per log, and
`vectors.f32` a unit vector per log. A version's line is written last: what a killed writer left
behind the last version is cut off. Logs are read from the disk when they are asked for.
"""

import json
import logging
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lag.files import append_bytes, bytes_digest, pieces_digest
from lag.json_checks import parsed
from lag.records import Log
from lag.trace_files import cut_torn_line

if TYPE_CHECKING:
    import numpy as np


logger = logging.getLogger(__name__)
DIGEST = 16  # hexadecimal digits
NUMBER_BYTES = 4  # of float32


@dataclass(frozen=True, slots=True)
class Version:
    """What one step of growing did.

    split, asked: the questions that were answered from the version before, in their order.
    added, evicted: ids of logs. left_out: why the other questions left no log, by their ids.
    used: how many of `asked` each log entered.
    vectors: a digest of the vectors of `added`; empty where there are none.
    seconds, encoded: what it cost to embed, to make KV and to write; logs whose KV was made.
    settings: of the whole store, in the first version.
    """

    number: int
    digest: str
    split: str = ""
    asked: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    evicted: tuple[str, ...] = ()
    used: dict[str, int] = field(default_factory=dict)
    vectors: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    encoded: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Version":
        lists = {name: tuple(row[name]) for name in ("asked", "added", "evicted")}
        return cls(**{**row, **lists})


def line_of(log: Log) -> bytes:
    row: dict[str, Any] = {"id": log.id, "question": log.question, "replies": log.replies}
    row |= {"question_id": log.question_id} if log.question_id else {}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def log_of(line: bytes) -> Log:
    row = json.loads(line)
    return Log(row["id"], row["question"], tuple(row["replies"]), row.get("question_id", ""))


def chained(parent: str, lines: Sequence[bytes], evicted: Sequence[str]) -> str:
    """The digest of a version: of the one before, the lines of its new logs, and who went."""
    return pieces_digest([parent.encode(), *lines, json.dumps(evicted).encode()], DIGEST)


class LogVersions(Mapping[str, Log]):
    """The logs of a store that grows; as a mapping, those that are there in the version shown.

    A log that has gone is still found by its id: rows of earlier versions name it.

    ids: of all logs in the order in which they came, which is that of lines and vectors.
    shown: the version that is seen; the newest one unless `show` says otherwise.
    """

    def __init__(self, path: Path):
        """Read what is there; `recover` makes it fit to be written to.

        Raises:
            ValueError: the files contradict each other; names the version.
        """
        self.path, self.logs_path = path, sibling(path, "logs", ".jsonl")
        self.vectors_path = sibling(path, "vectors", ".f32")
        self.versions: list[Version] = []
        self.ids: list[str] = []
        self.rows: dict[str, int] = {}
        self.gone: dict[int, int] = {}  # row -> the version without it
        self.barred: tuple[int, list[int]] = (-1, [])  # a version shown, and what is absent in it
        self.starts, self.ends = array("Q", [0]), array("Q")  # of a log's line; rows of a version
        self.handle: int | None = None
        for version in read_versions(path):
            self.check(version)
            self.take(version)
        self.shown = len(self.versions) - 1

    def check(self, version: Version) -> None:
        """Read the lines of a version's logs, and compare their digest with the one it names."""
        try:
            with open(self.logs_path, "rb") as file:
                file.seek(self.starts[-1])
                lines = [file.readline() for _ in version.added]
        except FileNotFoundError:
            lines = []
        parent = self.versions[-1].digest if self.versions else ""
        if chained(parent, lines, version.evicted) != version.digest:
            raise ValueError(
                f"{self.logs_path} does not hold what version {version.number} of "
                f"{self.path.name} was made of; delete the folder, or bring back its files"
            )
        self.starts.extend(ends_of(self.starts[-1], lines))

    def take(self, version: Version) -> None:
        for id in version.added:
            self.rows[id] = len(self.ids)
            self.ids.append(id)
        for id in version.evicted:
            self.gone[self.rows[id]] = version.number
        self.versions.append(version)
        self.ends.append(len(self.ids))

    def show(self, number: int) -> None:
        self.shown = number

    @property
    def newest(self) -> Version:
        return self.versions[-1]

    @property
    def shown_as(self) -> dict[str, Any]:
        """What a row names."""
        return {"version": self.shown, "digest": self.versions[self.shown].digest}

    @property
    def count(self) -> int:
        """Logs that came up to the version shown, with those that have gone since."""
        return self.ends[self.shown] if self.versions else 0

    def absent(self) -> list[int]:
        """Rows of logs that had gone in the version shown."""
        if self.barred[0] != self.shown:
            gone = [row for row, number in self.gone.items() if number <= self.shown]
            self.barred = (self.shown, gone)
        return self.barred[1]

    def __getitem__(self, id: str) -> Log:
        row = self.rows[id]
        if self.handle is None:
            self.handle = os.open(self.logs_path, os.O_RDONLY)
        start, end = self.starts[row], self.starts[row + 1]
        return log_of(os.pread(self.handle, end - start, start))

    def __iter__(self) -> Iterator[str]:
        absent = set(self.absent())
        return (id for row, id in enumerate(self.ids[: self.count]) if row not in absent)

    def __len__(self) -> int:
        return self.count - len(self.absent())

    def close(self) -> None:
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None

    # --- writing --------------------------------------------------------------------------------
    def recover(self) -> None:
        """Cut what a killed writer left behind the last version."""
        cut_torn_line(self.path)
        cut(self.logs_path, self.starts[-1])

    def append(self, logs: Sequence[Log], evicted: Sequence[str], **facts: Any) -> Version:
        """A new version; it is seen from now on."""
        lines = [line_of(log) for log in logs]
        parent = self.versions[-1].digest if self.versions else ""
        version = Version(
            len(self.versions),
            chained(parent, lines, evicted),
            added=tuple(log.id for log in logs),
            evicted=tuple(evicted),
            **facts,
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_bytes(self.logs_path, b"".join(lines))
        append_bytes(self.path, json.dumps(asdict(version), ensure_ascii=False).encode() + b"\n")
        self.starts.extend(ends_of(self.starts[-1], lines))
        self.take(version)
        self.show(version.number)
        return version


def sibling(path: Path, name: str, suffix: str) -> Path:
    """A file beside `store.jsonl`, or `store-1-of-2.jsonl`, of the same partition."""
    return path.with_name(path.stem.replace("store", name, 1) + suffix)


def ends_of(start: int, lines: Sequence[bytes]) -> Iterator[int]:
    for line in lines:
        start += len(line)
        yield start


def cut(path: Path, size: int) -> None:
    """Shorten a file to a size that it may not have reached."""
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)


def read_versions(path: Path) -> Iterator[Version]:
    """The versions in a file; a torn last line is left out.

    Raises:
        ValueError: a line that is no version; names it.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(line for line in file if line.endswith(b"\n")):
            try:
                version = Version.of(parsed(line.decode()))
                if version.number != number:
                    raise ValueError(f"it is numbered {version.number}")
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path} line {number + 1} is no version: {error}") from error
            yield version


class VectorFile:
    """Unit vectors (N, E) float32 in a file that grows; read where they are used."""

    def __init__(self, path: Path, dimensions: int):
        self.path, self.dimensions, self.mapped = path, dimensions, None

    def matrix(self, count: int) -> "np.ndarray":
        """The first so many vectors (N, E), not copied into memory."""
        import numpy as np

        if not count:
            return np.empty((0, self.dimensions), dtype=np.float32)
        if self.mapped is None or len(self.mapped) < count:
            flat = np.memmap(self.path, np.float32, "r")
            whole = len(flat) // self.dimensions
            self.mapped = np.asarray(flat[: whole * self.dimensions]).reshape(whole, -1)
        return self.mapped[:count]

    def append(self, matrix: "np.ndarray") -> str:
        """Append vectors; returns their digest."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = matrix.astype("<f4").tobytes()
        append_bytes(self.path, content)
        return bytes_digest(content, DIGEST)

    def recover(
        self, versions: LogVersions, embed: Callable[[Sequence[str]], "np.ndarray"]
    ) -> None:
        """Cut to what the versions name; what is missing or damaged is made again, said so.

        embed: keys of logs -> (N, E).
        """
        self.mapped = None
        width = self.dimensions * NUMBER_BYTES
        cut(self.path, len(versions.ids) * width)
        for version, (start, end) in zip(versions.versions, pairwise([0, *versions.ends])):
            if not version.vectors or self.digest(start * width, end * width) == version.vectors:
                continue
            logger.warning("%s is damaged at version %d; embedding", self.path, version.number)
            cut(self.path, start * width)
            rest = [versions[id].key for id in versions.ids[start:]]
            self.append(embed(rest))
            return

    def digest(self, start: int, end: int) -> str:
        if not self.path.exists():
            return ""
        with open(self.path, "rb") as file:
            file.seek(start)
            return bytes_digest(file.read(end - start), DIGEST)
