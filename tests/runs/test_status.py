"""How far runs are, from files that workers wrote, in every state that a worker can leave."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small
from counted import bytes_read, calls
from scripted import ScriptedLLM

import agentic
import launch
from lag import files
from lag.paths import Paths
from lag.runs import heartbeat, status
from lag.runs.share import ranges
from lag.runs.status import DatasetStatus, RunStatus

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def paths(small_data):
    return Paths(small_data, "wikihop")


@pytest.fixture
def answer(small_data):
    """Answer questions without documents as one partition."""

    def call(command, reply=small.stepwise):
        flags = ["-d", "wikihop", "--data", str(small_data), "--solver", "direct", "--run", "r"]
        return agentic.main(["-m", "base", *flags, *command.split()], ScriptedLLM(reply))

    return call


def summary_of(paths):
    (run,) = DatasetStatus(paths).update()
    return run.summary()


def states(paths):
    return [one["state"] for one in summary_of(paths)["partitions"]]


def beat(part, age=0.0, **facts):
    """A heartbeat as another worker leaves it."""
    known = {
        "host": "elsewhere",
        "pid": 1,
        "num_partitions": 4,
        "start": time.time() - 100,
        "offset": 0,
    }
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    files.write_json(heartbeat.heartbeat_of(part), known | facts)
    seen = time.time() - age
    os.utime(heartbeat.heartbeat_of(part), (seen, seen))


def test_done_missing_and_what_finishes_it(answer, paths, capsys):
    answer("-p 1 --num-partitions 4")
    found = summary_of(paths)
    assert [one["state"] for one in found["partitions"]] == [
        "missing",
        "done",
        "missing",
        "missing",
    ]
    assert (found["questions"], found["done"], found["failed"]) == (10, 3, 0)
    assert found["finish"]["array"] == "--array=0,2-3"
    assert found["finish"]["flags"] == "--num-partitions 4"
    command = found["finish"]["command"]
    assert command.startswith("for p in 0 2 3; do python agentic.py --config ")
    assert command.endswith("/run.json -p $p --num-partitions 4; done")
    for p in (0, 2, 3):
        answer(f"-p {p} --num-partitions 4")
    assert summary_of(paths)["finish"] == {} and states(paths) == ["done"] * 4
    assert launch.main(["--status", "-d", "wikihop", "--data", str(paths.root)]) == 0
    assert "train/r: 10/10 done, 0 failed; partitions: 4 done" in capsys.readouterr().out


def test_the_command_that_it_prints_finishes_the_run(answer, paths):
    answer("-p 1 --num-partitions 2")
    command = summary_of(paths)["finish"]["command"].removeprefix("python agentic.py ")
    assert agentic.main(command.split(), ScriptedLLM(small.stepwise)) == 0
    assert summary_of(paths)["done"] == 10


def test_a_changed_number_of_shares_counts_every_id_once(answer, paths):
    answer("-p 1 --num-partitions 4")
    answer("-p 0 --num-partitions 3")
    found = summary_of(paths)
    assert found["num_partitions"] == 3 and found["done"] == 3 + 4 - 1  # w9 is in both


def test_errors_are_told_by_kind_and_retried_ones_are_not(answer, paths):
    def fails(prompt):
        raise ValueError("no")

    answer("-p 0 --num-partitions 2 --stop-after 0", fails)
    found = summary_of(paths)
    assert found["failed"] == 5 and sum(found["errors"].values()) == 5
    assert [one["state"] for one in found["partitions"]] == ["failed", "missing"]
    answer("-p 0 --num-partitions 2")
    found = summary_of(paths)
    assert (found["failed"], found["errors"], found["done"]) == (0, {}, 5)


def test_a_lock_says_that_a_worker_lives(answer, paths):
    answer("-p 0 --num-partitions 2 --limit 4")
    part = paths.part("train", "r", 1)
    with files.locked(part, "is held by the test"):
        code = "import sys; from lag.runs.status import *; from lag.paths import Paths; print([p.state for p in DatasetStatus(Paths(sys.argv[1], 'wikihop')).update()[0].shares()])"
        done = subprocess.run([sys.executable, "-c", code, str(paths.root)], cwd=ROOT, capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "['done', 'running']"


@pytest.mark.parametrize(("age", "state"), [(1, "running"), (heartbeat.STALE + 1, "dead")])
def test_a_worker_elsewhere_is_known_by_its_heartbeat_whatever_the_lock_says(
    answer, paths, age, state
):
    """On a disk without locks across machines, and when a machine left its lock behind."""
    answer("-p 0 --num-partitions 4")
    part = paths.part("train", "r", 2)
    beat(part, age)
    assert states(paths)[2] == state
    with files.locked(part, "is held by the test"):
        assert states(paths)[2] == state


def test_a_killed_worker_of_this_machine_is_dead_at_once(answer, paths):
    answer("-p 0 --num-partitions 4")
    code = (
        "import sys, time; from pathlib import Path; from lag.runs.heartbeat import only_writer\n"
        "with only_writer(Path(sys.argv[1]), 4): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(paths.part("train", "r", 3))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert states(paths)[3] == "running"
        process.send_signal(signal.SIGKILL)
    assert states(paths)[3] == "dead"
    answer("-p 3 --num-partitions 4")
    assert states(paths)[3] == "done"


def test_a_worker_touches_its_heartbeat_and_takes_it_along(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "EVERY", 0.01)
    part = tmp_path / "part-0.jsonl"
    part.touch()
    with heartbeat.beating(part, 2):
        first = heartbeat.read(part)
        assert first.is_here and first.pid == os.getpid()
        deadline = time.monotonic() + 60
        while heartbeat.read(part).beat == first.beat and time.monotonic() < deadline:
            time.sleep(0.01)
        assert heartbeat.read(part).beat > first.beat
    assert heartbeat.read(part) is None and [p.name for p in tmp_path.iterdir()] == [part.name]


def test_a_part_that_beats_elsewhere_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "EVERY", 0.01)
    part = tmp_path / "part-0.jsonl"
    beat(part, 20)
    seconds = iter(range(1, 1000))

    def touch(_):
        seen = time.time() - 20 + next(seconds)
        os.utime(heartbeat.heartbeat_of(part), (seen, seen))

    with monkeypatch.context() as patched:
        patched.setattr(heartbeat.time, "sleep", touch)
        with pytest.raises(ValueError, match=r"being written by process 1 on elsewhere"):
            heartbeat.wait_for_silence(part)
    beat(part, heartbeat.STALE + 1)
    heartbeat.wait_for_silence(part)


def test_a_look_at_a_lock_does_not_turn_a_worker_away(tmp_path):
    """`--status --watch` looks at locks while workers start."""
    part = tmp_path / "part-0.jsonl"
    part.touch()
    code = "import sys; from pathlib import Path; from lag import files\nwhile True: files.is_held(Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", code, str(part)], cwd=ROOT)
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        time.sleep(0.5)
        for _ in range(200):
            with files.locked(part, "is held"):
                pass


def test_text_inside_a_row_cannot_be_taken_for_its_status(paths):
    run = RunStatus(paths.run("train", "r"))
    row = {
        "id": 'a"b',
        "question": '"status": "error"',
        "status": "answered",
        "pred": '"source": "kv"',
    }
    run.take('a"b', json.dumps(row).encode())
    assert run.rows == {'a"b': False} and not run.spans.total()


def test_arrays_are_spelled_as_slurm_does():
    assert ranges([0, 2, 3, 4, 7, 9, 10]) == "0,2-4,7,9-10"


def write_run(paths, count, shares):
    """A run of so many rows with logs as KV, as workers write it; every 50th failed."""
    rows = [
        {"id": f"q{n}", "question": f"What is {n}?", "answer": str(n), "supporting_facts": []}
        for n in range(count)
    ]
    files.write_json(paths.questions("train"), rows)
    folder = paths.run("train", "big")
    folder.mkdir(parents=True)
    logs = [{"id": f"q{n}", "similarity": 0.5, "source": "kv"} for n in range(3)]
    step = {"query": "x", "action": "search", "docs": ["d"], "logs": logs, "reply": "word " * 150}
    for share in range(shares):
        with open(paths.part("train", "big", share), "w") as file:
            for n in range(share, count, shares):
                failed = n % 50 == 0
                error = {"stage": "generate", "type": "ValueError", "message": "no"} if failed else None  # fmt: skip
                row = {"id": f"q{n}", "question": "?", "pred": "", "gold_answer": [str(n)],
                       "status": "error" if failed else "answered", "error": error, "trace": [step] * 3}  # fmt: skip
                file.write(json.dumps(row) + "\n")
    notes = {str(n): {"start": "2026", "num_partitions": shares} for n in range(shares)}
    scope = {"n": count, "limit": None, "ids": None}
    files.write_json(folder / "run.json", {"identity": {}, "scope": scope, "provenance": {"partitions": notes}})  # fmt: skip


def size_of(paths):
    return sum(path.stat().st_size for path in paths.folder.rglob("*") if path.is_file())


SMALL = 20_000  # bytes of manifests and the like


def test_each_byte_is_read_once_and_only_what_is_new_again(tmp_path):
    """Ten thousand rows in 64 parts are 30 MB, and `--watch` looks every five seconds."""
    paths = Paths(tmp_path, "wikihop")
    write_run(paths, 1000, 64)
    runs, there = DatasetStatus(paths), size_of(paths)
    assert 0.9 * there < bytes_read(runs.update) < there + SMALL
    found = summary_of(paths)
    assert (found["done"], found["failed"], found["kv_hit_rate"]) == (980, 20, 1.0)
    assert found["errors"] == {"generate ValueError": 20}
    assert bytes_read(runs.update) < SMALL < there / 50
    with open(paths.part("train", "big", 0), "a") as file:
        file.write('{"id": "q0", "status": "answered"}\n')
    assert bytes_read(runs.update) < SMALL
    (run,) = runs.update()
    assert run.summary()["done"] == 981


def test_questions_that_were_replaced_are_read_again(answer, paths):
    answer("-p 0 --num-partitions 2")
    runs = DatasetStatus(paths)
    assert [run.summary()["questions"] for run in runs.update()] == [10]
    files.write_json(paths.questions("train"), small.questions()[:9])
    assert [run.summary()["questions"] for run in runs.update()] == [9]


def test_four_times_the_rows_are_four_times_the_work_and_none_is_parsed(tmp_path, monkeypatch):
    work, loads, parsed = [], json.loads, []
    monkeypatch.setattr(
        json, "loads", lambda text, **more: parsed.append(len(text)) or loads(text, **more)
    )
    for count in (500, 2000):
        paths = Paths(tmp_path / str(count), "wikihop")
        write_run(paths, count, 64)
        work.append(calls(lambda paths=paths: summary_of(paths)))
    assert work[1] < 4.2 * work[0]
    assert work[1] < 60 * 2000
    parsed.clear()
    summary_of(paths)
    assert sum(parsed) < size_of(paths) / 10


def test_status_loads_no_model_and_refuses_what_it_does_not_know(paths, capsys):
    code = f"""
import sys; sys.argv = ["launch.py", "--status", "-d", "wikihop", "--data", {str(paths.root)!r}]
import launch; launch.main(); print([n for n in ("torch", "transformers", "numpy") if n in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]" and "holds no runs" in done.stdout
    with pytest.raises(SystemExit):
        launch.main(["--status", "-d", "wikihop", "--mode", "base"])
    assert status.STATES[0] == "done"
