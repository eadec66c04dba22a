"""A causal language model with its tokenizer and chat template, as a checkpoint has them."""

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from lag.kv.forward import UNBOUNDED
from lag.kv.support import even_length
from lag.kv_store.fingerprint import fingerprint
from lag.model.chat import Chat
from lag.model.gqa_cpu import share_keys, speed_up_products
from lag.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from lag.model.adapter import Adapter

logger = logging.getLogger(__name__)


class LoadedModel:
    """A model, what it calls itself, and how long a sequence may be.

    max_length: of a sequence, its reply included; a KV store may lower it.
    even_length: up to so many tokens the angles of a sequence do not depend on its length.
    new_tokens: how many it has written so far.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerFast",
        chat: Chat,
        max_new_tokens: int,
        name: str = "",
        files: Sequence[Path] = (),
        adapter: "Adapter | None" = None,
    ):
        share_keys(model)
        speed_up_products(model)
        self.adapter = adapter
        self.model, self.tokenizer, self.chat = model, tokenizer, chat
        self.name, self.files = name, tuple(files)
        self.even_length = even_length(model)
        self.end_ids = end_ids(model, tokenizer)
        self.max_new_tokens = max_new_tokens
        self.max_length = max_length(model, tokenizer)
        self.new_tokens = 0
        if self.room <= 0:
            raise ValueError(
                f"--max-new-tokens {max_new_tokens} leaves no room for a prompt in a context of "
                f"{self.max_length} tokens; give a smaller number"
            )

    @property
    def room(self) -> int:
        """How many tokens a prompt may have, notes included."""
        return self.max_length - self.max_new_tokens

    @property
    def device(self) -> str:
        return str(self.model.device)

    def fingerprint(self, cache: Path | None = None) -> dict[str, str]:
        """Digests of everything that decides what keys and values a text has.

        cache: a folder to remember the digest of the weights in, by file stamp.
        """
        if self.adapter is None:
            return fingerprint(self.model, self.tokenizer, cache, self.files)
        found = fingerprint(self.adapter.base, self.tokenizer, cache, self.files)
        return self.adapter.mark(found)

    def num_tokens(self, text: str) -> int:
        return len(self.chat.content_ids(text))

    def count(self, prompt: Prompt) -> int:
        """How many tokens a prompt has, notes included."""
        return len(self.chat.encode(prompt))


def load_checkpoint(
    name: str, dtype: str, device: str, trust_remote_code: bool, gguf: str = ""
) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    """Load a local folder, a hub model, or a GGUF file.

    gguf: the GGUF file of a folder or repository that is to be loaded.
    dtype: `auto` is the checkpoint's own on a GPU and float32 on a CPU.
    device: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, or `map` (spread over all).

    Raises:
        ValueError: missing, misspelt or gated; says in one line what to do.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lag.hub import loading_advice, on_hub

    source, file = locate(name, gguf)
    device = resolve_device(device)
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    place = {"device_map": "auto"} if device == "map" else {}
    try:
        offline = Path(source).is_dir() or not on_hub(source)
        options = dict(trust_remote_code=trust_remote_code, local_files_only=offline)
        options |= {"gguf_file": file} if file else {}
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        with quiet() if file else nullcontext():
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **place, **options)
    except Exception as error:  # three libraries raise what they like here; all of it is named
        raise ValueError(f"--model {name}: {loading_advice(name, error)}") from error
    model = unmark(model) if file else model
    model = model.eval() if place else model.eval().to(device)
    logger.info("model %s: %s on %s", name, model.dtype, model.device)
    return model, tokenizer


def resolve_device(device: str) -> str:
    """The device that a `--device` means here.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device("cpu" if device == "map" else device)
    except RuntimeError as error:
        raise ValueError(
            f"--device {device}: expected auto, cpu, cuda, cuda:1 ..., or map"
        ) from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch sees no GPU here; use --device cpu")
    return device


def end_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> frozenset[int]:
    """Every token that ends a reply: the model's own list and the tokenizer's."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ids = own if isinstance(own, list) else [own]
    return frozenset(id for id in [*ids, tokenizer.eos_token_id] if id is not None)


def max_length(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> int:
    """The longest sequence the model was made for, in tokens."""
    config = model.config.get_text_config()
    lengths = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    return min((int(n) for n in lengths if n and n < 1e9), default=UNBOUNDED)


def weight_files(name: str, gguf: str = "") -> list[Path]:
    """The files of a local model, whose stamps tell whether its weights changed."""
    source, file = locate(name, gguf)
    folder = Path(source)
    if file:
        return [folder / file] if (folder / file).is_file() else []
    return sorted(folder.glob("*.safetensors")) if folder.is_dir() else []


def load_tokenizer(
    name: str, flag: str = "--tokenizer", gguf: str = ""
) -> "PreTrainedTokenizerFast":
    """The tokenizer of the served model, from a folder or the hub; a flag gave its name.

    Raises:
        ValueError: it cannot be loaded; says what to do.
    """
    from transformers import AutoTokenizer

    from lag.hub import loading_advice

    try:
        source, file = locate(name, gguf)
        return AutoTokenizer.from_pretrained(source, **({"gguf_file": file} if file else {}))
    except Exception as error:  # the library raises what it likes here; all of it is named
        raise ValueError(f"{flag} {name}: {loading_advice(name, error)}") from error


# --- GGUF files: transformers turns the quantised tensors into ordinary ones ----------------------
MARKS = ("hf_quantizer", "is_quantized", "quantization_method")
CONFIG_MARKS = ("quantization_config", "_is_quantized")


def locate(name: str, file: str = "") -> tuple[str, str]:
    """The folder or hub name to load from, and the GGUF file in it; no file where there is none.

    name: a `.gguf` file, a folder, or a hub name.
    file: which file of the folder or repository, for those that hold several.

    Raises:
        ValueError: the file is not there, or two are named.
    """
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        if file:
            raise ValueError(f"--gguf {file}: --model {name} names a GGUF file itself; give one")
        if not path.is_file():
            raise ValueError(f"--model {name}: no such file; expected a GGUF file")
        return str(path.parent), path.name
    if file and path.is_dir() and not (path / file).is_file():
        there = ", ".join(sorted(found.name for found in path.glob("*.gguf"))) or "none"
        raise ValueError(f"--gguf {file}: not in {name}; GGUF files there: {there}")
    return name, file


def unmark(model: "PreTrainedModel") -> "PreTrainedModel":
    """Take back what says that the weights were quantised, so that they are saved and trained."""
    for owner, marks in ((model, MARKS), (model.config, CONFIG_MARKS)):
        for mark in marks:
            vars(owner).pop(mark, None)
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what transformers says while it turns the tensors: a bar, and advice for packed ones."""
    from transformers.utils import logging as library

    level = library.get_verbosity()
    library.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        library.set_verbosity(level)
