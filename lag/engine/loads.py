"""The worker's side: read spans beside the engine's steps, and place them at their positions.

A thread reads, checks, unpacks and rotates; what it has made waits until the engine's own thread
writes it. Memory is bounded twice: what spans are held for later, and what waits to be written.

Shapes: T tokens, H key/value heads, D head dim.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Condition

import torch
from torch import Tensor

from lag.engine.asked import Load, SpanName
from lag.kv.quantize import KV_FORMATS
from lag.kv.span import KVSpan
from lag.kv_store.budgets import SpanCache
from lag.kv_store.serving import Serving
from lag.kv_store.span_file import Damaged, read_any_span
from lag.kv_store.store import identity_of, key_of
from lag.paths import Strategy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class Placed:
    """What came of a load: keys and values to write, or why there are none.

    layers: keys at their positions and values, (T, H, D) each, of the tokens from `load.start` on.
    """

    load: Load
    layers: tuple[tuple[Tensor, Tensor], ...] = ()
    reason: str = ""


class SpanLoader:
    """Reads the spans of one fingerprint.

    memory: bytes of spans that are held for requests to come.
    waiting: bytes that may be read and not yet be written; a load that needs more is refused.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: dict[str, str],
        serving: Serving,
        memory: int,
        waiting: int,
    ):
        self.folder, self.fingerprint, self.serving = Path(folder), fingerprint, serving
        self.per_token = serving.bytes_per_token(getattr(torch, fingerprint["dtype"]))
        self.held, self.waiting, self.in_memory = SpanCache(memory), waiting, 0
        self.room = Condition()
        self.pool = ThreadPoolExecutor(1, "lag-spans")
        self.ready: SimpleQueue[Placed] = SimpleQueue()
        self.closed = False
        self.open = 0  # loads that were ordered and not taken

    def submit(self, load: Load) -> None:
        """Begin a load; it ends among `taken`."""
        self.open += 1
        self.pool.submit(self._work, load)

    def fail(self, request: str, reason: str) -> None:
        self.open += 1
        self.ready.put(Placed(Load(request, "", (), (), 0, ()), (), reason))

    def taken(self, seconds: float = 0.0) -> list[Placed]:
        """The loads that have ended; waits so long for the first if some have not."""
        found: list[Placed] = []
        while self.open:
            wait = seconds if not found else 0.0
            try:
                found.append(self.ready.get(timeout=wait) if wait else self.ready.get_nowait())
            except Empty:
                break
            self.open -= 1
        return found

    def written(self, placed: Placed) -> None:
        """Give the memory of a load back."""
        with self.room:
            self.in_memory -= self._size(placed.load) if placed.layers else 0
            self.room.notify()

    def close(self) -> None:
        with self.room:
            self.closed = True
            self.room.notify_all()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _size(self, load: Load) -> int:
        return (len(load.ids) - load.start) * self.per_token

    def _work(self, load: Load) -> None:
        """Whatever goes wrong ends this load only."""
        try:
            placed = self._placed(load)
        except Exception as error:
            placed = Placed(load, (), _reason(error))
        self.ready.put(placed)

    def _placed(self, load: Load) -> Placed:
        size = self._size(load)
        if size > self.waiting:
            raise ValueError(
                f"its KV takes {size:,} bytes, more than the {self.waiting:,} that the engine "
                "holds for loads; raise `waiting` in the --kv-transfer-config"
            )
        with self.room:
            self.room.wait_for(lambda: self.closed or self.in_memory + size <= self.waiting)
            self.in_memory += size
        try:
            with torch.inference_mode():
                return Placed(load, self._layers(load))
        except BaseException:
            with self.room:
                self.in_memory -= size
            raise

    def _layers(self, load: Load) -> tuple[tuple[Tensor, Tensor], ...]:
        spans, first = [], 0
        for number, name in enumerate(load.spans):
            last = first + name.length
            if last > load.start:  # the engine has what lies before
                span = self._span(load.strategy, number, name, load.ids[first:last])
                spans.append((span, max(0, load.start - first)))
            first = last
        positions = torch.arange(load.start, len(load.ids))
        angles = self.serving.rotator.angles(positions)
        return tuple(
            self._layer(layer, spans, angles[layer]) for layer in range(len(self.serving.shapes))
        )

    def _layer(
        self, layer: int, spans: Sequence[tuple[KVSpan, int]], angles: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        keys = torch.cat([span.keys[layer][:, skip:] for span, skip in spans], 1)  # (H, T, D)
        values = torch.cat([span.values[layer][:, skip:] for span, skip in spans], 1)
        placed = torch.empty_like(keys)
        self.serving.rotator.write(layer, keys, angles, placed)
        return tuple(part.transpose(0, 1).contiguous() for part in (placed, values))

    def _span(self, strategy: str, number: int, name: SpanName, ids: Sequence[int]) -> KVSpan:
        """A span of the store, whose name and tokens are what the request says.

        Raises:
            ValueError: it is not there, damaged, or another one.
        """
        what = f"span {number} ({strategy} {name.key[:12]})"
        if (span := self.held.get(name.key)) is None:
            span = self._read(what, strategy, name)
            self.held.put(name.key, span)
        if len(span.ids) != name.length:
            raise ValueError(f"{what} has {len(span.ids)} tokens, not {name.length}")
        if span.ids != tuple(ids):
            raise ValueError(f"{what} was made of other tokens than the prompt's")
        return span

    def _read(self, what: str, strategy: str, name: SpanName) -> KVSpan:
        parsed = Strategy.parse(strategy)
        identity = identity_of(self.fingerprint, parsed)
        path = self.folder / str(parsed) / f"{name.key}.safetensors"
        try:
            pair, span = read_any_span(path, identity, KV_FORMATS[parsed.kv_dtype])
        except FileNotFoundError:
            raise ValueError(f"{what} is not in the store; run store_log_kv.py") from None
        except Damaged as error:
            raise ValueError(f"{what} is damaged: {error}") from None
        except OSError as error:
            raise ValueError(f"{what} cannot be read: {error.strerror or error}") from None
        if key_of(*pair, identity) != name.key:
            raise ValueError(f"{what} is another log's file under this name")
        shapes = tuple((keys.shape[0], keys.shape[-1]) for keys in span.keys)
        if shapes != self.serving.shapes:
            raise ValueError(f"{what} has other heads or layers than the model")
        return span


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
