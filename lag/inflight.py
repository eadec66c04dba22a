"""Many questions in flight at a server: each goes on as soon as its own reply is there.

`react.run` writes token by token with a model in the process; a server batches itself.
Only requests run in threads. The loop, retrieval and writing stay in the caller's.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from lag.prompts import Prompt
from lag.react import Agent, Flight, take_off
from lag.traces import Question, Trace
from lag.wire import GivenUp


def request(llm: Any, prompt: Prompt) -> Any:
    """A reply, or the exception that it ended in.

    Raises:
        GivenUp: the server is lost.
    """
    try:
        return llm.generate([prompt])[0]
    except GivenUp:
        raise
    except Exception as error:
        return error


def run_concurrently(
    questions: Iterable[Question], agent: Agent, in_flight: int
) -> Iterator[Trace]:
    """Answer questions, `in_flight` at a time; yield each trace as it ends.

    Raises:
        GivenUp: the server is lost; what ended in the same moment is yielded before.
    """
    waiting = iter(questions)
    asked: dict[Future[Any], Flight] = {}
    pool = ThreadPoolExecutor(in_flight)
    try:
        while True:
            while len(asked) < in_flight and (question := next(waiting, None)) is not None:
                yield from go_on(take_off(question, agent), pool, agent, asked)
            if not asked:
                return
            done, _ = wait(asked, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda future: future.exception() is not None):
                flight = asked.pop(future)
                flight.send(future.result())
                yield from go_on(flight, pool, agent, asked)
    except BaseException:  # an interrupt too: no thread may go on trying behind our back
        agent.llm.stop()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def go_on(
    flight: Flight, pool: ThreadPoolExecutor, agent: Agent, asked: dict[Future[Any], Flight]
) -> Iterator[Trace]:
    """Send the flight's next prompt, or yield its trace if it has none."""
    if flight.prompt is None:
        yield flight.trace
    else:
        asked[pool.submit(request, agent.llm, flight.prompt)] = flight
