"""A batch of sequences in flight: start them, let them join and leave, write token by token.

Every call of a model states its positions and its mask; no row is ever shifted by another row's
padding.

Shapes: B batch, T tokens, H key/value heads, D head dim, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from lag.kv.cache import (
    GrowableCache,
    PrefilledRows,
    empty_like,
    joined,
    memory_of,
    placed,
    with_room,
)
from lag.kv.forward import (
    UNBOUNDED,
    fill,
    logits_of,
    max_positions,
    right_padded,
    spread,
    takes,
)
from lag.kv.llama_step import LlamaStep
from lag.kv.masks import Masks, NextPositions
from lag.kv.recompute import recompute_spans
from lag.kv.rope import KeyRotator
from lag.kv.sequence import SequencePlan, batches, padding_per_forward, tokens_per_forward
from lag.kv.support import even_length, holds_plain_kv


@dataclass(eq=False, slots=True)
class Prefill:
    """Rows that are computed together beside a batch; a long one in several forwards.

    members: which they are of the rows that were begun at once.
    size: how many tokens of a row a forward takes. done: how many of them are computed.
    """

    members: list[int]
    rows: list[SequencePlan]
    cache: DynamicCache
    size: int
    done: int = 0

    @property
    def started(self) -> PrefilledRows:
        """The rows, once all of them are computed."""
        members = list(range(len(self.rows)))
        return PrefilledRows([len(row) for row in self.rows], [members], (self.cache,))


class Decoder:
    """A batch of sequences in flight.

    After every call each row lies contiguous in the cache (see `cache`), `behind` columns off its
    right end: none unless tokens of it were taken back.
    """

    tokens_per_forward: int | None = None  # as the device likes it

    def __init__(self, model: nn.Module, rotator: KeyRotator | None = None, slots: int = 1):
        """
        rotator: from `check_movable`; None means that no row may have spans.
        slots: for how many rows memory is taken once rows join; 1 where rows cannot be padded.
        """
        self.model = model
        self.rotator = rotator
        self.max_length = max_positions(model)  # of this batch: spans may lower it
        self.plain = holds_plain_kv(model)
        self.even_length = even_length(model)
        self.tokens_per_forward = self.tokens_per_forward or tokens_per_forward(model)
        self.padding = padding_per_forward(model)
        self.slots = slots if self.plain else 1
        self.takes_positions = takes(model, "position_ids")
        # Mamba's name for it; an unknown name would be swallowed, and every step start anew
        self.cache_argument = "cache_params" if takes(model, "cache_params") else "past_key_values"
        if not takes(model, self.cache_argument):
            raise ValueError(f"{model.config.model_type} takes no cache; use another model")
        self.masks = Masks.of(model) if self.plain else None
        self.llama = LlamaStep.of(model, self.masks)
        self.cache: DynamicCache | None = None
        self.lengths: list[int] = []
        self.behind: list[int] = []
        self.ahead: NextPositions | None = None  # of the rows as they are
        self.spare: list[tuple[Tensor, Tensor]] = []  # memory of a cache that is gone
        self.angles: tuple[int, list] = 0, []  # of so many positions, per layer

    @torch.no_grad()
    def prefill(self, rows: Sequence[SequencePlan]) -> Tensor:
        """Start a new batch; return the logits (B, V) of each row's last token.

        Raises:
            ValueError: a row is too long or has no tail, or the model cannot take these rows.
        """
        self._give_up()
        logits, started = self.start(rows)
        self._adopt(started)
        return logits

    @torch.no_grad()
    def start(self, rows: Sequence[SequencePlan]) -> tuple[Tensor, PrefilledRows]:
        """Compute rows beside the batch, which stays as it is; logits (B, V) of each last token.

        Raises:
            ValueError: as `prefill`.
        """
        begun = self.begin(rows)
        logits = torch.cat([self.finish(one) for one in begun])
        groups = [one.members for one in begun]
        order = torch.tensor([i for group in groups for i in group]).argsort().tolist()
        caches = tuple(one.cache for one in begun)
        return logits[order], PrefilledRows([len(row) for row in rows], groups, caches)

    @torch.no_grad()
    def begin(self, rows: Sequence[SequencePlan]) -> list[Prefill]:
        """Place what rows have already, and say which of them are going to be computed together.

        Raises:
            ValueError: as `prefill`.
        """
        self._check(rows)
        lengths = [len(row.fresh) for row in rows]
        groups = batches(lengths, self.tokens_per_forward, self.padding)
        return [self._begin(group, [rows[i] for i in group]) for group in groups]

    def finish(self, begun: Prefill) -> Tensor:
        """Compute all that is left of rows; logits (B, V) of each last token."""
        while (logits := self.go_on(begun)) is None:
            pass
        return logits

    def arrange(self, order: Sequence[int], started: PrefilledRows | None = None) -> None:
        """Make row k of the batch what `order[k]` names; the rest leaves.

        order: a row of now, or, counted on from these, one of those started.
        """
        lengths = self.lengths + (started.lengths if started else [])
        only_new = list(order) == list(range(len(self.lengths), len(lengths)))
        if started and only_new and len(order) == self.slots:
            return self._adopt(started)
        if not order:
            return self._give_up()
        behind = self.behind + [0] * len(lengths)
        self.lengths, self.behind = ([of[row] for row in order] for of in (lengths, behind))
        self.ahead = None
        width = max(map(sum, zip(self.lengths, self.behind)))
        if self.cache is None:
            self.cache = empty_like(started.caches[0])
        for index, layer in enumerate(self.cache.layers):
            pairs = started.layer(index) if started else ()
            layer.arrange(order, pairs, width, self.slots)
        self.spare = memory_of(started.caches[-1]) if started else self.spare
        self._close_up()
        return None

    def _adopt(self, started: PrefilledRows) -> None:
        """Go on with rows that were started, in the memory that they were computed in."""
        self._give_up()
        order = torch.tensor([i for group in started.groups for i in group]).argsort().tolist()
        self.lengths, self.behind = started.lengths, [0] * len(order)
        self.cache = joined(started.caches, order)

    def _give_up(self) -> None:
        """Let go of all rows."""
        self.spare = memory_of(self.cache) if self.cache is not None else self.spare
        self.lengths, self.behind, self.cache, self.ahead = [], [], None, None

    def beginning(self, row: int, length: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """Per layer the keys and values (H, T, D) of a row's first tokens, where they lie."""
        start = -self.lengths[row] - self.behind[row]
        own = slice(start, start + length or None)
        return tuple(
            (layer.keys[row, :, own], layer.values[row, :, own]) for layer in self.cache.layers
        )

    def advance(self, tokens: Tensor) -> Tensor:
        """Append one token (B,) to each row; return the logits (B, V) after it.

        Raises:
            ValueError: a row has reached the model's length.
        """
        return self.extend([[token] for token in tokens.tolist()])

    @property
    def takes_drafts(self) -> bool:
        """Whether rows may take several tokens at once, each its own number of them."""
        return self.plain and (self.masks is not None or len(self.lengths) == 1)

    @torch.no_grad()
    def extend(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens to each row; return the logits (N, V) after each of them, row by row.

        rows: at least one token each; one where the rows take no drafts.

        Raises:
            ValueError: a row would be longer than the model's length.
        """
        counts = [len(row) for row in rows]
        if max(map(sum, zip(self.lengths, counts))) > self.max_length:
            raise self.full()
        width = max(counts)
        fed = self._fed(rows, counts, width) if self.masks else self._fed_plainly(rows, width)
        self.lengths = [length + count for length, count in zip(self.lengths, counts)]
        self.behind = [behind + width - count for behind, count in zip(self.behind, counts)]
        real = [row * width + n for row, count in enumerate(counts) for n in range(count)]
        all_real = len(real) == width * len(rows)
        if self.llama and self.llama.takes(width):
            return self.llama.logits(*fed, None if all_real else torch.tensor(real))
        if all_real:
            return self._forward(*fed).flatten(0, 1)
        return logits_of(self.model, real, partial(self._forward, *fed))

    def take_back(self, counts: Sequence[int]) -> None:
        """Take the last tokens of each row back, so many."""
        self.lengths = [length - count for length, count in zip(self.lengths, counts)]
        self.behind = [behind + count for behind, count in zip(self.behind, counts)]
        self._close_up()

    def _close_up(self) -> None:
        """Forget the columns behind the last row's end."""
        spare = min(self.behind)
        if spare:
            self.ahead = None
            self.behind = [behind - spare for behind in self.behind]
            for layer in self.cache.layers:
                layer.take_back(spare)

    def _fed(self, rows: Sequence[Sequence[int]], counts: list[int], width: int) -> tuple:
        """Ids, cache, mask and positions of the next tokens, rows ending where they do."""
        device = self.model.device
        held = max(map(sum, zip(self.lengths, self.behind)))
        plan = [
            [*row, *[0] * (width - len(row)), held - behind - length, held - behind, len(row)]
            for row, length, behind in zip(rows, self.lengths, self.behind)
        ]
        plan = torch.tensor(plan, device=device)  # (B, Q + 3), brought over at once
        ids, (starts, ends, own) = plan[:, :width], plan[:, width:].unbind(1)
        # padding repeats the last position: a learned table may have no further one
        ahead = torch.arange(width, device=device).minimum(own[:, None] - 1)
        positions = (ends - starts)[:, None] + ahead
        ragged = any(self.behind)
        offsets = torch.arange(width) - torch.tensor(self.behind)[:, None] if ragged else None
        for layer in self.cache.layers:
            layer.offsets = offsets
        alike = width == 1 and not ragged and min(self.lengths) == held
        mask = None if alike else self.masks.rows(starts, ends, width, held + width)
        return ids, self.cache, mask, positions

    def _fed_plainly(self, rows: Sequence[Sequence[int]], width: int) -> tuple:
        """The same for a model that makes its masks itself, rows ending at one column."""
        ids = torch.tensor(rows, device=self.model.device)
        if width > 1:
            self.ahead = None
            positions = torch.arange(self.lengths[0], self.lengths[0] + width, device=ids.device)
            return ids, self.cache, None, positions[None]
        self.ahead = self.ahead or NextPositions(self.lengths, ids.device)
        positions, mask = self.ahead.next()
        return ids, self.cache, mask, positions

    def full(self) -> ValueError:
        """What is said of a row that has reached the model's length."""
        return ValueError(
            f"a sequence has reached the {self.max_length} tokens that this model takes; ask for "
            "fewer new tokens"
        )

    def _check(self, rows: Sequence[SequencePlan]) -> None:
        if self.rotator is None and any(row.spans for row in rows):
            raise ValueError("KV spans need a model that passed the gate; call check_movable first")
        fixed = self.rotator.max_length if any(row.spans for row in rows) else UNBOUNDED
        before = self.max_length if self.lengths else max_positions(self.model)
        self.max_length = min(before, fixed)
        longest = max(map(len, rows))
        if longest > self.max_length:
            raise ValueError(
                f"a prompt of {longest} tokens is longer than the {self.max_length} tokens that "
                "this model takes; leave out logs or documents"
            )
        if not all(row.tail for row in rows):
            raise ValueError("a row without a token after its spans has nothing to predict from")
        if not self.plain and len(rows) > 1:
            raise ValueError(
                f"{self.model.config.model_type} keeps more than keys and values, which padding "
                "would change; run it one at a time: --batch-size 1"
            )

    def _forward(self, ids, cache, mask, positions) -> Tensor:
        more = {"position_ids": positions} if self.takes_positions else {}
        more[self.cache_argument] = cache
        return self.model(input_ids=ids, attention_mask=mask, use_cache=True, **more).logits

    def _begin(self, members: list[int], rows: list[SequencePlan]) -> Prefill:
        longest = max(len(row.fresh) for row in rows)
        whole = not self.plain or max(map(len, rows)) > self.even_length
        parts = 1 if whole else math.ceil(longest / self.tokens_per_forward)
        width = max(row.num_prefix for row in rows)
        cache = self._placed(rows, width, with_room(width + longest))
        return Prefill(members, rows, cache, math.ceil(longest / parts))

    @torch.no_grad()
    def go_on(self, begun: Prefill) -> Tensor | None:
        """Compute rows by a forward more; logits (B, V) of each last token, None before the end."""
        device, rows, done = self.model.device, begun.rows, begun.done
        begun.done += begun.size
        fresh = [row.fresh[done : begun.done] for row in rows]
        ids, _ = right_padded(fresh, device)
        width = max(row.num_prefix for row in rows) + done
        starts = [width - done - row.num_prefix for row in rows]
        ends = [width + len(own) for own in fresh]
        mask = spread(starts, ends, width + ids.shape[1], device)
        ordinals = torch.arange(width, width + ids.shape[1], device=device)
        # padding repeats the last position: a learned table may have no further one
        ordinals = ordinals.minimum(torch.tensor(ends, device=device)[:, None] - 1)
        positions = ordinals - torch.tensor(starts, device=device)[:, None]
        last = [row * ids.shape[1] + len(own) - 1 for row, own in enumerate(fresh)]
        forward = partial(self._forward, ids, begun.cache, mask, positions)
        logits = logits_of(self.model, last, forward)
        if any(len(row.fresh) > begun.done for row in rows):
            return None
        shifts = [ids.shape[1] - len(own) for own in fresh]
        for layer in begun.cache.layers if any(shifts) else ():
            layer.shift_right(shifts, max(map(len, rows)))
        return logits

    def _placed(self, rows: Sequence[SequencePlan], width: int, capacity: int) -> DynamicCache:
        """A cache of the rows' heads and placed spans, at its right end."""
        spare, self.spare = self.spare, []
        if not self.plain:
            return DynamicCache(config=self.model.config)
        if not width:
            return GrowableCache(room=capacity)
        heads = _heads(self.model, rows)
        cache = placed(rows, width, capacity, self.rotator, self._angles(width), heads, spare)
        recompute_spans(self.model, cache, rows)
        return cache

    def _angles(self, width: int) -> list:
        """Per layer what places keys at the positions up to `width`, or some more."""
        if self.rotator and self.angles[0] < width:
            length = with_room(width)
            self.angles = length, self.rotator.angles(torch.arange(length))
        return self.angles[1]


def _heads(model: nn.Module, rows: Sequence[SequencePlan]) -> dict[tuple[int, ...], list[tuple]]:
    """Per distinct head its keys and values, (H, T, D), per layer; each is computed once."""
    heads = list(dict.fromkeys(row.before for row in rows if row.before))
    found = {}
    for group in batches([len(head) for head in heads], tokens_per_forward(model)):
        layers = fill(model, [heads[i] for i in group]).layers
        for row, head in enumerate(heads[i] for i in group):
            width = len(head)
            found[head] = [
                (layer.keys[row, :, :width], layer.values[row, :, :width]) for layer in layers
            ]
    return found
