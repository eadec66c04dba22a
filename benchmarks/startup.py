"""From the command to the first reply, with few and with many stored logs.

python benchmarks/startup.py                   # minutes: 10,000 files are written first

T3: `agentic.py -m log_kv` on one question, one step and one token, with 10 and with 10,000 logs in the
store: seconds and memory more, and whether anything lies in memory that was not retrieved. A tiny
random model and embedder, so that what grows with the store is not hidden behind loading them.
"""

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
from measure import Measure

sys.path.insert(0, str(measure.ROOT / "tests"))

FEW, MANY = 10, 10_000
RETRIEVED = 3
CITIES = ("aldburg", "beckton", "cardiff")


@dataclass(frozen=True, slots=True)
class Start:
    """One command, from its start to its end: wall and CPU seconds, bytes at its peak."""

    wall: float
    cpu: float
    memory: int
    kv: dict[str, int]


def name(n: int) -> str:
    return f"n{n:05d}"


def row(n: int) -> dict[str, Any]:
    said = f"{name(n)} lives in {CITIES[n % 3]}. <ans>{CITIES[n % 3]}</ans>"
    steps = [f"Not yet. <keywords>{name(n)} home</keywords>", said]
    trace = [{"query": "", "action": "answer", "reply": reply} for reply in steps]
    return {"question": f"In which city does {name(n)} live?", "trace": trace}


def make_data(root: Path, embedder: Path, count: int) -> None:
    """One question, three documents, and the log store."""
    import small

    from lag.files import write_json
    from lag.paths import Paths

    paths = Paths(root, "wikihop")
    question = {"id": "q", "question": row(0)["question"], "answer": CITIES[0]}
    question |= {"supporting_facts": [["aldburg", 0]], "type": "lives"}
    small.write_split(paths, [question], 1)
    write_json(paths.docs, {c: {"title": c, "content": f"{c} is a city."} for c in CITIES})
    rows = {name(n): row(n) for n in range(count)}
    write_json(paths.log_store, {"metadata": {}, "results": rows})


def store_all(root: Path, model: Path) -> int:
    """Publish a span for every log: numbers of the right shape, made up; returns how many."""
    import torch

    import store_log_kv
    from lag.kv.span import KVSpan
    from lag.model.llm import LLM
    from lag.modes import MODES
    from lag.paths import Paths

    llm, paths = LLM.load(str(model), device="cpu"), Paths(root, "wikihop")
    store = llm.open_store(paths.kv, MODES["log_kv"])
    args = store_log_kv.parse_args(["-d", "wikihop", "--data", str(root)])
    jobs = store_log_kv.jobs_of(store_log_kv.load_logs(args, paths), MODES["log_kv"], llm)
    like = store.encode([((), (9,))])[0]
    for job in jobs:
        length = len(job.keep)
        made = [
            tuple(torch.randn(one.shape[0], length, one.shape[2]) for one in part)
            for part in (like.keys, like.values)
        ]
        store.publish(job.after, job.keep, KVSpan(job.keep, *made))
    return len(jobs)


def command(root: Path, model: Path, embedder: Path, script: str, *flags: str) -> list[str]:
    places = ["-d", "wikihop", "--data", str(root), "--embedder", str(embedder)]
    model_flags = ["--model", str(model)] if script != "embed.py" else []
    return [sys.executable, script, *places, "--device", "cpu", *model_flags, *flags]


def start(words: list[str]) -> Start:
    """Run a command and wait for its end."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(words, cwd=measure.ROOT, stdout=said, stderr=errors)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0), errors.seek(0)
        if child.returncode:
            raise SystemExit(f"{' '.join(words)} failed: {errors.read().decode()}")
        lines = said.read().decode().splitlines()
    summary = json.loads(lines[-1])
    cpu = used.ru_utime + used.ru_stime
    return Start(wall, cpu, used.ru_maxrss * 1024, summary.get("kv", {}))


def prepared(folder: Path, count: int, model: Path, embedder: Path) -> Path:
    root = folder / str(count)
    make_data(root, embedder, count)
    subprocess.run(
        command(root, model, embedder, "embed.py"),
        cwd=measure.ROOT,
        check=True,
        capture_output=True,
    )
    made = store_all(root, model)
    assert made == count, f"{made} files for {count} logs"
    return root


def prepare(folder: Path) -> None:
    import tiny

    model, embedder = tiny.save_tiny(folder / "model"), tiny.save_embedder(folder / "embedder")
    for count in (FEW, MANY):
        prepared(folder, count, model, embedder)


def measured(folder: Path, repeats: int) -> dict[int, list[Start]]:
    """Starts with few and with many logs, in turns."""
    # in a process of its own: a command's peak is at least the size of the process that starts it
    child = multiprocessing.get_context("spawn").Process(target=prepare, args=(folder,))
    child.start()
    child.join()
    assert child.exitcode == 0, "the data could not be made"
    found: dict[int, list[Start]] = {count: [] for count in (FEW, MANY)}
    once = ["-m", "log_kv", "--limit", "1", "--max-steps", "1", "--max-new-tokens", "1"]
    for turn in range(repeats + 1):
        for count in found:
            flags = [*once, "--num-logs", str(RETRIEVED), "--run", f"turn{turn}"]
            places = folder / str(count), folder / "model", folder / "embedder"
            started = start(command(*places, "agentic.py", *flags))
            if turn:
                found[count].append(started)
    return found


def main() -> None:
    args = measure.parse_args(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), args.repeats)

    def middle(count: int, what: str) -> float:
        return statistics.median(getattr(one, what) for one in found[count])

    last = found[MANY][-1].kv
    assert last["encoded"] == last["damaged"] == 0, f"the logs were not found: {last}"
    more = {what: middle(MANY, what) - middle(FEW, what) for what in ("wall", "cpu", "memory")}
    about = f"{MANY:,} logs against {FEW}"
    measures = [
        Measure("T3", f"CPU seconds more to the first reply, {about}", round(more["cpu"], 3), most=1.5),
        Measure("T3", f"seconds more by the clock, {about}", round(more["wall"], 3)),
        Measure("T3", f"MB more at the peak, {about}", round(more["memory"] / 1e6, 1), most=150),
        Measure("T3", "spans in memory that were not retrieved", last["held"] - last["hits"], most=0),
    ]  # fmt: skip
    timings = {
        f"{count} logs": {what: round(middle(count, what), 3) for what in ("wall", "cpu", "memory")}
        for count in found
    }
    measure.report(args, measures, timings)


if __name__ == "__main__":
    main()
