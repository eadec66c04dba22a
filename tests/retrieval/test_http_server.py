"""A real server of the libraries' own: replies over HTTP are those of the model in the process."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import small
from scripted import ScriptedLLM

import agentic
import dataset
import embed
from lag import files, trace_files
from lag.http import Client
from lag.model.openai_endpoint import Endpoint
from lag.modes import MODES
from lag.solvers import SOLVERS
from lag.tasks import TASKS

pytest.importorskip("fastapi", reason="transformers serve is in the development lock")
ROOT = Path(agentic.__file__).parent
EMBEDDER = ["--embedder", str(ROOT / TASKS["miniwiki"].embedder)]
MODEL = ROOT / TASKS["miniwiki"].model
READER = ["--model", str(MODEL), *EMBEDDER]
TEXT_MODES = [name for name, mode in MODES.items() if mode.enters != "kv"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def healthy(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url + "/health", timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """`transformers serve` in float32 on the CPU; it loads whichever model a request names."""
    port = free_port()
    command = Path(sys.executable).with_name("transformers")
    flags = ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path_factory.mktemp("server") / "log"
    with open(log, "w") as output:
        process = subprocess.Popen(
            [command, "serve", *flags],
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 600
        while not healthy(url):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        yield url + "/v1"
    finally:
        process.terminate()
        process.wait(120)


@pytest.fixture(scope="module")
def data(small_root, embedder_folder, tmp_path_factory):
    """The small data with own paragraphs and a log store."""
    root = Path(shutil.copytree(small_root, tmp_path_factory.mktemp("served") / "data"))
    path = root / "wikihop" / "dev_train.json"
    rows = json.loads(path.read_text())
    files.write_json(path, [row | {"paragraph_ids": ["p1", "q2"]} for row in rows])
    flags = ["-d", "wikihop", "--data", str(root), "--embedder", str(embedder_folder)]
    script = ScriptedLLM(small.stepwise)
    agentic.main(["-m", "base", "--max-steps", "3", "--run", "logs", *flags], script)
    agentic.main(["-m", "base", "--run", "logs", "--merge", "--as-log", *flags])
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The embedded data set with some of its model's own logs."""
    root = tmp_path_factory.mktemp("world") / "data"
    flags = ["-d", "miniwiki", "--data", str(root)]
    assert dataset.main(flags) == 0
    assert embed.main([*flags, *EMBEDDER]) == 0
    logging = [*flags, *READER, "--run", "logs", "--limit", "6", "--device", "cpu"]
    assert agentic.main(["-m", "base", "--batch-size", "4", *logging]) == 0
    assert agentic.main(["-m", "base", "--merge", "--as-log", *logging]) == 0
    return root


def rows_of(root: Path, name: str, run: str, split: str) -> dict:
    """Rows but for what only a process knows: the clock, and what is left from the step before."""
    rows = trace_files.read_parts(root / name / "preds" / split / run)
    return {
        id: without(trace_files.without_seconds(rows[id]), "reused_tokens") for id in sorted(rows)
    }


def without(row: Any, name: str) -> Any:
    if isinstance(row, dict):
        return {key: without(value, name) for key, value in row.items() if key != name}
    return [without(value, name) for value in row] if isinstance(row, list) else row


def replies_of(rows: dict) -> list[str]:
    return [step["reply"] for row in rows.values() for step in row["trace"]]


def answer_on_both_sides(
    server: str, root: Path, name: str, split: str, flags: list[str], solvers=tuple(SOLVERS), most=2
) -> list:
    """Run solvers in every text mode here and on the server; the rows of each, which are equal."""
    flags = [*flags, "-d", name, "--data", str(root), "--split", split]
    flags += ["--temperature", "0", "-m", ",".join(TEXT_MODES)]
    here = ["--layout", "user", "--prefill", "folded", "--device", "cpu", "--batch-size", "1"]
    there = ["--provider", "openai", "--base-url", server, "--batch-size", "1"]
    for solver in solvers:
        steps = [] if SOLVERS[solver].max_steps == 1 else ["--max-steps", str(most)]
        for side in (here, there):
            assert agentic.main([*flags, "--solver", solver, *steps, *side]) == 0
    folder = root / name / "preds" / split
    runs = sorted(path.name for path in folder.glob("*_openai*"))
    assert len(runs) == len(solvers) * len(TEXT_MODES)
    found = []
    for run in runs:
        rows = rows_of(root, name, run, split)
        assert rows == rows_of(root, name, f"{run.replace('_openai', '')}_folded_user", split)
        found.append(rows)
    return found


def test_replies_over_http_are_those_in_the_process(server, data, embedder_folder, tiny_folder):
    flags = ["--model", str(tiny_folder), "--embedder", str(embedder_folder)]
    flags += ["--max-new-tokens", "8", "--limit", "1"]
    found = answer_on_both_sides(server, data, "wikihop", "train", flags)
    replies = {reply for rows in found for reply in replies_of(rows)}
    assert len(replies) > len(found) / 2 and all(replies)


@pytest.mark.parametrize("solvers", [["react"], pytest.param([*SOLVERS], marks=pytest.mark.stress)])
def test_the_embedded_model_says_over_http_what_it_says_in_the_process(server, world, solvers):
    """Whole replies of a model that was taught to end them."""
    flags = [*READER, "--limit", "4"]
    found = answer_on_both_sides(server, world, "miniwiki", "test", flags, solvers, most=6)
    replies = [reply for rows in found for reply in replies_of(rows)]
    answered = [row["pred"] for rows in found for row in rows.values() if row["pred"]]
    assert len(answered) > len(found) / 2 and len(set(replies)) > len(found) / 2


def test_this_server_closes_a_turn_that_is_begun_for_it(server, tiny_folder):
    endpoint = Endpoint(server, str(tiny_folder), Client(timeout=60))
    assert endpoint.continues is False and endpoint.counts["probes"] == 2
