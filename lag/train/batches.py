"""Turn examples into padded batches with the block mask that inference has."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lag.model.chat import Chat
from lag.train.examples import TrainingExample

# what a configuration calls a change of the logits behind the output matrix
LOGITS_CHANGED_BY = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True, slots=True)
class MaskedExample:
    """An example as one sequence, hidden text included; one entry per token.

    blocks: 0 for what attends causally, i for tokens of log i, which attend to that log only.
    hidden: tokens that only their own log sees.
    trained: tokens that the model is to predict.
    read: tokens at which a reader is active: the chat's, and no log's before it or in it as KV.
    """

    ids: list[int]
    positions: list[int]
    blocks: list[int]
    hidden: list[bool]
    trained: list[bool]
    read: list[bool]
    format: str
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_targets(self) -> int:
        return sum(self.trained[1:])


def lay_out(example: TrainingExample, chat: Chat, end: int) -> MaskedExample:
    """Lay an example out: head, logs, tail, reply, end of turn.

    A visible token's position is its place among the visible ones; hidden ones count down.
    """
    pieces, notes = chat.encode(example.prompt), example.prompt.notes
    begun = bool(pieces.head)  # whether the chat has begun before its logs
    rows = [(id, place, 0, False, True) for place, id in enumerate(pieces.head)]
    place = len(rows)
    for number, (note, (after, keep)) in enumerate(zip(notes, pieces.notes), 1):
        block, read = (number, False) if note.kv else (0, begun)
        for offset, id in enumerate((*after, *keep), -len(after)):
            rows.append((id, place + offset, block, offset < 0, read))
        place += len(keep)
    trained = [False] * (len(rows) + len(pieces.tail))
    said = list(pieces.tail)
    for given, reply in (("", example.reply), *example.then):
        shown = chat.content_ids(given)
        answer = (*chat.content_ids(reply), *([end] if example.ended else []))
        said += [*shown, *answer]
        trained += [False] * len(shown) + [True] * len(answer)
    rows += [(id, place + n, 0, False, True) for n, id in enumerate(said)]
    ids, positions, blocks, hidden, read = map(list, zip(*rows))
    if example.only_after:
        (before,) = chat.content_ids(example.only_after)
        trained = [now and ids[place - 1] == before for place, now in enumerate(trained)]
    name, weight = example.format.name, example.weight
    return MaskedExample(ids, positions, blocks, hidden, trained, read, name, weight)


def encode_examples(examples: Iterable[TrainingExample], tokenizer: Any) -> list[MaskedExample]:
    """Lay examples out, each in the layout of its format."""
    chats = {layout: Chat(tokenizer, layout) for layout in ("paper", "system-first", "user")}
    end = tokenizer.eos_token_id
    return [lay_out(example, chats[example.format.layout], end) for example in examples]


def collate(rows: Sequence[MaskedExample], device: Any = "cpu") -> dict[str, Any]:
    """Pad to a batch.

    Returns ids, positions (B, T); seen (B, 1, T, T) bool, which token sees which; targets (B, T),
    the next token where it is to be predicted, else -100; read (B, T) bool; weights (B,).
    """
    import torch

    length = max(map(len, rows))

    def padded(values: list, fill: int) -> list:
        return [*values, *[fill] * (length - len(values))]

    ids = torch.tensor([padded(row.ids, 0) for row in rows])
    positions = torch.tensor([padded(row.positions, 0) for row in rows])
    blocks = torch.tensor([padded(row.blocks, 0) for row in rows])
    hidden = torch.tensor([padded(row.hidden, False) for row in rows])
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    own = blocks[:, :, None] == blocks[:, None, :]
    prompt = (blocks == 0)[:, :, None] & ~hidden[:, None, :]
    seen = (causal & (own | prompt))[:, None]  # (B, 1, T, T)
    trained = torch.tensor([padded(row.trained, False) for row in rows])
    targets = torch.full_like(ids, -100)
    targets[:, :-1] = torch.where(trained[:, 1:], ids[:, 1:], -100)
    batch = {"ids": ids, "positions": positions, "seen": seen, "targets": targets}
    batch["read"] = torch.tensor([padded(row.read, False) for row in rows])
    batch["weights"] = torch.tensor([row.weight for row in rows])
    return {name: part.to(device) for name, part in batch.items()}


def attention_mask(model: Any, seen: Any, positions: Any) -> Any:
    """The mask as models take it, added to attention scores, by kind of layer where they differ.

    A sliding window counts by position, as it does where logs are placed from a cache. One row of
    plain text needs none: the model's own kernel then leaves out what lies ahead.
    """
    import torch

    if len(seen) == 1 and torch.equal(seen[0, 0], torch.ones_like(seen[0, 0]).tril()):
        return None

    def additive(seen: Any) -> Any:
        return torch.where(seen, 0.0, torch.finfo(model.dtype).min).to(model.dtype)

    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if not window or kinds == {"full_attention"}:
        return additive(seen)
    near = positions[:, None, :, None] - positions[:, None, None, :] < window  # (B, 1, T, T)
    if "full_attention" not in kinds:
        return additive(seen & near)
    return {"full_attention": additive(seen), "sliding_attention": additive(seen & near)}


def predict(model: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    """Logits (N, V) at the N positions that have a target, and the targets (N)."""
    given = {
        "input_ids": batch["ids"],
        "attention_mask": attention_mask(model, batch["seen"], batch["positions"]),
        "position_ids": batch["positions"],
        "use_cache": False,
    }
    chosen = batch["targets"] >= 0
    config = model.config.get_text_config(decoder=True)
    if any(getattr(config, name, None) not in (None, 1.0) for name in LOGITS_CHANGED_BY):
        return model(**given).logits[chosen], batch["targets"][chosen]
    states = model.base_model(**given).last_hidden_state  # (B, T, E)
    return model.get_output_embeddings()(states[chosen]), batch["targets"][chosen]


def batches(
    rows: Sequence[MaskedExample], tokens: int, rng: random.Random
) -> list[list[MaskedExample]]:
    """Group rows of like length into batches of about so many tokens, in random order."""
    ordered = sorted(rows, key=lambda row: (len(row), rng.random()))
    groups, start = [], 0
    for stop in range(1, len(ordered) + 1):
        full = stop < len(ordered) and (stop - start + 1) * len(ordered[stop]) > tokens
        if full or stop == len(ordered):
            groups.append(ordered[start:stop])
            start = stop
    rng.shuffle(groups)
    return groups
