"""What every benchmark here shares: shapes, CPU time, ratios within one run, a result file.

Routes are timed in turns, so that whatever else the machine does falls on all of them, and in CPU
time of one thread, so that other processes count as little as they can.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Random weights of these shapes: speed and bytes depend on the shape alone.
# fmt: off
SHAPES = {
    "135M float32": ("LlamaConfig", "float32", dict(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3)),
    "0.5B bfloat16": ("Qwen2Config", "bfloat16", dict(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2)),
}
# fmt: on
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # of a processor, the widest first


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of a result: what was measured, its value, and the bound that it is held to.

    most, least: the bound; None where there is none on that side.
    """

    id: str
    what: str
    value: float
    most: float | None = None
    least: float | None = None

    @property
    def reached(self) -> bool:
        above = self.most is None or self.value <= self.most
        return above and (self.least is None or self.value >= self.least)


def build(shape: str) -> Any:
    """A model of a shape, with random weights, whose frequencies stay float32, as `LLM` has it."""
    import torch
    import transformers

    from lag.model.gqa_cpu import share_keys

    kind, dtype, sizes = SHAPES[shape]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**sizes, max_position_embeddings=16384)
    auto = transformers.AutoModelForCausalLM
    model = auto.from_config(config, dtype=getattr(torch, dtype)).eval()
    share_keys(model)
    return model


def the_librarys(model: Any) -> Any:
    """The same weights in a model as the library makes it, without this toolkit's attention."""
    from lag.model.gqa_cpu import NAME

    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    plain = copy.deepcopy(model, shared)
    for module in plain.modules():
        if getattr(getattr(module, "config", None), "_attn_implementation", "") == NAME:
            module.config._attn_implementation = "sdpa"
    return plain


def tokens(count: int, seed: int, vocabulary: int = 40_000) -> tuple[int, ...]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(10, vocabulary, (count,), generator=generator).tolist())


def take_turns(
    routes: dict[str, Callable[[], Any]],
    repeats: int,
    clock: Callable[[], float] = time.process_time,
    again: bool = False,
) -> dict[str, list[float]]:
    """Seconds of every route, `repeats` times each after one round that is not counted.

    clock: CPU time; where waiting is what is measured, `time.perf_counter`.
    again: whether a route goes once more, uncounted, right before: a machine may take memory away
        that was idle while the others went, which no run of many questions leaves idle.
    """
    seconds: dict[str, list[float]] = {name: [] for name in routes}
    for round in range(repeats + 1):
        for name, route in routes.items():
            if again and round:
                route()
            start = clock()
            route()
            if round:
                seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    """How many times the median of one route is that of another."""
    return statistics.median(seconds[over]) / statistics.median(seconds[under])


def in_milliseconds(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "median_ms": round(1e3 * statistics.median(times), 3),
            "min_ms": round(1e3 * min(times), 3),
        }
        for name, times in seconds.items()
    }


def make_parser(doc: str, repeats: int = 5, shapes: bool = False) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=repeats, help="of each route (%(default)s)")
    parser.add_argument("--out", type=Path, help="result file; default: benchmarks/results/")
    if shapes:
        from lag.cli import list_of

        text = "of models; bfloat16 takes hours on a processor without its instructions (all)"
        parser.add_argument("--shapes", type=list_of(SHAPES, "shape"), default=[*SHAPES], help=text)
    return parser


def parse_args(doc: str, repeats: int = 5, shapes: bool = False) -> argparse.Namespace:
    return make_parser(doc, repeats, shapes).parse_args()


def parse_worlds(doc: str, name: str = "", out: str = "result file") -> argparse.Namespace:
    """Folders of worlds, and where what is gathered from them goes."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DIR", type=Path, nargs="+", help="one folder per world")
    default = ROOT / "benchmarks" / "results" / name
    parser.add_argument("--out", type=Path, default=default, help=f"{out} (%(default)s)")
    return parser.parse_args()


def made_by() -> dict[str, Any]:
    """Machine, versions, commit and date."""
    import torch

    from lag.runs.manifest import commit_of, now, versions

    return {
        "device": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "time": "CPU time of this process; other jobs may share the cores and the memory",
        "load_average": round(os.getloadavg()[0], 2),
        "versions": versions(),
        **commit_of(ROOT),
        "date": now(),
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Its name, and the widest instructions that it computes with: two of one name may differ."""
    if not cpuinfo.exists():
        return platform.processor()
    lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines()]
    told = {key.strip(): value.split() for key, _, value in reversed(lines)}
    name = " ".join(told.get("model name", [])) or platform.processor()
    widest = next((i for i in INSTRUCTIONS if i in told.get("flags", [])), "")
    return f"{name} ({widest})" if widest else name


def report(
    args: argparse.Namespace, measures: list[Measure], timings: dict[str, Any] | None = None
) -> None:
    """Print a table, and write the result file."""
    name = Path(sys.argv[0]).stem
    for row in measures:
        bound = f"<= {row.most}" if row.most is not None else f">= {row.least}"
        bound = "" if row.most is None and row.least is None else bound
        mark = "ok " if row.reached else "NOT"
        print(f"{row.id:4} {row.value:10.4g} {bound:10} {mark} {row.what}", flush=True)
    rows = [{**asdict(row), "reached": row.reached} for row in measures]
    result = {"benchmark": name, "repeats": args.repeats, "measures": rows}
    result |= {"timings": timings or {}, "made_by": made_by()}
    path = args.out or ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
