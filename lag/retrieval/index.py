"""Rank documents and logs by their exact cosine to a query, the same on every run.

A query is embedded on its own and searched on its own, similarities are compared at six decimals,
and ties go by id: so neither the batch a question is in nor the order of a file decides.
"""

import logging
from collections.abc import Mapping, Sequence
from shlex import quote
from typing import TYPE_CHECKING

import numpy as np

from lag.paths import Paths
from lag.records import Document, Encoder, Hit
from lag.retrieval import vectors
from lag.retrieval.embedder import unit

if TYPE_CHECKING:
    import faiss

logger = logging.getLogger(__name__)
DECIMALS = 6  # of a similarity; float32 is not sure of more
MARGIN = 1e-5  # faiss adds float32 products in its own order; within this it may be mistaken


class Index:
    """Exact cosine over the vectors of some ids (faiss, inner product of unit vectors)."""

    def __init__(self, ids: Sequence[str], matrix: np.ndarray):
        """Index one vector per id.

        matrix: (N, E); scaled to unit length.

        Raises:
            ValueError: another number of vectors than of ids, an id twice, a row without direction.
        """
        if len(ids) != len(matrix) or len(set(ids)) != len(ids):
            raise ValueError(
                f"{len(ids)} ids ({len(set(ids))} different) for {len(matrix)} vectors; "
                "expected one vector for each id, each id once"
            )
        self.ids = list(ids)
        self.faiss = flat_index(unit(matrix, self.ids)) if self.ids else None

    def rank(self, query: np.ndarray, k: int, exclude: frozenset[str] = frozenset()) -> list[Hit]:
        """The k nearest, best first; ties in the order of their ids.

        query: (E,), scaled to unit length. A larger k only appends to the ranking.
        exclude: ids that may not be found.

        Raises:
            ValueError: a query of another width, or without direction.
        """
        if self.faiss is None or k < 1:
            return []
        query = unit(query, ["the query"])
        if query.shape[1] != self.faiss.d:
            raise ValueError(
                f"the query has {query.shape[1]} dimensions, the index {self.faiss.d}; "
                "embed both with the same embedder"
            )
        depth = min(k + len(exclude) + 8, len(self.ids))
        while True:
            scores, rows = self.faiss.search(query, depth)
            hits = [hit for hit in self.compared(query[0], rows[0]) if hit.id not in exclude]
            sure = len(hits) >= k and hits[k - 1].similarity - scores[0, -1] > MARGIN
            if sure or depth == len(self.ids):
                return hits[:k]
            depth = min(2 * depth, len(self.ids))

    def compared(self, query: np.ndarray, rows: np.ndarray) -> list[Hit]:
        """Candidates in their final order."""
        ids = [self.ids[row] for row in rows]
        return exact_hits(ids, self.faiss.reconstruct_batch(rows), query)


def exact_hits(ids: Sequence[str], matrix: np.ndarray, query: np.ndarray) -> list[Hit]:
    """Candidates in their final order, compared in float64.

    matrix: (K, E), a row per id; query: (E,). Of unit length, as float32 has it.
    """
    cosines = (matrix.astype(np.float64) * query.astype(np.float64)).sum(axis=1).clip(-1, 1)
    hits = [Hit(id, round(float(cosine), DECIMALS) + 0.0) for id, cosine in zip(ids, cosines)]
    return sorted(hits, key=lambda hit: (-hit.similarity, hit.id))


def flat_index(matrix: np.ndarray) -> "faiss.IndexFlatIP":
    """Make a faiss index of one thread: beside torch it brings a second OpenMP, and two pools crash on macOS."""
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(matrix.shape[1])
    index.add(matrix)
    return index


class TextIndex:
    """An index that is asked in words."""

    def __init__(self, ids: Sequence[str], matrix: np.ndarray, embedder: Encoder):
        self.index, self.embedder = Index(ids, matrix), embedder

    def rank(self, query: str, k: int, exclude: frozenset[str] = frozenset()) -> list[Hit]:
        """The k nearest to a text; see `Index.rank`."""
        return self.index.rank(self.embedder.queries([query])[0], k, exclude)


def document_text(document: Document) -> str:
    """What is embedded of a document."""
    return f"{document.title}\n{document.content}"


def embed_command(paths: Paths, embedder: Encoder) -> str:
    """The command that makes the vectors which a run needs."""
    return f"run: python embed.py {paths.flags} --embedder {quote(embedder.name)}"


def load_documents_index(
    paths: Paths, documents: Mapping[str, Document], embedder: Encoder
) -> TextIndex:
    """The index of a corpus whose vectors `embed.py` made.

    Raises:
        FileNotFoundError: they are not made yet; tells the command.
        ValueError: they are damaged, another encoder's or of other texts; tells the command.
    """
    embedder.preload(paths.vectors("q"))
    texts = [document_text(document) for document in documents.values()]
    try:
        stored = vectors.read_current(paths.vectors("doc"), texts, embedder)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{error}; {embed_command(paths, embedder)}") from error
    return TextIndex(list(documents), stored.matrix, embedder)
