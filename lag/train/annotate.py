"""`LABELLERS`: say of each part of a past reply whether it recalls a fact or reasons.

Rules need no model: what a reply states is memory, a query or a conclusion is reasoning. A model can be
asked instead; at random is the ablation; published steps come with their labels.
"""

import logging
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from lag import prompts
from lag.actions import TAG, tags
from lag.files import write_json
from lag.http import GivenUp
from lag.json_checks import Row
from lag.metrics import normalize
from lag.prompts import Prompt
from lag.records import ASIDE, LanguageModel, Question, Step, Trace
from lag.train.markers import PARTS, Label, Span
from lag.train.past_run import PastRun

logger = logging.getLogger(__name__)
UNIT = re.compile(r"\S[^\n]*?(?:[.!?](?=\s|$)|(?=\n)|$)")
CONCLUDES = re.compile(
    r"\W*(?:so|thus|hence|therefore|then|because|since|if|but|however|we|i|let|both|neither|"
    r"this means|that means|it follows|in conclusion|comparing|the answer|as a result)\b",
    re.IGNORECASE,
)
FACT = re.compile(r"<\s*fact\s*>", re.IGNORECASE)
PUBLISHED = re.compile(r"\s*\[(\w+)\]\s*:?\s*")  # `[rag]: text` and `[reason]: text`
ASK = """\
Below are the numbered parts of a reply to a question. Say of each whether it recalls or states a \
fact (memory), or infers, compares, plans or concludes (reason).
Reply with one line per part and nothing else, in this form: 1 memory"""


def units(reply: str) -> list[tuple[int, int]]:
    """The sentences and lines of a reply, each from its first character to its last.

    What stands in an action's tag is one unit.
    """
    actions = [(tag.start, tag.end) for tag in tags(reply)]
    found, place = [], 0
    for start, end in [*actions, (len(reply), len(reply))]:
        text = reply[place:start]
        found += [(place + m.start(), place + m.end()) for m in UNIT.finditer(text) if m[0].strip()]
        found += [(start, end)] if start < end else []
        place = max(place, end)
    return found


def joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Neighbours of one kind as one part: a marker says that the kind changes."""
    found: list[Span] = []
    for start, end, kind in spans:
        if found and found[-1][2] == kind:
            start = found.pop()[0]
        found.append((start, end, kind))
    return tuple(found)


def by_rules(reply: str, facts: Sequence[str]) -> tuple[Span, ...]:
    """A query, an answer, a question or a conclusion is reasoning; what else is stated is memory.

    facts: gold ones, where the data set has some; a part that says all of one is memory.
    """
    return joined([(a, b, kind_of(reply[a:b], facts)) for a, b in units(reply)])


def kind_of(text: str, facts: Sequence[str]) -> str:
    if TAG.search(text) or text.rstrip().endswith("?"):
        return "reason"
    said = {*normalize(text).split()}
    if FACT.search(text) or any({*normalize(fact).split()} <= said for fact in facts if fact):
        return "memory"
    return "reason" if CONCLUDES.match(text) else "memory"


def gold_facts(row: Row) -> list[str]:
    """2Wiki's triples without their relation, and the answers of MuSiQue's decomposition."""
    triples = [f"{triple[0]} {triple[-1]}" for triple in row.get("evidences") or []]
    parts = [part for part in row.get("question_decomposition") or [] if part.get("answer")]
    return triples + [
        f"{str(part.get('question', '')).partition('>>')[0].replace('#', '')} {part['answer']}"
        for part in parts
    ]


def at_random(reply: str, key: str) -> tuple[Span, ...]:
    """The same units, each of a kind that is drawn; `key` seeds it."""
    draw = random.Random(key)
    return joined([(a, b, draw.choice(PARTS)) for a, b in units(reply)])


def ask(question: str, reply: str) -> Prompt:
    parts = [f"{n}. {reply[a:b]}" for n, (a, b) in enumerate(units(reply), 1)]
    return Prompt("\n\n".join([ASK, f"Question: {question}", "\n".join(parts)]), max_new_tokens=512)


def told(answer: str, reply: str) -> tuple[Span, ...]:
    """The parts as a model labels them; none unless it labels every one."""
    found = {
        int(n): kind.lower() for n, kind in re.findall(r"(\d{1,4})\W+(memory|reason)", answer, re.I)
    }
    places = units(reply)
    if {*found} != {*range(1, len(places) + 1)}:
        return ()
    return joined([(a, b, found[n]) for n, (a, b) in enumerate(places, 1)])


Item = tuple[Trace, int, Step]


def items_of(run: PastRun) -> list[Item]:
    """The replies that are labelled: those of the loop's steps that say something."""
    return [
        (trace, number, step)
        for trace in run.traces()
        for number, step in enumerate(trace.steps)
        if step.action not in ASIDE and units(step.reply)
    ]


def with_rules(items: Sequence[Item], facts: Mapping[str, Sequence[str]]) -> list[Label]:
    return [
        Label(t.id, n, by_rules(step.reply, facts.get(t.question_id or t.id, ())))
        for t, n, step in items
    ]


def with_chance(items: Sequence[Item], seed: int) -> list[Label]:
    return [Label(t.id, n, at_random(step.reply, f"{seed} {t.id} {n}")) for t, n, step in items]


def with_model(
    items: Sequence[Item], llm: LanguageModel[Prompt], slots: int, tries: int = 3
) -> list[Label]:
    """Ask a model, so many replies at once; one that is no labelling is asked for again.

    What still has none after so many tries is kept as failed.
    """
    found: dict[int, tuple[Span, ...]] = {}
    for attempt in range(tries):
        open_ones = [n for n in range(len(items)) if n not in found]
        for first in range(0, len(open_ones), slots):
            group = open_ones[first : first + slots]
            asked = {n: ask(items[n][0].question, items[n][2].reply) for n in group}
            keyed = {
                n: prompts.with_key(prompt, f"{items[n][0].id} {items[n][1]} {attempt}")
                for n, prompt in asked.items()
            }
            for n, answer in answers(llm, keyed):
                if spans := told(answer, items[n][2].reply):
                    found[n] = spans
    return [Label(t.id, k, found.get(n, ())) for n, (t, k, _) in enumerate(items)]


def answers(llm: LanguageModel[Prompt], asked: Mapping[int, Prompt]) -> Iterator[tuple[int, str]]:
    """What a model says to prompts; a call that fails says nothing, and is logged.

    Raises:
        GivenUp: a server is lost.
    """
    left = len(asked)
    with closing(llm.in_flight(left)) as batch:
        for number, prompt in asked.items():
            batch.submit(number, prompt)
        while left:
            for number, reply in batch.step():
                left -= 1
                if isinstance(reply, GivenUp):
                    raise reply
                if isinstance(reply, Exception):
                    logger.warning("labelling failed: %s", reply)
                else:
                    yield number, reply.text


# --- published steps ------------------------------------------------------------------------------
def published_rows(
    rows: Sequence[Row], load: Callable[[Row], Question]
) -> tuple[dict[str, Trace], list[Label]]:
    """Traces and labels of rows whose `cot_steps` are published; others are left out.

    A tag that is neither `rag` nor `memory` is reasoning.
    """
    traces, labels = {}, []
    for row in rows:
        if not (steps := [step for step in row.get("cot_steps") or [] if str(step).strip()]):
            continue
        question, reply, spans = load(row), "", []
        for step in steps:
            tag = PUBLISHED.match(step)
            kind = "memory" if tag and tag[1].lower() in ("rag", "memory") else "reason"
            text = step[tag.end() :].strip() if tag else step.strip()
            spans.append((len(reply), len(reply) + len(text), kind))
            reply += text + "\n"
        trace = Trace.of(question)
        trace.pred = f"({question.answers[0]})" if question.options else question.answers[0]
        reply += f"<ans>{trace.pred}</ans>"
        trace.steps.append(Step(question.text, "answer", reply=reply))
        traces[question.id] = trace
        labels.append(Label(question.id, 0, tuple(spans)))
    return traces, labels


def write_published(path: Path, traces: Mapping[str, Trace], dataset: str) -> None:
    """Write traces as a predictions file that `train.py sft` takes."""
    meta = {"dataset": dataset, "split": "train", "mode": "base", "solver": "direct"}
    results = {id: trace.to_json() for id, trace in traces.items()}
    params = {"prompts": prompts.digest(), "max_steps": 1}
    write_json(path, {"metadata": meta, "inference_params": params, "results": results})


def counted(labels: Sequence[Label]) -> dict[str, Any]:
    """What the summary says of labels."""
    kinds = [kind for label in labels for _, _, kind in label.spans]
    failed = sum(label.failed for label in labels)
    return {"labelled": len(labels) - failed, "failed": failed} | {k: kinds.count(k) for k in PARTS}
