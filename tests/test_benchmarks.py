"""Benchmarks can be started, and that of a GPU runs to its end on a CPU, with a model of no size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import warm

BENCHMARK = "benchmarks/gpu.py"
ROOT = Path(__file__).resolve().parents[1]


def test_every_benchmark_can_be_imported():
    """One took a function from another, which had lost it."""
    names = [path.stem for path in sorted((ROOT / "benchmarks").glob("*.py"))]
    code = f"import measure, importlib\nfor name in {names}: importlib.import_module(name)"
    paths = {"PYTHONPATH": str(ROOT / "benchmarks"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=paths, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


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
    done = warm.run_script(BENCHMARK, *small, "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    measured = {row["id"] for row in found["measures"]}
    assert measured == {f"G{n}" for n in range(1, 12)} - {"G10"} | {"S3"}, "G10 asks the GPU"
    assert found["timings"]["shape"] == "tiny"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so():
    done = warm.run_script(BENCHMARK, "--device", "cuda", "--shape", "tiny")
    assert done.returncode == 2 and "no CUDA device" in done.stderr
