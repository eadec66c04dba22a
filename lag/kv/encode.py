"""Keys and values of logs: encode them and make them position-free.

Under a causal mask nothing after a kept span can change its keys. So a log is encoded as the
token ids of `after + keep` and sliced at `len(after)`.

Shapes: B batch, T tokens, H key/value heads, D head dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lag.kv.forward import fill, max_positions
from lag.kv.pre_rope import outputs_of
from lag.kv.rope import KeyRotator
from lag.kv.sequence import batches, padding_per_forward, tokens_per_forward
from lag.kv.span import KVSpan, Pair


@torch.no_grad()
def encode(model: nn.Module, rotator: KeyRotator, pairs: Sequence[Pair]) -> list[KVSpan]:
    """Encode logs, many at once, without computing logits.

    pairs: per log the token ids that it is encoded after, and the ids that are kept.

    Raises:
        ValueError: a log keeps nothing, is too long, or its values overflow the model's dtype.
    """
    limit = max_log_tokens(model, rotator)
    lengths = [len(after) + len(keep) for after, keep in pairs]
    if not all(keep for _, keep in pairs):
        raise ValueError("a log without a token to keep has no KV; leave the log out")
    if max(lengths, default=0) > limit:
        raise ValueError(
            f"a log of {max(lengths)} tokens is longer than the {limit} tokens that this model "
            "takes; leave the log out"
        )
    spans: list[KVSpan | None] = [None] * len(pairs)
    for group in batches(lengths, tokens_per_forward(model), padding_per_forward(model)):
        encoded = _encode([pairs[i] for i in group], model, rotator)
        for index, span in zip(group, encoded, strict=True):
            spans[index] = span
    return spans


def max_log_tokens(model: nn.Module, rotator: KeyRotator) -> int:
    """How many tokens a log may have, hidden and kept together: it is encoded in one forward."""
    return min(max_positions(model), rotator.max_length)


def _encode(pairs: Sequence[Pair], model: nn.Module, rotator: KeyRotator) -> list[KVSpan]:
    with outputs_of(model, [source.module for source in rotator.sources if source]) as seen:
        cache = fill(model, [after + keep for after, keep in pairs])
    keys = position_free([layer.keys for layer in cache.layers], rotator, seen)
    values = [layer.values for layer in cache.layers]
    for tensor in (keys[-1], values[-1]):
        if not tensor.isfinite().all():
            raise ValueError(f"KV overflows {tensor.dtype}; load the model with another --dtype")
    return [
        KVSpan(keep, *(_sliced(part, row, len(after), len(keep)) for part in (keys, values)))
        for row, (after, keep) in enumerate(pairs)
    ]


def position_free(
    keys: Sequence[Tensor], rotator: KeyRotator, seen: dict[str, Tensor]
) -> list[Tensor]:
    """Keys encoded from position 0 on, per layer (B, H, T, D), without their rotation.

    seen: outputs of the modules that the rotator names; other layers are rotated back.
    """
    sources = rotator.sources or (None,) * len(keys)
    covered = [None if source else layer for source, layer in zip(sources, keys, strict=True)]
    unrotated = rotator.unrotate(covered, torch.arange(keys[0].shape[-2])[None])
    return [
        source.keys(seen[source.module], layer) if source else free
        for source, layer, free in zip(sources, keys, unrotated, strict=True)
    ]


def _sliced(layers: Sequence[Tensor], row: int, start: int, length: int) -> tuple[Tensor, ...]:
    # cloned: a view would hold on to the whole batch
    wanted = (layer[row, :, start : start + length] for layer in layers)
    return tuple(part.clone(memory_format=torch.contiguous_format) for part in wanted)
