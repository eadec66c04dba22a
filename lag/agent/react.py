"""The loop: query, prompt, reply, parse, until an answer or the last step.

`solve` is a generator that yields prompts and is sent replies, so that one driver keeps many
questions in flight and whoever plays the model's side need not know the loop. Every row of `SOLVERS`
is this loop; they differ in where documents come from and in how many steps it may take.
"""

import time
from collections.abc import Generator
from functools import partial

from lag import prompts
from lag.actions import Answer, Nothing, Search, parse, stated_answer
from lag.agent.agent import LoopSettings
from lag.agent.cheatsheet import curate
from lag.agent.context import (
    Context,
    RetrievedItems,
    arrange,
    drafts_of,
    fit,
    no_documents_yet,
    note_dropped,
    step_of,
    used_logs,
)
from lag.prompts import Prompt
from lag.records import Document, Question, Reply, Trace
from lag.solvers import choose_prompt, chosen
from lag.step_prompt import build, loop_steps

REPEATS = "repeats itself"


def action_of(reply: str, agent: LoopSettings) -> Answer | Search | Nothing:
    """What a reply does; a stated answer counts where the run says so."""
    action = parse(reply, agent.task.query_tag)
    if isinstance(action, Nothing) and agent.answer_fallback:
        return stated_answer(reply) or action
    return action


def own_logs(question: Question, agent: LoopSettings) -> frozenset[str]:
    """Ids of the question's own logs: one, or one per sample."""
    alike = (id for id in agent.store if id.startswith(f"{question.id}#"))
    several = (id for id in alike if agent.store[id].question_id == question.id)
    return frozenset([question.id, *several])


def select(
    trace: Trace, number: int, query: str, documents: list[Document], agent: LoopSettings
) -> Generator[Prompt, Reply, list[Document]]:
    """Ask which of the documents that were found are read."""
    make = lambda held: choose_prompt(trace.question, query, held.docs)  # noqa: E731
    prompt, held = fit(Context(documents, []), agent, make)
    note_dropped(trace, number, held)
    reply = yield prompts.with_key(prompt, f"{trace.id} {number} select")
    trace.steps.append(step_of(query, "select", held, (), reply, 0.0))
    return chosen(reply.text, held.docs)


def solve(trace: Trace, question: Question, agent: LoopSettings) -> Generator[Prompt, Reply, None]:
    """Answer one question; the trace grows with every reply."""
    exclude = own_logs(question, agent) if agent.exclude_self else frozenset()
    docs = no_documents_yet(question, agent)
    logs = RetrievedItems(agent.logs, agent.num_logs, exclude, agent.min_similarity)
    query, sheet = question.text, []
    if agent.mode.enters == "sheet":
        sheet = yield from curate(trace, question, agent, logs)
        logs = RetrievedItems(None, 0, exclude, 0.0)
    for number in range(1, agent.max_steps + 1):
        start = time.perf_counter()
        docs.query(query)
        logs.query(query)
        documents = [agent.documents[id] for id in docs.hits]
        if agent.select_docs and documents:
            documents = yield from select(trace, number, query, documents, agent)
        notes, steps = list(sheet) or arrange(question, logs, agent), loop_steps(trace.steps)
        context = Context.of(documents, notes, steps, agent.trace_steps)
        seconds = time.perf_counter() - start
        for attempt in range(agent.format_retries + 1):
            make = partial(build, question, steps, agent, again=attempt > 0)
            prompt, held = fit(context, agent, make)
            note_dropped(trace, number, held)
            mark = f" {attempt}" if attempt else ""
            drafts = drafts_of(held.notes, trace.steps, agent.store)
            reply = yield prompts.with_key(prompt, f"{trace.id} {number}{mark}", drafts)
            action = action_of(reply.text, agent)
            again = isinstance(action, Nothing) and attempt < agent.format_retries
            name = "retry" if again else action.name
            used = () if sheet else used_logs(held.notes, reply)
            trace.steps.append(step_of(query, name, held, used, reply, 0 if attempt else seconds))
            if not again:
                break
        if isinstance(action, Answer):
            trace.pred = action.text
            return
        if agent.stop_repeats and steps and steps[-1].reply == reply.text:
            trace.ended = REPEATS
            return
        query = action.query or query
