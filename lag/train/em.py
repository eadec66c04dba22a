"""Generalised EM over trajectories: roll out, weigh, fit, and again with what was learned.

Each part is the command that also stands alone, and leaves its files in `iter_00i/`; what is there is
not made again, so that a killed run goes on. One language model is in memory at a time. Every fit
begins at the base model, and learns the gold answer behind each trajectory: what is maximised is
sum_k w_k (log p(trajectory_k) + log p(gold answer | trajectory_k)). Questions are train questions;
those held out say when to stop.
Source: ExSearch (arXiv 2505.20128); fits from the base model as in ReST-EM (arXiv 2312.06585).
"""

import gc
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lag.files import read_json, write_json
from lag.runs.config import RunConfig
from lag.runs.flags import check
from lag.runs.missing_files import check_files
from lag.runs.run import Run
from lag.runs.worker import Worker
from lag.train.adapters import AdapterRecipe
from lag.train.log_examples import held_out, maker_of
from lag.train.sft import Source, TuningRecipe, tune
from lag.train.weigh import weigh

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EMRecipe:
    """How often, from how many samples, and what of them counts.

    wanted: a row of `FILTERS`. uniform: all samples weigh alike (the ablation).
    validation: share of the questions that is held out. patience: how many iterations in a row may
        be no better on them than the best before.
    """

    iterations: int = 3
    samples: int = 4
    temperature: float = 0.8
    wanted: str = "all"
    uniform: bool = False
    validation: float = 0.1
    patience: int = 1


class EM:
    """One EM run in a folder.

    config: how rollouts are made; its model is what every fit begins at.
    """

    def __init__(
        self,
        config: RunConfig,
        recipe: EMRecipe,
        tuning: TuningRecipe,
        adapter: AdapterRecipe,
        out: Path,
        tokens_per_forward: int = 8192,
    ):
        self.config, self.recipe, self.tuning, self.adapter = config, recipe, tuning, adapter
        self.out, self.tokens_per_forward = out, tokens_per_forward
        self.embedder: Any = None
        self.fit_ids, self.held_ids = self.parted()

    def parted(self) -> tuple[list[str], list[str]]:
        """Ids of the train questions that are learned from, and of those held out.

        Raises:
            FileNotFoundError, ValueError: files are not made, or too few questions.
        """
        settled = replace(self.config, split="train").settled()
        check_files([settled])
        ids = [question.id for question in Run(settled).questions]
        held = held_out(ids, self.recipe.validation, self.tuning.seed)
        if len(held) == len(ids):
            raise ValueError(f"{len(ids)} train questions are too few to hold some out")
        return [id for id in ids if id not in held], [id for id in ids if id in held]

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the outcome."""
        config = replace(self.config, split="train").settled()
        parts = {"run": config.identity(), "fit": self.fit_ids, "validation": self.held_ids}
        parts |= {"recipe": asdict(self.recipe), "tuning": asdict(self.tuning)}
        ending = ("iterations", "patience")  # when it ends changes nothing of what is there
        parts["recipe"] = {k: v for k, v in parts["recipe"].items() if k not in ending}
        return parts | {"adapter": asdict(self.adapter)}

    def folder(self, iteration: int) -> Path:
        return self.out / f"iter_{iteration:03}"

    def fitted(self, iteration: int) -> Path:
        """Where a fit lies: an adapter, or with --tune full a model."""
        kind = "model" if self.adapter.tune == "full" else "adapter"
        return self.folder(iteration) / kind

    def model(self, iteration: int) -> tuple[str, Path | None]:
        """The model and the adapter after so many iterations."""
        base = self.config.filled().model
        if not iteration:
            return base, None
        fitted = self.fitted(iteration)
        return (str(fitted), None) if self.adapter.tune == "full" else (base, fitted)

    def run(self) -> dict[str, Any]:
        """All iterations, or fewer if they stop helping.

        Raises:
            ValueError: the folder holds a run with other settings, or there is nothing to learn from.
        """
        self.begin()
        results = [self.kept(0, self.base)]
        for number in range(1, self.recipe.iterations + 1):
            results.append(self.kept(number, self.iteration))
            scores = [result["validation_em"] for result in results]
            logger.info("iteration %d: validation EM %s", number, scores[-1])
            if self.held_ids and number - scores.index(max(scores)) >= self.recipe.patience:
                break
        best = max(results[1:], key=merit)
        return {
            "out": str(self.out),
            "best": best["iteration"],
            "fitted": str(self.fitted(best["iteration"])),
            "validation_em": [result["validation_em"] for result in results],
            "answer_logprob": [r["weigh"].get("answer_logprob") for r in results[1:]],
            "seconds": round(sum(sum(r["seconds"].values()) for r in results), 1),
        }

    def begin(self) -> None:
        path, ours = self.out / "em.json", json.loads(json.dumps(self.identity))
        if not path.exists():
            write_json(path, ours)
        known = read_json(path)
        if differs := [name for name in ours if known.get(name) != ours[name]]:
            raise ValueError(
                f"--out {self.out} holds an EM run with another {', '.join(differs)}; repeat its "
                "flags, or give another folder"
            )

    def kept(self, number: int, make: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
        """The result of an iteration, as it was written or made now."""
        path = self.folder(number) / "result.json"
        if not path.exists():
            write_json(path, {"iteration": number, **make(number)})
        return read_json(path)

    def base(self, number: int) -> dict[str, Any]:
        """The model before anything is learned."""
        start = time.monotonic()
        return {
            "validation_em": self.validate(number),
            "seconds": {"validate": time.monotonic() - start},
        }

    def iteration(self, number: int) -> dict[str, Any]:
        """Roll out with the last model, weigh, fit, validate."""
        parts, seconds = {}, {}
        stages = {"roll_out": self.roll_out, "weigh": self.weigh, "fit": self.fit}
        for name, stage in {**stages, "validate": self.validate}.items():
            start = time.monotonic()
            parts[name] = stage(number)
            seconds[name] = round(time.monotonic() - start, 1)
            free()
        return {"validation_em": parts.pop("validate"), **parts, "seconds": seconds}

    def answer(self, folder: Path, iteration: int, **changes: Any) -> dict[str, Any]:
        """Answer questions with the model after so many iterations; goes on where it stopped."""
        model, adapter = self.model(iteration)
        changed = replace(
            self.config, split="train", limit=None, model=model, adapter=adapter, **changes
        )
        check(changed)
        worker = Worker()
        worker.embedder = self.embedder
        summary = worker.answer(Run(changed.settled(), folder))
        self.embedder = worker.embedder
        return summary

    def roll_out(self, number: int) -> dict[str, Any]:
        return self.answer(
            self.folder(number) / "rollouts",
            number - 1,
            ids=",".join(self.fit_ids),
            samples=self.recipe.samples,
            temperature=self.recipe.temperature,
        )

    def validate(self, number: int) -> float | None:
        """Exact match on the questions held out, of the likeliest replies."""
        if not self.held_ids:
            return None
        ids = ",".join(self.held_ids)
        return self.answer(self.folder(number) / "validation", number, ids=ids)["em"]

    def weigh(self, number: int) -> dict[str, Any]:
        out = self.folder(number) / "weights.jsonl"
        if self.recipe.uniform or out.exists():
            return {}
        config, (model, adapter) = self.config, self.model(number - 1)
        maker = maker_of(
            self.folder(number) / "rollouts",
            config.dataset,
            config.data,
            log_store=config.log_store,
        )
        return weigh(maker, model, adapter, out, 1.0, config.dtype, config.device)

    def fit(self, number: int) -> dict[str, Any]:
        weights, config = self.folder(number) / "weights.jsonl", self.config
        source = Source(
            config.dataset,
            config.data,
            self.folder(number) / "rollouts",
            self.recipe.wanted,
            weights=None if self.recipe.uniform else weights,
            log_store=config.log_store,
            validation=0.0,
            gold=True,
        )
        place = (config.dtype, config.device, self.tokens_per_forward)
        out = self.fitted(number)
        return tune(self.model(0)[0], source, self.adapter, self.tuning, out, *place)


def merit(result: dict[str, Any]) -> float:
    """What an iteration is chosen by: its score, of equals the first; without scores the last."""
    score = result["validation_em"]
    return result["iteration"] if score is None else score


def free() -> None:
    """Give up the memory of a model that nobody holds any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
