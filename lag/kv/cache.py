"""A cache with spare room: new tokens, heads and stored spans are written into it in place.

Every row lies contiguous, so that distances by index are distances by position, as sliding windows
need it: at the right end of a layer's tokens or, once drafts of rows were refused, some columns off
it. A generated token is written into the spare room behind its row, and nothing that came before is
copied.

Shapes: B batch, T tokens, Q of these new, H key/value heads, D head dim.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lag.kv.rope import Angles, KeyRotator
from lag.kv.sequence import SequencePlan
from lag.kv.span import KVSpan

MIN_ROOM = 64  # tokens


def with_room(length: int) -> int:
    """How many tokens a buffer should hold that now holds `length`."""
    return length + max(MIN_ROOM, length // 8)


class GrowableLayer(DynamicLayer):
    """The keys and values of one layer, with room behind them, and for more rows.

    buffers: (S, H, capacity, D) each, S at least the rows in flight. In front of a row's tokens
        lies nothing that is not finite: masked out, it still is multiplied by zero.
    keys, values: the tokens so far, (B, H, T, D): the first B rows of the buffers, up to `end`.
    offsets: (B, Q) where the next tokens go, counted from `end`; None: all behind it.
    room: for how many tokens memory is taken with the first ones, at least.
    """

    def __init__(self, *args: Any, room: int = 0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.room = room
        self.buffers: tuple[Tensor, Tensor] | None = None
        self.end = 0
        self.offsets: Tensor | None = None

    @classmethod
    def of(cls, buffers: tuple[Tensor, Tensor], length: int) -> "GrowableLayer":
        """A layer whose first `length` tokens lie in the buffers (B, H, capacity, D)."""
        layer = cls()
        layer._show(buffers, len(buffers[0]), length, length)
        return layer

    def _show(self, buffers: tuple[Tensor, Tensor], rows: int, width: int, end: int) -> None:
        self.buffers, self.end = buffers, end
        self.keys, self.values = (buffer[:rows].narrow(2, end - width, width) for buffer in buffers)
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self.is_initialized = True  # without it a length of 0 is reported

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append tokens; called by the model's attention."""
        new, width = (key_states, value_states), self.get_seq_length()
        rows, more = len(key_states), key_states.shape[-2]
        if self.buffers is None:
            room = max(self.room, with_room(more))
            self._show(buffers_like(new, rows, room), rows, 0, 0)
        elif self.end + more > self.buffers[0].shape[-2]:
            slots = len(self.buffers[0])
            to = with_room(width) if slots > 1 else width  # longer rows may join
            self._move(slots, to, with_room(to + more))
        end = self.end + more
        self._write(new)
        self._show(self.buffers, rows, width + more, end)
        return (self.keys, self.values) if width else new

    def _write(self, new: tuple[Tensor, Tensor]) -> None:
        rows, more = len(new[0]), new[0].shape[-2]
        if self.offsets is None:
            for buffer, states in zip(self.buffers, new, strict=True):
                buffer[:rows].narrow(2, self.end, more).copy_(states)
            return
        columns = self.offsets.to(self.device) + self.end  # (B, Q)
        row = torch.arange(rows, device=self.device)[:, None]
        for buffer, states in zip(self.buffers, new, strict=True):
            buffer[:rows, :, self.end : self.end + more] = 0  # what lies there may not be finite
            buffer[row, :, columns] = states.transpose(1, 2)

    def take_back(self, count: int) -> None:
        """Forget the last tokens of all rows."""
        self._show(self.buffers, len(self.keys), self.keys.shape[-2] - count, self.end - count)

    def _move(self, slots: int, end: int, capacity: int) -> None:
        """Copy all rows, so that they end at `end`, to new memory for more of them."""
        old, (rows, _, width, _) = (self.keys, self.values), self.keys.shape
        buffers = buffers_like(old, slots, capacity)
        for buffer, states in zip(buffers, old, strict=True):
            buffer[:rows, :, : end - width] = 0  # a longer row may join, and show it
            buffer[:rows, :, end - width : end] = states
        self._show(buffers, rows, width, end)

    def arrange(
        self, order: Sequence[int], joining: Sequence[tuple[Tensor, Tensor]], width: int, slots: int
    ) -> None:
        """Make row k what `order[k]` names: a row of now, or, counted on from these, a new one.

        joining: keys and values (H, T, D) of each new row. width: tokens of the longest row.
        slots: how many rows there is going to be room for.
        """
        count = len(self.keys)
        if len(order) > len(self.buffers[0]) or width > self.end:
            end = with_room(max(width, self.get_seq_length()))
            self._move(max(slots, len(order)), end, with_room(end))
        moved = {to: row for to, row in enumerate(order) if row < count and row != to}
        for buffer in self.buffers if moved else ():
            seen = buffer[:, :, : self.end]
            seen[list(moved)] = seen[list(moved.values())]
        for to, row in enumerate(order):
            if row >= count:
                self._enter(to, joining[row - count])
        self._show(self.buffers, len(order), width, self.end)

    def _enter(self, row: int, pair: tuple[Tensor, Tensor]) -> None:
        for buffer, states in zip(self.buffers, pair, strict=True):
            start = self.end - states.shape[-2]
            buffer[row, :, :start] = 0
            buffer[row, :, start : self.end] = states

    def shift_right(self, shifts: list[int], width: int) -> None:
        """Move the padding at the right end of each row to its left end, down to a width."""
        for states in (self.keys, self.values):
            for row, shift in zip(states, shifts, strict=True):
                if shift:
                    row.copy_(row.roll(shift, -2))
        self._show(self.buffers, len(shifts), width, self.end)


class GrowableCache(DynamicCache):
    """Keeps every token of a sliding layer too: a kept span may be longer than the window.

    room: of layers that are yet to come.
    """

    def __init__(self, layers: Sequence[GrowableLayer] = (), room: int = 0):
        super().__init__()
        self.layer_class_to_replicate = partial(GrowableLayer, room=room)
        self.layers.extend(layers)


def buffers_like(
    states: tuple[Tensor, Tensor], rows: int, capacity: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Uninitialised memory (rows, H, capacity, D) for the likes of keys and values (.., H, T, D)."""
    return tuple(
        state.new_empty(rows, state.shape[-3], capacity, state.shape[-1], device=device)
        for state in states
    )


def memory_of(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """The memory of a cache that nobody needs any more, per layer.

    Fresh memory costs a page fault every 4 KiB, as much time as filling it. On a GPU torch itself
    keeps what it had.
    """
    layers = [getattr(layer, "buffers", None) for layer in cache.layers]
    there = all(pair and pair[0].device.type == "cpu" for pair in layers)
    return layers if there else []


def taken(
    spare: tuple[Tensor, Tensor], states: tuple[Tensor, Tensor], rows: int, capacity: int
) -> tuple[Tensor, Tensor] | None:
    """As `buffers_like`, in memory that is spare; None if that is too small, or another kind."""
    found = []
    for buffer, state in zip(spare, states, strict=True):
        flat = buffer.new_empty(0).set_(buffer.untyped_storage())
        shape = (rows, state.shape[-3], capacity, state.shape[-1])
        if flat.dtype != state.dtype or len(flat) < math.prod(shape):
            return None
        found.append(flat[: math.prod(shape)].view(shape))
    return tuple(found)


def placed(
    rows: Sequence[SequencePlan],
    width: int,
    capacity: int,
    rotator: KeyRotator,
    angles: Sequence[Angles | None],
    heads: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]],
    spare: Sequence[tuple[Tensor, Tensor]] = (),
) -> GrowableCache:
    """A cache of what the rows kept, their heads and spans, at the right end of `width` tokens.

    rows: at least one has spans or keeps something.
    rotator, angles: what places keys, and where: per layer, from position 0 to at least `width`. None
        and nothing where no row has spans.
    heads: per head of the rows its keys and values (H, T, D) per layer.
    spare: memory per layer that may be overwritten.
    """
    layers = []
    for index, (pair, device) in enumerate(samples(rows, rotator)):
        old = taken(spare[index], pair, len(rows), capacity) if spare else None
        buffers = old or buffers_like(pair, len(rows), capacity, device)
        write_rows(rows, index, buffers, width, rotator, angles, heads)
        layers.append(GrowableLayer.of(buffers, width))
    return GrowableCache(layers)


def write_rows(
    rows: Sequence[SequencePlan],
    layer: int,
    buffers: tuple[Tensor, Tensor],
    width: int,
    rotator: KeyRotator | None,
    angles: Sequence[Angles | None],
    heads: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]],
) -> None:
    """Write the prefixes of all rows into a layer's memory, at the right end of `width` tokens."""
    for row, keys, values in zip(rows, *buffers, strict=True):
        start = width - row.num_prefix
        keys[:, :start] = values[:, :start] = 0  # unseen, but NaN times zero would be NaN
        write_prefix(row, layer, keys[:, start:], values[:, start:], rotator, angles, heads)


def samples(
    rows: Sequence[SequencePlan], rotator: KeyRotator | None
) -> list[tuple[tuple[Tensor, Tensor], torch.device]]:
    """Per layer keys and values of one of the rows, and the device of the layer's cache."""
    kept = next((row.kept for row in rows if row.kept), None)
    if kept:
        return [(pair, pair[0].device) for pair in kept.layers]
    span = next(span for row in rows for span in row.spans)
    return list(zip(zip(span.keys, span.values), rotator.devices, strict=True))


def write_prefix(
    row: SequencePlan,
    layer: int,
    keys: Tensor,
    values: Tensor,
    rotator: KeyRotator,
    angles: Sequence[Angles | None],
    heads: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]],
) -> None:
    """Write what a row kept, or its head, and its spans into a layer's memory (H, T, D)."""
    ready = row.kept.layers if row.kept else heads.get(row.before)
    place = row.kept.length if row.kept else len(row.before)
    if place:
        keys[:, :place], values[:, :place] = ready[layer]
    for span in row.placed:
        here = slice(place, place + len(span.ids))
        here_angles = angles[layer] and tuple(part[..., here, :] for part in angles[layer])
        rotator.write(layer, span.keys[layer], here_angles, keys[:, here])
        values[:, here] = span.values[layer]
        place = here.stop


def empty_like(cache: GrowableCache) -> GrowableCache:
    """A cache without rows, of the same layers."""
    parts = [(layer.keys[:0, :, :0], layer.values[:0, :, :0]) for layer in cache.layers]
    return GrowableCache([GrowableLayer.of(part, 0) for part in parts])


def joined(caches: Sequence[GrowableCache], order: list[int]) -> GrowableCache:
    """One cache of all rows, aligned at the right end; row i is `order[i]` of all, in sequence."""
    if len(caches) == 1 and order == sorted(order):
        return caches[0]
    width = max(one.get_seq_length() for one in caches)
    layers = []
    for parts in zip(*(one.layers for one in caches), strict=True):
        buffers = buffers_like((parts[0].keys, parts[0].values), len(order), with_room(width))
        for buffer, name in zip(buffers, ("keys", "values"), strict=True):
            rows = [row for part in parts for row in getattr(part, name)]
            for to, source in zip(buffer, order, strict=True):
                start = width - rows[source].shape[-2]
                to[:, :start] = 0
                to[:, start:width] = rows[source]
        for part in parts:  # one layer at a time is in memory twice
            part.keys = part.values = part.buffers = None
        layers.append(GrowableLayer.of(buffers, width))
    return GrowableCache(layers)


def placed_alone(spans: Sequence[KVSpan], rotator: KeyRotator) -> GrowableCache:
    """A cache of spans, placed one behind the other from position 0 on, as `generate` takes it.

    Tokens that are generated are written into the cache; the spans stay as they are.
    """
    row = SequencePlan(spans=tuple(spans), tail=(0,))  # of the prompt behind it nothing is needed
    angles = rotator.angles(torch.arange(row.num_prefix))
    return placed([row], row.num_prefix, with_room(row.num_prefix), rotator, angles, {})


@dataclass(frozen=True, eq=False, slots=True)
class PrefilledRows:
    """Rows that were computed beside a batch, and may join it.

    caches: of which each holds the rows that `groups` has at the same place.
    """

    lengths: list[int]
    groups: list[list[int]]
    caches: tuple[DynamicCache, ...]

    @classmethod
    def merged(cls, parts: "Sequence[PrefilledRows]") -> "PrefilledRows | None":
        """Rows that were started one after the other; None if there are none."""
        lengths, groups, caches = [], [], []
        for part in parts:
            groups += [[len(lengths) + row for row in group] for group in part.groups]
            lengths += part.lengths
            caches += part.caches
        return cls(lengths, groups, tuple(caches)) if parts else None

    def layer(self, index: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (H, T, D) of one layer, for each row."""
        found = {}
        for group, cache in zip(self.groups, self.caches, strict=True):
            layer = cache.layers[index]
            for at, row in enumerate(group):
                own = slice(layer.keys.shape[-2] - self.lengths[row], None)
                found[row] = layer.keys[at, :, own], layer.values[at, :, own]
        return [found[row] for row in range(len(found))]
