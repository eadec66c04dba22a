"""The naive route, written out: what there is without this toolkit.

One pickle holds the caches of all logs. Using one reads it whole, turns the keys back and forth in
float32, joins the logs of one question, and lets the library's cache grow by concatenation.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

Layers = list[tuple[Tensor, Tensor]]


def encode(model: Any, ids: tuple[int, ...]) -> Layers:
    """Keys, rotated as the model left them, and values, (1, H, T, D) per layer."""
    cache = DynamicCache()
    with torch.no_grad():
        model.base_model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def save(path: Path, logs: list[Layers]) -> None:
    with open(path, "wb") as file:
        pickle.dump(logs, file)


def load(path: Path) -> list[Layers]:
    with open(path, "rb") as file:
        return pickle.load(file)


def turned(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = keys.float().chunk(2, -1)
    return (keys.float() * cos + torch.cat([-b, a], -1) * sin).to(keys.dtype)


def angles(model: Any, start: int, length: int) -> tuple[Tensor, Tensor]:
    positions = torch.arange(start, start + length)[:, None].float()
    both = (positions * model.model.rotary_emb.inv_freq).repeat(1, 2)
    return both.cos(), both.sin()


def place(
    model: Any, logs: list[Layers], passes: int = 2, offsets: Sequence[int] = ()
) -> DynamicCache:
    """Join logs into one cache.

    passes: 2 turns the keys back and then to their place; 1 takes them as turned back already.
    offsets: the position from which on each log's tokens were encoded; 0 unless given.
    """
    parts, start = [], 0
    for layers, offset in zip(logs, offsets or [0] * len(logs), strict=True):
        length = layers[0][0].shape[-2]
        cos, sin = angles(model, offset, length)
        back = [turned(k, cos, -sin) if passes == 2 else k for k, _ in layers]
        cos, sin = angles(model, start, length)
        parts.append([(turned(k, cos, sin), v) for k, (_, v) in zip(back, layers, strict=True)])
        start += length
    cache = DynamicCache()
    for index, layers in enumerate(zip(*parts, strict=True)):
        keys, values = (torch.cat(part, -2) for part in zip(*layers, strict=True))
        cache.update(keys, values, index)
    return cache


def answer(model: Any, logs: list[Layers], tail: tuple[int, ...], passes: int = 2) -> Tensor:
    """Logits (V,) after the logs and a tail; one question at a time."""
    cache = place(model, logs, passes)
    start = cache.get_seq_length()
    positions = torch.arange(start, start + len(tail))[None]
    with torch.no_grad():
        return model(
            torch.tensor([tail]), past_key_values=cache, position_ids=positions, logits_to_keep=1
        ).logits[0, -1]
