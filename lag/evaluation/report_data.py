"""Every trace of a report as data for its browser: each text once, compressed, opened on demand.

The page reads a small index when it opens; rows and texts lie in pieces that are unpacked when a
question is looked at. Texts are shortened, all alike and told, until the whole fits its budget.
"""

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from lag.cli import SPLITS
from lag.evaluation.results import Evaluator, Result
from lag.evaluation.scores import STATES, Outcome, binned
from lag.evaluation.tables import title
from lag.metrics import chosen_letter
from lag.records import SECONDS, Document, Log, Step

BUDGET = 9_000_000  # bytes of all pieces together, as they stand in the page
LIMITS = (0, 16_000, 8_000, 4_000, 2_000, 1_000, 500, 250, 100, 40)  # characters; 0 is no limit
QUESTIONS_PER_PIECE = 40
TEXT_PER_PIECE = 150_000  # characters


@dataclass(slots=True)
class Texts:
    """Texts by number, each once; number 0 is the empty one."""

    numbers: dict[str, int] = field(default_factory=lambda: {"": 0})

    def add(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))

    def pieces(self, limit: int) -> tuple[list[list[str]], list[int]]:
        """All texts, cut to the limit, in pieces; and the number that each piece begins with."""
        pieces: list[list[str]] = [[]]
        starts, size = [0], 0
        for number, text in enumerate(self.numbers):
            if size > TEXT_PER_PIECE:
                pieces.append([])
                starts.append(number)
                size = 0
            text = shortened(text, limit)
            pieces[-1].append(text)
            size += len(text)
        return pieces, starts


def shortened(text: str, limit: int) -> str:
    """A text of at most so many characters, and a mark that says how long it was."""
    if not limit or len(text) <= limit:
        return text
    return f"{text[:limit]} … [cut; {len(text):,} characters]"


@dataclass(slots=True)
class Shelf:
    """Documents and logs that some prompt held, by number; only those are in the report."""

    texts: Texts
    documents: Mapping[str, Document]
    logs: Mapping[str, Log]
    withhold: bool = False
    items: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    numbers: dict[tuple[str, str], int] = field(default_factory=dict)

    def number(self, kind: str, id: str) -> int:
        """The number of a document (`doc`) or a log (`log`), which is taken in when it is new."""
        key = (kind, id)
        if key not in self.numbers:
            self.numbers[key] = len(self.items)
            self.items[key] = self.entry(kind, id)
        return self.numbers[key]

    def entry(self, kind: str, id: str) -> list[Any]:
        """[kind, id, number of the title's text, number of the content's text]"""
        title, content = "", ""
        if kind == "doc" and id in self.documents:
            title, content = self.documents[id].title, self.documents[id].content
        elif kind == "log" and id in self.logs:
            title, content = self.logs[id].question, self.logs[id].replies[-1]
        return [kind, id, self.say(title), self.say(content)]

    def say(self, text: str) -> int:
        """The number of a text; of a data set whose texts are withheld, of the empty one."""
        return 0 if self.withhold else self.texts.add(text)


def step_row(step: Step, shelf: Shelf) -> list[Any]:
    """One step as the page's script reads it, by position; numbers stand for texts and items."""
    return [
        step.action,
        shelf.say(step.query),
        shelf.say(step.reply),
        [shelf.number("doc", id) for id in step.docs],
        [[shelf.number("log", u.id), round(u.similarity, 4), u.source] for u in step.logs],
        [step.prompt_tokens, step.cached_tokens, step.new_tokens, step.kv_bytes],
        [round(step.seconds.get(part, 0.0), 3) for part in SECONDS],
    ]


def trace_row(outcome: Outcome, shelf: Shelf) -> dict[str, Any] | None:
    """What the page shows of one row when it is opened; None if the row is missing."""
    trace = outcome.trace
    if trace is None:
        return None
    row: dict[str, Any] = {"steps": [step_row(step, shelf) for step in trace.steps]}
    if trace.sheet:
        row["sheet"] = shelf.say(trace.sheet)
    if trace.dropped:
        row["dropped"] = [
            {key: value for key, value in item.items() if key in ("step", "docs", "logs")}
            for item in trace.dropped
        ]
    if trace.error:
        told = ("stage", "type") if shelf.withhold else ("stage", "type", "message", "traceback")
        row["error"] = {key: trace.error.get(key, "") for key in told}
    return row


def list_row(outcome: Outcome, withhold: bool) -> list[Any]:
    """What the list of questions needs of one row: state, EM, F1, answer, steps, logs, bin."""
    pred = outcome.trace.pred if outcome.trace else ""
    if withhold and pred:
        pred = chosen_letter(pred, outcome.question.options)
    logs = outcome.logs
    best = binned(max(logs.values())) if logs else ""
    f1 = round(outcome.scores["f1"], 4)
    em = int(outcome.scores["em"])
    return [STATES.index(outcome.state), em, f1, pred, outcome.num_steps, len(logs), best]


def question_row(id: str, same: Sequence[Result], withhold: bool) -> dict[str, Any]:
    """One question with a row for each run; a run that was not asked it has none."""
    outcomes = [result.evaluation.outcomes.get(id) for result in same]
    question = next(outcome.question for outcome in outcomes if outcome)
    if withhold:
        texts = {"q": "", "gold": list(question.answers[:1]), "options": []}
    else:
        texts = {"q": question.text, "gold": question.answers, "options": question.options}
    rows = [outcome and list_row(outcome, withhold) for outcome in outcomes]
    return {"id": id, **texts, "groups": question.groups, "rows": rows}


@dataclass(slots=True)
class Bundle:
    """The data of a report: an index, and pieces of rows and texts.

    limit: texts are cut to so many characters; 0 if none had to be.
    """

    index: dict[str, Any]
    pieces: dict[str, str]
    limit: int


def packed(value: Any) -> str:
    """JSON, compressed, as text that may stand in a page."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(errors="replace"), 6, mtime=0)).decode()


def split_rows(same: Sequence[Result], ids: Sequence[str], shelf: Shelf) -> Iterable[list[Any]]:
    """The rows of a split's questions, piece by piece: for each question one per run."""
    for start in range(0, len(ids), QUESTIONS_PER_PIECE):
        yield [
            [
                outcome and trace_row(outcome, shelf)
                for outcome in (result.evaluation.outcomes.get(id) for result in same)
            ]
            for id in ids[start : start + QUESTIONS_PER_PIECE]
        ]


def bundle(results: Sequence[Result], evaluator: Evaluator, unredacted: bool) -> Bundle:
    """Pack all runs of all splits.

    unredacted: whether texts of gated data sets are in it too.
    """
    texts, pieces, splits, items = Texts(), {}, [], []
    groups = groupby(results, key=lambda r: (r.run.dataset, r.run.split))
    for number, (_, found) in enumerate(groups):
        same = list(found)
        withhold = is_withheld(same[0], unredacted)
        shelf = shelf_of(same, evaluator, texts, withhold)
        ids = list(dict.fromkeys(id for result in same for id in result.evaluation.outcomes))
        for piece, rows in enumerate(split_rows(same, ids, shelf)):
            pieces[f"rows-{number}-{piece}"] = packed(rows)
        items.append(list(shelf.items.values()))
        splits.append(
            {
                "title": title(same[0]),
                "name": " ".join(filter(None, [same[0].run.dataset, split_name(same[0])])),
                "runs": [result.run.name for result in same],
                "withheld": withhold,
                "questions": [question_row(id, same, withhold) for id in ids],
            }
        )
    index = {"states": STATES, "perPiece": QUESTIONS_PER_PIECE, "splits": splits, "items": items}
    return fitted(index, pieces, texts)


def split_name(result: Result) -> str:
    split = result.run.split
    return f"{split} ({SPLITS[split]})" if split in SPLITS else split


def is_withheld(result: Result, unredacted: bool) -> bool:
    task = result.run.task
    return bool(task and task.gated and not unredacted)


def shelf_of(same: Sequence[Result], evaluator: Evaluator, texts: Texts, withhold: bool) -> Shelf:
    logs: dict[str, Log] = {}
    for result in same:
        store = evaluator.stores.of(result.run)
        logs |= {id: log for id, log in store.logs.items() if id not in logs} if store else {}
    return Shelf(texts, evaluator.documents_for(same[0].run), logs, withhold)


def fitted(index: dict[str, Any], pieces: dict[str, str], texts: Texts) -> Bundle:
    """Cut texts, as little as may be, until all pieces fit the budget."""
    pieces = {**pieces, "items": packed(index.pop("items"))}
    fixed = sum(map(len, pieces.values())) + len(packed(index))
    bytes_each = 0.0  # per character, as the last packing had it: spares packing what cannot fit
    for limit in LIMITS:
        parts, starts = texts.pieces(limit)
        length = sum(len(text) for part in parts for text in part)
        if limit != LIMITS[-1] and fixed + bytes_each * length > BUDGET:
            continue
        made = {f"texts-{n}": packed(part) for n, part in enumerate(parts)}
        size = sum(map(len, made.values()))
        if fixed + size <= BUDGET:
            break
        bytes_each = size / length
    index |= {"starts": starts}
    return Bundle(index, {"index": packed(index), **pieces, **made}, limit)
