"""The plan of one sequence: which keys and values stand where before the prompt's own tokens."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from lag.kv.span import KVSpan

# Tokens of a prefill, padding included. On a GPU memory for activations is the bound. A CPU is busy
# with few tokens; with more it waits for fresh memory, and computes padding.
ON_CPU, ON_GPU = 1024, 16384
CALLS = 4e7  # numbers that a CPU multiplies while it calls what a layer is made of: about 1 ms


@dataclass(frozen=True, eq=False, slots=True)
class ReusedPrefix:
    """The beginning of a sequence that a row before it left in the cache.

    layers: keys and values (H, T, D) per layer, of positions 0 to T - 1.
    spans: how many spans of the row lie in it, whole; they follow its head, which does too.
    tokens: how many of its T tokens were computed, and not placed.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    spans: int = 0
    tokens: int = 0

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[-2]

    def copied(self) -> "ReusedPrefix":
        """The same in memory of its own."""
        return replace(self, layers=tuple((k.clone(), v.clone()) for k, v in self.layers))


@dataclass(frozen=True, eq=False, slots=True)
class SequencePlan:
    """One sequence: tokens, placed spans, tokens.

    head: tokens before the spans; they see only themselves. May be empty.
    tail: at least one token; they see everything.
    kept: what of all this need not be computed or placed again; never the last token.
    recompute: how many tokens at the beginning of each span are computed again: see `recompute`.
    """

    head: tuple[int, ...] = ()
    spans: tuple[KVSpan, ...] = ()
    tail: tuple[int, ...] = ()
    kept: ReusedPrefix | None = None
    recompute: int = 0

    @property
    def before(self) -> tuple[int, ...]:
        """The head if spans follow it, and it is not kept; otherwise it is part of `fresh`."""
        return self.head if self.spans and not self.kept else ()

    @property
    def placed(self) -> tuple[KVSpan, ...]:
        """The spans that are not kept."""
        return self.spans[self.kept.spans :] if self.kept else self.spans

    @property
    def fresh(self) -> tuple[int, ...]:
        """The tokens after the spans; without spans all; of them those that are not kept."""
        after = self.tail if self.spans else self.head + self.tail
        return after[len(after) - (len(self) - self.num_prefix) :]

    @property
    def num_cached(self) -> int:
        return sum(len(span.ids) for span in self.placed)

    @property
    def num_recomputed(self) -> int:
        """Of the placed tokens, how many are computed again."""
        return sum(min(len(span.ids), self.recompute) for span in self.placed)

    @property
    def num_prefix(self) -> int:
        return (self.kept.length if self.kept else len(self.before)) + self.num_cached

    def __len__(self) -> int:
        return len(self.head) + sum(len(span.ids) for span in self.spans) + len(self.tail)


def tokens_per_forward(model: nn.Module) -> int:
    return ON_CPU if model.device.type == "cpu" else ON_GPU


def padding_per_forward(model: nn.Module) -> float:
    """How many tokens of padding take a CPU as long as one forward more; inf on a GPU."""
    if model.device.type != "cpu":
        return math.inf
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    return layers * CALLS / model.num_parameters()


def batches(lengths: Sequence[int], budget: int, padding: float = math.inf) -> Iterator[list[int]]:
    """Indexes grouped so that a group, padded to its longest, stays within the token budget.

    Groups are formed from the shortest up, so that little of a group is padding.
    padding: tokens, at most, that all rows of a group together may be padded by for one row more.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        longer = len(group) * (lengths[index] - lengths[group[-1]]) if group else 0
        if group and ((len(group) + 1) * lengths[index] > budget or longer > padding):
            yield group
            group = []
        group.append(index)
    if group:
        yield group
