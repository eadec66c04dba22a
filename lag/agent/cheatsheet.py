"""Let the model write a cheatsheet from the retrieved logs."""

import logging
import time
from collections.abc import Generator
from functools import partial

from lag import prompts
from lag.agent.agent import LoopSettings
from lag.agent.context import (
    Context,
    RetrievedItems,
    arrange,
    drafts_of,
    fit,
    note_dropped,
    step_of,
    used_logs,
)
from lag.logs import playbook
from lag.prompts import Note, Prompt
from lag.records import Question, Reply, Trace
from lag.step_prompt import curator, sheet_notes

logger = logging.getLogger(__name__)
CURATOR_TOKENS = 512
SHEET_TAG = "<cheatsheet>"


def curate(
    trace: Trace, question: Question, agent: LoopSettings, logs: RetrievedItems
) -> Generator[Prompt, Reply, list[Note]]:
    """Ask for a cheatsheet made from the question's logs; without logs there is none to ask for."""
    start = time.perf_counter()
    logs.query(question.text)
    context = Context([], arrange(question, logs, agent))
    seconds = time.perf_counter() - start
    sheet = agent.sheet if agent.carried else ""
    if context.notes:
        ask = playbook.editor if agent.mode.playbook else curator
        make = partial(ask, question, sheet, agent.store, CURATOR_TOKENS)
        ask, context = fit(context, agent, make)
        note_dropped(trace, 0, context)
        drafts = drafts_of(context.notes, (), agent.store)
        reply = yield prompts.with_key(ask, f"{trace.id} 0", drafts)
        edits = agent.mode.playbook
        sheet = playbook.edited(sheet, reply.text) if edits else read_sheet(reply.text, trace.id)
        used = used_logs(context.notes, reply)
        trace.steps.append(step_of(question.text, "curate", context, used, reply, seconds))
    trace.sheet = agent.sheet = sheet
    return sheet_notes(sheet)


def read_sheet(reply: str, id: str) -> str:
    """What stands in the sheet's tag, closed or cut off; without a tag the whole reply, said so."""
    lower = reply.lower()
    if SHEET_TAG not in lower:
        logger.warning("%s: the curator's reply has no %s tag; all of it is used", id, SHEET_TAG)
        return reply.strip()
    start = lower.index(SHEET_TAG) + len(SHEET_TAG)
    end = lower.find("</cheatsheet>", start)
    return reply[start : end if end >= 0 else None].strip()
