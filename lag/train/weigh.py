"""Weigh the samples of a question by how likely each makes the gold answer.

Given the question and a trajectory, the probability of the gold answer is its likelihood; samples are
drawn from the model itself, so that within a question the weights of the posterior are these
likelihoods, made to sum to 1.
Source: ExSearch (arXiv 2505.20128), the E-step of its generalised EM. Retrieved text is context.
"""

import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from lag.files import write_text
from lag.json_checks import Row
from lag.model.chat import Chat
from lag.records import Question, Trace
from lag.train.batches import MaskedExample, batches, collate, lay_out, predict
from lag.train.examples import Format, TrainingExample
from lag.train.log_examples import ExampleMaker
from lag.train.past_run import CLOSE, spellings, up_to_answer
from lag.train.trainer import Forward


@dataclass(frozen=True, slots=True)
class Weight:
    """A line of `weights.jsonl`.

    sample: None for a question's only row. answer_logprob: None where the row is too long to tell.
    """

    id: str
    sample: int | None
    answer_logprob: float | None
    weight: float


def forced(example: TrainingExample, gold: str, chat: Chat) -> MaskedExample:
    """The example whose reply goes on with the gold answer, which alone is a target.

    The whole reply is tokenised as one; what differs from the reply without it is the answer.
    """
    text = example.reply + gold + CLOSE
    before, whole = chat.content_ids(example.reply), chat.content_ids(text)
    shared = next((n for n, (a, b) in enumerate(zip(before, whole)) if a != b), len(before))
    row = lay_out(replace(example, reply=text, ended=False), chat, -1)
    start = len(row) - len(whole) + shared
    return replace(row, trained=[place >= start for place in range(len(row))])


def visible(row: MaskedExample) -> int:
    """How many tokens take a place in the sequence."""
    return len(row) - sum(row.hidden)


def log_likelihoods(
    model: Any, rows: Sequence[MaskedExample], tokens: int = 8192, forward: Forward = predict
) -> list[float]:
    """Of each row the sum of its targets' log-probabilities."""
    import torch

    places = {id(row): n for n, row in enumerate(rows)}
    found = [0.0] * len(rows)
    for group in batches(rows, tokens, random.Random(0)):
        batch = collate(group, model.device)
        with torch.inference_mode():
            logits, targets = forward(model, batch)
            each = torch.log_softmax(logits.float(), -1).gather(-1, targets[:, None])[:, 0]
        owners = (batch["targets"] >= 0).nonzero()[:, 0]
        sums = torch.zeros(len(group)).index_add(0, owners.cpu(), each.cpu())
        for row, value in zip(group, sums.tolist(), strict=True):
            found[places[id(row)]] = value
    return found


def log_sum(values: Sequence[float]) -> float:
    """The logarithm of the sum of exponentials."""
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))


def normalised(logprobs: Sequence[float | None], temperature: float = 1.0) -> list[float]:
    """Weights of one question's samples: exp(logprob / temperature), summing to 1.

    None weighs nothing; where all are None so do they all.
    """
    known = [value / temperature for value in logprobs if value is not None]
    total = log_sum(known) if known else 0.0
    return [0.0 if v is None else math.exp(v / temperature - total) for v in logprobs]


def effective(weights: Sequence[float]) -> float:
    """How many samples of equal weight these weights are worth."""
    squares = sum(weight**2 for weight in weights)
    return 1 / squares if squares else 0.0


def entropy(weights: Sequence[float]) -> float:
    """Of the weights of one question, in nats."""
    return -sum(weight * math.log(weight) for weight in weights if weight)


class Weigher:
    """Weighs the rows of one run with one model.

    longest: tokens that a sequence may have. forward: as `predict`.
    """

    def __init__(
        self, maker: ExampleMaker, model: Any, tokenizer: Any, longest: int, forward: Forward
    ):
        self.maker, self.model, self.longest, self.forward = maker, model, longest, forward
        self.chat = Chat(tokenizer, maker.settings[0].layout)

    def rows_of(self, trace: Trace, question: Question) -> Iterator[MaskedExample]:
        """One row per spelling of the gold answer, each behind the trajectory."""
        prompt, reply, settings = self.maker.last_prompt(trace, question)
        format = Format(settings.mode.name, settings.layout, prefill=settings.prefill)
        example = TrainingExample(prompt, up_to_answer(reply), format)
        for gold in spellings(question):
            yield forced(example, gold, self.chat)

    def logprobs(self) -> dict[str, float | None]:
        """The log-probability of the gold answer by row; over its spellings they add up."""
        traces = self.maker.run.traces()
        rows = {t.id: [*self.rows_of(t, self.maker.question_of(t))] for t in traces}
        fits = {id: max(map(visible, mine)) <= self.longest for id, mine in rows.items()}
        flat = [row for id, mine in rows.items() if fits[id] for row in mine]
        values = iter(log_likelihoods(self.model, flat, forward=self.forward))
        return {
            id: log_sum([next(values) for _ in mine]) if fits[id] else None
            for id, mine in rows.items()
        }

    def weights(self, temperature: float = 1.0) -> list[Weight]:
        """
        Raises:
            ValueError: no rows, or a question without a gold answer.
        """
        logprobs = self.logprobs()
        if not logprobs:
            raise ValueError(f"--preds {self.maker.run.path}: no row to weigh")
        shares, rows = {}, self.maker.run.rows
        for ids in by_question(logprobs, rows):
            shares |= zip(ids, normalised([logprobs[id] for id in ids], temperature), strict=True)
        return [Weight(id, rows[id].get("sample"), logprobs[id], shares[id]) for id in logprobs]


def by_question(ids: Iterable[str], rows: Mapping[str, Row]) -> list[list[str]]:
    """Ids of rows, those of one question's samples together."""
    samples: dict[str, list[str]] = {}
    for id in ids:
        samples.setdefault(rows[id].get("question_id") or id, []).append(id)
    return list(samples.values())


def write_weights(path: Path, weights: Sequence[Weight]) -> None:
    write_text(path, "".join(json.dumps(asdict(weight)) + "\n" for weight in weights))


def summary(weights: Sequence[Weight], rows: Mapping[str, Row]) -> dict[str, Any]:
    """effective_samples, entropy: means over questions."""
    each = {one.id: one.weight for one in weights}
    questions = [[each[id] for id in ids] for ids in by_question(each, rows)]
    known = [one.answer_logprob for one in weights if one.answer_logprob is not None]
    return {
        "rows": len(weights),
        "questions": len(questions),
        "too_long": len(weights) - len(known),
        "answer_logprob": round(fmean(known), 4) if known else None,
        "effective_samples": round(fmean(map(effective, questions)), 4),
        "entropy": round(fmean(map(entropy, questions)), 4),
    }


def weigh(
    maker: ExampleMaker,
    model: str,
    adapter: Path | None,
    out: Path,
    temperature: float = 1.0,
    dtype: str = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """Weigh the rows of a run and write `weights.jsonl`.

    Raises:
        ValueError: rows, a model or an adapter that cannot be used.
    """
    from lag.model.loaded import max_length
    from lag.train.adapters import load_tuned

    maker.check()
    loaded, tokenizer, forward = load_tuned(model, adapter, dtype, device)
    weigher = Weigher(maker, loaded, tokenizer, max_length(loaded, tokenizer), forward)
    weights = weigher.weights(temperature)
    write_weights(out, weights)
    return {"weights": str(out), **summary(weights, maker.run.rows)}
