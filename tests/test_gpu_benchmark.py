"""The benchmark of a GPU runs from end to end on a CPU, with a model of no size."""

import json

import pytest
import torch
import warm

BENCHMARK = "benchmarks/gpu.py"


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
