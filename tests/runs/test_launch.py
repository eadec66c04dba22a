"""The launcher end to end: real processes that ask a server of the test, killed and taken over."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import small
from stub_endpoint import Stub

import launch
from lag import trace_files
from lag.paths import Paths
from lag.runs import heartbeat
from lag.runs.launch import is_train

ROOT = Path(__file__).resolve().parents[2]
IDS = [f"w{n}" for n in range(10)]


class Server(Stub):
    """Knows every answer; after the first `free` ones it waits with each, at most for `seconds`.

    go: set when it need not wait any more. So a test meets workers at work, however slow they are.
    """

    def __init__(self, free=1000, seconds=600.0):
        super().__init__(self.say)
        self.free, self.seconds = free, seconds
        self.asked, self.go = Counter(), threading.Event()

    def say(self, body):
        name = re.search(r"does (\w+) live", body["messages"][-1]["content"])[1]
        with self.lock:
            self.asked[name] += 1
            is_free = self.asked.total() <= self.free
        if not is_free:
            self.go.wait(self.seconds)
        return f"<ans>{small.CITIES[small.NAMES.index(name) % 3]}</ans>"


@pytest.fixture
def paths(small_data):
    return Paths(small_data, "wikihop")


@pytest.fixture
def flags(paths):
    """The flags of a run that loads no model."""

    def of(server, *more):
        return ["-d", "wikihop", "-m", "base", "--data", str(paths.root), "--solver", "direct",
                "--provider", "openai", "--base-url", server.url, "--model", "m", "--run", "r",
                "--batch-size", "1", *map(str, more)]  # fmt: skip

    return of


@contextlib.contextmanager
def launcher(command):
    """launch.py as a user starts it; nothing that it started outlives the block."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(command, timeout=600):
    with launcher(command) as process:
        out, err = process.communicate(timeout=timeout)
        return process.returncode, out, err


def parts(paths):
    return trace_files.parts_of(paths.run("train", "r"))


def rows_in_parts(paths):
    return [row["id"] for part in parts(paths) for row in trace_files.read_rows(part)]


def workers_of(paths):
    """The processes that hold parts now, by partition."""
    found = {part: heartbeat.read(part) for part in parts(paths)}
    return {part.stem: known.pid for part, known in found.items() if known}


def wait_until(true, seconds=600.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_workers_answer_every_question_once_and_are_merged(paths, flags):
    with Server() as server:
        code, out, err = finish(flags(server, "--workers", 2, "--num-partitions", 3))
    assert code == 0, err
    assert out.splitlines()[0].startswith(
        "wikihop train/r: 2 workers, 3 partitions, 3 to do; their logs"
    )
    summary = json.loads(out.splitlines()[-1])
    assert (summary["restarts"], summary["died"], summary["merged"]["n"]) == (0, [], 10)
    assert sorted(rows_in_parts(paths)) == sorted(IDS) and len(parts(paths)) == 3
    last = err.splitlines()[-1]
    assert "10/10 done, 0 failed" in last and "EM 100.0" in last and "questions per s" in last
    assert set(server.asked.values()) == {1}
    logs = sorted((paths.preds / "workers").iterdir())
    assert [log.name for log in logs] == [f"r-{n}-of-3.log" for n in range(3)]
    assert "partition 2 of 3" in logs[2].read_text()
    assert len(err.splitlines()) < 10  # what workers say is in their logs


def test_what_is_complete_is_not_begun_again_and_a_refusal_not_repeated(paths, flags):
    with Server() as server:
        assert finish(flags(server))[0] == 0
        code, out, _ = finish(flags(server, "--workers", 2, "--num-partitions", 5))
        assert code == 0 and "5 partitions, 0 to do" in out
        code, out, err = finish(flags(server, "--workers", 2, "--temperature", "0.5"))
    assert code == 1 and json.loads(out.splitlines()[-1])["died"] == [0, 1]
    assert "temperature: 0.0 -> 0.5" in err and set(server.asked.values()) == {1}


def test_what_every_worker_refuses_is_the_last_word(paths, flags, monkeypatch):
    """Below it stood that there was nothing to merge."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Server() as server:
        hosted = flags(server, "--base-url", "https://api.openai.com/v1", "--workers", 1)
        code, out, err = finish(hosted)
    assert code == 2 and json.loads(out.splitlines()[-1])["merged"] == {}
    assert "wants a key; set OPENAI_API_KEY" in err and "no parts to merge" not in err


def test_a_worker_that_is_killed_is_started_again(paths, flags):
    with Server(free=2) as server, launcher(flags(server, "--workers", 2)) as process:
        wait_until(lambda: len(rows_in_parts(paths)) > 1 and workers_of(paths))
        os.kill(next(iter(workers_of(paths).values())), signal.SIGKILL)
        server.go.set()
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["restarts"] == 1
    assert "was killed by SIGKILL; it is started again; its log is " in err
    assert sorted(rows_in_parts(paths)) == sorted(IDS)


def test_a_share_that_dies_again_and_again_is_given_up(paths, flags):
    """Its last words are shown, bounded, and what others answered is merged."""
    with (
        Server(free=0) as server,
        launcher(flags(server, "--workers", 2, "--restarts", 0)) as process,
    ):
        wait_until(lambda: "part-1" in workers_of(paths))
        os.kill(workers_of(paths)["part-1"], signal.SIGKILL)
        server.go.set()
        out, err = process.communicate(timeout=600)
    summary = json.loads(out.splitlines()[-1])
    assert process.returncode == 1 and summary["died"] == [1]
    assert "it is given up" in err and len(err.splitlines()) < 20
    assert summary["merged"]["n"] + summary["merged"]["missing"] == 10


def test_ctrl_c_ends_all_and_keeps_what_is_finished(paths, flags):
    with Server(free=2) as server:
        with launcher(flags(server, "--workers", 2)) as process:
            wait_until(lambda: len(workers_of(paths)) == 2 and len(rows_in_parts(paths)) == 2)
            process.send_signal(signal.SIGINT)
            wait_until(lambda: workers_of(paths) == {})  # each took its heartbeat along
            server.go.set()  # a thread that waits for its answer holds its process up
            _, err = process.communicate(timeout=600)
        assert process.returncode == 130 and "the same command goes on" in err
        assert len(rows_in_parts(paths)) == 2
        assert finish(flags(server, "--workers", 3))[0] == 0
    assert sorted(rows_in_parts(paths)) == sorted(IDS)


@pytest.mark.parametrize("shares", [2, 3])
def test_workers_outlive_a_launcher_that_is_killed_and_a_second_one_takes_over(
    paths, flags, shares
):
    """One that cuts the questions otherwise waits for all of them."""
    with Server(free=2) as server:
        with launcher(flags(server, "--workers", 2)) as first:
            wait_until(lambda: len(workers_of(paths)) == 2 and rows_in_parts(paths))
            before = workers_of(paths)
            first.send_signal(signal.SIGKILL)
            first.wait()
        assert workers_of(paths) == before
        with launcher(flags(server, "--workers", shares)) as second:
            said = "partition 0 is at work in another process; waiting for it"
            assert any(said in line for line in second.stderr)
            server.go.set()
            out, err = second.communicate(timeout=600)
    assert second.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["merged"]["n"] == 10
    assert sorted(rows_in_parts(paths)) == sorted(IDS) and set(server.asked.values()) == {1}


@pytest.mark.parametrize("shares", [2, 3])
def test_workers_that_have_written_nothing_yet_are_seen(paths, flags, shares):
    """A launcher that was killed while its workers loaded: nobody held a part."""
    with Server() as server:
        with launcher(flags(server, "--workers", 2)) as first:
            wait_until(lambda: len(list((paths.preds / "workers").glob("*.log"))) == 2)
            first.send_signal(signal.SIGKILL)
            first.wait()
        code, _, err = finish(flags(server, "--workers", shares))
    assert code == 0, err
    assert sorted(rows_in_parts(paths)) == sorted(IDS) and set(server.asked.values()) == {1}


def kill_at_random(paths, command, count, seed):
    """Start it again and again with other numbers of shares; kill workers, and now and then it."""
    draw, kills = random.Random(seed), 0
    while kills < count:
        shares = draw.choice([1, 2, 3, 5])
        with launcher([*command, "--workers", "2", "--num-partitions", str(shares),
                       "--restarts", "1000"]) as process:  # fmt: skip
            for _ in range(draw.randint(1, 8)):
                time.sleep(draw.random() * 0.5)
                for pid in list(workers_of(paths).values())[:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        kills += 1
            if process.poll() is not None:
                for part in parts(paths):  # all was done too soon
                    part.unlink()
    return kills


@pytest.mark.parametrize("count", [3, pytest.param(200, marks=pytest.mark.stress)])
def test_killed_at_random_with_changing_shares_every_id_is_there_once(paths, flags, count):
    with Server(free=0, seconds=0.05) as server:
        kill_at_random(paths, flags(server), count, seed=count)
        code, out, err = finish(flags(server, "--workers", 2, "--num-partitions", 4))
    assert code == 0, err
    merged = json.loads(paths.merged("train", "r").read_text())
    assert list(merged["results"]) == IDS and merged["metadata"]["missing"] == []
    assert sorted(rows_in_parts(paths)) == sorted(IDS)
    assert json.loads(out.splitlines()[-1])["merged"]["failed"] == 0


def test_the_sbatch_script_names_the_shares_that_are_left(paths, flags, capsys):
    with Server() as server:
        worker = [sys.executable, str(ROOT / "agentic.py"), *flags(server, "-p", 1, "--num-partitions", 4)]  # fmt: skip
        subprocess.run(worker, check=True, capture_output=True)
        command = flags(server, "--workers", 2, "--num-partitions", 4, "--slurm")
        assert launch.main([*command, "--dry-run"]) == 0
        script = capsys.readouterr().out
        assert script.startswith("#!/bin/bash\n#SBATCH ")
        assert "#SBATCH --array=0,2-3%2\n" in script and "--gres" not in script
        assert script.splitlines()[-1].endswith("--num-partitions 4")
        for id in (0, 2, 3):  # as Slurm starts it
            array = {"SLURM_ARRAY_TASK_ID": id, "SLURM_ARRAY_TASK_MIN": 0,
                     "SLURM_ARRAY_TASK_MAX": 3, "SLURM_ARRAY_TASK_COUNT": 3}  # fmt: skip
            known = os.environ | {name: str(value) for name, value in array.items()}
            subprocess.run(["bash", "-c", script], check=True, capture_output=True, env=known)
        assert not (paths.preds / "workers").exists()
        assert sorted(rows_in_parts(paths)) == sorted(IDS)
        with pytest.raises(ValueError, match="nothing is left to do"):
            launch.main(command)


def test_the_script_is_written_where_it_says(paths, flags, capsys):
    with Server() as server:
        assert launch.main(flags(server, "--workers", 2, "--slurm")) == 0
    lines = capsys.readouterr().out.splitlines()
    script = Path(lines[0].split()[1])
    assert "--array=0-1%2" in script.read_text() and script.parent == paths.preds / "workers"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["-p", "1"], "gives its workers -p"),
        (["--merge"], "gives its workers -p"),
        (["--mode", "log_kv"], "needs keys and values in this process"),
        (["--dry-run"], "--dry-run goes with --slurm"),
        (["--wokers", "2"], "unrecognized arguments: --wokers"),
        (["--as-log", "--run", "x", "--split", "train,test"], "--as-log goes with one mode"),
    ],
)
def test_bad_input_is_one_line_and_starts_nothing(paths, flags, capsys, more, expected):
    with Server() as server, pytest.raises((ValueError, SystemExit)) as caught:
        launch.main(flags(server, *more))
    said = capsys.readouterr().err if caught.type is SystemExit else str(caught.value)
    assert expected in said.strip().splitlines()[-1]
    assert not paths.preds.exists()


def test_the_split_is_what_the_script_s_last_line_says(tmp_path):
    text = (ROOT / "agentic.py").read_text()
    assert is_train(ROOT / "agentic.py")
    script = tmp_path / "agentic.py"
    script.write_text(text.replace("llm, train=True)", "llm, train=False)"))
    assert script.read_text() != text and not is_train(script)
