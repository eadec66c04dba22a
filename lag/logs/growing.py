"""A log store that grows: after every N questions their traces become logs, one version further.

A row names the version that it retrieved from, so that a run can be replayed, and resumed after
any kill. What is kept and what goes depends on rows and vectors alone; gold answers decide nothing.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lag.logs.store import LogStore
from lag.logs.versions import LogVersions, VectorFile, Version
from lag.records import Encoder, Hit, Log, Question, Trace

if TYPE_CHECKING:
    import numpy as np


KEEP = ("all", "answered", "novel")
EVICT = ("oldest", "least-used", "redundant")
MakeKV = Callable[[Sequence[Log]], int]  # makes the KV of logs; returns of how many


@dataclass(frozen=True, slots=True)
class Keeping:
    """Which traces become logs, and which logs go.

    novel_below: with `novel`, the cosine to every log must be below it.
    log_limit: how many logs the store holds at most; 0: any number.
    """

    keep: str = "all"
    novel_below: float = 0.95
    log_limit: int = 0
    evict: str = "oldest"

    @property
    def compares(self) -> bool:
        """Whether logs are compared with each other."""
        return self.keep == "novel" or bool(self.log_limit and self.evict == "redundant")


class GrowingIndex:
    """Logs of a store that grows, ranked by their exact cosine to a query.

    One pass over the vectors finds who may be among the nearest; these are compared exactly, as in
    `retrieval.index`, so that a ranking does not depend on when, or where, its logs were embedded.
    """

    def __init__(self, versions: LogVersions, encoder: Encoder):
        self.versions, self.encoder = versions, encoder
        self.vectors = VectorFile(versions.vectors_path, encoder.dimensions)

    def embed(self, keys: Sequence[str]) -> "np.ndarray":
        """One text at a time: padding to a longer neighbour would change the last digits."""
        import numpy as np

        found = [self.encoder.documents([key]) for key in keys]
        return np.concatenate([self.encoder.documents([]), *found])  # (N, E)

    def rank(self, query: str, k: int, exclude: frozenset[str] = frozenset()) -> list[Hit]:
        """The k nearest logs of the version shown, best first; ties in the order of their ids."""
        return self.like(self.encoder.queries([query])[0], k, exclude)

    def like(self, vector: "np.ndarray", k: int, exclude: Collection[str] = ()) -> list[Hit]:
        """The k logs of the version shown that are nearest to a vector (E,)."""
        versions = self.versions
        others = (versions.rows.get(id, versions.count) for id in exclude)
        barred = {*versions.absent(), *(row for row in others if row < versions.count)}
        return nearest(vector, k, self.vectors.matrix(versions.count), versions.ids, barred)


def entered(trace: Trace) -> set[str]:
    """Ids of the logs that entered any of its prompts."""
    return {log.id for step in trace.steps for log in step.logs}


def nearest(
    query: "np.ndarray", k: int, matrix: "np.ndarray", ids: Sequence[str], barred: Collection[int]
) -> list[Hit]:
    """The k rows with the largest cosine to a query (E,), without those that are barred."""
    import numpy as np

    from lag.retrieval.index import MARGIN, exact_hits

    k = min(k, len(matrix) - len(barred))
    if k < 1:
        return []
    scores = matrix @ query  # (N,)
    scores[list(barred)] = -np.inf
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    rows = np.flatnonzero(scores >= least - MARGIN)
    return exact_hits([ids[row] for row in rows], matrix[rows], query)[:k]


@dataclass(slots=True)
class Draft:
    """What the next version is going to be, while it is decided on trace by trace.

    live: ids of the store's logs that stay, in the order in which they came; None where none goes.
    logs, vectors: what is new. left_out: why a trace left no log. evicted: who goes.
    """

    live: dict[str, None] | None = None
    logs: dict[str, Log] = field(default_factory=dict)
    vectors: "dict[str, np.ndarray]" = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    evicted: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.live) + len(self.logs)

    def remove(self, id: str) -> None:
        if id in self.logs:  # it came and goes in one version: it is never seen
            del self.logs[id], self.vectors[id]
            self.left_out[id] = "no room"
        else:
            del self.live[id]
            self.evicted.append(id)


class GrowingLogs:
    """A store that grows.

    index: ranks its logs; None where nothing is ranked or compared, and nothing is embedded.
    """

    def __init__(self, path: Path, keeping: Keeping, encoder: Encoder | None):
        self.versions, self.keeping = LogVersions(path), keeping
        self.versions.recover()
        self.index = GrowingIndex(self.versions, encoder) if encoder else None
        if self.index:
            self.index.vectors.recover(self.versions, self.index.embed)
        self.uses: Counter[str] = Counter()
        for version in self.versions.versions:
            self.uses.update(version.used)

    def begin(self, settings: dict[str, Any], start: Mapping[str, Log]) -> None:
        """Write the first version, or check that the store that is there is the same one.

        start: the logs that it begins with.

        Raises:
            ValueError: it is another one; names what differs.
        """
        settings = settings | {"keeping": asdict(self.keeping)}
        if not self.versions.versions:
            logs = list(start.values())
            logs = logs[: self.keeping.log_limit] if self.keeping.log_limit else logs
            self.write(Draft(logs={log.id: log for log in logs}), settings=settings)
        known = self.versions.versions[0].settings
        names = [n for n in [*known, *settings] if known.get(n) != settings.get(n)]
        if names:
            told = (f"{n}: {known.get(n)} -> {settings.get(n)}" for n in dict.fromkeys(names))
            raise ValueError(
                f"{self.versions.path} grew in another stream ({'; '.join(told)}); repeat its "
                "flags, give this one a name of its own with --run NAME, or delete the folder"
            )

    def summary(self) -> dict[str, Any]:
        """What has become of it, and of every trace that could have become a log."""
        versions, newest = self.versions.versions, self.versions.newest
        left_out = Counter(why for version in versions for why in version.left_out.values())
        return {
            "version": newest.number,
            "digest": newest.digest,
            "logs": len(self.versions.ids) - len(self.versions.gone),
            "added": len(self.versions.ids),
            "evicted": len(self.versions.gone),
            "left_out": dict(sorted(left_out.items())),
            "encoded": sum(version.encoded for version in versions),
        }

    def first_of(self, split: str) -> int:
        """The version that the first questions of a split retrieve from."""
        before = (v.number - 1 for v in self.versions.versions if v.asked and v.split == split)
        return next(before, self.versions.newest.number)

    def grow(self, split: str, traces: Sequence[Trace], make_kv: MakeKV) -> Version:
        """Make logs of traces, in their order; the next question sees them."""
        self.versions.show(self.versions.newest.number)
        draft, seconds = Draft(), {"embed": 0.0}
        if self.keeping.log_limit:
            draft.live = dict.fromkeys(self.versions)
        used = Counter(id for trace in traces for id in entered(trace))
        self.uses.update(used)
        for trace in traces:
            self.decide(draft, Log.of(trace), trace, seconds)
        facts = {"split": split, "asked": tuple(trace.id for trace in traces), "used": dict(used)}
        return self.write(draft, make_kv, seconds, **facts)

    def decide(self, draft: Draft, log: Log, trace: Trace, seconds: dict[str, float]) -> None:
        """Take a trace in as a log, or note why not."""
        if reason := self.reason_against(draft, log, trace):
            draft.left_out[log.id] = reason
            return
        start = time.perf_counter()
        vector = self.index.embed([log.key])[0] if self.index else None
        seconds["embed"] += time.perf_counter() - start
        if self.keeping.keep == "novel":
            found = self.like(draft, vector)
            if found and found.similarity >= self.keeping.novel_below:
                draft.left_out[log.id] = "similar"
                return
        if draft.live is not None and draft.size >= self.keeping.log_limit:
            draft.remove(self.to_evict(draft, vector))
        draft.logs[log.id], draft.vectors[log.id] = log, vector

    def reason_against(self, draft: Draft, log: Log, trace: Trace) -> str:
        """Why a trace is no log whatever its words are like; empty if nothing speaks against it."""
        if trace.error:
            return "error"
        if not log.replies:
            return "empty"
        if log.id in self.versions.rows or log.id in draft.logs:
            return "known"
        unanswered = self.keeping.keep == "answered" and trace.status != "answered"
        return "unanswered" if unanswered else ""

    def like(self, draft: Draft, vector: "np.ndarray") -> Hit | None:
        """The log that is most like a new one, among those that are there and those that come."""
        import numpy as np

        old, new = self.index.like(vector, 1, draft.evicted), []
        if draft.vectors:
            matrix = np.stack(list(draft.vectors.values()))
            new = nearest(vector, 1, matrix, list(draft.vectors), ())
        return max([*old, *new], key=lambda hit: (hit.similarity, hit.id), default=None)

    def to_evict(self, draft: Draft, vector: "np.ndarray") -> str:
        """Who makes room for a new log."""
        if self.keeping.evict == "redundant":
            return self.like(draft, vector).id
        ids = chain(draft.live, draft.logs)
        if self.keeping.evict == "least-used":
            return min(ids, key=lambda id: self.uses[id])  # of equals the oldest
        return next(ids)

    def write(
        self,
        draft: Draft,
        make_kv: MakeKV = len,
        seconds: dict[str, float] | None = None,
        **facts: Any,
    ) -> Version:
        """Vectors and KV first, the version last: what a version names is there."""
        import numpy as np

        logs, seconds = list(draft.logs.values()), seconds or {}
        start = time.perf_counter()
        encoded = make_kv(logs) if facts.get("asked") else 0
        seconds["encode"] = time.perf_counter() - start
        if self.index and logs:
            start = time.perf_counter()
            known = [draft.vectors.get(log.id) for log in logs]
            missing = self.index.embed([log.key for log, v in zip(logs, known) if v is None])
            made = iter(missing)
            matrix = np.stack([next(made) if v is None else v for v in known])
            facts["vectors"] = self.index.vectors.append(matrix)
            seconds["store"] = time.perf_counter() - start
        return self.versions.append(
            logs,
            draft.evicted,
            left_out=draft.left_out,
            seconds=seconds,
            encoded=encoded,
            **facts,
        )


def every_log(path: Path) -> LogStore:
    """All logs that a store ever had; of several partitions those of each.

    path: of one store, or the folder of a run's stores.
    """
    found = sorted(path.glob("store*.jsonl")) if path.is_dir() else [path]
    logs: dict[str, Log] = {}
    for one in found:
        versions = LogVersions(one)
        logs |= {id: versions[id] for id in versions.ids}
        versions.close()
    return LogStore(path, logs)


def in_order(questions: Sequence[Question], seed: str) -> list[Question]:
    """Questions as a stream asks them; seed 0 leaves them in the order of their file."""
    if seed == "0":
        return list(questions)
    return random.Random(f"order {seed}").sample(list(questions), len(questions))
