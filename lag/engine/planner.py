"""The scheduler's side: admit requests, plan loads, remember why one was refused.

Nothing here raises: an exception beside the scheduler ends the engine for everybody. A request that
is refused asks for one token that nobody can load, under a salt of its own, and fails alone.
"""

import logging
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from lag.engine.asked import NAME, Asked, Load, read_asked, ticket_of

logger = logging.getLogger(__name__)
REMEMBERED = 4096  # reasons; the oldest goes first


@dataclass(slots=True)
class Admitted:
    """A request that names something of ours, until it ends.

    refusal: why it is to fail; empty if it is not.
    seen: tokens of its prompt that the engine has, as last told.
    cached, loaded: those that it had when it began, and those that were loaded from spans.
    """

    asked: Asked
    refusal: str = ""
    seen: int = 0
    cached: int = 0
    loaded: int = 0
    begun: bool = False

    @property
    def wanted(self) -> int:
        """Tokens from outside; of a refused request one, which nobody has."""
        return 1 if self.refusal else self.asked.num_tokens


class Planner:
    """What the requests of one engine ask of the log store.

    about: what a client may know of the spans that are served here.
    """

    def __init__(self, digest: str, about: dict[str, Any]):
        self.digest, self.about = digest, about
        self.secret = secrets.token_hex(16)
        self.requests: dict[str, Admitted] = {}
        self.tickets: OrderedDict[str, str] = OrderedDict()  # by request, as long as REMEMBERED
        self.reasons: OrderedDict[str, str] = OrderedDict()  # by ticket
        self.loads: list[Load] = []
        self.refused: list[str] = []

    def admit(self, request: Any) -> None:
        """Read what a new request asks, and part its blocks from those of others."""
        params = getattr(request, "kv_transfer_params", None)
        if params is None:
            return
        id, ticket = request.request_id, ticket_of(params)
        try:
            asked, refusal = read_asked(params, request.num_prompt_tokens, self.digest), ""
            refusal = unservable(request) if asked.spans else ""
        except Exception as error:  # whatever it is, this request fails and no other
            asked, refusal = Asked(), " ".join(str(error).split())
        self.requests[id] = Admitted(asked, refusal)
        remember(self.tickets, id, ticket)
        if refusal:
            self.note(id, refusal)
            salt = secrets.token_hex(16)
        else:
            salt = asked.salt(self.secret, self.digest, request.cache_salt)
        if refusal or asked.spans:
            request.cache_salt = salt
            request.skip_reading_prefix_cache = False  # it would skip what is loaded as well
            request.block_hashes.clear()
            request.update_block_hashes()

    def note(self, id: str, reason: str) -> None:
        """Remember why a request fails."""
        logger.warning("request %s fails: %s", id, reason)
        if ticket := self.tickets.get(id):
            remember(self.reasons, ticket, reason)

    def matched(self, id: str, cached: int) -> int:
        """How many tokens of a prompt are to be loaded, behind those that the engine has."""
        found = self.requests.get(id)
        if found is None:
            return 0
        found.seen = cached
        return max(0, found.wanted - cached)

    def plan(self, request: Any, blocks: list[int], num_tokens: int) -> None:
        """Order the load of a request that has its blocks."""
        found = self.requests.get(request.request_id)
        if found is None:
            return
        if not found.begun:  # one that was interrupted begins again; that is not its client's
            found.begun, found.cached, found.loaded = True, found.seen, num_tokens
        if num_tokens <= 0:
            return
        if found.refusal:
            self.refused.append(request.request_id)
            return
        asked = found.asked
        ids = tuple(request.prompt_token_ids[: asked.num_tokens])
        start = asked.num_tokens - num_tokens
        load = Load(request.request_id, asked.strategy, asked.spans, ids, start, tuple(blocks))
        self.loads.append(load)

    def taken(self) -> tuple[tuple[Load, ...], tuple[str, ...]]:
        """What was ordered since the last call: loads, and requests that are to fail."""
        loads, refused = tuple(self.loads), tuple(self.refused)
        self.loads, self.refused = [], []
        return loads, refused

    def finished(self, id: str) -> dict[str, Any] | None:
        """What the client is told at the end of a request; None if it asked for nothing of ours."""
        found = self.requests.pop(id, None)
        self.loads = [load for load in self.loads if load.request != id]
        self.refused = [other for other in self.refused if other != id]
        if found is None:
            return None
        asked = found.asked
        told = {"kv_tokens": asked.num_tokens, "loaded": found.loaded, "cached": found.cached}
        told |= {"about": self.about} if asked.about else {}
        told |= {"reason": self.reasons.get(asked.why, "")} if asked.why else {}
        return {NAME: told}


def unservable(request: Any) -> str:
    """Why a request with spans cannot be served, whatever they are; empty if it can."""
    reasons = {
        "prompt log-probabilities need the tokens that spans stand for computed; leave them out": (
            request.skip_reading_prefix_cache
        ),
        "spans need a prompt of token ids": request.prompt_token_ids is None,
        "spans and a LoRA adapter are untested together; leave one out": request.lora_request,
        "spans and images are untested together; leave one out": request.mm_features,
        "spans in a session that streams its input are untested": request.resumable,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def remember(table: OrderedDict[str, str], name: str, value: str) -> None:
    table[name] = value
    table.move_to_end(name)
    while len(table) > REMEMBERED:
        table.popitem(last=False)
