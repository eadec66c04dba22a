"""Spans of stored keys and values, and rows: the sequences that are made from them.

Shapes: T tokens, H key/value heads, D head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

# Of a prefill, padding included. On a GPU memory for activations is the bound. A CPU is busy with few
# tokens; with more it waits for fresh memory, and computes padding.
ON_CPU, ON_GPU = 1024, 16384


@dataclass(frozen=True, eq=False, slots=True)
class KVSpan:
    """The kept tokens of one log, with position-free keys; never changed after it was made.

    keys, values: one (H, T, D) tensor per layer, in the model's dtype.
    """

    ids: tuple[int, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    @property
    def likes(self) -> Sequence[tuple[Tensor, Tensor]]:
        """Per layer a pair of the shapes and dtype of its keys and values."""
        return list(zip(self.keys, self.values, strict=True))

    @property
    def late(self) -> bool:
        """Whether some layers are not there yet: asking for them is waiting (see `late`)."""
        return False
