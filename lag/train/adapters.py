"""What of a model is trained, and how it is kept: all weights, LoRA, rows of tokens, or the last two.

peft makes the layers. Ours are which token rows there are (by their ids, so that rows that pad a
matrix do not matter), what is remembered of base model and data, and writing all or nothing.
"""

import json
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lag import files
from lag.files import read_json
from lag.model.adapter import (
    CONFIG,
    FACTS,
    BaseModel,
    ReaderGate,
    chat_opening,
    check_base,
    check_files,
    make_rows,
)
from lag.paths import ADAPTER_FILES
from lag.train.batches import predict
from lag.train.trainer import Forward

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class AdapterRecipe:
    """What is trained.

    tokens: words whose rows are trained; those that the tokenizer lacks are added to it.
    reader: the adapter is off in logs that stand before the chat, or in it as KV.
    """

    tune: str = "lora"
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    tokens: tuple[str, ...] = ()
    reader: bool = False

    def check(self) -> None:
        """
        Raises:
            ValueError: parts that contradict each other.
        """
        if ("tokens" in self.tune) != bool(self.tokens):
            raise ValueError(
                f"--tune {self.tune} with --tokens {','.join(self.tokens) or 'left out'}: rows of "
                "tokens need both, a --tune with tokens and their words"
            )
        if self.reader and self.tune != "lora":
            raise ValueError(f"--reader with --tune {self.tune}: only --tune lora can be switched")


class Tuned:
    """A model with what is trained of it.

    base: what it was before. peft: None where all weights are trained. gate: of a reader.
    start: an adapter that begins it, in place of fresh matrices.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerFast",
        recipe: AdapterRecipe,
        seed: int = 0,
        start: Path | None = None,
    ):
        import torch

        recipe.check()
        self.model, self.tokenizer, self.recipe = model, tokenizer, recipe
        self.base = BaseModel(model).facts()
        self.peft: PeftModel | None = None
        self.gate: ReaderGate | None = None
        torch.manual_seed(seed)  # of the fresh matrices
        ids = add_tokens(model, tokenizer, recipe.tokens)
        if recipe.tune != "full":
            self.peft = wrap(model, recipe, ids)
        if start:
            self.go_on_from(start)
        if recipe.reader:
            self.gate = ReaderGate(model, chat_opening(tokenizer))

    def go_on_from(self, folder: Path) -> None:
        """Begin with the numbers of an adapter that the same recipe made.

        Raises:
            ValueError: no adapter of ours, or one of another base model or recipe.
        """
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        facts, mine = check_files(folder), asdict(self.recipe) | {"tokens": [*self.recipe.tokens]}
        check_base(folder, facts.get("base", {}), self.base)
        theirs = facts.get("recipe", {}) | {"dropout": self.recipe.dropout}
        for name in (name for name in mine if mine[name] != theirs.get(name)):
            raise ValueError(
                f"--adapter {folder} was trained with {name} {theirs.get(name)}, not {mine[name]}: "
                "its training goes on in the same shape only"
            )
        set_peft_model_state_dict(self.peft, load_file(folder / ADAPTER_FILES[1]))

    def forward(self, model: "PreTrainedModel", batch: dict[str, "Tensor"]) -> tuple[Any, Any]:
        """As `predict`; of a reader, active where it will be in use."""
        return through(self.gate, model, batch)

    def save(self, folder: Path, facts: dict[str, Any], dtype: str = "") -> None:
        """Write a model or an adapter folder; what names it as one comes last.

        facts: what it was trained with and on. dtype: of an adapter's stored numbers; empty: as
        they were trained.
        """
        folder.mkdir(parents=True, exist_ok=True)
        known = {"base": self.base, "reader": self.recipe.reader, "tokens": self.recipe.tokens}
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as name:
            fresh = Path(name)
            if self.peft is None:
                self.model.save_pretrained(fresh)
            else:
                self.peft.save_pretrained(str(fresh), save_embedding_layers=False)
                (fresh / "README.md").unlink(missing_ok=True)  # a form to fill in
                if dtype:
                    round_to(fresh / ADAPTER_FILES[1], dtype)
            if self.peft is None or self.recipe.tokens:
                self.tokenizer.save_pretrained(fresh)
            files.write_json(fresh / FACTS, known | {"recipe": asdict(self.recipe)} | facts)
            last = ("config.json", CONFIG)
            for path in sorted(fresh.iterdir(), key=lambda path: path.name in last):
                files.sync(path)
                path.replace(folder / path.name)


def load_tuned(
    model: str, adapter: Path | None, dtype: str = "auto", device: str = "auto"
) -> tuple[Any, Any, Forward]:
    """A model with the adapter of a folder, its tokenizer, and how it is called, as `predict` is."""
    from lag.model.adapter import load_adapter
    from lag.model.loaded import load_checkpoint

    loaded, tokenizer = load_checkpoint(model, dtype, device, False)
    if adapter is None:
        return loaded.eval(), tokenizer, predict
    found = load_adapter(loaded, tokenizer, adapter)
    return loaded.eval(), found.tokenizer, partial(through, found.gate)


def through(
    gate: ReaderGate | None, model: "PreTrainedModel", batch: dict[str, "Tensor"]
) -> tuple[Any, Any]:
    """As `predict`; a reader is active where it is in use."""
    if gate is None:
        return predict(model, batch)
    with gate.given(batch["read"]):
        return predict(model, batch)


def round_to(path: Path, dtype: str) -> None:
    """Write the numbers of a file again in another precision."""
    import torch
    from safetensors.torch import load_file, save_file

    kind = getattr(torch, dtype)
    save_file(
        {name: part.to(kind) for name, part in load_file(path).items()}, path, {"format": "pt"}
    )


def wrap(model: "PreTrainedModel", recipe: AdapterRecipe, ids: Sequence[int]) -> "PeftModel":
    """Put fresh adapter layers into a model; everything else is frozen.

    Raises:
        ValueError: peft is not installed.
    """
    try:
        from peft import LoraConfig, TrainableTokensConfig, get_peft_model
    except ImportError as error:
        raise ValueError(
            f"--tune {recipe.tune} needs peft: pip install lag-toolkit[train]"
        ) from error
    rows = token_matrices(model) if ids else []
    if recipe.tune == "tokens":
        config = TrainableTokensConfig(
            task_type="CAUSAL_LM", token_indices=list(ids), target_modules=rows
        )
    else:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules="all-linear",
            trainable_token_indices={name: list(ids) for name in rows} or None,
        )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of what peft itself calls, and of what is tied: it is tested
        return get_peft_model(model, config)


def token_matrices(model: "PreTrainedModel") -> list[str]:
    """Names of the matrices with a row per token: both, or one where they are the same.

    A row that only the input has can never be the likeliest next token.
    """
    names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    both = model.get_input_embeddings(), model.get_output_embeddings()
    tied = both[1] is None or both[0].weight is both[1].weight
    return [names[module] for module in (both[:1] if tied else both)]


def add_tokens(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", words: Sequence[str]
) -> list[int]:
    """Ids of these words as tokens; new ones begin as the mean of the pieces they were before.

    They are no special tokens: in a log they stay what they are.

    Raises:
        ValueError: a word of nothing but space.
    """
    import torch
    from tokenizers import AddedToken

    if blank := [word for word in words if not word.strip()]:
        raise ValueError(f"--tokens {blank[0]!r}: expected words, separated by commas")
    known = tokenizer.get_vocab()
    new = {w: tokenizer(w, add_special_tokens=False)["input_ids"] for w in words if w not in known}
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in new])
    make_rows(model, len(tokenizer))
    for matrix in {model.get_input_embeddings(), model.get_output_embeddings()} - {None}:
        with torch.no_grad():
            for word, pieces in new.items():
                matrix.weight[tokenizer.convert_tokens_to_ids(word)] = matrix.weight[pieces].mean(0)
    return [tokenizer.convert_tokens_to_ids(word) for word in words]


def export(model: str, adapter: Path, out: Path, dtype: str = "auto") -> dict[str, Any]:
    """Merge an adapter into its base model and write a model folder, for servers without adapters.

    Raises:
        ValueError: the adapter does not fit, is a reader, or the folder holds a model already.
    """
    from lag.model.adapter import load_adapter
    from lag.model.loaded import load_checkpoint

    if (out / "config.json").exists():
        raise ValueError(f"--out {out} holds a model already; give another folder")
    loaded, tokenizer = load_checkpoint(model, dtype, "cpu", False)
    found = load_adapter(loaded, tokenizer, adapter)
    if found.reader:
        raise ValueError(
            f"--adapter {adapter} is a reader, which is off in logs: no merged model can be; "
            "use it with --adapter"
        )
    merged = found.tuned.merge_and_unload()
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=out.parent, prefix="."))
    try:
        merged.save_pretrained(fresh)
        found.tokenizer.save_pretrained(fresh)
        files.write_json(fresh / FACTS, {"merged": read_facts(adapter), "adapter": found.digest})
        out.mkdir(exist_ok=True)
        for path in sorted(fresh.iterdir(), key=lambda path: path.name == "config.json"):
            path.replace(out / path.name)
    finally:
        shutil.rmtree(fresh)
    return {"model": str(out), "adapter": found.digest}


def read_facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS
    return read_json(path) if path.exists() else json.loads("{}")
