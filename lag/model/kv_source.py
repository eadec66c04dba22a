"""Where the keys and values of a prompt's logs come from: a store, memory, or the model itself."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from lag.kv.encode import encode, max_log_tokens
from lag.kv.rope import KeyRotator
from lag.kv.sequence import SequencePlan
from lag.kv.span import KVSpan, Pair
from lag.kv.support import check_movable
from lag.kv_store.budgets import DiskBudget, KVBudget, SpanCache
from lag.kv_store.store import KVStore
from lag.model.chat import Pieces, kv_pairs
from lag.model.loaded import LoadedModel
from lag.paths import Strategy
from lag.prompts import Note, Prompt
from lag.records import Reply


class KVSource:
    """Turns the notes of prompts into placed spans, or into tokens.

    rotator: places keys at their positions; None until a store is opened.
    recompute: how many tokens at the beginning of each span are computed again.
    span_cache, disk: budgets that the stores of all modes share.
    """

    def __init__(self, loaded: LoadedModel, kv_dtype: str, budget: KVBudget, recompute: int):
        self.loaded, self.kv_dtype, self.budget = loaded, kv_dtype, budget
        self.recompute = recompute
        self.span_cache = SpanCache(budget.memory)
        self.disk: DiskBudget | None = None
        self.rotator: KeyRotator | None = None
        self.store: KVStore | None = None

    def open(self, folder: Path, mode: str) -> KVStore:
        """Pass the gate and open the store of a KV mode.

        Raises:
            ValueError: the keys of this model cannot be moved; names the reason.
        """
        if self.rotator is None:
            self.rotator = check_movable(self.loaded.model)
            self.loaded.max_length = min(self.loaded.max_length, self.rotator.max_length)
        self.disk = self.disk or DiskBudget(folder, self.budget.disk)
        self.store = KVStore(
            folder,
            self.loaded.fingerprint(folder),
            Strategy(mode, len(self.loaded.chat.sink), self.kv_dtype),
            self.encode,
            self.span_cache,
            self.disk,
            uses_files=self.budget.source == "store",
        )
        return self.store

    def can_be_encoded(self, note: Note) -> bool:
        """Whether a KV note, with the text that it hides, fits into one forward of the model."""
        return not note.kv or sum(map(len, self.loaded.chat.note_ids(note))) <= self.max_log_tokens

    @property
    def max_log_tokens(self) -> int:
        return max_log_tokens(self.loaded.model, self.rotator)

    def encode(self, pairs: Sequence[Pair]) -> list[KVSpan]:
        adapter = self.loaded.adapter
        with adapter.off() if adapter and adapter.reader else contextlib.nullcontext():
            return encode(self.loaded.model, self.rotator, pairs)

    def make(self, notes: Sequence[Note]) -> int:
        """Store the KV of notes that are going to enter; returns of how many it was made.

        One at a time: a batch's padding would change the last digits with its neighbours.
        """
        if not self.store.uses_files:
            return 0
        pairs = [self.loaded.chat.note_ids(note) for note in notes if self.can_be_encoded(note)]
        missing = [pair for pair in pairs if not self.store.claim(*pair)]
        for pair in missing:
            self.store.fetch([pair])
        return len(missing)

    def place(
        self, prompts: Sequence[Prompt], pieces: Sequence[Pieces]
    ) -> tuple[list[SequencePlan], list[Reply]]:
        """Turn prompts into rows for the decoder, and say what their logs cost so far."""
        pairs = [pair for p, q in zip(prompts, pieces) for pair in kv_pairs(p, q)]
        fetched = iter(self.store.fetch(pairs) if pairs else ())
        rows, replies = [], []
        for prompt, piece in zip(prompts, pieces):
            placed = [next(fetched) for _ in kv_pairs(prompt, piece)]
            spans = tuple(found.span for found in placed)
            text = [ids for note, (_, ids) in zip(prompt.notes, piece.notes) if not note.kv]
            tail = sum(text, ()) + piece.tail
            rows.append(SequencePlan(piece.head, spans, tail, recompute=self.recompute))
            sources = iter([found.source for found in placed])
            replies.append(
                Reply(
                    text="",
                    prompt_tokens=len(piece),
                    cached_tokens=rows[-1].num_cached - rows[-1].num_recomputed,
                    kv_bytes=sum(found.num_bytes for found in placed),
                    sources=tuple(next(sources) if n.kv else "text" for n in prompt.notes),
                )
            )
        return rows, replies
