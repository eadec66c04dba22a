"""Time to the first token with a stored log, against a full prefill and the naive route.

python benchmarks/reuse.py                     # both shapes, logs of 512 and 2,048 tokens: minutes
python benchmarks/reuse.py --repeats 9

C1, C2: full prefill over reuse. C3: loading and placing, in copies of the same bytes. C10: from int8. C4: the naive
route over ours, both without the question. C11: the share of the checksums.
"""

import tempfile
from pathlib import Path
from typing import Any

import measure
import naive
from measure import Measure

QUESTION = 32  # tokens
CLOSE = {"float32": 1e-4, "bfloat16": 0.1}


def routes(model: Any, length: int, folder: Path) -> dict[str, Any]:
    """Every way to the first token after a log, and the parts of ours."""
    import torch

    from lag.kv import encode, sequence, support
    from lag.kv.cache import GrowableCache, GrowableLayer, memory_of, with_room
    from lag.kv.span import KVSpan
    from lag.kv_store.span_file import checksum
    from lag.kv_store.store import KVStore
    from lag.model.decoder import Decoder
    from lag.paths import Strategy

    mover, plain = support.check_movable(model), measure.the_librarys(model)
    decoder = Decoder(model, mover)  # one for all its prompts, as a run has it
    keep, tail = measure.tokens(length, 1), measure.tokens(QUESTION, 2)
    dtype = str(model.dtype).removeprefix("torch.")
    identity = {"digest": "d", "model": model.config.model_type, "dtype": dtype}
    store = KVStore(
        folder, identity, Strategy("log_kv"), lambda pairs: encode.encode(model, mover, pairs)
    )
    packed = KVStore(folder, identity, Strategy("log_kv", 0, "int8"), lambda pairs: [span])
    span = store.fetch([((), keep)])[0].span
    packed.fetch([((), keep)])
    naive.save(folder / "one.pkl", [naive.encode(plain, keep)])
    tensors = [*span.keys, *span.values]
    block = torch.cat([tensor.flatten() for tensor in tensors])
    buffer = torch.empty_like(block)

    def fetch() -> KVSpan:
        return store.fetch([((), keep)])[0].span

    def place(found: KVSpan) -> Any:
        cache = decoder._placed([sequence.SequencePlan((), (found,), tail)], length, capacity)
        decoder.spare = memory_of(cache)
        return cache

    def reuse() -> Any:
        return decoder.prefill([sequence.SequencePlan((), (fetch(),), tail)])[0]

    def reuse_int8() -> Any:
        found = packed.fetch([((), keep)])[0].span
        return decoder.prefill([sequence.SequencePlan((), (found,), tail)])[0]

    def full() -> Any:
        return Decoder(model).prefill([sequence.SequencePlan(tail=keep + tail)])[0]

    def naive_route(passes: int) -> Any:
        return naive.answer(plain, naive.load(folder / "one.pkl"), tail, passes)

    def question() -> Any:
        decoder = Decoder(model, mover)
        decoder._placed = lambda *_: GrowableCache(
            [GrowableLayer.of(layer.buffers, length) for layer in ready.layers]
        )
        return decoder.prefill([sequence.SequencePlan((), (span,), tail)])[0]

    capacity = with_room(length + QUESTION)
    ready = Decoder(model, mover)._placed(
        [sequence.SequencePlan((), (span,), tail)], length, capacity
    )
    expected = full()
    for found in (reuse(), naive_route(2)):
        worst = (found - expected).abs().max() / expected.abs().max()
        assert worst < CLOSE[dtype], f"a route is off by {worst}"
    return {
        "full prefill": full,
        "question, KV in place": question,
        "reuse": reuse,
        "reuse, int8": reuse_int8,
        "naive reuse": lambda: naive_route(2),
        "load and place": lambda: place(fetch()),
        "load": fetch,
        "place": lambda: place(span),
        "checksums": lambda: [checksum("", tensor) for tensor in tensors],
        "naive load and place": lambda: naive.place(plain, naive.load(folder / "one.pkl")),
        "naive, one pass": lambda: naive.place(plain, naive.load(folder / "one.pkl"), 1),
        "copy": lambda: buffer.copy_(block),
    }


def rows(shape: str, length: int, seconds: dict[str, list[float]]) -> list[Measure]:
    def times(over: str, under: str) -> float:
        return round(measure.ratio(seconds, over, under), 3)

    def share(part: str, whole: str) -> float:
        return round(measure.ratio(seconds, part, whole), 4)

    about, float32 = f"{shape}, {length} tokens", "float32" in shape
    first, least = ("C1", 9) if length == 512 else ("C2", 27 if float32 else 34)
    full = times("full prefill", "reuse")
    question = "question, KV in place"
    best = times("full prefill", question)
    found = [
        Measure(first, f"full prefill / reuse; {about}", full, least=least),
        Measure(first, f"the same / the most possible; {about}", round(full / best, 3), least=0.95),
        Measure("C11", f"checksums / reuse; {about}", share("checksums", "reuse"), most=0.1),
    ]
    if length < 2048:
        return found
    if not float32:
        fewer = times("reuse, int8", "reuse")
        found.append(Measure("C10", f"reuse from int8 / from bf16, warm; {about}", fewer, most=1.1))
    bare = times("load and place", "copy")
    unchecked = round(bare - times("checksums", "copy"), 3)
    naive_over = times("naive load and place", "load and place")
    return [
        *found,
        Measure("C3", f"(load + place - checksums) / copy; {about}", unchecked, most=3 if float32 else 5),
        Measure("C3", f"(load + place) / copy, checksums included; {about}", bare),
        Measure("C4", f"naive load and place / ours, checksums included; {about}", naive_over, least=1.8),
        Measure("C4", f"the same, naive with one pass; {about}", times("naive, one pass", "load and place")),
    ]  # fmt: skip


def main() -> None:
    args = measure.parse_args(__doc__, shapes=True)
    measures, timings = [], {}
    for shape in args.shapes:
        model = measure.build(shape)
        for length in (512, 2048):
            with tempfile.TemporaryDirectory() as folder:
                all_routes = routes(model, length, Path(folder))
                seconds = measure.take_turns(all_routes, args.repeats, again=True)
            timings[f"{shape}, {length} tokens"] = measure.in_milliseconds(seconds)
            measures += rows(shape, length, seconds)
    measure.report(args, measures, timings)


if __name__ == "__main__":
    main()
