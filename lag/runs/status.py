"""How far runs are, from their files alone: on any machine, and after their workers are gone.

Rows are not parsed: their ids and what became of them stand at known places of a line, and no text
inside a row can look like one of the keys that are sought, for its quotes are escaped.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from lag import files, trace_files
from lag.json_checks import mapping
from lag.logs.growing import in_order
from lag.paths import Paths
from lag.records import Question
from lag.runs import heartbeat
from lag.runs.heartbeat import STALE, Heartbeat
from lag.runs.run import in_scope
from lag.runs.share import ranges
from lag.tasks import SPLITS, id_of, read_questions, task_of

ID = re.compile(rb'\{"id": ("(?:[^"\\]|\\.)*"), ')
FAILED, FROM_KV, ENCODED = b'"status": "error"', b'"source": "kv"', b'"source": "encoded"'
STATES = ("done", "running", "dead", "stopped", "failed", "missing")


@dataclass(slots=True)
class Part:
    """What one worker has written, and whether it lives.

    offset: bytes that were read. fresh: rows since its worker began.
    """

    path: Path
    offset: int = 0
    fresh: int = 0
    worker: Heartbeat | None = None
    is_alive: bool = False

    def new_lines(self) -> Iterator[bytes]:
        """Read on; a line that is being written is left for later."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            content = file.read()
        for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
            self.fresh += self.worker is not None and self.offset >= self.worker.offset
            self.offset += len(line)
            yield line

    def look(self) -> None:
        """See whether somebody writes it.

        A lock that is held by a machine that has fallen silent was left behind by it.
        """
        found = heartbeat.read(self.path)
        if found and self.worker and found.start != self.worker.start:
            self.fresh = 0
        self.worker = found
        elsewhere = found is not None and not found.is_here
        self.is_alive = found.age < STALE if elsewhere else files.is_held(self.path)

    @property
    def rate(self) -> float:
        """Rows per second of the worker that is there."""
        if not (self.worker and self.is_alive):
            return 0.0
        return self.fresh / max(time.time() - self.worker.start, 1e-3)


@dataclass(frozen=True, slots=True)
class ShareStatus:
    """One partition: how many of its questions are done, failed or without a row."""

    partition: int
    state: str
    questions: int
    done: int
    failed: int
    rate: float
    worker: str = ""


@dataclass(slots=True)
class RunStatus:
    """One run, seen through its files; `update` reads what came since.

    rows: by question, whether its row is an error's.
    """

    folder: Path
    ids: list[str] = field(default_factory=list)
    count: int = 1
    parts: dict[int, Part] = field(default_factory=dict)
    rows: dict[str, bool] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    spans: Counter[str] = field(default_factory=Counter)

    @property
    def manifest(self) -> Path:
        return self.folder / "run.json"

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    def scan(self) -> None:
        """Read what came since in the parts, and see who is alive."""
        for path in trace_files.parts_of(self.folder):
            number = path.stem.removeprefix("part-")
            if number.isdecimal():
                part = self.parts.setdefault(int(number), Part(path))
                part.look()
                for line in part.new_lines():
                    if found := ID.match(line):
                        self.take(json.loads(found[1].decode()), line)

    def take(self, id: str, line: bytes) -> None:
        """Take a new row; no error's beats a finished one."""
        failed = FAILED in line
        self.spans["kv"] += line.count(FROM_KV)
        self.spans["encoded"] += line.count(ENCODED)
        if failed and self.rows.get(id) is not False:
            error = mapping(json.loads(line).get("error"))
            self.rows[id] = True
            self.errors[id] = f"{error.get('stage', '')} {error.get('type', '')}".strip()
        elif not failed:
            self.rows[id] = False
            self.errors.pop(id, None)

    def read_manifest(self, questions: Callable[[str], list[Question]]) -> None:
        """Which questions were asked for, and into how many shares they were cut last.

        questions: those of a split.
        """
        alive = [p.worker.num_partitions for p in self.parts.values() if p.worker and p.is_alive]
        if self.manifest.exists():
            known = files.read_json(self.manifest)
            every = questions(self.folder.parent.name)
            asked, identity = in_scope(every, **known["scope"]), known["identity"]
            if identity.get("grow"):
                asked = in_order(asked, identity["order_seed"])
            count = identity.get("samples", 1)
            self.ids = [one.row_id for question in asked for one in question.samples(count)]
            notes = [*known["provenance"].get("partitions", {}).values()][::-1]
            newest = max(notes, key=lambda note: note.get("start", ""), default={})
            alive = alive or [newest.get("num_partitions", 1)]
        self.count = max(alive, default=1)

    def shares(self) -> list[ShareStatus]:
        """What the shares are, as the run was cut last; parts of earlier cuts only if they live."""
        others = [n for n, part in self.parts.items() if n >= self.count and part.is_alive]
        return [self.share(n) for n in [*range(self.count), *sorted(others)]]

    def counts(self, ids: Iterable[str]) -> tuple[int, int]:
        """How many questions are done, and how many failed."""
        found = Counter(self.rows.get(id) for id in ids)
        return found[False], found[True]

    def share(self, number: int) -> ShareStatus:
        ids = self.ids[number :: self.count] if number < self.count else []
        counts, part = (len(ids), *self.counts(ids)), self.parts.get(number)
        worker = str(part.worker) if part and part.worker else ""
        rate = part.rate if part else 0.0
        return ShareStatus(number, state_of(part, *counts), *counts, rate, worker)

    def summary(self) -> dict[str, Any]:
        shares, asked, spans = self.shares(), set(self.ids), self.spans.total()
        done, failed = self.counts(asked)
        return {
            "run": self.name,
            "questions": len(asked),
            "done": done,
            "failed": failed,
            "num_partitions": self.count,
            "states": dict(Counter(share.state for share in shares)),
            "rate": round(sum(share.rate for share in shares), 3),
            "errors": dict(Counter(self.errors[id] for id in self.errors.keys() & asked)),
            "kv_hit_rate": round(self.spans["kv"] / spans, 4) if spans else None,
            "partitions": [asdict(share) for share in shares],
            "finish": self.finish(shares),
        }

    def finish(self, shares: Sequence[ShareStatus]) -> dict[str, str]:
        """What finishes the run: a command, and for Slurm the tasks of an array."""
        open_ones = [one.partition for one in shares if one.state not in ("done", "running")]
        if not open_ones or not self.ids:
            return {}
        command = f"python agentic.py --config {quote(str(self.manifest))}"
        tail = f"--num-partitions {self.count}"
        if len(open_ones) == 1:
            command += f" -p {open_ones[0]} {tail}"
        else:
            numbers = " ".join(map(str, open_ones))
            command = f"for p in {numbers}; do {command} -p $p {tail}; done"
        return {"command": command, "array": f"--array={ranges(open_ones)}", "flags": tail}


def state_of(part: Part | None, asked: int, done: int, failed: int) -> str:
    """`dead` died without a word, `stopped` ended by itself, `failed` has a row for each question."""
    if part and part.is_alive:
        return "running"
    if part and part.worker and done < asked:
        return "dead"
    if done == asked and (asked or part):
        return "done"
    if done + failed == asked:
        return "failed" if failed else "done"
    return "stopped" if part else "missing"


def stamp_of(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced; nothing of one that is missing."""
    if not path.exists():
        return ()
    state = path.stat()
    return state.st_mtime_ns, state.st_size, state.st_ino


class DatasetStatus:
    """All runs of a data set; rows and questions are read once."""

    def __init__(self, paths: Paths, name: str | None = None):
        self.paths, self.name = paths, name
        self.runs: dict[Path, RunStatus] = {}
        self.known: dict[str, tuple[tuple[int, ...], list[Question]]] = {}

    def questions(self, split: str) -> list[Question]:
        """Every question of a split, of which nothing is read but its id."""
        stamp = stamp_of(self.paths.questions(split))
        if split not in self.known or self.known[split][0] != stamp:
            task = replace(task_of(self.paths), load=lambda row: Question(id_of(row), ""))
            self.known[split] = stamp, read_questions(self.paths, task, split)
        return self.known[split][1]

    def update(self) -> list[RunStatus]:
        """The runs as they are now."""
        for folder in (f for split in SPLITS for f in sorted(self.paths.preds.glob(f"{split}/*/"))):
            if self.name in (None, folder.name) and any(folder.glob("part-*.jsonl")):
                run = self.runs.setdefault(folder, RunStatus(folder))
                run.scan()
                run.read_manifest(self.questions)
        return list(self.runs.values())


def shown(summary: dict[str, Any]) -> str:
    """For people: a line for the run, one for each partition that needs a word, what to do."""
    finish = summary["finish"]
    states = ", ".join(f"{summary['states'][s]} {s}" for s in STATES if s in summary["states"])
    facts = [f"{summary['done']}/{summary['questions']} done", f"{summary['failed']} failed"]
    facts += [f"{summary['rate']:.2f} questions per s"] if summary["rate"] else []
    if summary["kv_hit_rate"] is not None:
        facts.append(f"KV hits {100 * summary['kv_hit_rate']:.1f} %")
    lines = [f"{summary['run']}: {', '.join(facts)}; partitions: {states}"]
    for one in summary["partitions"]:
        if one["state"] not in ("done", "missing"):
            told = f"  {one['partition']}: {one['state']}, {one['done']}/{one['questions']}"
            lines.append(told + (f", {one['worker']}" if one["worker"] else ""))
    lines += [f"  {count} errors: {kind}" for kind, count in summary["errors"].items()]
    if finish:
        lines += [f"  to finish: {finish['command']}"]
        lines += [f"  in Slurm: {finish['array']}, with {finish['flags']} for agentic.py"]
    return "\n".join(lines)
