"""What an engine needs beside the spans: how keys are rotated, and whose they are.

It lies beside `fingerprint.json`, so that who places spans needs no model of its own to learn it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from lag.files import digest_of, file_digest, read_json, write_bytes
from lag.kv.rope import KeyRotator, RotaryEmbedding
from lag.kv_store.store import OWNER_ONLY, KVStore

FILE = "serving.json"
BESIDE = ("config.json", "tokenizer.json")  # of a checkpoint, beside its weights
ADVICE = "run: python serve.py --vllm-config -d DATASET --model MODEL"


@dataclass(frozen=True, eq=False, slots=True)
class Serving:
    """How the spans of one fingerprint are placed, and by which checkpoint.

    shapes: heads and head dim of every layer.
    max_log_tokens: the longest log that can be encoded, its hidden tokens included.
    files: digest of the checkpoint's files.
    """

    rotator: KeyRotator
    shapes: tuple[tuple[int, int], ...]
    max_log_tokens: int
    files: str

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return 2 * dtype.itemsize * sum(heads * dim for heads, dim in self.shapes)

    def to_json(self) -> dict[str, Any]:
        distinct = list(dict.fromkeys(rotary for rotary in self.rotator.rotaries if rotary))
        places = [rotary and distinct.index(rotary) for rotary in self.rotator.rotaries]
        return {
            "rotaries": [_rotary_to_json(rotary) for rotary in distinct],
            "layers": places,
            "shapes": [list(shape) for shape in self.shapes],
            "max_length": self.rotator.max_length,
            "max_log_tokens": self.max_log_tokens,
            "files": self.files,
        }

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Self:
        distinct = [_rotary_from_json(one) for one in said["rotaries"]]
        rotaries = tuple(None if place is None else distinct[place] for place in said["layers"])
        devices = (torch.device("cpu"),) * len(rotaries)
        shapes = tuple((heads, dim) for heads, dim in said["shapes"])
        rotator = KeyRotator(rotaries, devices, said["max_length"])
        return cls(rotator, shapes, said["max_log_tokens"], said["files"])


def _rotary_to_json(rotary: RotaryEmbedding) -> dict[str, Any]:
    dtypes = {name: str(getattr(rotary, name)).split(".")[1] for name in ("tables", "products")}
    numbers = {"inv_freq": rotary.inv_freq.tolist(), "scaling": rotary.scaling}  # exact in float64
    return {**numbers, "interleaved": rotary.interleaved, **dtypes}


def _rotary_from_json(said: dict[str, Any]) -> RotaryEmbedding:
    inv_freq = torch.tensor(said["inv_freq"], dtype=torch.float32)
    dtypes = {name: getattr(torch, said[name]) for name in ("tables", "products")}
    return RotaryEmbedding(inv_freq, said["scaling"], said["interleaved"], **dtypes)


def save(store: KVStore, rotator: KeyRotator, max_log_tokens: int, checkpoint: Path) -> Serving:
    """Write what an engine needs beside a store's fingerprint.

    Raises:
        ValueError: the checkpoint cannot be recognised by its files.
        OSError: it cannot be written.
    """
    (span,) = store.encode([((), (0,))])
    shapes = tuple((keys.shape[0], keys.shape[-1]) for keys in span.keys)
    serving = Serving(rotator, shapes, max_log_tokens, checkpoint_digest(checkpoint))
    store.make_writable()
    told = serving.to_json()
    text = json.dumps({"sum": digest_of(told), "serving": told}, sort_keys=True, indent=1)
    write_bytes(store.root / FILE, text.encode(), mode=OWNER_ONLY, aside=store.temporary)
    return serving


def load(root: Path) -> Serving:
    """What `save` wrote into the folder of a fingerprint.

    Raises:
        FileNotFoundError, ValueError: it is not there, or not as it was written; says what to do.
    """
    path = Path(root) / FILE
    said = read_json(path, ADVICE)
    try:
        if digest_of(said["serving"]) != said["sum"]:
            raise ValueError("its checksum does not match")
        return Serving.from_json(said["serving"])
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {ADVICE}") from error


def checkpoint_folder(name: str) -> Path:
    """Where a model's files lie: a folder, or what the hub's cache has of it.

    Raises:
        ValueError: neither; says what to do.
    """
    if Path(name).is_dir():
        return Path(name)
    if Path(name).suffix != ".gguf":
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, "config.json")
        if isinstance(found, str):
            return Path(found).parent
    raise ValueError(
        f"--model {name}: expected a folder with safetensors, or a hub model that was loaded "
        "before; a GGUF file or an adapter becomes one by train.py export"
    )


def checkpoint_digest(folder: Path) -> str:
    """One digest over weights, config and tokenizer of a checkpoint, by content.

    Raises:
        ValueError: it holds no safetensors.
    """
    weights = sorted(Path(folder).glob("*.safetensors"))
    if not weights:
        raise ValueError(
            f"{folder} holds no *.safetensors; expected a folder as train.py export writes"
        )
    beside = [Path(folder) / name for name in BESIDE if (Path(folder) / name).is_file()]
    return digest_of([[path.name, file_digest(path)] for path in [*beside, *weights]], 24)
