"""A trained adapter on a loaded model: what it is, and when it is off.

The adapter is put into the layers of the model in place, so that nothing behind it knows of it. What
the model was before is kept: it decides whether the adapter fits, and the fingerprint of a reader.
"""

import contextlib
import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lag.files import files_digest, read_json
from lag.hub import one_line
from lag.kv_store.fingerprint import tensors_digest, with_adapter
from lag.paths import ADAPTER_FACTS, ADAPTER_FILES

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)
CONFIG, FACTS = ADAPTER_FILES[0], ADAPTER_FACTS
KINDS = ("LORA", "TRAINABLE_TOKENS")
SAMPLE = 4096  # numbers of each matrix that tell one base model from another


class BaseModel:
    """A model as it was before an adapter was put into it: what a fingerprint reads of it."""

    def __init__(self, model: "PreTrainedModel"):
        self.config, self.dtype = copy.deepcopy(model.config), model.dtype
        self._parameters = list(model.named_parameters())
        self._buffers = list(model.named_buffers())

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        return self._parameters

    def named_buffers(self) -> list[tuple[str, Tensor]]:
        return self._buffers

    def facts(self) -> dict[str, str]:
        """Which model it is, whatever it is called: a digest of a sample of every weight.

        The sample is in bfloat16: the same in every dtype that the model may be loaded in, but for
        float16.
        """
        known = ((name, one.detach().reshape(-1)) for name, one in self._parameters)
        weights = tensors_digest([(name, flat[:SAMPLE].bfloat16()) for name, flat in known])[:16]
        dtype = str(self.dtype).removeprefix("torch.")
        return {"model_type": self.config.model_type, "weights": weights, "dtype": dtype}


@dataclass(frozen=True, eq=False, slots=True)
class Adapter:
    """An adapter in a model.

    digest: over its files. reader: whether it is off while logs are encoded, so that the base
        model's spans stay valid. gate: of a reader, says for which tokens it is active.
    """

    name: str
    digest: str
    tuned: "PeftModel"
    base: BaseModel
    tokenizer: "PreTrainedTokenizerFast"
    gate: "ReaderGate | None" = None

    @property
    def reader(self) -> bool:
        return self.gate is not None

    def off(self) -> contextlib.AbstractContextManager[None]:
        """The base model, to the bit, while the block runs."""
        return self.tuned.disable_adapter()

    def mark(self, fingerprint: dict[str, str]) -> dict[str, str]:
        """The fingerprint of KV made with this adapter; a reader makes none."""
        return fingerprint if self.reader else with_adapter(fingerprint, self.digest)


class ReaderGate:
    """Switches a reader on from the chat template's first tokens on, token by token.

    opening: the tokens that every chat begins with. Logs as text stand before them (layout `paper`);
        a forward in which they do not occur goes on behind them. Training says it itself: `given`.
    """

    def __init__(self, model: "PreTrainedModel", opening: tuple[int, ...]):
        if not opening:
            raise ValueError("a reader needs a chat template that begins with words of its own")
        self.opening, self.active, self.told = opening, None, False
        model.base_model.register_forward_pre_hook(self.look, with_kwargs=True)
        matrices = [module for name, module in model.named_modules() if name.endswith(".lora_B")]
        for layer in (layer for module in matrices for layer in module.values()):
            layer.register_forward_hook(self.pass_through)

    def look(self, module: nn.Module, args: Any, given: dict[str, Any]) -> None:
        if not self.told:
            ids = given["input_ids"] if "input_ids" in given else args[0]
            self.active = behind(ids, self.opening)

    def pass_through(self, module: nn.Module, args: object, output: Tensor) -> Tensor:
        return output if self.active is None else output * self.active[..., None].to(output.dtype)

    @contextlib.contextmanager
    def given(self, active: Tensor) -> Iterator[None]:
        """Be active for these tokens, (B, T) bool, while the block runs."""
        self.active, self.told = active, True
        try:
            yield
        finally:
            self.active, self.told = None, False


def behind(ids: Tensor, opening: tuple[int, ...]) -> Tensor | None:
    """Which tokens stand before no opening of a chat, (B, T) bool; None if all do.

    ids: (B, T).
    """
    length = len(opening)
    if ids.shape[1] <= length:
        return None
    wanted = torch.tensor(opening, device=ids.device)
    starts = (ids.unfold(1, length, 1) == wanted).all(-1)  # (B, T - length + 1)
    first = torch.where(starts.any(1), starts.int().argmax(1), 0)  # (B,)
    if not first.any():
        return None
    return torch.arange(ids.shape[1], device=ids.device) >= first[:, None]


def load_adapter(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", folder: Path
) -> Adapter:
    """Put the adapter of a folder into a model.

    Raises:
        ValueError: no adapter, one of a kind or a base model that does not fit, or no peft here.
    """
    facts = check_files(folder)
    base = BaseModel(model)
    check_base(folder, facts.get("base", {}), base.facts())
    if facts.get("tokens"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        make_rows(model, len(tokenizer))
    try:
        from peft import PeftModel
    except ImportError as error:
        advice = "needs peft: pip install lag-toolkit[train]"
        raise ValueError(f"--adapter {folder} {advice}") from error
    try:
        tuned = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"--adapter {folder} does not fit this model ({one_line(error)}); give the --model that "
            "it was trained on"
        ) from error
    tuned.eval()
    digest = files_digest(folder, ADAPTER_FILES, 16)
    gate = ReaderGate(model, chat_opening(tokenizer)) if facts.get("reader") else None
    logger.info("adapter %s%s", folder, ": off while logs are encoded" if gate else "")
    return Adapter(str(folder), digest, tuned, base, tokenizer, gate)


def chat_opening(tokenizer: "PreTrainedTokenizerFast") -> tuple[int, ...]:
    """The tokens that every chat of this toolkit begins with, its system text included."""
    from lag.model.chat import Chat
    from lag.prompts import SYSTEM

    return sum(Chat(tokenizer).blocks(SYSTEM), ())


def check_files(folder: Path) -> dict[str, Any]:
    """What `lag.json` says of an adapter; empty for one that other code made.

    Raises:
        ValueError: a file is missing, or the adapter is of a kind that cannot be put in place.
    """
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            expected = "expected a folder that train.py sft or peft wrote"
            raise ValueError(f"--adapter {folder}: no {name} there; {expected}")
    kind = read_json(folder / CONFIG).get("peft_type")
    if kind not in KINDS:
        raise ValueError(f"--adapter {folder} is a {kind} adapter; expected {' or '.join(KINDS)}")
    if not (folder / FACTS).is_file():
        logger.warning("--adapter %s has no %s: its base model is not checked", folder, FACTS)
        return {}
    return read_json(folder / FACTS)


def check_base(folder: Path, known: dict[str, str], ours: dict[str, str]) -> None:
    """Refuse an adapter that was trained on another model."""
    names = ["model_type", "weights"] if known else []
    if "float16" in (known.get("dtype"), ours["dtype"]) and known.get("dtype") != ours["dtype"]:
        names.remove("weights")  # its rounding is another one
    differs = [name for name in names if known[name] != ours[name]]
    if differs:
        raise ValueError(
            f"--adapter {folder} was trained on another base model ({', '.join(differs)}: "
            f"{known[differs[0]]}, not {ours[differs[0]]}); give that one with --model"
        )


def make_rows(model: "PreTrainedModel", count: int) -> None:
    """Give the embeddings a row for each of so many tokens; padded ones keep theirs."""
    if model.get_input_embeddings().weight.shape[0] < count:
        model.resize_token_embeddings(count, mean_resizing=False)
