"""`LagConnector`: vLLM's KV connector for stored logs. The only module that knows vLLM.

Logs stand first in a prompt, so to an engine they are a prefix whose KV comes from outside. This
class translates between vLLM's connector interface (0.32, experimental) and `planner` and `loads`.
`serve.py --vllm-config` prints the settings that start it.
"""

import logging
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from vllm import __version__ as version
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
)

from lag.engine.asked import Load
from lag.engine.loads import Placed, SpanLoader
from lag.engine.planner import Planner
from lag.engine.startup import check_engine, check_model, read_start, untested

logger = logging.getLogger(__name__)
PAUSE = 0.005  # seconds that a step waits for a load where it has nothing else to do
NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Orders(KVConnectorMetadata):
    """What the scheduler orders of the worker in one step; idle: nothing is computed in it."""

    loads: tuple[Load, ...] = ()
    refused: tuple[str, ...] = ()
    idle: bool = False


@dataclass(frozen=True)
class Reasons(KVConnectorWorkerMetadata):
    """Why loads failed, by request."""

    reasons: dict[str, str] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        return Reasons({**self.reasons, **other.reasons})


class LagConnector(KVConnectorBase_V1):
    """Spans of the log store as the beginning of prompts.

    Raises:
        ValueError, FileNotFoundError: at construction, in one line: an engine that is not tested,
            or a model that did not make the spans.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any):
        super().__init__(vllm_config, role, kv_cache_config)
        check_engine(version, vllm_config, kv_cache_config)
        settings = vllm_config.kv_transfer_config.kv_connector_extra_config
        start = read_start(settings)
        model = vllm_config.model_config
        self.planner = self.loader = None
        self.failed: dict[str, str] = {}
        if role == KVConnectorRole.SCHEDULER:
            check_model(start, model.model, str(model.dtype))
            self.planner = Planner(start.fingerprint["digest"], start.about())
        else:
            args = (start.folder, start.fingerprint, start.serving, start.memory, start.waiting)
            self.loader = SpanLoader(*args)
            self.block_size = vllm_config.cache_config.block_size
            self.layers: list[Any] = []
        logger.info("log KV of %s from %s", start.fingerprint["digest"], start.folder)

    # --- the scheduler's side: nothing may raise ------------------------------------------------
    def on_new_request(self, request: Any) -> None:
        self.planner.admit(request)

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        more = self.planner.matched(request.request_id, num_computed_tokens)
        return more, more > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self.planner.plan(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> Orders:
        loads, refused = self.planner.taken()
        return Orders(loads, refused, scheduler_output.total_num_scheduled_tokens == 0)

    def update_connector_output(self, connector_output: Any) -> None:
        told = connector_output.kv_connector_worker_meta
        for id, reason in (told.reasons if isinstance(told, Reasons) else {}).items():
            self.planner.note(id, reason)

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        return False, self.planner.finished(request.request_id)

    # --- the worker's side ----------------------------------------------------------------------
    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        """
        Raises:
            ValueError: the engine's layers are not those of the spans.
        """
        known = self._vllm_config.compilation_config.static_forward_context
        for what in untested(self._vllm_config, kv_caches):
            logger.warning("log KV is untested with %s: compare with benchmarks/serving.py", what)
        names = sorted(kv_caches, key=lambda name: int(NUMBER.search(name)[1]))
        self.layers = [known[name] for name in names]
        shapes = tuple((layer.num_kv_heads, layer.head_size) for layer in self.layers)
        if shapes != self.loader.serving.shapes:
            raise ValueError(
                f"the engine's layers hold {shapes[:2]}.., the spans {self.loader.serving.shapes[:2]}"
                ".. (heads, head size); start it with the --vllm-config of this model"
            )

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        orders = self._get_connector_metadata()
        for load in orders.loads:
            self.loader.submit(load)
        for id in orders.refused:
            self.loader.fail(id, "")  # the scheduler knows why

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Write what was read since the last step; a request that failed stands in both sets."""
        idle = self._get_connector_metadata().idle if self.has_connector_metadata() else False
        ended, failed = set(), set()
        for placed in self.loader.taken(PAUSE if idle else 0.0):
            reason = placed.reason or (self._write(placed) if placed.layers else "refused")
            self.loader.written(placed)
            ended.add(placed.load.request)
            if reason:
                failed.add(placed.load.request)
                self.failed |= (
                    {placed.load.request: reason} if placed.reason or placed.layers else {}
                )
        return KVConnectorTransferResults(finished_recving=ended, failed_recving=failed)

    def _write(self, placed: Placed) -> str:
        """Write a load with the engine's own writer; returns why it could not be, or nothing."""
        load = placed.load
        try:
            positions = torch.arange(load.start, len(load.ids))
            blocks = torch.tensor(load.blocks)[positions // self.block_size]
            slots = blocks * self.block_size + positions % self.block_size
            for layer, pair in zip(self.layers, placed.layers, strict=True):
                cache = layer.kv_cache
                keys, values = (part.to(cache.device) for part in pair)
                layer.impl.do_kv_cache_update(layer, keys, values, cache, slots.to(cache.device))
        except Exception as error:  # this request fails, and no other
            logger.exception("%s: its KV could not be written", load.request)
            return f"its KV could not be written ({type(error).__name__}: {error})"
        return ""

    def build_connector_worker_meta(self) -> Reasons | None:
        failed, self.failed = self.failed, {}
        return Reasons(failed) if failed else None

    def shutdown(self) -> None:
        if self.loader:
            self.loader.close()

    # --- nothing is loaded layer by layer, and nothing is saved ----------------------------------
    def wait_for_layer_load(self, layer_name: str) -> None:
        return

    def save_kv_layer(
        self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        return

    def wait_for_save(self) -> None:
        return
