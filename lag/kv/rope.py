"""Rotating keys to positions, and back, as the model at hand does it.

Shapes: B batch, T tokens, H key/value heads, D head dim, R rotated dims of these.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Angles = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False, slots=True)
class RotaryEmbedding:
    """How the keys of a layer are rotated.

    inv_freq: (R/2,) float32, radians per position; the first R of D dimensions are rotated.
    scaling: what the rotated dimensions are multiplied by besides (YaRN and LongRoPE; else 1).
    interleaved: pairs are (0, 1), (2, 3), ..; otherwise (0, R/2), (1, R/2 + 1), ..
    tables, products: dtypes that the model rounds cos and sin to, and multiplies in.
    """

    inv_freq: Tensor
    scaling: float
    interleaved: bool
    tables: torch.dtype = torch.float32
    products: torch.dtype = torch.float32

    def angles(self, positions: Tensor) -> Angles:
        """What `rotate` needs to place keys at positions (.., T): (.., 1, T, R)."""
        radians = self._radians(positions)
        both = radians.cos() * self.scaling, radians.sin() * self.scaling
        return self._for_pairs(*(part.to(self.tables).to(self.products) for part in both))

    def angles_back(self, positions: Tensor) -> Angles:
        """What `rotate` needs to undo that, always in float32."""
        radians = self._radians(positions)
        return self._for_pairs(radians.cos() / self.scaling, -radians.sin() / self.scaling)

    def _for_pairs(self, cos: Tensor, sin: Tensor) -> Angles:
        """For both of a pair: what it is multiplied by, and what the other is multiplied by."""
        return tuple(_paired(*one, self.interleaved) for one in ((cos, cos), (-sin, sin)))

    def _radians(self, positions: Tensor) -> Tensor:
        positions = positions.to(self.inv_freq.device)
        return positions[..., None, :, None].float() * self.inv_freq


def rotate(
    keys: Tensor, angles: Angles, interleaved: bool = False, out: Tensor | None = None
) -> Tensor:
    """Rotate the first R dimensions of keys by cos and sin, which include the scaling.

    keys: (.., H, T, D), any float dtype, which is also the dtype returned; computed in the dtype
        of the angles, (.., 1, T, R).
    out: where to write, of the shape of keys; a new tensor if None. Never the keys themselves.
    Source: RoFormer (arXiv 2104.09864); half-split pairing as in GPT-NeoX.
    """
    own, others = angles
    width = own.shape[-1]
    out = torch.empty_like(keys) if out is None else out
    rotated = keys[..., :width].to(own.dtype)
    swapped = _swapped(rotated, interleaved).mul_(others)
    if out.dtype == own.dtype:  # written where it belongs, without a copy
        torch.mul(rotated, own, out=out[..., :width]).add_(swapped)
    else:
        out[..., :width].copy_((rotated * own).add_(swapped))
    if width < keys.shape[-1]:
        out[..., width:] = keys[..., width:]
    return out


def _swapped(keys: Tensor, interleaved: bool) -> Tensor:
    """A copy in which the two of each pair stand in each other's place."""
    if interleaved:
        return keys.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return keys.roll(keys.shape[-1] // 2, -1)


def _paired(a: Tensor, b: Tensor, interleaved: bool) -> Tensor:
    return torch.stack([a, b], -1).flatten(-2) if interleaved else torch.cat([a, b], -1)


@dataclass(frozen=True, slots=True)
class KeySource:
    """The module whose output is a layer's keys before rotation: see `pre_rope`.

    heads_first: its output is (B, H, T, D); otherwise (B, T, H, D) or (B, T, H * D).
    """

    module: str
    heads_first: bool = False

    def keys(self, output: Tensor, like: Tensor) -> Tensor | None:
        """An output as keys of the shape (B, H, T, D) of `like`; None if it cannot be."""
        batch, heads, length, dim = like.shape
        if self.heads_first:
            return output if output.shape == like.shape else None
        if output.shape not in ((batch, length, heads, dim), (batch, length, heads * dim)):
            return None
        return output.reshape(batch, length, heads, dim).transpose(1, 2)


@dataclass(frozen=True, eq=False, slots=True)
class KeyRotator:
    """Takes positions out of a model's keys and puts others in, layer by layer.

    rotaries: one per layer; None where the layer does not rotate.
    devices: where each layer keeps its keys.
    max_length: tokens up to which the angles do not depend on how long the sequence is.
    sources: per layer where its keys can be taken before rotation; None where they cannot.
    """

    rotaries: tuple[RotaryEmbedding | None, ...]
    devices: tuple[torch.device, ...]
    max_length: int
    sources: tuple[KeySource | None, ...] = ()

    def angles(self, positions: Tensor) -> list[Angles | None]:
        """Angles per layer for positions (.., T); layers that rotate alike share theirs."""
        found = {}
        for rotary, device in zip(self.rotaries, self.devices, strict=True):
            if rotary and (rotary, device) not in found:
                found[rotary, device] = tuple(part.to(device) for part in rotary.angles(positions))
        return [found.get(pair) for pair in zip(self.rotaries, self.devices, strict=True)]

    def write(self, layer: int, keys: Tensor, angles: Angles | None, out: Tensor) -> None:
        """Place a layer's position-free keys (.., H, T, D) into a cache's memory."""
        keys = keys.to(out.device)
        if rotary := self.rotaries[layer]:
            rotate(keys, angles, rotary.interleaved, out)
        else:
            out.copy_(keys)

    def rotate_to(self, keys: Iterable[Tensor], positions: Tensor) -> Iterator[Tensor]:
        """Rotate position-free keys, one (B, H, T, D) per layer, to positions (B, T)."""
        angles = self.angles(positions)
        for layer, free in enumerate(keys):
            placed = torch.empty_like(free, device=self.devices[layer])
            self.write(layer, free, angles[layer], placed)
            yield placed

    def unrotate(self, keys: Iterable[Tensor | None], positions: Tensor) -> Iterator[Tensor | None]:
        """Make keys position-free that were encoded at positions (B, T); None stays None."""
        back = {rotary: rotary.angles_back(positions) for rotary in set(self.rotaries) - {None}}
        for rotary, layer in zip(self.rotaries, keys, strict=True):
            if rotary is None or layer is None:
                yield layer
            else:
                angles = tuple(part.to(layer.device) for part in back[rotary])
                yield rotate(layer, angles, rotary.interleaved)
