"""The benchmark of a GPU runs from end to end on a CPU, with a model of no size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


def run(*flags: object) -> subprocess.CompletedProcess:
    command = [sys.executable, BENCHMARK, *flags]
    return subprocess.run([*map(str, command)], capture_output=True, text=True)


def test_every_measure_is_taken(tmp_path):
    out = tmp_path / "gpu.json"
    small = [
        "--shape",
        "tiny",
        "--device",
        "cpu",
        "--logs",
        "64",
        "128",
        "--tokens",
        "2",
        "--prompts",
        "2",
        "--repeats",
        "1",
    ]
    done = run(*small, "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    measured = {row["id"] for row in found["measures"]}
    assert measured == {f"G{n}" for n in range(1, 12)} - {"G10"} | {"S3"}, "G10 asks the GPU"
    assert found["timings"]["shape"] == "tiny"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so():
    done = run("--device", "cuda", "--shape", "tiny")
    assert done.returncode == 2 and "no CUDA device" in done.stderr
