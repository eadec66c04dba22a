"""Kill writers and flip bits at random: is anything ever served that was not written?

python benchmarks/damage.py                    # 200 kills, 200 flipped bits
python benchmarks/damage.py --repeats 20       # as many of each

C15: wrong records served, damage that went unnoticed, temporary files left behind.
"""

import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import measure
from measure import Measure

sys.path[:0] = [str(measure.ROOT / "tests"), str(measure.ROOT / "tests" / "kv_store")]


def kills(folder: Path, times: int) -> Counter:
    """Writers that publish without end, each killed at a random moment."""
    import test_store

    draw, found = random.Random(0), Counter()
    expected = test_store.made_up(test_store.PAIRS)
    for _ in range(times):
        child = test_store.in_child(test_store.publish_forever, folder)
        time.sleep(draw.uniform(0.002, 0.05))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        store = test_store.open_store(folder)
        for fetched, span in zip(store.fetch(test_store.PAIRS), expected, strict=True):
            found["served"] += 1
            found["wrong"] += not test_store.same(fetched.span, span)
        found["damaged"] += store.counts["damaged"]
    test_store.open_store(folder).publish(*test_store.PAIRS[0], expected[0])
    found["left behind"] = len(list((folder / "d1" / "temporary").iterdir()))
    return found


def flips(folder: Path, times: int) -> Counter:
    """One random bit of a file at a time, anywhere in it."""
    import test_store

    draw, found = random.Random(1), Counter()
    store = test_store.open_store(folder)
    store.fetch(test_store.PAIRS)
    for _ in range(times):
        pair = draw.choice(test_store.PAIRS)
        path, expected = store.path(*pair), test_store.made_up([pair])[0]
        content = path.read_bytes()
        place, bit = draw.randrange(len(content)), draw.randrange(8)
        path.write_bytes(test_store.flipped(content, place, bit))
        before = store.counts["damaged"]
        fetched = store.fetch([pair])[0]
        found["noticed"] += store.counts["damaged"] - before
        found["wrong"] += not test_store.same(fetched.span, expected)
        found["repaired"] += path.read_bytes() == content
    return found


def main() -> None:
    args = measure.parse_args(__doc__, repeats=200)
    logging.disable(logging.WARNING)  # every damaged file is named
    with tempfile.TemporaryDirectory() as folder:
        killed = kills(Path(folder) / "kills", args.repeats)
        flipped = flips(Path(folder) / "flips", args.repeats)
    measures = [
        Measure("C15", f"wrong records served, {args.repeats} kills", killed["wrong"], most=0),
        Measure("C15", f"damaged files after {args.repeats} kills", killed["damaged"], most=0),
        Measure("C15", "temporary files left behind", killed["left behind"], most=0),
        Measure("C15", f"wrong records served, {args.repeats} flipped bits", flipped["wrong"], most=0),
        Measure("C15", "flipped bits that were noticed", flipped["noticed"], least=args.repeats),
        Measure("C15", "files written again as they were", flipped["repaired"], least=args.repeats),
    ]  # fmt: skip
    measure.report(args, measures)


if __name__ == "__main__":
    main()
