"""Servers for the tests that `make vllm-test` runs."""

import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def vllm():
    """What starts a server; without an environment that has vLLM its tests are skipped."""
    if not os.environ.get("LAG_VLLM"):
        pytest.skip("LAG_VLLM names no python that has vLLM; run: make vllm-test")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import engine_server
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return engine_server


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A copy of the embedded data set, with logs of some of its train questions."""
    import agentic
    import embed

    data = tmp_path_factory.mktemp("served") / "data"
    shutil.copytree(
        ROOT / "data" / "miniwiki", data / "miniwiki", ignore=shutil.ignore_patterns("preds", "kv")
    )
    flags = ["-d", "miniwiki", "--data", str(data)]
    assert embed.main(flags) == 0
    base = [*flags, "-m", "base", "--split", "train", "--limit", "40"]
    assert agentic.main(base) == 0 and agentic.main([*base, "--merge", "--as-log"]) == 0
    return data


@pytest.fixture(scope="session")
def settings(vllm, world):
    return vllm.transfer_config(world, "miniwiki", "data/miniwiki/model")


@pytest.fixture(scope="session")
def engine(vllm, settings, tmp_path_factory):
    """One server for most tests: chunks and a cache so small that requests are interrupted."""
    small = ["--max-num-batched-tokens", "256", "--num-gpu-blocks-override", "40"]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with vllm.EngineServer("data/miniwiki/model", settings, log, *small) as server:
        yield server
