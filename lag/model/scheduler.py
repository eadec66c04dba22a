"""Many prompts in flight at one model: a row that ends makes room at once for the next prompt.

A row does not depend on what else is in flight. What a question's next prompt begins with, its last
one began with mostly too, and its first one begins with rules like any other's: the keys and values
of a beginning are taken over, not computed again.
"""

import logging
import time
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lag.kv.cache import PrefilledRows
from lag.kv.forward import UNBOUNDED
from lag.kv.sequence import ReusedPrefix, SequencePlan
from lag.model.chat import Pieces
from lag.model.decoder import Decoder, Prefill
from lag.model.drafts import Costs, Drafter, written
from lag.model.kv_source import KVSource
from lag.model.loaded import LoadedModel
from lag.model.request import Item, Request, items, logs_among, refilled, shared, shared_ids
from lag.model.sampling import Sampling, choose
from lag.prompts import Prompt
from lag.records import Ended, Reply

logger = logging.getLogger(__name__)
PARTS = ("store", "prefill", "decode")
OPENINGS = 8  # kept at once; a run has one or two
Entering = tuple[list[Request], Prefill]


class Scheduler:
    """Prompts in flight, each under a ticket: a question, of which one prompt is asked at a time.

    After a reply the next prompt of a ticket is to be submitted before the next step; the keys and
    values of a ticket without one are given up.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        kv: KVSource,
        sampling: Sampling,
        slots: int,
        reuse: bool = True,
        draft: str = "logs",
    ):
        """
        slots: rows at once; 1 for a model that keeps more than keys and values. Prompts enter when
            a quarter of them is free: computed together they cost less than one by one.
        reuse, draft: whether a prompt takes over its beginning, and what its replies are guessed
            from: see `LLM`.
        """
        self.loaded, self.kv, self.sampling = loaded, kv, sampling
        self.decoder = Decoder(loaded.model, kv.rotator, slots)
        self.reuse = reuse and self.decoder.plain
        self.slots = self.decoder.slots
        if self.slots < slots:
            kind = loaded.model.config.model_type
            logger.warning("%s keeps a state that batches would change: one prompt at a time", kind)
        self.waiting: deque[Request] = deque()
        self.rows: list[Request] = []  # of the decoder; one that ended stays until the next step
        self.entering: deque[Entering] = deque()  # beside them
        self.mark = 0.0
        self.openings: dict[tuple[Item, ...], ReusedPrefix] = {}
        costs = Costs.of(loaded.model, padded=self.decoder.llama is None)
        self.drafter = Drafter(draft, costs, loaded.end_ids)

    def __len__(self) -> int:
        alive = sum(not request.ended for request in self.rows)
        return len(self.waiting) + len(self._entering()) + alive

    def submit(self, ticket: Hashable, prompt: Prompt) -> None:
        self.waiting.append(self._request(ticket, prompt))

    def close(self) -> None:
        """Give up all prompts, and the memory that they took."""
        self.waiting.clear()
        self.entering.clear()
        self.openings.clear()
        self.rows = []
        self.decoder.arrange([])

    def _request(self, ticket: Hashable, prompt: Prompt) -> Request:
        most = self.loaded.max_new_tokens
        limit = min(prompt.max_new_tokens or most, most)
        seconds = dict.fromkeys(PARTS, 0.0)
        draw = self.sampling.sampler(prompt.key)
        request = Request(ticket, prompt, limit, draw, seconds=seconds)
        if self.loaded.even_length < UNBOUNDED:
            request.alone = len(self._read(request)) + limit > self.loaded.even_length
        return request

    @torch.inference_mode()
    def step(self) -> list[Ended]:
        """Let in what there is room for, or a part of it; unless something ended, write a token each.

        Returns what ended: tickets with a reply, or with the exception that it ended in.
        """
        self.mark = time.perf_counter()
        done = self._refill()
        if not done and self.rows:
            done = self._advance()
        return [(request.ticket, request.error or self._reply(request)) for request in done]

    def _reply(self, request: Request) -> Reply:
        ids = request.ids[:-1] if request.ids[-1] in self.loaded.end_ids else request.ids
        return replace(
            request.reply,
            text=self.loaded.chat.text(ids),
            new_tokens=len(request.ids),
            near_ties=request.near_ties,
            drafted_tokens=request.drafted,
            accepted_tokens=request.accepted,
            seconds=request.seconds,
        )

    def _choose(
        self, logits: Tensor, requests: Sequence[Request], drafts: Sequence[Sequence[int]] = ()
    ) -> list[int]:
        """Write the next tokens of every request; returns how many."""
        counts = choose(logits, requests, self.loaded.end_ids, drafts)
        self.loaded.new_tokens += sum(counts)
        for request, count in zip(requests, counts, strict=True):
            new = request.ids[len(request.ids) - count :]
            if request.draft is None and self.drafter.kind != "off":
                request.draft = self.drafter.begin(*self._near(request))
            self.drafter.follow(request.draft, new, request.ended)
        return counts

    def _near(self, request: Request) -> tuple[str, list[str]]:
        """What a reply may go on with: its prompt, and the texts that this names."""
        pieces, read = self._read(request), self.loaded.chat.content_ids
        logs = sum((ids for _, ids in logs_among(request.items)), ())
        tokens = (item for item in request.items if isinstance(item, int))
        return written((*pieces.head, *logs, *tokens)), [
            written(read(text)) for text in request.prompt.drafts
        ]

    def _refill(self) -> list[Request]:
        """Replace the rows that ended by those that wait; returns what ended on the way.

        While others write, what comes is computed a forward at a time, so that they go on between.
        """
        leaving = [row for row, request in enumerate(self.rows) if request.ended]
        self._hand_on(leaving)
        alive, begun = len(self.rows) - len(leaving), self._entering()
        coming = self._next(alive + len(begun))
        self._begin(coming)
        for row in leaving:
            self._keep_apart(self.rows[row].ticket)
        parts = self._prefilled(all_at_once=not alive)
        entered = [request for requests, _ in parts for request in requests]
        done = [request for request in begun + coming if request.ended]
        if not entered and not leaving:
            return done
        order = refilled(len(self.rows), leaving, len(entered))
        rows = self.rows + entered
        self.rows = [rows[row] for row in order]
        try:
            self.decoder.arrange(order, PrefilledRows.merged([one.started for _, one in parts]))
        except Exception as error:  # there may be no memory for so many rows
            return done + self._start_over(error)
        self._charge(entered, "prefill")
        return done

    def _entering(self) -> list[Request]:
        return [request for requests, _ in self.entering for request in requests]

    def _next(self, alive: int) -> list[Request]:
        """Who may enter beside so many rows."""
        if any(request.alone for request in self.rows if not request.ended):
            return []
        free = max(self.slots - alive, 0)
        if alive and free < self.slots // 4:
            return []
        found: list[Request] = []
        while self.waiting and len(found) < free and not (found and found[0].alone):
            if self.waiting[0].alone and (alive or found):
                break
            found.append(self.waiting.popleft())
        return found

    def _begin(self, coming: list[Request]) -> None:
        """Let prompts enter: what is there of them is placed now, and the rest computed from now on."""
        try:
            self.entering += self._placed(coming) if coming else ()
        except Exception as error:
            self._one_by_one(coming, error)

    def _one_by_one(self, coming: list[Request], error: Exception) -> None:
        """After a failure of prompts that were to be computed together; alone it is their own."""
        if len(coming) == 1:
            coming[0].fail(error)
            return
        logger.warning("a batch of %d failed (%s); asking one by one", len(coming), error)
        for request in coming:
            self._begin([request])

    def _placed(self, coming: list[Request]) -> list[Entering]:
        """Which prompts are computed together."""
        pieces = [self._read(request) for request in coming]
        rows, replies = self.kv.place([request.prompt for request in coming], pieces)
        self._charge(coming, "store")
        begun = [self._longest(request) for request in coming]
        rows = [replace(row, kept=prefix) for prefix, row in zip(begun, rows, strict=True)]
        for request, row, reply in zip(coming, rows, replies, strict=True):
            request.reply = replace(reply, reused_tokens=row.kept.tokens if row.kept else 0)
        found = self.decoder.begin(rows)
        for request in coming:
            request.prefix = None  # it has its own by now
        self._charge(coming, "prefill")
        return [([coming[row] for row in one.members], one) for one in found]

    def _prefilled(self, all_at_once: bool) -> list[Entering]:
        """Compute prompts up to their first token, or by one forward; returns who is that far."""
        found = []
        while self.entering:
            requests, begun = self.entering[0]
            try:
                logits = self.decoder.go_on(begun)
            except Exception as error:
                self.entering.popleft()
                self._one_by_one(requests, error)
                continue
            if logits is not None:
                found.append(self.entering.popleft())
                self._choose(logits, requests)
            self._charge(requests, "prefill")
            if not all_at_once:
                break
        return found

    def _longest(self, request: Request) -> ReusedPrefix | None:
        """The longest beginning of a prompt that is there already, and fits its angles."""
        even = len(self._read(request)) <= self.loaded.even_length
        found = [request.prefix, self._opening(request)] if self.reuse and even else []
        return max(filter(None, found), key=lambda prefix: prefix.length, default=None)

    def _opening(self, request: Request) -> ReusedPrefix | None:
        """What all prompts like this one begin with; computed alone, so that all find the same."""
        head = self._read(request).head
        logs = logs_among(request.items)
        notes = shared_ids(request.prompt, self._read(request))
        known = head + notes if logs or notes else self.loaded.chat.opening(request.prompt)
        opening = request.items[: shared(known, request.items, len(head) if logs else 0)]
        if opening and opening not in self.openings:
            _, started = self.decoder.start([SequencePlan(tail=opening)])
            layers = range(len(started.caches[0].layers))
            pairs = tuple(started.layer(index)[0] for index in layers)
            self.openings[opening] = ReusedPrefix(pairs, tokens=len(opening)).copied()
            while len(self.openings) > OPENINGS:
                del self.openings[next(iter(self.openings))]
        return self.openings[opening] if opening else None

    def _read(self, request: Request) -> Pieces:
        if request.pieces is None:
            request.pieces = self.loaded.chat.encode(request.prompt)
            request.items = items(request.prompt, request.pieces)
        return request.pieces

    def _hand_on(self, leaving: Sequence[int]) -> None:
        """Give what a row leaves to the next prompt of its ticket, where it lies."""
        waiting = {request.ticket: request for request in self.waiting if self.reuse}
        for number in leaving:
            before = self.rows[number]
            request = waiting.get(before.ticket)
            if request and before.reply:
                head = len(self._read(request).head)
                least = head if logs_among(request.items) else 0
                count = shared(before.items, request.items, least)
                request.prefix = self._prefix(number, request.items[:count])

    def _keep_apart(self, ticket: Hashable) -> None:
        """Copy what was handed on to a prompt that goes on waiting: its memory is used again."""
        for request in self.waiting:
            if request.ticket == ticket and request.prefix:
                request.prefix = request.prefix.copied()

    def _prefix(self, number: int, beginning: Sequence[Item]) -> ReusedPrefix | None:
        logs = logs_among(beginning)
        tokens = len(beginning) - len(logs)
        length = tokens + sum(len(keep) for _, keep in logs)
        if not length:
            return None
        tokens += sum(min(len(keep), self.kv.recompute) for _, keep in logs)
        return ReusedPrefix(self.decoder.beginning(number, length), len(logs), tokens)

    def _advance(self) -> list[Request]:
        """Write the next token of every row, and of its draft what is right; returns what ended."""
        if full := self._full():
            return full
        drafts = self._drafts()
        fed = [[request.ids[-1], *draft] for request, draft in zip(self.rows, drafts)]
        try:
            logits = self.decoder.extend(fed)
        except Exception as error:
            return self._start_over(error)
        counts = self._choose(logits, self.rows, drafts)
        refused = [len(ids) - max(count, 1) for ids, count in zip(fed, counts)]
        if any(refused):
            self.decoder.take_back(refused)
        self._charge(self.rows, "decode")
        return [request for request in self.rows if request.ended]

    def _drafts(self) -> list[list[int]]:
        """Of every row what it probably goes on with, as far as to ask for that pays."""
        if self.drafter.kind == "off" or not self.decoder.takes_drafts:
            return [[] for _ in self.rows]
        most = min(self.decoder.max_length, self.loaded.even_length)
        room = [
            min(request.left, most - length) - 1
            for request, length in zip(self.rows, self.decoder.lengths, strict=True)
        ]
        return self.drafter.propose([request.draft for request in self.rows], room)

    def _full(self) -> list[Request]:
        """End those that have reached the model's length."""
        most = self.decoder.max_length
        full = [d for d, n in zip(self.rows, self.decoder.lengths, strict=True) if n >= most]
        for request in full:
            request.fail(self.decoder.full())
        return full

    def _start_over(self, error: Exception) -> list[Request]:
        """After a failure in the midst of a batch: ask each row again, alone; one row has failed."""
        rows = [request for request in self.rows if not request.ended] + self._entering()
        self.rows = []
        self.entering.clear()
        self.decoder = Decoder(self.loaded.model, self.kv.rotator, self.decoder.slots)
        if len(rows) == 1:
            rows[0].fail(error)
            return rows
        logger.warning("a batch of %d failed (%s); asking one by one", len(rows), error)
        again = [self._request(request.ticket, request.prompt) for request in rows]
        for request, before in zip(again, rows, strict=True):
            request.alone, request.seconds = True, before.seconds
        self.waiting.extendleft(reversed(again))
        return []

    def _charge(self, requests: Sequence[Request], part: str) -> None:
        """Share the seconds since the last charge, so that sums are what the clock showed."""
        if requests:
            now = time.perf_counter()
            for request in requests:
                request.seconds[part] += (now - self.mark) / len(requests)
            self.mark = now
