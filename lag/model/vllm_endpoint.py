"""vLLM on the model's side of the loop, with the KV of logs from our store.

The server takes a prompt as token ids and the names of its spans, and reads these itself through
`lag.engine.connector`. Here prompts are made, and the store is filled: a log without KV is encoded
by a model in this process before anything is sent, and what the server says it took is checked.
"""

import logging
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lag.http import Client, GivenUp, HttpError, Refused, Transient
from lag.json_checks import clip
from lag.kv.span import Pair
from lag.kv_store.filling import Encoder, FilledStore
from lag.kv_store.fingerprint import tokenizer_digest
from lag.kv_store.store import KVStore
from lag.model.chat import Chat, Pieces, kv_pairs
from lag.model.openai_endpoint import HOPELESS, Endpoint, stated
from lag.modes import Mode
from lag.prompts import Note, Prompt
from lag.records import Counts, Reply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast as Pretrained

logger = logging.getLogger(__name__)
LOCAL = "http://localhost:8000/v1"
NAME = "lag"  # of our parameters in a request, and of what a reply says of them
CONFIG = (
    'start it with --kv-transfer-config "$(python serve.py --vllm-config -d DATASET --model M)"'
)
SHARED = ("model", "stream", "temperature", "seed")  # of a chat's request
# What a checkpoint's generation_config.json would set; in this process none of it is read.
PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


class VllmEndpoint(Endpoint):
    """A served model that takes token ids, and KV of logs: `records.LanguageModel`."""

    continues = True

    def __init__(
        self,
        base_url: str,
        name: str,
        client: Client,
        tokenizer: "Pretrained",
        layout: str = "paper",
        encoder: Encoder | None = None,
        kv_dtype: str = "auto",
        kv_disk: int | None = None,
        **settings: Any,
    ):
        """
        Raises:
            GivenUp: no such server, or it serves no such model.
        """
        super().__init__(base_url, name, client, tokenizer, **settings)
        self.chat = Chat(tokenizer, layout)
        self.encoder, self.kv_dtype, self.kv_disk = encoder, kv_dtype, kv_disk
        self.end_id = tokenizer.eos_token_id
        self.filled: FilledStore | None = None
        self.room = min(self.room, self.served_length() - self.max_new_tokens)
        if self.room <= 0:
            raise ValueError(
                f"--max-new-tokens {self.max_new_tokens} leaves no room in the "
                f"{self.room + self.max_new_tokens} tokens that are served"
            )
        self.about = self.ask_about()
        made_by = self.about.get("fingerprint", {}).get("tokenizer")
        if made_by and made_by != tokenizer_digest(tokenizer):
            raise GivenUp(
                f"the tokenizer here is not the one of the served {name}; give --tokenizer, the "
                "folder of the served model"
            )

    def served_length(self) -> int:
        """How many tokens the server lets a sequence have.

        Raises:
            GivenUp: no such server, or it serves no such model.
        """
        try:
            answer = self.client.ask(f"{self.base_url}/models", None, self.headers)
        except HttpError as error:
            raise GivenUp(f"{error}; is --base-url where vLLM's API begins (/v1)?") from None
        listed = answer.get("data") if isinstance(answer, dict) else None
        models = {one.get("id"): one for one in listed or () if isinstance(one, dict)}
        if self.name not in models:
            raise GivenUp(
                f"--model {self.name}: served are {', '.join(map(str, models)) or 'none'}"
            )
        return stated(models[self.name], "max_model_len") or self.room + self.max_new_tokens

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def ask_about(self) -> dict[str, Any]:
        """Whose KV the server takes; nothing if it takes none."""
        try:
            answer = self.completion(self.probe({"about": True}))
        except HttpError as error:
            raise GivenUp(str(error)) from None
        return told(answer).get("about") or {}

    def fingerprint(self, cache: Path | None = None) -> dict[str, str]:
        return self.about.get("fingerprint") or super().fingerprint(cache)

    def open_store(self, folder: Path, mode: Mode) -> KVStore:
        """
        Raises:
            GivenUp: the server takes no KV.
            ValueError: the folder was made by another model.
        """
        if not self.about:
            raise GivenUp(f"{self.base_url} takes no KV of logs; {CONFIG}")

        fingerprint, kv_disk = self.about["fingerprint"], self.kv_disk
        self.filled = FilledStore.open(
            folder, fingerprint, mode, self.kv_dtype, kv_disk, self.encoder
        )
        self.room = min(self.room, self.about["max_length"] - self.max_new_tokens)
        return self.filled.store

    def can_be_encoded(self, note: Note) -> bool:
        length = sum(map(len, self.chat.note_ids(note)))
        return not note.kv or length <= self.about["max_log_tokens"]

    def make_kv(self, notes: Sequence[Note]) -> int:
        """Store the KV of notes that are going to enter; returns of how many it was made."""
        pairs = [self.chat.note_ids(note) for note in notes if self.can_be_encoded(note)]
        return self.filled.fill(pairs).count("encoded")

    def reply(self, prompt: Prompt) -> Reply:
        start = time.perf_counter()
        pieces = self.chat.encode(prompt)
        pairs = kv_pairs(prompt, pieces)
        made = iter(self.filled.fill(pairs) if pairs else ())
        stored = time.perf_counter()
        body = self.body_of(prompt, pieces, pairs)
        try:
            answer = self.completion(body)
        except Refused:
            if not pairs or not self.filled.mend(pairs):
                raise
            answer = self.completion(body)
        seconds = {"store": stored - start, "decode": time.perf_counter() - stored}
        sources = tuple(next(made) if note.kv else "text" for note in prompt.notes)
        return self.read_reply(answer, len(pieces), pairs, sources, seconds)

    def body_of(self, prompt: Prompt, pieces: Pieces, pairs: Sequence[Pair]) -> dict[str, Any]:
        """A request: the prompt to the token, and the names of the spans that it begins with."""
        assert not (pairs and pieces.head), "spans are a prompt's first tokens in layout paper"
        kept = [keep for _, keep in pairs]
        text = [ids for note, (_, ids) in zip(prompt.notes, pieces.notes) if not note.kv]
        ids = sum((*kept, *text), pieces.head) + pieces.tail
        body = {name: value for name, value in self.body(prompt).items() if name in SHARED}
        body |= PLAIN | {
            "prompt": list(ids),
            "max_tokens": self.limit(prompt),
            "return_token_ids": True,
        }
        body |= {"stop_token_ids": [self.end_id]} if self.end_id is not None else {}
        if self.about:
            asked = {"ticket": secrets.token_hex(12)}
            asked |= self.spans(pairs) if pairs else {}
            body["kv_transfer_params"] = {NAME: asked}
        return body

    def messages(self, prompt: Prompt) -> list[dict[str, str]]:
        return []  # prompts are sent as token ids

    def spans(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        store = self.filled.store
        names = [{"key": store.key(*pair), "length": len(pair[1])} for pair in pairs]
        said = {"strategy": store.identity["strategy"], "spans": names}
        return said | {"fingerprint": store.fingerprint["digest"]}

    def read_reply(
        self,
        answer: dict[str, Any],
        num_tokens: int,
        pairs: Sequence[Pair],
        sources: tuple[str, ...],
        seconds: dict[str, float],
    ) -> Reply:
        """
        Raises:
            Refused: fewer tokens were taken from KV than were named.
        """
        ids, about = answer["choices"][0]["token_ids"], told(answer)
        expected, taken = sum(len(keep) for _, keep in pairs), stated(about, "kv_tokens")
        if taken != expected:
            raise Refused(
                f"the server took {taken} of {expected} tokens from the KV of {len(pairs)} logs; "
                f"{CONFIG}",
                200,
            )
        reused = max(0, stated(about, "cached") - expected)
        self.tally(requests=1, prompt_tokens=num_tokens, new_tokens=len(ids), kv_tokens=expected)
        self.tally(computed_tokens=num_tokens - expected - reused)
        return Reply(
            self.chat.text(ids[:-1] if ids[-1:] == [self.end_id] else ids),
            prompt_tokens=num_tokens,
            cached_tokens=expected,
            new_tokens=len(ids),
            kv_bytes=expected * stated(self.about, "bytes_per_token"),
            sources=sources,
            seconds=seconds,
            reused_tokens=reused,
        )

    def stats(self) -> dict[str, Counts]:
        found = super().stats()
        return found | {"kv": dict(self.filled.store.counts) if self.filled else {}}

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request with token ids; a failure that vLLM does not explain is asked for.

        Raises:
            Transient, Refused: it failed for good.
            GivenUp: no request can succeed.
        """
        ticket = body.get("kv_transfer_params", {}).get(NAME, {}).get("ticket", "")

        def explain(error: Transient) -> None:
            reason = self.why(ticket) if ticket and error.status == 500 else ""
            if reason:
                raise Refused(f"{self.base_url}: {reason}", error.status) from None

        try:
            url = f"{self.base_url}/completions"
            return self.client.ask(url, body, self.headers, checked, explain)
        except Refused as error:
            self.tally(refused=1)
            if error.status in HOPELESS:
                raise GivenUp(f"{error}; {HOPELESS[error.status]}") from None
            raise

    def why(self, ticket: str) -> str:
        """Why a request failed, as the connector remembers; empty if it does not."""
        try:
            body = self.probe({"why": ticket})
            answer = self.client.ask(f"{self.base_url}/completions", body, self.headers, checked)
        except HttpError:
            return ""
        reason = told(answer).get("reason")
        return reason if isinstance(reason, str) else ""

    def probe(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A request of one token, for what the connector says at its end."""
        params = {"kv_transfer_params": {NAME: asked}}
        shape = {"model": self.name, "prompt": [0], "max_tokens": 1, "temperature": 0}
        return shape | {"return_token_ids": True} | params


def told(answer: dict[str, Any]) -> dict[str, Any]:
    """What the connector says of a request; nothing where there is none."""
    params = answer.get("kv_transfer_params")
    found = params.get(NAME) if isinstance(params, dict) else None
    return found if isinstance(found, dict) else {}


def checked(answer: Any) -> dict[str, Any]:
    """
    Raises:
        Transient: no token ids.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    ids = choice.get("token_ids") if isinstance(choice, dict) else None
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise Transient(f"the server answered without token ids: {clip(answer)}")
    return answer
