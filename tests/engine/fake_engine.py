"""What vLLM does with a connector, in few lines: stub base classes, and an engine of plain tensors.

It keeps the order of vLLM's calls, its blocks and its prefix cache, and fails whoever raises where
vLLM would end for everybody. It computes nothing: a test looks at what lies in the blocks.
"""

import enum
import importlib
import sys
import threading
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

BASE = "vllm.distributed.kv_transfer.kv_connector.v1.base"
BLOCK = 4


class Role(enum.Enum):
    SCHEDULER = 0
    WORKER = 1


class Connector:
    def __init__(self, vllm_config: Any, role: Role, kv_cache_config: Any):
        self._vllm_config, self._connector_metadata = vllm_config, None

    def bind_connector_metadata(self, metadata: Any) -> None:
        self._connector_metadata = metadata

    def has_connector_metadata(self) -> bool:
        return self._connector_metadata is not None

    def _get_connector_metadata(self) -> Any:
        return self._connector_metadata


@dataclass
class Results:
    finished_sending: set = field(default_factory=set)
    finished_recving: set = field(default_factory=set)
    failed_recving: set = field(default_factory=set)


def load_connector(version: str = "0.32.0") -> types.ModuleType:
    """Our connector's module on top of stubs, where no vLLM is."""
    base = types.ModuleType(BASE)
    base.KVConnectorBase_V1, base.KVConnectorRole = Connector, Role
    base.KVConnectorMetadata = base.KVConnectorWorkerMetadata = type("Metadata", (), {})
    base.KVConnectorTransferResults = Results
    top = types.ModuleType("vllm")
    top.__version__ = version
    before = {
        name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "vllm"
    }
    parts = BASE.split(".")
    stubs = {".".join(parts[:n]): types.ModuleType(parts[n - 1]) for n in range(2, len(parts))}
    sys.modules.update({"vllm": top, **stubs, BASE: base})
    sys.modules.pop("lag.engine.connector", None)
    try:
        return importlib.import_module("lag.engine.connector")
    finally:
        for name in ("vllm", *stubs, BASE, "lag.engine.connector"):
            sys.modules.pop(name, None)
        sys.modules.update(before)


def config_of(settings: dict, model: str, dtype: str = "torch.float32", **changes: Any) -> Any:
    """Settings of an engine, as far as our connector looks at them; `changes` by their path."""
    config = SimpleNamespace(
        kv_transfer_config=SimpleNamespace(**settings),
        model_config=SimpleNamespace(
            model=model, dtype=dtype, use_mla=False, quantization=None, hf_overrides={},
            hf_text_config=SimpleNamespace(layer_types=None, sliding_window=None),
        ),
        cache_config=SimpleNamespace(block_size=BLOCK, cache_dtype="auto"),
        parallel_config=SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1),
        compilation_config=SimpleNamespace(static_forward_context={}),
        lora_config=None, speculative_config=None,
    )  # fmt: skip
    for path, value in changes.items():
        *owners, name = path.split("__")
        owner = config
        for one in owners:
            owner = getattr(owner, one)
        setattr(owner, name, value)
    return config


class Layer:
    """An attention layer whose cache is a row per slot."""

    def __init__(self, heads: int, dim: int, slots: int):
        self.num_kv_heads, self.head_size, self.impl = heads, dim, self
        self.kv_cache = torch.full((2, slots, heads, dim), float("nan"))

    def do_kv_cache_update(self, layer, keys, values, cache, slots) -> None:
        assert cache is self.kv_cache and keys.is_contiguous() and values.is_contiguous()
        cache[0, slots], cache[1, slots] = keys, values


@dataclass(eq=False)
class Request:
    request_id: str
    prompt_token_ids: list[int]
    kv_transfer_params: Any
    cache_salt: str | None = None
    skip_reading_prefix_cache: bool = False
    lora_request: Any = None
    mm_features: list = field(default_factory=list)
    resumable: bool = False
    block_hashes: list = field(default_factory=list)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    def update_block_hashes(self) -> None:
        ids, whole = self.prompt_token_ids, len(self.prompt_token_ids) // BLOCK
        ends = range(len(self.block_hashes) + 1, whole + 1)
        self.block_hashes += [(self.cache_salt, tuple(ids[: end * BLOCK])) for end in ends]


@dataclass(frozen=True)
class Outcome:
    """failed: the client sees an error. told: what it sees of our parameters. keys, values: what
    lies in the blocks of its prompt, per layer (T, H, D)."""

    failed: bool
    told: dict | None
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


class Engine:
    """One request at a time, in blocks that it has alone; safe to use from threads."""

    def __init__(self, module: types.ModuleType, config: Any, blocks: int = 4096):
        self.scheduler = module.LagConnector(config, Role.SCHEDULER, None)
        self.worker = module.LagConnector(config, Role.WORKER, None)
        self.blocks = blocks
        shapes, slots = self.worker.loader.serving.shapes, blocks * BLOCK
        self.layers = [Layer(*shape, slots) for shape in shapes]
        known = config.compilation_config.static_forward_context
        known |= {f"model.layers.{n}.self_attn.attn": one for n, one in enumerate(self.layers)}
        self.worker.register_kv_caches(dict.fromkeys(reversed(list(known))))
        self.cached: dict[Any, int] = {}
        self.next_block = self.number = 0
        self.lock, self.reasons = threading.Lock(), None

    def ask(self, ids: Sequence[int], params: Any = None, **more: Any) -> Outcome:
        with self.lock:
            self.number += 1
            request = Request(str(self.number), list(ids), params, **more)
            request.update_block_hashes()
            return self._run(request)

    def _run(self, request: Request) -> Outcome:
        self.scheduler.on_new_request(request)
        hits = [] if request.skip_reading_prefix_cache else self._hits(request)
        local = len(hits) * BLOCK
        more, later = self.scheduler.get_num_new_matched_tokens(request, local)
        if request.skip_reading_prefix_cache:  # as vLLM has it
            more, later = 0, False
        assert later is (more > 0) and local + more <= request.num_prompt_tokens
        blocks = hits + self._new_blocks(request, len(hits))
        found = SimpleNamespace(get_block_ids=lambda: (blocks,))
        self.scheduler.update_state_after_alloc(request, found, more)
        if more and not self._transferred(request):
            self.scheduler.request_finished(request, blocks)
            self.note()
            return Outcome(True, None, [], [])
        self.note()
        self.scheduler.update_state_after_alloc(request, found, 0)
        for index, key in enumerate(request.block_hashes):
            self.cached[key] = blocks[index]
        _, told = self.scheduler.request_finished(request, blocks)
        slots = [blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(request.num_prompt_tokens)]
        parts = [[layer.kv_cache[n, slots] for layer in self.layers] for n in (0, 1)]
        return Outcome(False, told, *parts)

    def _hits(self, request: Request) -> list[int]:
        found = []
        for key in request.block_hashes:
            if key not in self.cached or len(found) * BLOCK + BLOCK >= request.num_prompt_tokens:
                break
            found.append(self.cached[key])
        return found

    def _new_blocks(self, request: Request, have: int) -> list[int]:
        count = -(-request.num_prompt_tokens // BLOCK) - have
        if self.next_block + count > self.blocks:
            self.next_block, self.cached = 0, {}
        self.next_block += count
        order = range(self.next_block - 1, self.next_block - 1 - count, -1)  # not in a row
        return list(order)

    def _transferred(self, request: Request) -> bool:
        """Steps until the load has ended; whether it went well."""
        for _ in range(10_000):
            step = SimpleNamespace(total_num_scheduled_tokens=0)
            self.worker.bind_connector_metadata(self.scheduler.build_connector_meta(step))
            self.worker.start_load_kv(None)
            ended = self.worker.get_transfer_results(set())
            self.reasons = self.worker.build_connector_worker_meta()
            if request.request_id in ended.finished_recving:
                return request.request_id not in ended.failed_recving
        raise AssertionError("a load never ended")

    def note(self) -> None:
        """vLLM ends a failed request before it hands on what the worker says of it."""
        told = SimpleNamespace(kv_connector_worker_meta=self.reasons)
        self.scheduler.update_connector_output(told)
        self.reasons = None
