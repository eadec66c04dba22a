"""`SOLVERS`: one row per way to make a log. Read a column and see what differs.

The texts of `exsearch` stand here and not in `prompts`, whose digest is in every run: theirs is only
in those that use them.

A solver makes a log, a mode reuses logs: the tables are independent, and a run is one row of each.
Nobody outside this file asks for a solver's name; who wants to is missing a column.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lag.actions import split_at_action
from lag.files import digest_of
from lag.prompts import Prompt, documents_block
from lag.records import Document, Step
from lag.tasks import Task


@dataclass(frozen=True, slots=True)
class Solver:
    """One way to make a log.

    documents_from: `searched` (what each query finds), `own` (all of a question's own paragraphs, in
        their order), or `none`: a prompt without an evidence block.
    num_docs, max_steps: None leaves them to the data set.
    records: whether a step sees the documents of the last query only, and of earlier ones what was
        recorded from them; nothing is searched for before the first query of its own.
    Source: direct, icl and rag are the usual baselines of multi-hop question answering; exsearch is
        ExSearch (arXiv 2505.20128): think (a query), search, record (a fact).
    """

    name: str
    documents_from: Literal["searched", "own", "none"]
    num_docs: int | None = None
    max_steps: int | None = None
    records: bool = False


# fmt: off
SOLVERS = {solver.name: solver for solver in (
    Solver("react",    "searched"),
    Solver("direct",   "none",     num_docs=0, max_steps=1),
    Solver("icl",      "own",      num_docs=0, max_steps=1),
    Solver("rag",      "searched", num_docs=4, max_steps=1),
    Solver("exsearch", "searched", num_docs=5, max_steps=8, records=True),
)}
# fmt: on


DEFAULT_SOLVER = "react"


def limits(solver: Solver, task: Task) -> dict[str, int]:
    """The solver's own limits, else the data set's."""
    return {
        "num_docs": task.num_docs if solver.num_docs is None else solver.num_docs,
        "max_steps": task.max_steps if solver.max_steps is None else solver.max_steps,
        "trace_steps": 0 if solver.records or solver.max_steps == 1 else task.trace_steps,
    }


# --- exsearch -------------------------------------------------------------------------------------
RULES = """\
Answer the question below by searching step by step; use the documents only, and do not guess.
In each step, first record in one sentence what the documents below add: <fact>sentence</fact>
If the facts recorded so far are not sufficient, end with what to search for next: \
<keywords>search terms</keywords>
If they are, end with a short answer: <ans>answer</ans>"""


FIRST = "Nothing has been searched for yet: record nothing, and end with the first search terms."
LAST = "This is the last step: end with an answer."
RECORDS = "Searched for and recorded so far, the last one last:"


CHOOSE = """\
Below is what a search has found, numbered. Choose what helps to answer the question, the most \
helpful first. Reply with the numbers only, in this form: [2] > [1]"""


FACT_LENGTH = 300  # characters
FACT = re.compile(r"<\s*fact\s*>(.*?)(?:<\s*/?\s*(?:fact|keywords|ans)\s*>|\Z)", re.I | re.S)


def recorded(reply: str) -> str:
    """The fact that a reply records: its tag's content, else what stands before its action.

    Of a reply without any tag it is the first line; a sentence is asked for, so what is longer than
    `FACT_LENGTH` is cut.
    """
    found = FACT.findall(reply)
    before, action = split_at_action(reply)
    lines = before.strip() if before else "" if action.startswith("<") else action
    fact = " ".join(found) if found else lines.partition("\n")[0] if action == reply else lines
    return clipped(" ".join(fact.split()))


def clipped(fact: str) -> str:
    """At most so long that the facts of all steps leave room for documents."""
    return fact if len(fact) <= FACT_LENGTH else fact[:FACT_LENGTH].rsplit(" ", 1)[0]


def record_prompt(
    question: str, documents: Sequence[Document], before: Sequence[Step], max_steps: int
) -> Prompt:
    """The prompt of a step that sees what was recorded, and the documents found last."""
    queries = [step.query for step in before[1:]]
    facts = [recorded(step.reply) for step in before[1:]]
    pairs = [
        f"{n}. {clipped(query)}: {fact or 'nothing'}"
        for n, (query, fact) in enumerate(zip(queries, facts), 1)
    ]
    blocks = [RULES, "\n".join([RECORDS, *pairs])] if pairs else [RULES]
    blocks += [documents_block(documents)] if before else [FIRST]
    blocks += [f"Question: {question}"]
    blocks += [LAST] if len(before) + 1 == max_steps else []
    return Prompt("\n\n".join(blocks))


def choose_prompt(question: str, query: str, documents: Sequence[Document]) -> Prompt:
    """Ask which of the documents that were found are to be read."""
    asked = f"Question: {question}\nSearch terms: {query}"
    return Prompt("\n\n".join([CHOOSE, documents_block(documents), asked]), max_new_tokens=64)


def chosen(reply: str, documents: Sequence[Document]) -> list[Document]:
    """The documents that a reply names by their numbers, from 1, in its order; all if it names none.

    Numbers of no document are left out, and so are repeats.
    """
    numbers = dict.fromkeys(int(n) for n in re.findall(r"\[(\d{1,4})\]", reply))
    named = [documents[n - 1] for n in numbers if 0 < n <= len(documents)]
    return named or list(documents)


def digest() -> str:
    """A digest over the texts of `exsearch`: part of what identifies a run that uses them."""
    return digest_of([RULES, FIRST, LAST, RECORDS, CHOOSE], 16)
