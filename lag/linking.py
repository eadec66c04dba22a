"""Computing the first tokens of placed spans again, where they stand.

A log is encoded without knowing what will stand before it, and its first tokens draw attention as
if they began the sequence. Computed again in the prompt, they see all of it; what follows them in
the span stays as it was stored.

Source: EPIC's static choice of tokens (arXiv 2410.15332).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lag.cache import RoomyCache, RoomyLayer


def link(model: nn.Module, cache: RoomyCache, rows: Sequence[Any]) -> None:
    """Let the first `recompute` tokens of every span that was just placed see what stands before.

    rows: `kv.Row`, whose prefixes lie at the right end of the cache; written there in place.
    """
    for layer in cache.layers if any(row.recompute for row in rows) else ():
        layer.settle()
    for index, row in enumerate(rows):
        start = cache.get_seq_length() - row.num_prefix
        place = row.num_prefix - row.num_cached
        for span in row.placed if row.recompute else ():
            _compute(model, _beginning(cache, index, start, place), span.ids[: row.recompute])
            place += len(span.ids)


def _beginning(cache: RoomyCache, row: int, start: int, length: int) -> RoomyCache:
    """The first tokens of one row as a cache of its own, in the same memory as what follows."""
    parts = (
        tuple(buffer[row : row + 1, :, start:] for buffer in layer.buffers)
        for layer in cache.layers
    )
    return RoomyCache([RoomyLayer.of(buffers, length) for buffers in parts])


def _compute(model: nn.Module, cache: RoomyCache, ids: tuple[int, ...]) -> None:
    """Write keys and values of tokens behind those of a cache, over what lies there."""
    start = cache.get_seq_length()
    positions = torch.arange(start, start + len(ids), device=model.device)
    model.base_model(
        input_ids=torch.tensor([ids], device=model.device),
        position_ids=positions[None],
        past_key_values=cache,
        use_cache=True,
    )
