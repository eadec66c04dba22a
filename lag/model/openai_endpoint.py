"""Any OpenAI-compatible server on the model's side of the loop: chat completions over HTTP.

Keys and values do not travel, so only text modes run here, with logs in the user's turn. The key
comes from the environment alone, and goes nowhere but into the header of a request. The server
batches by itself: each prompt in flight is a request in a thread of its own.
"""

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lag.http import Client, GivenUp, Refused, TooLarge, Transient, check_url, from_environment
from lag.json_checks import clip
from lag.modes import Mode
from lag.prompts import Note, Prompt
from lag.records import Counts, Ended, Reply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast as Pretrained

logger = logging.getLogger(__name__)
HOSTED = "https://api.openai.com/v1"
KEY, URL = "OPENAI_API_KEY", "OPENAI_BASE_URL"
ROOM = 1 << 30  # tokens: a server that does not say is asked, and refuses what is too long
LONGEST_TOKEN = 128  # characters: the runs of spaces in the vocabularies of served models

HOPELESS = {
    401: f"set {KEY} to a valid key",
    403: f"the key in {KEY} may not use this model",
    404: "is the model's name the server's, and does --base-url end where the API begins (/v1)?",
}


# What tokenizers of served models read as control tokens. A server tokenises the rendered chat, so
# that such a string in a document would end a turn or begin one.
CONTROL = re.compile(
    r"<\|[^<>\s]{1,60}\|>|<｜[^<>]{1,60}｜>|</?s>|<(?:bos|eos|pad|unk|mask|sep|cls)>"
    r"|<(?:start|end)_of_(?:turn|text|image)>|\[/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS)\]|<</?SYS>>"
)


def escaped(text: str, control: re.Pattern[str] = CONTROL) -> tuple[str, int]:
    """A space behind the first character of every control token, and how many there were."""
    return control.subn(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def control_of(tokens: Sequence[str]) -> re.Pattern[str]:
    """The usual control tokens, and those of a tokenizer that is known."""
    own = [re.escape(token) for token in sorted(tokens, key=len, reverse=True) if len(token) > 1]
    return re.compile("|".join([*own, CONTROL.pattern]))


def find_key(base_url: str) -> str:
    """The key from the environment; only the hosted default needs one."""
    key = from_environment(KEY)
    if not key and base_url == HOSTED:
        raise ValueError(f"{HOSTED} wants a key; set {KEY}, or give the --base-url of your server")
    if not key.isascii() or any(mark.isspace() for mark in key):
        raise ValueError(f"{KEY} holds characters that no key has; set it anew")
    return key


def text_of(content: object) -> str | None:
    """A message's text, or the texts of its parts; None if it holds none."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    texts = [text for text in texts if isinstance(text, str)]
    return "".join(texts) if texts else None


def read_text(answer: object) -> str:
    """The text of an answer's first choice; none at all is never taken for an empty one."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    text = text_of(message.get("content")) if isinstance(message, dict) else None
    if text is None:
        raise Transient(f"the server answered without a text: {clip(answer)}")
    if choice.get("finish_reason") == "content_filter":
        raise Refused("the server withheld its reply (content_filter)")
    return text


class ThreadedRequests:
    """Prompts that are asked at once, each in a thread of its own."""

    def __init__(
        self, reply: Callable[[Prompt], Reply], stop: Callable[[], None], most_at_once: int
    ):
        """
        reply: asks one prompt, from any thread.
        stop: lets no request wait for another try.
        """
        self.reply, self.stop = reply, stop
        self.pool = ThreadPoolExecutor(most_at_once)
        self.asked: dict[Future[Reply], Hashable] = {}

    def submit(self, ticket: Hashable, prompt: Prompt) -> None:
        self.asked[self.pool.submit(self.reply, prompt)] = ticket

    def step(self) -> list[Ended]:
        """Wait until something ends; a server that is lost comes last, behind what ended well."""
        done: set[Future[Reply]] = set()
        while not done:  # Python may see a Ctrl-C that comes as it begins to wait only afterwards
            done, _ = wait(self.asked, 1.0, FIRST_COMPLETED)
        ended = [(self.asked.pop(future), outcome(future)) for future in done]
        return sorted(ended, key=lambda one: isinstance(one[1], GivenUp))

    def close(self) -> None:
        """No thread may go on trying behind our back."""
        if self.asked:
            self.stop()
        self.pool.shutdown(wait=False, cancel_futures=True)


def outcome(future: Future[Reply]) -> Reply | Exception:
    """A reply, or what it ended in; what is no failure of a request, an interrupt say, is raised."""
    error = future.exception()
    if error is not None and not isinstance(error, Exception):
        raise error
    return error or future.result()


class Endpoint:
    """A served model: `records.LanguageModel`. Safe to use from threads.

    tokenizer: of the served model, if it is known here: without one nothing can be counted before
        it is sent, so that `room` is unbounded and budgets in tokens are refused.
    """

    def __init__(
        self,
        base_url: str,
        name: str,
        client: Client,
        tokenizer: "Pretrained | None" = None,
        max_new_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int = 1234,
        concurrency: int = 8,
    ):
        self.base_url = self.device = check_url(base_url, "--base-url")
        self.name, self.client = name, client
        self.key = find_key(self.base_url)
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed
        self.concurrency = concurrency
        if tokenizer:
            from lag.model.chat import Chat

        self.chat = Chat(tokenizer, "user") if tokenizer else None
        self.control = control_of(list(self.chat.control)) if self.chat else CONTROL
        self.room = room_of(tokenizer, max_new_tokens) if tokenizer else ROOM
        self.counts: Counter[str] = Counter()
        self.lock = Lock()

    def fingerprint(self, cache: Path | None = None) -> dict[str, str]:
        """What a server loads cannot be seen from here; its name for it is all there is."""
        return {"digest": f"served as {self.name}"}

    def open_store(self, folder: Path, mode: Mode) -> None:
        raise ValueError(f"{mode.name} needs keys and values; use --provider hf or vllm")

    def can_be_encoded(self, note: Note) -> bool:
        return not note.kv

    def make_kv(self, notes: Sequence[Note]) -> int:
        return 0

    def in_flight(self, slots: int) -> ThreadedRequests:
        """So many requests at once."""
        return ThreadedRequests(self.reply, self.stop, slots)

    @property
    def new_tokens(self) -> int:
        return self.counts["new_tokens"]

    def stats(self) -> dict[str, Counts]:
        """What the server was asked, so far as this process knows."""
        return {"served": dict(self.counts) | {"failed_tries": self.client.retried}}

    def num_tokens(self, text: str) -> int:
        return len(self.chat.content_ids(text)) if self.chat else 0

    def count(self, prompt: Prompt) -> int:
        """How many tokens a prompt has; 0 where no tokenizer is known."""
        return len(self.chat.encode(prompt)) if self.chat else 0

    def generate(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """Reply to every prompt, one request after the other.

        Raises:
            Transient, Refused: a request failed for good.
            GivenUp: no request can succeed.
        """
        return [self.reply(prompt) for prompt in prompts]

    def reply(self, prompt: Prompt) -> Reply:
        start, limit = time.perf_counter(), self.limit(prompt)
        answer = self.ask(self.body(prompt))
        text = read_text(answer)
        if len(text) > limit * LONGEST_TOKEN:
            raise TooLarge(f"a reply of {len(text)} characters, where {limit} tokens could be")
        return self.costed(prompt, text, answer.get("usage"), time.perf_counter() - start)

    def costed(self, prompt: Prompt, text: str, usage: object, seconds: float) -> Reply:
        """The reply with what the server says it cost; what it does not say is counted here."""
        asked = stated(usage, "prompt_tokens") or self.count(prompt)
        said = stated(usage, "completion_tokens") or self.num_tokens(text)
        details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
        self.tally(requests=1, prompt_tokens=asked, new_tokens=said, without_usage=not usage)
        cached = stated(details, "cached_tokens")
        return Reply(text, asked, cached, said, seconds={"decode": seconds})

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; raises as `generate` does."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            url = f"{self.base_url}/chat/completions"
            return self.client.ask(url, body, headers, checked)
        except Refused as error:
            self.tally(refused=1)
            if error.status in HOPELESS:
                raise GivenUp(f"{error}; {HOPELESS[error.status]}") from None
            raise

    @cached_property
    def continues(self) -> bool:
        """Whether the server goes on with a model's turn that is begun for it.

        Told by its own counts of two prompts: a turn that goes on is longer by the one token that
        it begins with; one that was closed, with another behind it, by the ends of turns as well.

        Raises:
            GivenUp: no answer at all.
        """
        bare = Prompt("Write one letter.", key="probe", max_new_tokens=1)
        lengths = []
        try:
            for prompt in (bare, replace(bare, prefill="a")):
                self.tally(probes=1)
                usage = self.ask(self.body(prompt)).get("usage")
                lengths.append(stated(usage, "prompt_tokens"))
        except Refused:  # it knows no such request
            return False
        except Transient as error:
            raise GivenUp(f"--prefill auto: {error}; see to the server, or name one") from None
        return 0 < lengths[0] == lengths[1] - 1

    def stop(self) -> None:
        """Let no request wait for another try: the run is over."""
        self.client.stopped.set()

    def limit(self, prompt: Prompt) -> int:
        """How many tokens a reply may have."""
        return min(prompt.max_new_tokens or self.max_new_tokens, self.max_new_tokens)

    def body(self, prompt: Prompt) -> dict[str, Any]:
        hosted = urlsplit(self.base_url).hostname == urlsplit(HOSTED).hostname
        body = {"model": self.name, "messages": self.messages(prompt), "stream": False}
        body["max_completion_tokens" if hosted else "max_tokens"] = self.limit(prompt)
        sample = re.search(r"#(\d+) \d+", prompt.key)  # samples of one prompt are to differ
        seed = self.seed + int(sample[1] if sample and self.temperature else 0)
        body |= {"temperature": self.temperature, "seed": seed}
        if prompt.prefill:  # vLLM's and SGLang's names for it
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body

    def messages(self, prompt: Prompt) -> list[dict[str, str]]:
        assert not prompt.notes, "notes outside the turns cannot be sent; --layout user has none"
        turns = ("system", prompt.system), ("user", prompt.user), ("assistant", prompt.prefill)
        parts = [(role, *escaped(text, self.control)) for role, text in turns]
        found = sum(count for *_, count in parts)
        if found:
            logger.debug("%s: %d strings like control tokens were escaped", prompt.key, found)
        self.tally(escaped=found)
        return [{"role": role, "content": text} for role, text, _ in parts if text]

    def tally(self, **more: int) -> None:
        with self.lock:
            self.counts.update({name: int(count) for name, count in more.items()})


def stated(usage: object, name: str) -> int:
    """A count that a server states; 0 where it states none, or nonsense."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and value > 0 else 0


def checked(answer: object) -> dict[str, Any]:
    read_text(answer)
    return answer


def room_of(tokenizer: "Pretrained", max_new_tokens: int) -> int:
    """What the tokenizer says of the model's length, less the reply."""
    length = int(min(tokenizer.model_max_length, ROOM))
    if length <= max_new_tokens:
        raise ValueError(
            f"--max-new-tokens {max_new_tokens} leaves no room in a context of {length} tokens"
        )
    return length - max_new_tokens
