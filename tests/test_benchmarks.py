"""Benchmarks can be started, and that of a GPU runs to its end on a CPU, with a model of no size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import warm

from lag.evaluation.find_runs import Run
from lag.evaluation.scores import Evaluation
from lag.records import Question, Trace
from lag.train.adapters import AdapterRecipe, Tuned

BENCHMARK = "benchmarks/gpu.py"
ROOT = Path(__file__).resolve().parents[1]


def test_every_benchmark_can_be_imported():
    """One took a function from another, which had lost it; one helpers of a test, which had moved."""
    names = [path.stem for path in sorted((ROOT / "benchmarks").glob("*.py"))]
    names.append("test_store")  # what `damage` finds it by is set when that is imported
    code = f"import measure, importlib\nfor name in {names}: importlib.import_module(name)"
    paths = {"PYTHONPATH": str(ROOT / "benchmarks"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=paths, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            "model name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\nmodel name\t: AMD EPYC\n",
            "AMD EPYC (avx512_bf16)",
        ),
        ("model name : AMD EPYC\nflags : avx avx2\n", "AMD EPYC (avx2)"),
        ("model name : Old\nflags : fpu\n", "Old"),
    ],
)
def test_processors_of_one_name_are_told_apart(tmp_path, monkeypatch, lines, said):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import measure

    (tmp_path / "cpuinfo").write_text(lines)
    assert measure.processor(tmp_path / "cpuinfo") == said


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


def test_no_result_names_a_folder_of_the_machine_that_made_it():
    """One listed the files that were scored, with the paths they had there."""
    files = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))
    assert files and not [path.name for path in files if '"/' in path.read_text()]


def test_what_can_be_guessed_is_counted_apart(monkeypatch):
    """Right answers to questions that name two, and to those that name none, by hand."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import real

    types = {"a": "comparison", "b": "bridge_comparison", "c": "compositional", "d": "inference"}
    questions = [Question(id, id, (id,), groups={"type": kind}) for id, kind in types.items()]

    def run(name: str, **preds: str) -> Evaluation:
        rows = {id: Trace(id, id, pred=pred) for id, pred in preds.items()}
        return Evaluation.of(Run(name, "wikihop", "test", (), traces=rows), "2wiki", questions)

    runs = {
        "test/base": run("base", a="a", b="x", c="c"),
        "test/log_kv": run("log_kv", b="b", d="x"),
    }
    found = real.by_kind(runs)
    two, none = found["two named"], found["none named"]
    counts = [[one[k] for k in ("questions", "answered", "right")] for one in two.values()]
    assert counts == [[2, 2, 1], [2, 1, 1]] and two["test/base"]["em"] is None
    counts = [[one[k] for k in ("questions", "answered", "right")] for one in none.values()]
    assert counts == [[2, 1, 1], [2, 1, 0]]
    assert two["test/log_kv"]["em"]["value"] == 0 and none["test/log_kv"]["em"]["value"] == -0.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so():
    done = warm.run_script(BENCHMARK, "--device", "cuda", "--shape", "tiny")
    assert done.returncode == 2 and "no CUDA device" in done.stderr


@pytest.mark.stress
def test_em_is_measured_seed_by_seed(tmp_path):
    """Where EM runs there is no test question; a second start learns nothing again."""
    flags = "--tune full --iterations 1 --samples 2 --temperature 0.5 --validation 0.3"
    model, out = ROOT / "data" / "miniwiki" / "model", tmp_path / "em.json"
    words = ["--model", model, "--train", "6", "--test", "2", "--work", tmp_path, "--out", out]
    started = []
    for _ in range(2):
        done = warm.run_script("benchmarks/em_learns.py", *words, "--flags", flags)
        assert done.returncode == 0, done.stderr
        started.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")})
        found = json.loads(out.read_text())
        found["timings"]["seeds"]["7"] = found["timings"]["seeds"]["1"]  # of another start
        out.write_text(json.dumps(found))
    assert started[0] == started[1] and started[0]
    assert found["timings"]["seeds"].keys() == {"1", "7"}
    assert {row["id"] for row in found["measures"]} == {"E1", "E2", "E3", "E4"}
    assert "2 seeds" in found["measures"][0]["what"]
    blind = tmp_path / "seed-1" / "blind" / "miniwiki"
    assert (blind / "dev_train.json").exists()
    assert not [*blind.glob("dev_test.json"), *blind.glob("dev.json")]


@pytest.mark.stress
def test_what_is_done_of_the_real_hidden_text_is_kept(tmp_path, tiny_folder):
    """A part that is there is not computed again; one of another model is refused."""
    sample = ROOT / "samples" / "wikihop"
    words = ["-d", "wikihop", "--data", tmp_path, "--from", sample / "dev.json"]
    assert warm.run_script("dataset.py", *words, "--docs", sample / "corpus.json").returncode == 0
    Tuned(tiny.tiny_model(), tiny.byte_tokenizer(), AdapterRecipe()).save(tmp_path / "a", {})
    out, work = tmp_path / "out.json", tmp_path / "work"
    words = ["--adapter", tmp_path / "a", "--data", tmp_path, "--work", work, "--out", out]
    words += ["--questions", "3", "--dtype", "float32"]
    script = "benchmarks/real_hidden.py"
    done = warm.run_script(script, "--model", tiny_folder, *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert len(found["measures"]) == 10 and found["timings"]["questions"] == 3
    (work / "untrained_kv.json").unlink()
    made = {path: path.stat().st_mtime_ns for path in work.glob("*.json")}
    assert len(made) == 9
    assert warm.run_script(script, "--model", tiny_folder, *words).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert json.loads(out.read_text())["timings"] == found["timings"]
    other = tiny.save_tiny(tmp_path / "other", hidden_size=128)
    done = warm.run_script(script, "--model", other, *words)
    assert done.returncode == 2 and "was made with another model" in done.stderr
