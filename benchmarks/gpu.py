"""Loading, placing and writing on a GPU, with random weights in the shapes of real models.

python benchmarks/gpu.py --shape 8B            # a GPU of 80 GB; minutes
python benchmarks/gpu.py --shape tiny --device cpu --logs 64 128 --tokens 4    # that it runs

Targets are for an H100 and the 8B shape; they were computed, never measured. By the clock, with the
device waited for: let nothing else run. CUDA graphs are not used.

G1 placing KV that is on the device. G2 pinned memory to the device. G3 page cache to the device. G4 a
cold disk. G5, G6 time to the first token, full prefill over reuse, short and long. G7 the shortest log
that pays. G8 int8 over bfloat16. G9 the ideal time, loading and computing at once, over ours. G10
memory above model and KV. G11 tokens per second behind placed KV over behind computed KV. S3 drafts.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
from drafts import RECORDED, Ours, in_batches
from measure import Measure
from tiers import IDENTITY, drop_from_memory, made_up

from lag import cli

QUESTION = 64  # tokens
BATCHES = (1, 8, 32)
# fmt: off
SHAPES = {
    "8B":   ("LlamaConfig", dict(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)),
    "1.5B": ("Qwen2Config", dict(vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2)),
    "0.5B": ("Qwen2Config", dict(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2)),
    "tiny": ("LlamaConfig", dict(vocab_size=50000, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)),
}
# fmt: on


def build(shape: str, device: str) -> Any:
    import torch
    import transformers

    kind, sizes = SHAPES[shape]
    config = getattr(transformers, kind)(**sizes, max_position_embeddings=32768)
    torch.manual_seed(0)
    with torch.device(device):
        auto = transformers.AutoModelForCausalLM
        return auto.from_config(config, dtype=torch.bfloat16).eval()


class Bench:
    """One model, one decoder, and where a log's KV may lie."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        from lag.kv import support
        from lag.model.decoder import Decoder

        self.model = build(args.shape, args.device)
        self.cuda, self.repeats = args.device == "cuda", args.repeats
        self.mover = support.check_movable(self.model)
        self.decoder, self.folder = Decoder(self.model, self.mover), folder
        self.tail = measure.tokens(QUESTION, 2)
        self.timings: dict[str, Any] = {}

    def wait(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()

    def seconds(
        self, name: str, route: Callable[[], Any], before: Callable = lambda: None
    ) -> float:
        """The median of several runs behind one that is not counted, by the clock."""
        times = []
        for _ in range(self.repeats + 1):
            before()
            self.wait()
            start = time.perf_counter()
            route()
            self.wait()
            times.append(time.perf_counter() - start)
        found = sorted(times[1:])[len(times[1:]) // 2]
        self.timings[name] = {
            "median_ms": round(1e3 * found, 3),
            "min_ms": round(1e3 * min(times[1:]), 3),
        }
        return found

    def moved(self, span: Any, move: Callable[[Any], Any]) -> Any:
        from lag.kv.span import KVSpan

        return KVSpan(span.ids, *(tuple(map(move, part)) for part in (span.keys, span.values)))

    def plan(self, *spans: Any) -> Any:
        from lag.kv.sequence import SequencePlan

        return SequencePlan((), spans, self.tail)

    def first_token(self, span: Any) -> float:
        return float(self.decoder.prefill([self.plan(span)])[0, 0])

    def places(self, length: int) -> dict[str, tuple[Callable[[], Any], Callable[[], None]]]:
        """By place, how a log's span is had from there, and what is done before."""
        from lag.kv_store.store import KVStore
        from lag.paths import Strategy

        keep = measure.tokens(length, 1)
        host = made_up(self.model, keep)
        here = self.moved(host, lambda one: one.to(self.model.device))
        pinned = self.moved(host, lambda one: one.pin_memory()) if self.cuda else host
        found = {"device": (lambda: here, bool), "pinned": (lambda: pinned, bool)}
        for name, dtype in (("bf16", "auto"), ("int8", "int8")):
            store = KVStore(self.folder, IDENTITY, Strategy("log_kv", 0, dtype), lambda _: [host])
            store.publish((), keep, host)

            def fetch(store: Any = store) -> Any:
                return store.fetch([((), keep)])[0].span

            def forget(store: Any = store) -> None:
                drop_from_memory(store.path((), keep))

            found[f"page cache, {name}"], found[f"disk, {name}"] = (fetch, bool), (fetch, forget)
        return found


def moves(bench: Bench, length: int) -> list[Measure]:
    """G1 to G4: one log's KV from where it lies to where it is used."""
    places = bench.places(length)
    here, pinned = places["device"][0](), places["pinned"][0]()
    size, about = here.num_bytes / 1e9, f"{length} tokens"
    capacity = length + QUESTION
    place = bench.seconds(
        "place", lambda: bench.decoder._placed([bench.plan(here)], length, capacity)
    )
    device = bench.model.device

    def load(name: str) -> Callable[[], Any]:
        return lambda: bench.moved(places[name][0](), lambda one: one.to(device, non_blocking=True))

    to_device = bench.seconds(
        "pinned to device",
        lambda: bench.moved(pinned, lambda one: one.to(device, non_blocking=True)),
    )
    cached = bench.seconds("page cache to device", load("page cache, bf16"))
    fetch, forget = places["disk, bf16"]
    path = max(bench.folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)

    def plainly() -> None:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 23):
                pass

    raw = bench.seconds("disk, read plainly", plainly, lambda: drop_from_memory(path))
    cold = bench.seconds("disk, store", fetch, forget)
    return [
        Measure("G1", f"place KV that is on the device, ms; {about}", round(1e3 * place, 3), most=3),
        Measure("G2", f"pinned memory to device, GB/s; {about}", round(size / to_device, 2), least=45),
        Measure("G3", f"page cache to device, GB/s; {about}", round(size / cached, 2), least=15),
        Measure("G4", f"cold disk, the store's rate / plain reading; {about}", round(raw / cold, 3), least=0.8),
    ]  # fmt: skip


def first_tokens(bench: Bench, length: int, id: str, least: tuple[float, ...]) -> list[Measure]:
    """G5, G6, G8, G9: time to the first token, a full prefill over reuse from each place."""
    from lag.kv.sequence import SequencePlan

    whole = SequencePlan(tail=measure.tokens(length, 1) + bench.tail)
    full = bench.seconds(
        f"full prefill, {length}", lambda: float(bench.decoder.prefill([whole])[0, 0])
    )
    found, rows = {}, []
    for name, (have, before) in bench.places(length).items():
        label = f"first token, {length}, {name}"
        found[name] = bench.seconds(label, lambda have=have: bench.first_token(have()), before)
    for name, bound in zip(("device", "pinned", "page cache, bf16"), least, strict=True):
        what = f"full prefill / reuse, first token, from {name}; {length} tokens"
        rows.append(Measure(id, what, round(full / found[name], 3), least=bound))
    rows.append(
        Measure(
            id, f"the same from a cold disk; {length} tokens", round(full / found["disk, bf16"], 3)
        )
    )
    if id == "G5":
        int8 = found["disk, int8"] / found["disk, bf16"]
        loading = max(found["disk, bf16"] - found["device"], 0.0)
        ideal = max(loading, found["device"])
        rows += [
            Measure("G8", f"first token from int8 / from bf16, cold disk; {length} tokens", round(int8, 3), most=0.65),
            Measure("G9", f"the longer of loading and computing / ours, cold disk; {length} tokens", round(ideal / found["disk, bf16"], 3), least=0.8),
        ]  # fmt: skip
    return rows


def break_even(bench: Bench, lengths: tuple[int, ...]) -> list[Measure]:
    """G7: the shortest of some logs whose reuse from pinned memory beats computing them."""
    from lag.kv.sequence import SequencePlan

    for length in lengths:
        have, _ = bench.places(length)["pinned"]
        whole = SequencePlan(tail=measure.tokens(length, 1) + bench.tail)
        reuse = bench.seconds(f"reuse, {length}", lambda have=have: bench.first_token(have()))
        full = bench.seconds(
            f"no reuse, {length}", lambda whole=whole: float(bench.decoder.prefill([whole])[0, 0])
        )
        if reuse < full:
            break
    else:
        length *= 2
    return [
        Measure("G7", "shortest log whose reuse from pinned memory pays, tokens", length, most=512)
    ]


def memory(bench: Bench, length: int) -> list[Measure]:
    """G10: what a prefix takes at most while it is placed, in its own bytes."""
    import torch

    if not bench.cuda:
        return []
    pinned = bench.places(length)["pinned"][0]()
    bench.decoder.arrange([])
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    bench.decoder._placed([bench.plan(pinned)], length, length + QUESTION)
    more = (torch.cuda.max_memory_allocated() - before) / pinned.num_bytes
    return [
        Measure(
            "G10",
            f"memory at the peak / the prefix's KV; {length} tokens",
            round(more, 3),
            most=1.1,
        )
    ]


def writing(bench: Bench, length: int, count: int) -> list[Measure]:
    """G11, and tokens per second of batches against the library's `generate` with a static cache."""
    import torch

    from lag.kv.sequence import SequencePlan
    from lag.model.decoder import Decoder

    def advance(decoder: Any, rows: int) -> None:
        for _ in range(count):
            decoder.advance(torch.full((rows,), 7))

    def rate(name: str, plans: list[Any]) -> float:
        decoder = Decoder(bench.model, bench.mover, slots=len(plans))

        def start() -> None:
            decoder.prefill(plans)

        seconds = bench.seconds(name, lambda: advance(decoder, len(plans)), start)
        return len(plans) * count / seconds

    here = bench.places(length)["device"][0]()
    placed = rate("behind placed KV", [bench.plan(here)])
    computed = rate("behind computed KV", [SequencePlan(tail=here.ids + bench.tail)])
    rows = [Measure("G11", f"tokens per second, behind placed / computed KV; {length} tokens", round(placed / computed, 3), least=0.98)]  # fmt: skip
    short = measure.tokens(256, 3)
    for size in BATCHES:
        ours = rate(f"ours, batch {size}", [SequencePlan(tail=short) for _ in range(size)])
        ids = torch.tensor([short] * size, device=bench.model.device)

        def generate(new: int, ids: Any = ids) -> Any:
            return bench.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                max_new_tokens=new, min_new_tokens=new, cache_implementation="static",
            )  # fmt: skip

        one = bench.seconds(f"generate, first token, batch {size}", lambda g=generate: g(1))
        all_of_them = bench.seconds(f"generate, batch {size}", lambda g=generate: g(1 + count))
        library = size * count / max(all_of_them - one, 1e-9)
        rows += [
            Measure("G11", f"tokens per second, ours; batch {size}", round(ours, 1)),
            Measure("G11", f"the same / generate with a static cache; batch {size}", round(ours / library, 3)),
        ]  # fmt: skip
    return rows


def drafted(bench: Bench, prompts: int) -> list[Measure]:
    """S3 on this device: recorded replies, as `drafts.py` plays them."""
    cases = json.loads(RECORDED.read_text(encoding="utf-8"))[:prompts]
    span, rows = bench.places(200)["device"][0](), []
    for size in BATCHES[:2]:
        seconds = {}
        for kind in ("off", "logs"):
            players = []

            def play(kind: str = kind, size: int = size, players: list[Ours] = players) -> None:
                players.append(Ours(bench.model, bench.mover, kind))
                in_batches(players[-1], [span], cases, size)

            seconds[kind] = bench.seconds(f"drafts {kind}, batch {size}", play)
        many = sum(len(case["reply"]) for case in cases)
        per_forward = many / max(many - players[-1].accepted, 1)
        rows += [
            Measure("S3", f"drafts on / off, replies per second, prompts included; GPU, batch {size}", round(seconds["off"] / seconds["logs"], 3)),
            Measure("S3", f"tokens per forward and row; GPU, batch {size}", round(per_forward, 3)),
        ]  # fmt: skip
    return rows


def main() -> None:
    parser = measure.make_parser(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8B", help="of the model (%(default)s)")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (%(default)s)")
    parser.add_argument(
        "--logs", type=int, nargs=2, default=(4096, 16384), help="tokens, short and long"
    )
    parser.add_argument("--tokens", type=int, default=128, help="written per reply (%(default)s)")
    parser.add_argument("--prompts", type=int, default=16, help="recorded replies (%(default)s)")
    args = parser.parse_args()
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is here; --shape tiny --device cpu only shows that it runs")
    short, long = args.logs
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        rows = [
            *moves(bench, short),
            *first_tokens(bench, short, "G5", (4, 3.5, 1.8)),
            *first_tokens(bench, long, "G6", (15, 8, 2.3)),
            *break_even(bench, tuple(n for n in (64, 128, 256, 512, 1024) if n <= short)),
            *memory(bench, short),
            *writing(bench, min(2 * short, long), args.tokens),
            *drafted(bench, args.prompts),
        ]
    about = {"shape": args.shape, "device": args.device}
    if args.device == "cuda":
        about["device"] = torch.cuda.get_device_name()
    measure.report(args, rows, about | bench.timings)


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
