"""Digest everything that decides the keys and values of a text, per component and as a whole.

A store belongs to one fingerprint. Comparing two says which component differs.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lag.files import bytes_digest, digest_of, remembered, write_json

logger = logging.getLogger(__name__)
LAYOUT_VERSION = 3  # of the files of a store and of what they hold


# what a configuration says about its origin, not about the function that the model computes
ORIGIN = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "_commit_hash"}


def fingerprint(
    model: nn.Module, tokenizer: Any, cache_dir: Path | None = None, files: Sequence[Path] = ()
) -> dict[str, str]:
    """Digests of weights, config, inv_freq, tokenizer, dtype and layout version, and of them all.

    cache_dir: where the digest of the weights is remembered under the stamps of their files.
    files: all files that the weights were read from; without them the weights are always hashed.
        Give none for a model that was changed after it was loaded.

    Raises:
        ValueError: some weights are not in memory.
    """
    parts = {
        "model": str(model.config.model_type),
        "config": digest_of(without(model.config.to_dict(), ORIGIN)),
        "inv_freq": tensors_digest(_rotary_buffers(model)),
        "tokenizer": tokenizer_digest(tokenizer),
        "dtype": str(model.dtype).removeprefix("torch."),
        "layout_version": str(LAYOUT_VERSION),
    }
    parts["weights"] = _weights_digest(model, cache_dir, files, parts)
    return {**parts, "digest": digest_of(parts)[:24]}


def with_adapter(fingerprint: Mapping[str, str], adapter: str) -> dict[str, str]:
    """The fingerprint of what the same model makes with an adapter of that digest in it."""
    parts = {**fingerprint, "adapter": adapter}
    parts.pop("digest")
    return {**parts, "digest": digest_of(parts)[:24]}


def difference(a: dict[str, str], b: dict[str, str]) -> list[str]:
    """Names of the components that differ, in a fixed order; empty if none does."""
    names = sorted((a.keys() | b.keys()) - {"digest"})
    return [name for name in names if a.get(name) != b.get(name)]


def without(value: Any, names: set[str]) -> Any:
    """A copy of nested dicts without some keys, at any depth."""
    if isinstance(value, dict):
        return {key: without(inner, names) for key, inner in value.items() if key not in names}
    return value


def tokenizer_digest(tokenizer: Any) -> str:
    """Over how a tokenizer splits text; not over padding, which a call may change."""
    if getattr(tokenizer, "is_fast", False):
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        return digest_of(without(state, {"padding", "truncation"}))
    return digest_of(
        [type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.special_tokens_map]
    )


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, dtypes, shapes and bytes, whatever the order."""

    def entry(named: tuple[str, Tensor]) -> list[str]:
        name, tensor = named
        return [name, str(tensor.dtype), str(tuple(tensor.shape)), bytes_digest(raw(tensor))]

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        return digest_of(sorted(pool.map(entry, tensors)))


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def _rotary_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, buffer) for name, buffer in model.named_buffers() if name.endswith("inv_freq")]


def _weights_digest(
    model: nn.Module, cache_dir: Path | None, files: Sequence[Path], parts: dict[str, str]
) -> str:
    cache = Path(cache_dir) / "weights.json" if cache_dir and files else None
    # the configuration and dtype say what loading made of the files, such as quantisation
    stamp = digest_of([parts, *map(_stamp, files)]) if cache else ""
    known = remembered(cache) if cache else {}
    if stamp not in known:
        tensors = [*model.named_parameters(), *model.named_buffers()]
        if any(tensor.is_meta for _, tensor in tensors):
            raise ValueError("part of the model is offloaded, so it has no digest; use --dtype")
        found = tensors_digest((n, t) for n, t in tensors if not n.endswith("inv_freq"))
        if cache is None:
            return found
        known = {**known, stamp: found}
        _remember(cache, known)
    return known[stamp]


def _stamp(path: Path) -> list:
    """Which file this is: a hub's link is resolved to the content that it names."""
    state = Path(path).stat()
    return [str(Path(path).resolve()), state.st_size, state.st_mtime_ns]


def _remember(cache: Path, known: dict[str, str]) -> None:
    """A store that cannot be written still serves the model that made it."""
    try:
        cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(cache, known)
    except OSError as error:
        logger.warning("the digest of the weights is made again next time: %s", error)
