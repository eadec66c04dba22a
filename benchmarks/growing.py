"""What a store that grows costs: a step of growing, and a retrieval, over 1,000 and 100,000 logs.

python benchmarks/growing.py

N1: a step takes in 16 traces, whose vectors are drawn at once, and writes a version. N2: one pass
over the vectors is their product with the query, in numpy on one thread. N3: what opening a store
leaves in memory; the vectors stay in the page cache, the texts on the disk.
"""

import gc
import re
import tempfile
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import measure
import numpy as np
from measure import Measure

from lag.logs.growing import GrowingLogs, Keeping
from lag.records import Log, Step, Trace

SIZES = (1_000, 100_000)
DIMENSIONS, STEP = 768, 16
WORDS = "so it follows from what was found before that this is the answer " * 12


class Drawn:
    """Every text has a vector that is drawn; the same one each time."""

    name = digest = "drawn"
    dimensions = DIMENSIONS

    def documents(self, texts: Any) -> np.ndarray:
        seeds = [int.from_bytes(text.encode()[:8], "little") for text in texts]
        made = [np.random.default_rng(seed).normal(size=DIMENSIONS) for seed in seeds]
        made = [vector / np.linalg.norm(vector) for vector in made]
        return np.array(made, dtype=np.float32).reshape(-1, DIMENSIONS)

    queries = documents


def trace(number: int) -> Trace:
    step = Step("q", "answer", reply=f"{number} {WORDS}")
    return Trace(f"new {number}", f"{number} is what?", pred="x", steps=[step])


def anonymous_bytes() -> int:
    """What the process holds that is no file's page."""
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", status)[1])


def opened(folder: Path) -> GrowingLogs:
    return GrowingLogs(folder / "store.jsonl", Keeping(), Drawn())


def is_exact(store: GrowingLogs, query: np.ndarray) -> bool:
    """Whether the nearest are those of a product in float64."""
    matrix = store.index.vectors.matrix(store.versions.count)
    cosines = matrix.astype(np.float64) @ query.astype(np.float64)
    best = [store.versions.ids[row] for row in np.argsort(-cosines)[:10]]
    return [hit.id for hit in store.index.like(query, 10)] == best


def main() -> None:
    args = measure.parse_args(__doc__, repeats=40)
    with tempfile.TemporaryDirectory() as root:
        folders = {size: Path(root) / str(size) for size in SIZES}
        for size, folder in folders.items():
            logs = (Log(f"old {n}", f"{n} was what?", (f"{n} {WORDS}",)) for n in range(size))
            opened(folder).begin({}, {log.id: log for log in logs})
        before, stores = anonymous_bytes(), {}
        for size, folder in folders.items():
            stores[size] = opened(folder)
        held = anonymous_bytes() - before
        numbers = {size: count() for size in SIZES}

        def grow(size: int) -> None:
            first = STEP * next(numbers[size])
            stores[size].grow("train", [trace(first + n) for n in range(STEP)], len)

        steps = measure.take_turns({str(n): partial(grow, n) for n in SIZES}, args.repeats)
        store, large = stores[SIZES[1]], str(SIZES[1])
        queries = Drawn().queries([f"{n} query" for n in range(20)])
        exact = all(is_exact(store, query) for query in queries[:5])
        matrix, query = store.index.vectors.matrix(store.versions.count), queries[0]
        routes = {"pass": lambda: matrix @ query, "retrieval": lambda: store.index.like(query, 3)}
        searches = measure.take_turns(routes, args.repeats)
    step = measure.ratio(steps, large, str(SIZES[0]))
    search = measure.ratio(searches, "retrieval", "pass")
    measures = [
        Measure("N1", f"a step of growing at {large} logs over one at {SIZES[0]}", step, most=1.2),
        Measure("N2", f"retrieval over {large} logs over one pass", search, most=1.2),
        Measure("N2", "the nearest 10 are those of float64 (1: yes)", float(exact), least=1),
        Measure("N3", "bytes that an open store holds per log", held / sum(SIZES), most=1000),
    ]
    timings = measure.in_milliseconds(steps), measure.in_milliseconds(searches)
    measure.report(args, measures, {"steps of growing": timings[0], "searches": timings[1]})


if __name__ == "__main__":
    main()
