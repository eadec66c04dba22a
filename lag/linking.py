"""Computing the first tokens of placed spans again, where they stand.

A log is encoded without knowing what will stand before it, and its first tokens draw attention as
if they began the sequence. Computed again in the prompt, they see all of it; what follows them in
the span stays as it was stored.

Source: EPIC's static choice of tokens (arXiv 2410.15332).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lag.cache import RoomyCache, RoomyLayer, buffers_like
from lag.gate import right_padded, spread


@dataclass(frozen=True, slots=True)
class Link:
    """The tokens of one span that are computed again.

    row, column: where in the cache the row's first token lies.
    place: the position of the first of these tokens.
    """

    row: int
    column: int
    place: int
    ids: tuple[int, ...]


def link(model: nn.Module, cache: RoomyCache, rows: Sequence[Any]) -> None:
    """Let the first `recompute` tokens of every span that was just placed see what stands before.

    rows: `kv.Row`, whose prefixes lie at the right end of the cache; written there in place. Rows
        are computed together, their first spans, then their second ones, and so on.
    """
    width = cache.get_seq_length()
    waiting = [links_of(row, index, width - row.num_prefix) for index, row in enumerate(rows)]
    for layer in cache.layers if any(waiting) else ():
        layer.settle()
    while any(waiting):
        _compute(model, cache, [links.pop(0) for links in waiting if links])


def links_of(row: Any, index: int, column: int) -> list[Link]:
    found, place = [], row.num_prefix - row.num_cached
    for span in row.placed if row.recompute else ():
        found.append(Link(index, column, place, span.ids[: row.recompute]))
        place += len(span.ids)
    return found


def _compute(model: nn.Module, cache: RoomyCache, links: Sequence[Link]) -> None:
    """Compute links of different rows behind what stands before them, and write them there."""
    device, width = model.device, max(link.place for link in links)
    ids, _ = right_padded([link.ids for link in links], device)
    starts = [width - link.place for link in links]
    ends = [width + len(link.ids) for link in links]
    columns = torch.arange(width, width + ids.shape[1], device=device)
    # padding repeats the last position: a later one might change the angles of all
    columns = columns.minimum(torch.tensor(ends, device=device)[:, None] - 1)
    before = [_before(layer, links, width, width + ids.shape[1]) for layer in cache.layers]
    model.base_model(
        input_ids=ids,
        attention_mask=spread(starts, ends, width + ids.shape[1], device),
        position_ids=columns - torch.tensor(starts, device=device)[:, None],
        past_key_values=RoomyCache(before),
        use_cache=True,
    )
    for layer, computed in zip(cache.layers, before, strict=True):
        _write(layer, computed, links, width)


def _before(layer: RoomyLayer, links: Sequence[Link], width: int, capacity: int) -> RoomyLayer:
    """A copy of what stands before each link, at the right end of `width` tokens."""
    parts = layer.keys, layer.values
    buffers = buffers_like(parts, len(links), capacity)
    for buffer, states in zip(buffers, parts, strict=True):
        for to, link in zip(buffer, links, strict=True):
            start = width - link.place
            to[:, :start] = 0  # unseen, but NaN times zero would be NaN
            to[:, start:width] = states[link.row, :, link.column : link.column + link.place]
    return RoomyLayer.of(buffers, width)


def _write(layer: RoomyLayer, computed: RoomyLayer, links: Sequence[Link], width: int) -> None:
    pairs = (layer.keys, computed.keys), (layer.values, computed.values)
    for states, new in pairs:
        for one, link in zip(new, links, strict=True):
            start, count = link.column + link.place, len(link.ids)
            states[link.row, :, start : start + count] = one[:, width : width + count]
