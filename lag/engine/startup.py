"""What an engine must be for log KV to be right in it; everything else is refused at its start.

Each row of `REFUSED` is something that was not tested, told in one line with what to do.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lag.files import read_json, remembered, write_json
from lag.kv_store.serving import (
    ADVICE,
    BESIDE,
    Serving,
    checkpoint_digest,
    checkpoint_folder,
    load,
)

TESTED = "0.32."
WAITING = MEMORY = 2 << 30  # bytes
SETTINGS = {"root", "fingerprint", "memory", "waiting"}


@dataclass(frozen=True, slots=True)
class Refused:
    """Something that is not served, whether an engine's settings have it, and what to do."""

    what: str
    applies: Callable[[Any], bool]
    instead: str


def _parallel(config: Any) -> bool:
    names = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    names += ("decode_context_parallel_size", "prefill_context_parallel_size")
    return any(getattr(config.parallel_config, name, 1) > 1 for name in names)


def _windows(config: Any) -> bool:
    text = getattr(config.model_config, "hf_text_config", None)
    kinds = set(getattr(text, "layer_types", None) or ())
    return bool(kinds - {"full_attention"}) or bool(
        getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    )


# fmt: off
REFUSED = (
    Refused("kv_role {0.kv_transfer_config.kv_role}", lambda c: c.kv_transfer_config.kv_role != "kv_consumer", "give kv_consumer"),
    Refused("kv_load_failure_policy {0.kv_transfer_config.kv_load_failure_policy}, which leaves blocks without KV under a log's name", lambda c: c.kv_transfer_config.kv_load_failure_policy != "fail", "give fail"),
    Refused("several GPUs for one model", _parallel, "start one engine per GPU"),
    Refused("latent attention (MLA)", lambda c: bool(getattr(c.model_config, "use_mla", False)), "use a text mode"),
    Refused("layers with a sliding window, or without attention", _windows, "use a text mode"),
    Refused("LoRA adapters", lambda c: getattr(c, "lora_config", None) is not None, "serve the folder that train.py export writes"),
    Refused("speculative decoding", lambda c: getattr(c, "speculative_config", None) is not None, "leave it out"),
    Refused("quantized weights", lambda c: getattr(c.model_config, "quantization", None) is not None, "serve them as they are"),
    Refused("a KV cache in {0.cache_config.cache_dtype}", lambda c: c.cache_config.cache_dtype != "auto", "leave out --kv-cache-dtype"),
    Refused("--hf-overrides, which no fingerprint covers", lambda c: bool(getattr(c.model_config, "hf_overrides", None)), "leave them out"),
)
# fmt: on


@dataclass(frozen=True, eq=False, slots=True)
class Start:
    """What an engine serves: whose spans lie where, and how much memory they may take in it."""

    folder: Path
    fingerprint: dict[str, str]
    serving: Serving
    memory: int
    waiting: int

    def about(self) -> dict[str, Any]:
        """What clients may know of it."""
        return {
            "fingerprint": self.fingerprint,
            "max_length": self.serving.rotator.max_length,
            "max_log_tokens": self.serving.max_log_tokens,
            "bytes_per_token": self.bytes_per_token,
        }

    @property
    def bytes_per_token(self) -> int:
        import torch

        return self.serving.bytes_per_token(getattr(torch, self.fingerprint["dtype"]))


def check_engine(version: str, config: Any, kv_cache_config: Any) -> None:
    """
    Raises:
        ValueError: log KV in such an engine is untested; says what to do.
    """
    if not version.startswith(TESTED):
        raise ValueError(f"log KV is tested with vLLM {TESTED}x, this is {version}; install that")
    for row in REFUSED:
        if row.applies(config):
            what = row.what.format(config)
            raise ValueError(f"log KV is not tested with {what}; {row.instead}")
    groups = len(getattr(kv_cache_config, "kv_cache_groups", None) or [None])
    if groups > 1:
        raise ValueError(f"log KV is not tested with {groups} KV cache groups; use a text mode")


def untested(config: Any, kv_caches: dict[str, Any]) -> list[str]:
    """What is served all the same, and said: it changes who computes, not what is written where."""
    devices = {str(cache.device) for cache in kv_caches.values() if cache is not None}
    found = sorted(devices - {"cpu"})
    eager = getattr(config.model_config, "enforce_eager", True)
    return [f"KV on {device}" for device in found] + ([] if eager else ["compiled layers"])


def read_start(settings: dict[str, Any]) -> Start:
    """What `kv_connector_extra_config` names.

    Raises:
        ValueError, FileNotFoundError: it names nothing that can be served; says what to do.
    """
    unknown = sorted(map(str, settings.keys() - SETTINGS))
    named = [settings.get(name) for name in ("root", "fingerprint")]
    if unknown or not all(isinstance(one, str) and one for one in named):
        said = f"unknown: {', '.join(unknown)}" if unknown else "root or fingerprint is missing"
        raise ValueError(f"kv_connector_extra_config: {said}; {ADVICE}")
    budgets = {"memory": MEMORY, "waiting": WAITING}
    budgets = {name: settings.get(name, usual) for name, usual in budgets.items()}
    if wrong := [n for n, v in budgets.items() if type(v) is not int or v < 0]:
        raise ValueError(f"kv_connector_extra_config: {wrong[0]}: expected a number of bytes")
    folder = Path(named[0]) / Path(named[1]).name
    fingerprint = read_json(folder / "fingerprint.json", ADVICE)
    if fingerprint.get("digest") != named[1]:
        raise ValueError(f"{folder} is not the folder of fingerprint {named[1]}; {ADVICE}")
    return Start(folder, fingerprint, load(folder), **budgets)


def check_model(start: Start, name: str, dtype: str) -> None:
    """Refuse a model that the spans were not made by.

    Raises:
        ValueError: names what differs.
    """
    served, made_in = dtype.removeprefix("torch."), start.fingerprint["dtype"]
    if served != made_in:
        raise ValueError(
            f"{name} is served in {served}, the KV was made in {made_in}; start the engine with "
            f"--dtype {made_in}, or give serve.py --vllm-config --dtype {served}"
        )
    found = remembered_digest(checkpoint_folder(name), start.folder / "checkpoints.json")
    if found != start.serving.files:
        raise ValueError(
            f"{name} is not the model that made the KV of {start.fingerprint['digest']}: its "
            f"weights, config or tokenizer differ; {ADVICE}"
        )


def remembered_digest(folder: Path, cache: Path) -> str:
    """`checkpoint_digest`, made once for files of the same names, sizes and times."""
    paths = [folder / name for name in BESIDE] + sorted(folder.glob("*.safetensors"))
    states = [(path.resolve(), path.stat()) for path in paths if path.is_file()]
    stamp = str([[str(path), state.st_size, state.st_mtime_ns] for path, state in states])
    known = remembered(cache)
    if stamp not in known:
        known[stamp] = checkpoint_digest(folder)
        with contextlib.suppress(OSError):  # a store that is read-only is served all the same
            write_json(cache, known)
    return known[stamp]
