"""A store that another process reads: see that it holds what is going to be asked for.

A server is given names of spans and reads the files itself, so each must be there before it is
asked. What is missing is encoded by a model that is loaded here when the first log needs it.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from lag.kv.span import KVSpan, Pair
from lag.kv_store.budgets import DiskBudget
from lag.kv_store.fingerprint import difference
from lag.kv_store.store import KVStore
from lag.modes import Mode
from lag.paths import Strategy

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Encoder:
    """A model in this process that makes missing KV.

    load: makes it, in a dtype. command: what makes the KV otherwise. name: of the model.
    """

    load: Callable[[str], Any]
    command: str
    name: str
    llm: Any = None
    mode: str = ""  # that its store was opened for

    def encode(
        self, store: KVStore, folder: Path, mode: Mode, pairs: Sequence[Pair]
    ) -> list[KVSpan]:
        """
        Raises:
            ValueError: it cannot be loaded, or is not the model that is served.
        """
        if self.llm is None:
            self.llm = self._loaded(store.fingerprint["dtype"], mode)
        if self.mode != mode.name:
            self._open(store, folder, mode)
        return self.llm.kv.encode(pairs)

    def _open(self, store: KVStore, folder: Path, mode: Mode) -> None:
        if different := difference(self.llm.fingerprint(folder), store.fingerprint):
            raise ValueError(
                f"a log has no KV, and {self.name} is not the model that is served: another "
                f"{', '.join(different)}; give --tokenizer, the folder of the served model"
            )
        self.llm.open_store(folder, mode)
        self.mode = mode.name

    def _loaded(self, dtype: str, mode: Mode) -> Any:
        logger.info("logs without KV: loading %s here to encode them", self.name)
        try:
            return self.load(dtype)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"a log has no KV, and no model is here to encode it ({error}); run: python "
                f"{self.command} -m {mode.name} --dtype {dtype}"
            ) from error


@dataclass(slots=True)
class FilledStore:
    """The spans of one KV mode, as files that another process reads. Safe to use from threads."""

    store: KVStore
    lock: Lock = field(default_factory=Lock)

    @classmethod
    def open(
        cls,
        folder: Path,
        fingerprint: dict[str, str],
        mode: Mode,
        kv_dtype: str,
        disk: int | None,
        encoder: Encoder,
    ) -> "FilledStore":
        """
        disk: bytes that files may take; None: any.

        Raises:
            ValueError: the folder of this fingerprint was made by something else.
        """

        def encode(pairs: Sequence[Pair]) -> list[KVSpan]:
            return encoder.encode(store, folder, mode, pairs)

        kind, room = Strategy(mode.name, 0, kv_dtype), DiskBudget(folder, disk)
        store = KVStore(folder, fingerprint, kind, encode, disk=room)
        return cls(store)

    def fill(self, pairs: Sequence[Pair]) -> tuple[str, ...]:
        """See that every log has a file; returns of each `kv`, or `encoded` if it had none.

        One at a time: a batch's padding would change the last digits with its neighbours.

        Raises:
            ValueError, OSError: it has none, and none could be made.
        """
        with self.lock:
            return tuple(self._fill(pair) for pair in pairs)

    def _fill(self, pair: Pair) -> str:
        if self.store.claim(*pair):
            self.store.counts["hits"] += 1
            return "kv"
        (fetched,) = self.store.fetch([pair])
        if not self.store.has(*pair):
            raise OSError(f"KV could not be stored in {self.store.folder}; see the warning above")
        return fetched.source

    def mend(self, pairs: Sequence[Pair]) -> bool:
        """Read the files of logs here; whether one was damaged, and was made again."""
        with self.lock:
            before = self.store.counts["encoded"]
            self.store.fetch(list(dict.fromkeys(pairs)))
            return self.store.counts["encoded"] > before
