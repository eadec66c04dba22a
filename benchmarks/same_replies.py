"""Replies with drafts and without: the same words, in every mode, greedy and drawn.

python benchmarks/same_replies.py --questions 500

The embedded model on prompts with documents and three logs (those of `hidden.py`), 16 in flight, so that
rows join and leave. S4: replies that differ, and of these those that had no near tie (a lead too small
to survive another order of sums; rule 7).
"""

import argparse
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import hidden
import measure
from measure import Measure

from lag import cli, prompts
from lag.miniwiki.world import generate
from lag.model.llm import LLM
from lag.modes import MODES, Mode
from lag.prompts import Prompt
from lag.records import Reply
from lag.step_prompt import note_of
from lag.tasks import TASKS

IN_FLIGHT = 16
HEATS = {"greedy": 0.0, "drawn": 2.0}  # temperatures


def prompt_of(case: hidden.Case, mode: Mode, number: int) -> Prompt:
    """Documents and logs as the mode brings them; the logs' full traces are drafts' to look at."""
    prompt = prompts.qa_prompt(case.question, case.documents)
    logs = case.logs if mode.enters else ()
    return replace(
        prompt,
        key=str(number),
        notes=tuple(note_of(mode, log, log, 1.0) for log in logs),
        drafts=tuple(text for log in logs for text in log.replies),
    )


def replies(llm: LLM, asked: list[Prompt]) -> list[Reply]:
    batch, found = llm.in_flight(IN_FLIGHT), {}
    for number, prompt in enumerate(asked):
        batch.submit(number, prompt)
    while len(found) < len(asked):
        found |= batch.step()
    return [found[number] for number in range(len(asked))]


def counts(plain: list[Reply], drafted: list[Reply]) -> Counter:
    differ = [(a, b) for a, b in zip(plain, drafted) if a.text != b.text]
    return Counter(
        replies=len(plain),
        differ=len(differ),
        without_near_tie=sum(not (a.near_ties or b.near_ties) for a, b in differ),
        near_ties=sum(reply.near_ties for reply in plain),
        tokens=sum(reply.new_tokens for reply in drafted),
        drafted=sum(reply.drafted_tokens for reply in drafted),
        accepted=sum(reply.accepted_tokens for reply in drafted),
    )


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Counter]:
    """What was counted, by mode and temperature."""
    llm = LLM.load(args.model, max_new_tokens=64)
    cases = list(hidden.cases(generate(hidden.SEED), args.questions))
    found = {}
    for mode in (mode for mode in MODES.values() if mode.enters != "sheet"):
        if mode.enters == "kv":
            llm.open_store(folder, mode)
        asked = [prompt_of(case, mode, n) for n, case in enumerate(cases)]
        for name, heat in HEATS.items():
            llm.sampling = replace(llm.sampling, temperature=heat)
            both = []
            for llm.draft in ("off", "logs"):
                both.append(replies(llm, asked))
            found[f"{mode.name}, {name}"] = counts(*both)
            print(f"{mode.name}, {name}", dict(found[f"{mode.name}, {name}"]), flush=True)
    return found


def main() -> None:
    parser = measure.make_parser(__doc__, repeats=1)
    parser.add_argument("--questions", type=int, default=500, help="prompts a mode (%(default)s)")
    parser.add_argument("--model", default=TASKS["miniwiki"].model, help="folder (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(args, Path(folder))
    whole = sum(found.values(), Counter())
    per_forward = whole["tokens"] / (whole["tokens"] - whole["accepted"])
    about = f"of {whole['replies']}, {len(found) // 2} modes, greedy and drawn"
    rows = [
        Measure("S4", f"replies that drafts change without a near tie, {about}", whole["without_near_tie"], most=0),
        Measure("S4", f"replies that drafts change at a near tie, {about}", whole["differ"] - whole["without_near_tie"]),
        Measure("S4", "tokens per forward and row, drafts on, the embedded model", round(per_forward, 3)),
    ]  # fmt: skip
    measure.report(args, rows, {name: dict(count) for name, count in found.items()})


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
