"""Rank the logs of a store."""

from collections.abc import Callable, Mapping, Sequence

from lag.logs.store import LogStore
from lag.paths import Paths
from lag.records import Encoder, Hit, Log
from lag.retrieval import vectors
from lag.retrieval.index import TextIndex


class LogIndex(TextIndex):
    """Logs ranked by the cosine of their key to a query; their vectors are kept on disk.

    embedded: how many vectors were made now; the others were there.
    """

    def __init__(self, store: LogStore, embedder: Encoder, paths: Paths):
        embedder.preload(paths.vectors("q"))
        keys = [log.key for log in store.logs.values()]
        matrix, self.embedded = embedder.documents([]), 0
        if keys:
            filled, self.embedded = vectors.fill(
                paths.vectors("log"), keys, embedder, embedder.document_batches, keep_others=True
            )
            matrix = filled.of(vectors.keys_of(keys))
        super().__init__(list(store.logs), matrix, embedder)


class EveryLog:
    """All logs as a ranking: the oldest first, whatever is asked (`--num-logs all`)."""

    def __init__(self, ids: Sequence[str]):
        self.ids = ids

    @classmethod
    def that_fit(
        cls, logs: Mapping[str, Log], room: int, length: Callable[[Log], int]
    ) -> "EveryLog":
        """As many of the oldest as there is room for; room and length in tokens."""
        found: list[str] = []
        for id in logs:
            room -= length(logs[id])
            if room < 0:
                break
            found.append(id)
        return cls(found)

    def rank(self, query: str, k: int, exclude: frozenset[str] = frozenset()) -> list[Hit]:
        return [Hit(id, 1.0) for id in self.ids if id not in exclude][:k]
