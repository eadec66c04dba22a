"""What a client asks of the log store, read from a request's parameters, and never trusted.

    {"lag": {"strategy": "log_kv", "spans": [{"key": "<64 hex digits>", "length": 57}, ..]}}

The spans' tokens are the first of the prompt, in this order. Clients name keys, which say nothing of
where files lie. `ticket` is a client's name for its request: `{"lag": {"why": TICKET}}` asks later
what was wrong with it, `{"lag": {"about": true}}` whose spans are served here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lag.files import digest_of
from lag.paths import Strategy

NAME = "lag"
KEY = re.compile(r"[0-9a-f]{64}", re.ASCII)
TICKET = re.compile(r"[\w-]{1,64}", re.ASCII)
MOST_SPANS = 4096
KNOWN = {"strategy", "spans", "fingerprint", "ticket", "why", "about"}
ASKED = f'expected {{"{NAME}": {{"strategy": .., "spans": [{{"key": .., "length": ..}}, ..]}}}}'


@dataclass(frozen=True, slots=True)
class SpanName:
    """A span by its key, and how many tokens of the prompt it stands for."""

    key: str
    length: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request asks: spans in the order of the prompt, or for words only.

    why: the ticket of a request whose reason is asked for. about: whose spans are served.
    """

    spans: tuple[SpanName, ...] = ()
    strategy: str = ""
    ticket: str = ""
    why: str = ""
    about: bool = False

    @property
    def num_tokens(self) -> int:
        return sum(span.length for span in self.spans)

    def salt(self, secret: str, digest: str, given: str | None) -> str:
        """What parts the cached blocks of these spans from those of the same visible tokens.

        secret: of this engine, so that no client can name a salt of ours.
        digest: of the fingerprint. given: the salt that the client asks for itself.
        """
        names = [[span.key, span.length] for span in self.spans]
        return digest_of([secret, digest, self.strategy, names, given])


def ticket_of(params: Any) -> str:
    """The ticket, however wrong the rest is; empty if there is none."""
    said = params.get(NAME) if isinstance(params, dict) else None
    ticket = said.get("ticket") if isinstance(said, dict) else None
    return ticket if isinstance(ticket, str) and TICKET.fullmatch(ticket) else ""


def read_asked(params: Any, num_prompt_tokens: int, digest: str) -> Asked:
    """
    digest: of the fingerprint that is served.

    Raises:
        ValueError: nonsense, or the spans of another model; says what was expected.
    """
    said = params.get(NAME) if isinstance(params, dict) else None
    if not isinstance(said, dict):
        raise ValueError(f"kv_transfer_params without an object '{NAME}'; {ASKED}")
    if unknown := sorted(map(str, said.keys() - KNOWN)):
        raise ValueError(f"unknown parameters {', '.join(unknown)[:200]}; {ASKED}")
    if said.get("fingerprint", digest) != digest:
        raise ValueError(
            f"KV of another model is asked for ({str(said['fingerprint'])[:24]!r}); this engine "
            f"serves {digest}: start it with the --vllm-config of that model"
        )
    about, why = said.get("about", False), said.get("why", "")
    if not isinstance(about, bool) or not (why == "" or _is(TICKET, why)):
        raise ValueError("about: expected true, why: the ticket of an earlier request")
    asked = Asked(*_spans(said), ticket_of(params), why, about)
    if asked.num_tokens >= num_prompt_tokens:
        raise ValueError(
            f"the spans have {asked.num_tokens} tokens, the prompt {num_prompt_tokens}; expected "
            "at least one token of the prompt behind them"
        )
    return asked


def _spans(said: dict[str, Any]) -> tuple[tuple[SpanName, ...], str]:
    spans, strategy = said.get("spans", []), said.get("strategy", "")
    if not isinstance(spans, list) or len(spans) > MOST_SPANS:
        raise ValueError(f"spans: expected a list of at most {MOST_SPANS}; {ASKED}")
    names = tuple(_span(number, one) for number, one in enumerate(spans))
    if not names:
        return (), ""
    if not isinstance(strategy, str):
        raise ValueError(f"strategy: expected a name such as 'log_kv.int8'; {ASKED}")
    if Strategy.parse(strategy).sink:
        raise ValueError(f"strategy {strategy!r}: KV behind a sink is not served; use --sink 0")
    return names, strategy


def _span(number: int, said: Any) -> SpanName:
    if isinstance(said, dict) and said.keys() == {"key", "length"}:
        key, length = said["key"], said["length"]
        if _is(KEY, key) and type(length) is int and 0 < length < 1 << 30:
            return SpanName(key, length)
    raise ValueError(
        f"span {number}: expected {{'key': 64 hexadecimal digits, 'length': tokens}}, "
        f"not {str(said)[:100]}"
    )


def _is(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and bool(pattern.fullmatch(value))


@dataclass(frozen=True, slots=True)
class Load:
    """The order to place spans for one request.

    ids: the prompt's tokens that they stand for. start: tokens of these that the engine has.
    blocks: of the engine's cache, from the prompt's first token on.
    """

    request: str
    strategy: str
    spans: tuple[SpanName, ...]
    ids: tuple[int, ...]
    start: int
    blocks: Sequence[int]
