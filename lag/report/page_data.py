"""Every trace of a report as data for its browser: each text once, compressed, opened on demand.

The page reads a small index when it opens; rows, prompts and texts lie in pieces that are unpacked
when they are looked at. Texts are shortened, all alike and told, until the whole fits its budget;
prompts for which they would have to be shorter still are left out.
"""

import base64
import gzip
import json
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lag.cli import SPLITS
from lag.evaluation.harm import Golds, Harm, harm_of
from lag.evaluation.results import Evaluator, Result
from lag.evaluation.scores import STATES, Outcome
from lag.evaluation.tables import blocks, title
from lag.json_checks import Row, unique
from lag.records import Log
from lag.report.rebuild_prompts import RunPrompts
from lag.report.rows import Shelf, Texts, prompt_row, question_row, trace_row

BUDGET = 9_000_000  # bytes of all pieces together, as they stand in the page
LIMITS = (0, 16_000, 8_000, 4_000, 2_000, 1_000, 500, 250, 100, 40)  # characters; 0 is no limit
QUESTIONS_PER_PIECE = 40
# Where logs stand in a prompt, and what becomes of their KV, with the defaults.
SETUP = {"layout": "paper", "sink": 0, "recompute": 0}


@dataclass(slots=True)
class Bundle:
    """The data of a report: an index, and pieces of rows and texts.

    limit: texts are cut to so many characters; 0 if none had to be.
    """

    index: Row
    pieces: dict[str, str]
    limit: int

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces.values()))

    @property
    def note(self) -> str:
        """What a reader must know of what is in it and what is not."""
        told = "Only documents and logs that entered some prompt are included."
        if self.limit:
            told += (
                f" To keep the file small, texts longer than {self.limit:,} characters are cut, "
                "and marked where they are, in prompts too."
            )
        if not self.index["prompts"]:
            told += " For want of room prompts are left out; a report of fewer runs holds them."
        return told


def packed(value: Any) -> str:
    """JSON, compressed, as text that may stand in a page."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(errors="replace"), 6, mtime=0)).decode()


@dataclass(frozen=True, slots=True)
class Split:
    """The runs of one split; what their questions have is a row for each run."""

    number: int
    same: Sequence[Result]
    prompts: Sequence[RunPrompts]
    shelf: Shelf
    harm: Sequence[Harm | None]

    @property
    def ids(self) -> Sequence[str]:
        return unique(id for result in self.same for id in result.evaluation.outcomes)

    def outcomes(self, id: str) -> list[Outcome | None]:
        return [result.evaluation.outcomes.get(id) for result in self.same]

    def traces(self, id: str) -> list[Any]:
        """What became of a question."""
        return [
            outcome and harmed(trace_row(outcome, self.shelf), harm, id)
            for outcome, harm in zip(self.outcomes(id), self.harm, strict=True)
        ]

    def all_prompts(self, id: str) -> list[Any]:
        """The prompts of a question, step by step."""
        traces = [outcome and outcome.trace for outcome in self.outcomes(id)]
        return [
            trace and [prompt_row(m, trace, self.shelf) for m in made.prompts_of(trace)]
            for made, trace in zip(self.prompts, traces, strict=True)
        ]

    def pieces(self, name: str, rows: Callable[[str], list[Any]]) -> dict[str, str]:
        """What the questions have, some questions to a piece."""
        found = [rows(id) for id in self.ids]
        starts = range(0, len(found), QUESTIONS_PER_PIECE)
        return {
            f"{name}-{self.number}-{n}": packed(found[start : start + QUESTIONS_PER_PIECE])
            for n, start in enumerate(starts)
        }

    def index(self) -> Row:
        """What the page knows from its beginning."""
        first, withhold = self.same[0], self.shelf.withhold
        split = first.run.split
        seen = f"({SPLITS[split]})" if split in SPLITS else ""
        return {
            "title": title(first),
            "name": " ".join(filter(None, [first.run.dataset, split, seen])),
            "runs": [result.run.name for result in self.same],
            "setups": [
                [str(result.run.meta.get(name) or default) for name, default in SETUP.items()]
                for result in self.same
            ],
            "withheld": withhold,
            "questions": [question_row(id, self.same, withhold) for id in self.ids],
        }


def bundle(
    results: Sequence[Result], evaluator: Evaluator, unredacted: bool, budget: int = BUDGET
) -> Bundle:
    """Pack all runs of all splits.

    unredacted: whether texts of gated data sets are in it too.
    """
    texts, splits = Texts(), []
    golds = Golds(results, evaluator.catalogue.data)
    for number, same in enumerate(blocks(results)):
        prompts = [RunPrompts(result.run, evaluator) for result in same]
        task = same[0].run.task
        withhold = bool(task and task.gated and not unredacted)
        shelf = shelf_of(same, evaluator, prompts, texts, withhold)
        harm = [harm_of(result, evaluator.catalogue.data, golds) for result in same]
        splits.append(Split(number, same, prompts, shelf, harm))
    pieces: dict[str, str] = {}
    for split in splits:
        pieces |= split.pieces("rows", split.traces)
    index = {"states": STATES, "perPiece": QUESTIONS_PER_PIECE, "prompts": True}
    index["splits"] = [split.index() for split in splits]
    pieces["items"] = packed([split.shelf.items for split in splits])
    without = len(texts.numbers)
    prompts: dict[str, str] = {}
    for split in splits:
        prompts |= split.pieces("prompts", split.all_prompts)
    whole = fitted(index, pieces | prompts, texts, len(texts.numbers), budget)
    if not whole.limit:
        return whole
    plain = fitted(index | {"prompts": False}, pieces, texts, without, budget)
    return whole if whole.limit == plain.limit and whole.size <= budget else plain


def harmed(row: Row, harm: Harm | None, id: str) -> Row:
    """A row with what became of the question without each log: [log, similarity, log was, then]."""
    found = harm.of(id) if harm else []
    told = [[one.log, round(one.similarity, 4), one.log_was, one.without] for one in found]
    return row | {"harm": told} if told else row


def shelf_of(
    same: Sequence[Result],
    evaluator: Evaluator,
    prompts: Sequence[RunPrompts],
    texts: Texts,
    withhold: bool,
) -> Shelf:
    logs: dict[str, Log] = {}
    for result in same:
        store = evaluator.stores.of(result.run)
        logs |= {id: log for id, log in store.logs.items() if id not in logs} if store else {}
    documents = ChainMap(*(made.foreign for made in prompts), evaluator.documents_for(same[0].run))
    return Shelf(texts, documents, logs, withhold)


def fitted(index: Row, pieces: dict[str, str], texts: Texts, count: int, budget: int) -> Bundle:
    """Cut the first `count` texts, as little as may be, until all pieces fit the budget."""
    fixed = sum(map(len, pieces.values())) + len(packed(index))
    bytes_each = 0.0  # per character, as the last packing had it: spares packing what cannot fit
    for limit in LIMITS:
        parts, starts = texts.pieces(count, limit)
        length = sum(len(text) for part in parts for text in part)
        if limit != LIMITS[-1] and fixed + bytes_each * length > budget:
            continue
        made = {f"texts-{n}": packed(part) for n, part in enumerate(parts)}
        size = sum(map(len, made.values()))
        if fixed + size <= budget:
            break
        bytes_each = size / length
    index = index | {"starts": starts}
    return Bundle(index, {"index": packed(index), **pieces, **made}, limit)
