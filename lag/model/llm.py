"""A language model in this process, as the loop asks for it: `records.LanguageModel`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lag.kv_store.budgets import KVBudget
from lag.kv_store.store import KVStore
from lag.model.chat import Chat
from lag.model.kv_source import KVSource
from lag.model.loaded import LoadedModel, load_checkpoint, weight_files
from lag.model.sampling import Sampling
from lag.model.scheduler import Scheduler
from lag.modes import Mode
from lag.prompts import Note, Prompt
from lag.records import Counts, Reply

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from lag.model.adapter import Adapter


class LLM(LoadedModel):
    """A loaded model with what it takes to reply: a source of KV, and a way to choose tokens.

    reuse: whether a prompt takes over what it begins with: from the question's last prompt, or
        from all that begin alike.
    draft: what replies are guessed from, to be checked several tokens at a time: `logs` takes their
        prompts, what these name besides, and earlier replies; `prompt` their prompts; or `off`.
    """

    concurrency = 0  # the run says how many prompts are in flight
    continues = True

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerFast",
        layout: str = "paper",
        max_new_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int = 1234,
        name: str = "",
        files: Sequence[Path] = (),
        kv_dtype: str = "auto",
        sink: int = 0,
        recompute: int = 0,
        keeping: KVBudget | None = None,
        reuse: bool = True,
        draft: str = "logs",
        adapter: "Adapter | None" = None,
    ):
        if adapter and adapter.reader and (sink or recompute):
            raise ValueError(
                f"--adapter {adapter.name} is a reader, which is off in logs and on in the chat; "
                "--sink and --recompute mix the two: leave them out"
            )
        chat = Chat(tokenizer, layout, sink)
        super().__init__(model, tokenizer, chat, max_new_tokens, name, files, adapter)
        self.kv = KVSource(self, kv_dtype, keeping or KVBudget(), recompute)
        self.sampling, self.reuse, self.draft = Sampling(temperature, seed), reuse, draft

    @classmethod
    def load(
        cls,
        name: str,
        dtype: str = "auto",
        device: str = "auto",
        trust_remote_code: bool = False,
        gguf: str = "",
        adapter: str | Path | None = None,
        **settings: object,
    ) -> "LLM":
        """Load a model by name; see `load_checkpoint`.

        adapter: a folder of what was trained on top of it. settings: as `LLM` takes them.

        Raises:
            ValueError: the model or the adapter cannot be loaded; names the reason.
        """
        model, tokenizer = load_checkpoint(name, dtype, device, trust_remote_code, gguf)
        if adapter:
            from lag.model.adapter import load_adapter

            settings["adapter"] = found = load_adapter(model, tokenizer, Path(adapter))
            tokenizer = found.tokenizer
        return cls(model, tokenizer, name=name, files=weight_files(name, gguf), **settings)

    def open_store(self, folder: Path, mode: Mode) -> KVStore:
        """Open the store of a KV mode; see `KVSource.open`."""
        return self.kv.open(folder, mode.name)

    def can_be_encoded(self, note: Note) -> bool:
        """See `KVSource.can_be_encoded`."""
        return self.kv.can_be_encoded(note)

    def make_kv(self, notes: Sequence[Note]) -> int:
        """See `KVSource.make`."""
        return self.kv.make(notes)

    def in_flight(self, slots: int) -> Scheduler:
        """So many rows that prompts may join at any time."""
        return Scheduler(self, self.kv, self.sampling, slots, self.reuse, self.draft)

    def generate(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """Reply to every prompt, all at once."""
        batch, replies = self.in_flight(len(prompts)), {}
        for number, prompt in enumerate(prompts):
            batch.submit(number, prompt)
        while len(replies) < len(prompts):
            for number, reply in batch.step():
                if isinstance(reply, Exception):
                    raise reply
                replies[number] = reply
        return [replies[number] for number in range(len(prompts))]

    def stats(self) -> dict[str, Counts]:
        """How often KV came from the store, was encoded on the spot, or was found damaged."""
        return {"kv": dict(self.kv.store.counts) if self.kv.store else {}}
