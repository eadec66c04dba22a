"""Answer many questions at once: each goes on as soon as its own reply is there.

A model in this process writes token by token, a server is asked from threads: which of both it is
only `LanguageModel.in_flight` knows. The loop, retrieval and writing stay in the caller's thread.
"""

import logging
import traceback
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from lag.agent.agent import LoopSettings
from lag.agent.react import solve
from lag.http import GivenUp, HttpError, Refused
from lag.hub import one_line
from lag.prompts import Prompt
from lag.records import InFlight, Question, Reply, Trace

logger = logging.getLogger(__name__)
PACKAGE = Path(__file__).resolve().parents[1]
Kind = tuple[str | int, ...]


@dataclass(slots=True, eq=False)
class Episode:
    """A question in flight: its trace, its loop, and the prompt that waits for a reply.

    failure: of which kind the failure is that ended it; empty if it is not known to be of any.
    """

    trace: Trace
    loop: Generator[Prompt, Reply | None, None]
    prompt: Prompt | None = None
    failure: Kind = ()

    def send(self, reply: Reply | Exception | None) -> None:
        """Go on to the next prompt; an exception on the way ends this question only.

        Raises:
            GivenUp: a server that every question needs is lost.
        """
        try:
            if isinstance(reply, Exception):
                raise reply
            self.prompt = self.loop.send(reply)
        except StopIteration:
            self.prompt = None
        except GivenUp:
            raise
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        self.prompt = None
        self.trace.pred = ""
        self.trace.error = row = describe(error)
        self.failure = kind_of(error, row["stage"])
        logger.error("%s: %s in %s: %s", self.trace.id, row["type"], row["stage"], one_line(error))
        logger.debug("%s", row["traceback"])


def start_episode(question: Question, agent: LoopSettings) -> Episode:
    """Begin a question: it waits for the reply to its first prompt."""
    trace = Trace.of(question)
    episode = Episode(trace, solve(trace, question, agent))
    episode.send(None)
    return episode


def kind_of(error: Exception, stage: str) -> Kind:
    """What failures of one kind share: stage and type, and of servers how they failed.

    A ValueError, or a server's refusal, may be the question's own, as a prompt that is too long:
    it says with what, so that of these only those with the same words are of one kind. What a
    server withholds is of none.
    """
    causes = [error, error.__cause__]
    served = next((one for one in causes if isinstance(one, HttpError)), None)
    kind = stage, type(error).__name__
    if isinstance(served, Refused):
        return (*kind, str(served)) if served.status else ()
    if served:
        return (*kind, served.status)
    return (*kind, str(error)) if isinstance(error, ValueError) else kind


class Failures:
    """Counts failures of one kind since a question ended well."""

    def __init__(self, limit: int):
        self.limit, self.counts, self.last = limit, Counter[Kind](), ""

    def note(self, episode: Episode) -> None:
        error = episode.trace.error
        if error is None:
            self.counts.clear()
        elif episode.failure:
            self.counts[episode.failure] += 1
            message = " ".join(error["message"].split())
            self.last = f"{error['type']} in {error['stage']}: {message}"

    def check(self) -> None:
        """
        Raises:
            GivenUp: there were too many.
        """
        most = max(self.counts.values(), default=0)
        if self.limit and most >= self.limit:
            raise GivenUp(
                f"given up after {most} failures of one kind in a row, the last: {self.last}; what "
                "is finished is kept: see to the cause, then repeat the command, or go on in spite "
                "of it with --stop-after 0"
            )


# What rows have called these modules since before they lay in rooms.
STAGES = {
    "agent.agent": "react",
    "agent.cheatsheet": "react",
    "agent.context": "react",
    "agent.driver": "react",
    "files": "traces",
    "http": "wire",
    "kv.encode": "kv",
    "kv.forward": "gate",
    "kv.pre_rope": "capture",
    "kv.quantize": "packing",
    "kv.recompute": "linking",
    "kv.rope": "rotary",
    "kv.sequence": "spans",
    "kv.span": "spans",
    "kv.support": "gate",
    "kv_store.budgets": "residency",
    "kv_store.span_file": "spanfile",
    "logs.imports": "logs",
    "logs.index": "logs",
    "logs.store": "logs",
    "model.gqa_cpu": "attention",
    "model.kv_source": "llm",
    "model.loaded": "llm",
    "model.openai_endpoint": "endpoint",
    "model.quantization_report": "fidelity",
    "model.request": "continuous",
    "model.sampling": "continuous",
    "model.scheduler": "continuous",
    "records": "traces",
    "retrieval.bm25": "lexical",
    "retrieval.embedder": "retrieve",
    "retrieval.http_index": "remote",
    "retrieval.http_server": "searchserver",
    "retrieval.index": "retrieve",
    "retrieval.retrievers": "evidence",
    "runs.export_batches": "export",
    "runs.run": "harness",
    "runs.worker": "harness",
    "step_prompt": "react",
    "trace_files": "traces",
}


def stage_of(path: Path) -> str:
    """The name that rows give to a module of this package; empty for code of others."""
    if not path.is_relative_to(PACKAGE):
        return ""
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return STAGES.get(module, path.stem)


def describe(error: Exception) -> dict[str, str]:
    """An error as a row keeps it; its stage is the module of ours in which it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [stage for frame in frames if (stage := stage_of(Path(frame.filename)))]
    text = "".join(traceback.format_exception(error))
    stage = ours[-1] if ours else "model"
    return {"stage": stage, "type": type(error).__name__, "message": str(error), "traceback": text}


def run(questions: Iterable[Question], agent: LoopSettings, slots: int) -> Iterator[Trace]:
    """Answer questions, so many in flight; yield each trace as it ends.

    Raises:
        GivenUp: a server that every question needs is lost, or one failure followed the other;
            what ended in the same moment is yielded before.
    """
    waiting, going, failures = iter(questions), 0, Failures(agent.stop_after)
    with closing(agent.llm.in_flight(slots)) as batch:
        while True:
            while going < slots and (question := next(waiting, None)) is not None:
                failures.check()
                episode = start_episode(question, agent)
                going += 1
                yield from go_on(episode, batch, failures)
                going -= episode.prompt is None
            if not going:
                return
            failures.check()
            for episode, reply in batch.step():
                episode.send(reply)
                yield from go_on(episode, batch, failures)
                going -= episode.prompt is None


def go_on(episode: Episode, batch: InFlight[Prompt], failures: Failures) -> Iterator[Trace]:
    """Ask for the episode's next prompt, or yield its trace if it has none."""
    if episode.prompt is None:
        failures.note(episode)
        yield episode.trace
    else:
        batch.submit(episode, episode.prompt)
