"""`LOADERS`: how the model's side of a run is opened, one function per row of `PROVIDERS`.

`Models` loads it, and the embedder, once, and the documents and logs of a run.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lag.logs.growing import GrowingLogs, Keeping
from lag.logs.store import LogStore
from lag.modes import last_response
from lag.prompts import Prompt
from lag.records import Encoder, LanguageModel, Log, Ranking
from lag.retrieval.retrievers import Evidence, load_documents, own_paragraphs
from lag.runs.config import RunConfig
from lag.runs.run import Run
from lag.runs.share import local_device
from lag.solvers import SOLVERS
from lag.tasks import read_questions

if TYPE_CHECKING:  # it brings numpy along, which `--help` does without
    from lag.logs.index import EveryLog

logger = logging.getLogger(__name__)


def load_model(config: RunConfig) -> LanguageModel[Prompt]:
    logger.info("loading the model %s", config.model)
    from lag.kv_store.budgets import KVBudget
    from lag.model.llm import LLM

    return LLM.load(
        config.model,
        config.dtype,
        config.device,
        config.trust_remote_code,
        config.gguf or "",
        config.adapter,
        layout=config.layout,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
        kv_dtype=config.kv_dtype,
        keeping=KVBudget(config.kv_memory, config.kv_disk, config.kv),
        sink=config.sink,
        recompute=config.recompute,
        draft=config.draft,
    )


def open_endpoint(config: RunConfig) -> LanguageModel[Prompt]:
    from lag.http import Client, from_environment
    from lag.model.openai_endpoint import HOSTED, URL, Endpoint

    tokenizer = None
    if config.tokenizer:  # only this needs torch, which takes seconds to import
        from lag.model.loaded import load_tokenizer

        tokenizer = load_tokenizer(config.tokenizer)
    return Endpoint(
        config.base_url or from_environment(URL) or HOSTED,
        config.model,
        Client(timeout=config.timeout, patience=10 + 2 * config.batch_size),
        tokenizer,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
        concurrency=config.batch_size,
    )


def open_vllm(config: RunConfig) -> LanguageModel[Prompt]:
    """A served model with our connector; a model is loaded here only if KV is missing."""
    from lag.http import Client, from_environment
    from lag.kv_store.filling import Encoder
    from lag.model.loaded import load_tokenizer
    from lag.model.openai_endpoint import URL
    from lag.model.vllm_endpoint import LOCAL, VllmEndpoint

    local = config.tokenizer or config.model
    here = dict(provider="hf", model=local, tokenizer=None, base_url=None)

    command = f"store_log_kv.py -d {config.dataset}{config.typed('data')} --model {local}"

    def load(dtype: str) -> LanguageModel[Prompt]:
        return load_model(replace(config, dtype=dtype, **here))

    return VllmEndpoint(
        config.base_url or from_environment(URL) or LOCAL,
        config.model,
        Client(timeout=config.timeout, patience=10 + 2 * config.batch_size),
        load_tokenizer(local, "--tokenizer" if config.tokenizer else "--model"),
        layout=config.layout,
        encoder=Encoder(load, command, local),
        kv_dtype=config.kv_dtype,
        kv_disk=config.kv_disk,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
        concurrency=config.batch_size,
    )


Loader = Callable[[RunConfig], LanguageModel[Prompt]]
LOADERS: dict[str, Loader] = {"hf": load_model, "openai": open_endpoint, "vllm": open_vllm}


def find_prefill(wanted: str, llm: LanguageModel[Prompt]) -> str:
    """What `auto` comes to: `turn` where the server goes on with a turn that is begun for it."""
    if wanted != "auto":
        return wanted
    found = "turn" if llm.continues else "folded"
    logger.info("%s: what begins a reply is sent as --prefill %s", llm.device, found)
    return found


class Models:
    """What a run needs; a model and an embedder that were loaded once serve every run.

    local_rank: which of its machine's devices `--device auto` means; None if nobody said.
    """

    def __init__(self, llm: LanguageModel[Prompt] | None = None, local_rank: int | None = None):
        self.llm, self.local_rank = llm, local_rank
        self.team: dict[Path, LanguageModel[Prompt]] = {}
        self.embedder: Encoder | None = None

    def load_llm(self, config: RunConfig, adapter: Path | None = None) -> LanguageModel[Prompt]:
        """The model of a run, with this one of its several adapters if it is given."""
        if adapter and self.llm is None:
            if adapter not in self.team:
                one = replace(config, device=self.device(config), adapter=adapter)
                self.team[adapter] = LOADERS[config.provider](one)
            return self.team[adapter]
        if self.llm is None:
            self.llm = LOADERS[config.provider](replace(config, device=self.device(config)))
        return self.llm

    def device(self, config: RunConfig) -> str:
        return local_device(self.local_rank, config.device)

    def load_embedder(self, config: RunConfig) -> Encoder:
        if self.embedder is None:
            logger.info("loading the embedder %s", config.embedder)
            from lag.model.loaded import resolve_device
            from lag.retrieval.embedder import Embedder

            device = None if config.device == "map" else resolve_device(self.device(config))
            self.embedder = Embedder.load(
                config.embedder, device=device, trust_remote_code=config.trust_remote_code
            )
        return self.embedder

    def open_grown(self, run: Run) -> GrowingLogs:
        """The store that grows with a run, as far as it has grown."""
        config = run.config
        keeping = Keeping(**config.taken_by(Keeping))
        ranked = config.num_logs != "all" or keeping.compares
        return GrowingLogs(run.grown, keeping, self.load_embedder(config) if ranked else None)

    def rank_logs(self, run: Run, logs: LogStore, adapter: Path | None) -> Ranking:
        from lag.logs.index import LogIndex

        if run.config.num_logs == "all":
            found = oldest(run, logs.logs, self.load_llm(run.config, adapter))
            logger.info("%d of %d logs have room, the oldest first", len(found.ids), len(logs.logs))
            return found
        return LogIndex(logs, self.load_embedder(run.config), run.paths)

    def load_documents(self, run: Run) -> Evidence:
        """The documents that a run may show, and their ranking if they are searched for."""
        config, source = run.config, SOLVERS[run.config.solver].documents_from
        if source == "own":
            return own_paragraphs(run.paths, run.questions)
        if source == "none" or not config.num_docs:
            return Evidence({})
        embedder = partial(self.load_embedder, config)
        return load_documents(config.retriever, config.retriever_url or "", run.paths, embedder)

    def load_logs(self, run: Run) -> LogStore:
        if run.grows and not run.config.log_store:
            return LogStore(run.grown)
        questions = read_questions(run.paths, run.task, "train")
        limit = run.config.log_limit or None
        store = LogStore.load(run.log_store, questions=questions, limit=limit)
        logger.info(
            "%s: %d logs (%d rows without one)", run.log_store, len(store.logs), store.skipped
        )
        return store


def oldest(run: Run, logs: Mapping[str, Log], llm: LanguageModel[Prompt]) -> "EveryLog":
    """The oldest logs that have room, half of the prompt's unless --log-tokens says."""
    from lag.logs.index import EveryLog

    keep, room = run.mode.keep or last_response, run.config.log_tokens or llm.room // 2
    return EveryLog.that_fit(logs, room, lambda log: llm.num_tokens(keep(log)))
