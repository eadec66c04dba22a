"""Time to the first token with logs as KV, of which the first tokens are computed again, or none.

python benchmarks/linking.py                   # both shapes, batches of 1 and 4: minutes
python benchmarks/linking.py --repeats 9

Three logs of 256 tokens and a question of 64. L1: full prefill over reuse. L2: over reuse with
`--recompute 16`, held to 3, which is our own bound. L3: what that adds, over what as many tokens
more in the question add. L4: over its share of a full prefill, the usual estimate. L5: reuse with
`--sink 4` over reuse without.
"""

import statistics
from typing import Any

import measure
from measure import Measure

LOGS, LENGTH, QUESTION = 3, 256, 64  # of each log and of the question: tokens
AGAIN, SINK = 16, 4  # tokens
CLOSE = {"float32": 1e-4, "bfloat16": 0.1}


def routes(model: Any, batch: int) -> dict[str, Any]:
    """Every way to the first token of a batch."""
    from lag.kv import encode, sequence, support
    from lag.model import decoder

    mover = support.check_movable(model)
    head, tail = measure.tokens(SINK, 8), measure.tokens(QUESTION, 9)
    more = tail + measure.tokens(LOGS * AGAIN, 7)
    logs = [measure.tokens(LENGTH, seed) for seed in range(LOGS)]
    spans = tuple(encode.encode(model, mover, [((), log) for log in logs]))
    sunk = tuple(encode.encode(model, mover, [(head, log) for log in logs]))
    text = sum(logs, ()) + tail

    def prefill(row: sequence.SequencePlan) -> Any:
        return decoder.Decoder(model, mover).prefill([row] * batch)

    rows = {
        "full prefill": sequence.SequencePlan(tail=text),
        "reuse": sequence.SequencePlan((), spans, tail),
        f"reuse, recompute {AGAIN}": sequence.SequencePlan((), spans, tail, recompute=AGAIN),
        f"reuse, {LOGS * AGAIN} tokens more": sequence.SequencePlan((), spans, more),
        f"reuse, sink {SINK}": sequence.SequencePlan(head, sunk, tail),
        f"reuse, sink {SINK}, recompute {AGAIN}": sequence.SequencePlan(
            head, sunk, tail, recompute=AGAIN
        ),
    }
    expected, found = (
        prefill(row)
        for row in (rows["full prefill"], sequence.SequencePlan((), spans, tail, recompute=LENGTH))
    )
    worst = (found - expected).abs().max() / expected.abs().max()
    dtype = str(model.dtype).removeprefix("torch.")
    assert worst < CLOSE[dtype], f"logs computed again as a whole are off by {worst}"
    return {name: lambda row=row: prefill(row) for name, row in rows.items()}


def rows(about: str, seconds: dict[str, list[float]]) -> list[Measure]:
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    full, reuse = medians["full prefill"], medians["reuse"]
    again, sink = medians[f"reuse, recompute {AGAIN}"], medians[f"reuse, sink {SINK}"]
    added = again - reuse
    behind = medians[f"reuse, {LOGS * AGAIN} tokens more"] - reuse
    share = LOGS * AGAIN / (LOGS * LENGTH + QUESTION) * full
    return [
        Measure("L1", f"full prefill / reuse; {about}", round(full / reuse, 3)),
        Measure("L2", f"full prefill / reuse, recompute {AGAIN}; {about}", round(full / again, 3), least=3),
        Measure("L3", f"what recompute {AGAIN} adds / what as many tokens more add; {about}", round(added / behind, 3)),
        Measure("L4", f"what recompute {AGAIN} adds / its share of a full prefill; {about}", round(added / share, 3)),
        Measure("L5", f"reuse, sink {SINK} / reuse; {about}", round(sink / reuse, 3)),
    ]  # fmt: skip


def main() -> None:
    args = measure.parse_args(__doc__, shapes=True)
    measures, timings = [], {}
    for shape in args.shapes:
        model = measure.build(shape)
        for batch in (1, 4):
            about = f"{shape}, batch {batch}"
            seconds = measure.take_turns(routes(model, batch), args.repeats)
            timings[about] = measure.in_milliseconds(seconds)
            measures += rows(about, seconds)
    measure.report(args, measures, timings)


if __name__ == "__main__":
    main()
