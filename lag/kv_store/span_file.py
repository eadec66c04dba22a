"""The bytes of one stored span: safetensors, with a header that says what it is.

A file is read whole into memory of its own: what was verified is what is used, whatever
happens to the file meanwhile. A tensor is a view of that memory.
"""

import base64
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors.torch import save
from torch import Tensor

from lag.kv.quantize import KVFormat, pack, unpack
from lag.kv.span import KVSpan, Pair
from lag.kv_store.fingerprint import raw
from lag.kv_store.read_memory import ReadMemory

LENGTH_BYTES = 8  # of the length of the JSON that a safetensors file begins with
SUM_BYTES = 8  # of a checksum
# Bytes that are read at once: from a core's own cache they are copied on in half the time that the
# system takes to fill memory with them.
PIECE = 1 << 18

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U8": torch.uint8,
}


DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Damaged(Exception):
    """A file of the store does not hold what its name promises."""


def span_bytes(
    span: KVSpan, after: Sequence[int], identity: dict[str, str], kv_format: KVFormat
) -> bytes:
    """The content of a file."""
    ids = {"after": after, "keep": span.ids}
    tensors = {name: torch.tensor(part, dtype=torch.int32) for name, part in ids.items()}
    tensors |= pack(span, kv_format)
    sums = base64.b64encode(b"".join(checksums(tensors))).decode()
    table = {name: [DTYPE_NAMES[one.dtype], list(one.shape)] for name, one in tensors.items()}
    about = {"num_layers": len(span.keys), "of": DTYPE_NAMES[span.keys[0].dtype]}
    header = {**identity, **about, "checksums": sums, "table": table_sum(table)}
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    # one entry: of several the library would write any first, and no file would be like another
    return save(tensors, metadata={"lag": f"{text_sum(text)} {text}"})


def read_span(
    path: Path,
    after: Sequence[int],
    keep: Sequence[int],
    identity: dict[str, str],
    kv_format: KVFormat,
    memory: ReadMemory | None = None,
) -> KVSpan:
    """Read one file and check everything it holds. memory: as `read_whole`.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it does not hold these tokens' span under this identity, bit for bit.
    """
    pair, span = read_any_span(path, identity, kv_format, memory)
    if pair != (tuple(after), tuple(keep)):
        raise Damaged("it was made from other tokens")
    return span


def read_any_span(
    path: Path, identity: dict[str, str], kv_format: KVFormat, memory: ReadMemory | None = None
) -> tuple[Pair, KVSpan]:
    """Read one file; return the token ids (after, keep) that it was made from, and its span.

    memory: as `read_whole`.

    Raises:
        FileNotFoundError, Damaged: as `read_span`.
    """
    header, tensors = _verified(read_whole(path, memory), identity)
    after, keep = (tuple(tensors[name].tolist()) for name in ("after", "keep"))
    span = unpack(tensors, keep, header["num_layers"], DTYPES[header["of"]], kv_format)
    return (after, keep), span


def verify(path: Path, identity: dict[str, str]) -> Pair:
    """Read all of a file; return the token ids (after, keep) that it was made from.

    Raises:
        FileNotFoundError, Damaged: as `read_span`.
    """
    _, tensors = _verified(read_whole(path), identity)
    return tuple(tensors["after"].tolist()), tuple(tensors["keep"].tolist())


def read_header(path: Path, identity: dict[str, str]) -> int:
    """Read the beginning of a file only; return how many tokens it keeps.

    Raises:
        FileNotFoundError, Damaged: as `read_span`, so far as its beginning tells.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        text = file.read(min(length, size))
    names, _ = _checked_beginning(text, size - LENGTH_BYTES - length, identity)
    return names["keep"]["shape"][0]


def _checked_beginning(
    text: bytes, size: int, identity: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where the tensors lie behind a file's JSON, and the header in it.

    size: in bytes, of all tensors.

    Raises:
        Damaged: it is not that of such a file.
    """
    with _as_damage():
        names = json.loads(text)
        header = _checked_header(names.pop("__metadata__"), identity)
        table = {name: [entry["dtype"], entry["shape"]] for name, entry in names.items()}
        if table_sum(table) != header["table"]:
            raise ValueError("its table of tensors is not the one that was written")
        end = max(entry["data_offsets"][1] for entry in names.values())
        if end != size:
            raise ValueError(f"it holds {size} bytes of tensors, not {end}")
        header["checksums"] = dict(zip(sorted(names), _sums(header["checksums"]), strict=True))
    return names, header


def _sums(text: str) -> list[bytes]:
    joined = base64.b64decode(text, validate=True)
    return [joined[at : at + SUM_BYTES] for at in range(0, len(joined), SUM_BYTES)]


def _verified(
    content: Tensor, identity: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file's bytes; the tensors are views of these.

    Raises:
        Damaged: one of its checks fails.
    """
    length = int.from_bytes(content[:LENGTH_BYTES].numpy().tobytes(), "little")
    text, data = content[LENGTH_BYTES:][:length], content[LENGTH_BYTES:][length:]
    names, header = _checked_beginning(text.numpy().tobytes(), len(data), identity)
    with _as_damage():
        tensors = {name: _view(data, **entry) for name, entry in names.items()}
    for name, was in header["checksums"].items():
        if checksum(name, tensors[name]) != was:
            raise Damaged(f"the checksum of {name} does not match")
    return header, tensors


@contextmanager
def _as_damage() -> Iterator[None]:
    """Whatever a reader stumbles over is damage."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise Damaged(" ".join(str(error).split()) or type(error).__name__) from error


@contextmanager
def opened(path: Path) -> Iterator[FileIO]:
    """Open a span file; waiting for a pipe's other end would last for ever.

    Raises:
        FileNotFoundError: there is none.
        Damaged: something else has its name.
    """
    with open(path, "rb", buffering=0, opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Damaged("it is no regular file")
        yield file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_whole(path: Path, memory: ReadMemory | None = None) -> Tensor:
    """A file's bytes, (N,) uint8.

    memory: where to read it to; fresh unless given.

    Raises:
        FileNotFoundError, Damaged: as `opened`, or it became shorter while it was read.
    """
    with opened(path) as file:
        content = (memory or ReadMemory()).take(os.fstat(file.fileno()).st_size)
        piece = np.empty(min(PIECE, len(content)), dtype=np.uint8)
        filled = 0
        while filled < len(content) and (count := file.readinto(piece[: len(content) - filled])):
            content[filled : filled + count] = piece[:count]
            filled += count
    if filled < len(content):
        raise Damaged("it is shorter than it says")
    return torch.from_numpy(content)


def _view(data: Tensor, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    start, end = data_offsets
    if not 0 <= start <= end <= len(data):
        raise ValueError("a tensor lies outside of it")
    return data[start:end].view(DTYPES[dtype]).view(shape)


def _checked_header(metadata: dict[str, str], identity: dict[str, str]) -> dict[str, Any]:
    """
    Raises:
        ValueError, KeyError: not a header of ours, or the header of something else.
    """
    was, text = metadata["lag"].split(" ", 1)
    if text_sum(text) != was:
        raise ValueError("the checksum of its header does not match")
    header = json.loads(text)
    strange = [name for name, value in identity.items() if header.get(name) != value]
    if strange:
        raise ValueError(f"it was made with another {', '.join(strange)}")
    return header


def checksums(tensors: dict[str, Tensor]) -> list[bytes]:
    """One per tensor, in the order of their names."""
    return [checksum(name, tensors[name]) for name in sorted(tensors)]


def checksum(name: str, tensor: Tensor) -> bytes:
    """XXH3 over a tensor's name, dtype, shape and bytes: five times as fast as CRC-32."""
    about = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
    return xxhash.xxh3_64_digest(raw(tensor), seed=xxhash.xxh3_64_intdigest(about.encode()))


def table_sum(table: dict[str, list]) -> str:
    """A checksum of dtype and shape of every tensor."""
    return text_sum(json.dumps(table, sort_keys=True, separators=(",", ":")))


def text_sum(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode())
