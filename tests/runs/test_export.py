"""Batch files for other toolkits: nothing lost, nothing twice, the same scores."""

import json
from pathlib import Path

import pytest
import small
from scripted import ScriptedLLM

import agentic
import evaluate
from lag import files
from lag.paths import Paths
from lag.runs.export_batches import method_of


@pytest.fixture
def run(small_data, embedder_folder, tmp_path, capsys):
    """Call agentic's main; exports go below a folder of the test's own."""

    def call(command, llm=None):
        flags = ["--data", str(small_data), "--embedder", str(embedder_folder)]
        flags += ["--export-to", str(tmp_path / "preds"), "--model", "org/model"]
        if "-d " not in command:
            flags += ["-d", "wikihop"]
        agentic.main([*command.split(), *flags], llm or ScriptedLLM(small.stepwise))
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


@pytest.mark.parametrize(
    ("size", "counts"), [(4, [4, 4, 2]), (5, [5, 5]), (100, [10]), (1, [1] * 10)]
)
def test_batches_hold_every_question_once_in_file_order(run, tmp_path, size, counts):
    run("-m base --solver rag")
    summary = run(f"-m base --solver rag --merge --export-batches {size}")
    folder = tmp_path / "preds" / "rag" / "wikihop_fullwiki" / "scripted"
    assert Path(summary["exported"]) == folder and summary["batches"] == len(counts)
    names = [f"train_seed=1234_bn={n}_bs={size}.json" for n in range(1, len(counts) + 1)]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    found = [json.loads((folder / name).read_text()) for name in names]
    assert [len(file["results"]) for file in found] == counts
    assert [id for file in found for id in file["results"]] == [f"w{n}" for n in range(10)]
    whole = json.loads(Path(summary["merged"]).read_text())["results"]
    for number, file in enumerate(found, 1):
        assert file["metadata"]["batch_number"] == number
        assert file["metadata"]["batch_size"] == size and file["metadata"]["type"] == "rag"
        assert file["metadata"]["retrieval"] == {"backend": "dense", "scope": "corpus", "k": 4}
        assert file["inference_params"] == {"seed": 1234, "temperature": 0.0, "max_tokens": 1024}
        for id, row in file["results"].items():
            assert row == {key: whole[id][key] for key in row} and row["trace"]


def test_the_evaluator_reads_batches_as_it_reads_the_run(run, tmp_path, small_data, capsys):
    run("-m base --max-steps 3")
    run("-m base --max-steps 3 --merge --export-batches 3")
    shared = [
        "--json",
        "--outdir",
        str(tmp_path / "eval"),
        "--data",
        str(small_data),
        "-d",
        "wikihop",
    ]
    scores = []
    for source in (
        ["--preds", str(Paths(small_data, "wikihop").merged("train", "base_s3"))],
        [
            "--input-dir",
            str(tmp_path / "preds"),
            "--split",
            "train",
            "--seed",
            "1234",
            "--batch-size",
            "3",
        ],
    ):
        assert evaluate.main([*shared, *source]) == 0
        (result,) = json.loads(capsys.readouterr().out)["runs"]
        scores.append({name: result["metrics"][name] for name in ("count", "em", "f1")})
    assert scores[0] == scores[1] and scores[0]["em"] == 0.8


def test_an_unfinished_run_is_not_exported(run, tmp_path):
    run("-m base -p 1 --num-partitions 2")
    with pytest.raises(ValueError, match="5 questions are missing and 0 failed"):
        run("-m base --merge --export-batches 3")

    def failing(prompt):
        if "arno" in prompt.user:
            raise RuntimeError("broken")
        return small.stepwise(prompt)

    run("-m base", ScriptedLLM(failing))
    with pytest.raises(ValueError, match="failed"):
        run("-m base --merge --export-batches 3")
    assert not (tmp_path / "preds").exists()


def test_a_shorter_export_leaves_no_batch_of_a_longer_one(run, tmp_path):
    for limit in ("", "--limit 3"):
        run(f"-m base --solver direct {limit}")
        run(f"-m base --solver direct --merge --export-batches 2 {limit}")
    names = sorted(path.name for path in tmp_path.glob("preds/direct/*/*/*"))
    assert names == ["train_seed=1234_bn=1_bs=2.json", "train_seed=1234_bn=2_bs=2.json"]


@pytest.mark.parametrize(("flags", "count"), [("", 10), ("--limit 3", 3), ("--ids w2,w5", 2)])
def test_a_part_of_a_split_is_scored_as_that_part(run, tmp_path, small_data, capsys, flags, count):
    """The defect: an exported run of three questions came back with seven missing."""
    run(f"-m base --solver direct {flags}")
    run(f"-m base --solver direct --merge --export-batches 2 {flags}")
    folders = ["--input-dir", tmp_path / "preds", "--data", small_data, "--outdir", tmp_path / "o"]
    capsys.readouterr()
    assert evaluate.main(["--json", *map(str, folders)]) == 0
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    assert (found["metrics"]["count"], found["metrics"]["missing"]) == (count, 0)


def test_a_solver_that_searches_nothing_names_no_retrieval(run, tmp_path, small_data):
    path = Paths(small_data, "wikihop").questions("train")
    rows = json.loads(path.read_text())
    files.write_json(path, [row | {"paragraph_ids": ["p1"]} for row in rows])
    run("-m base --solver icl")
    run("-m base --solver icl --merge --export-batches 10")
    (exported,) = tmp_path.glob("preds/icl/*/*/*.json")
    assert "retrieval" not in json.loads(exported.read_text())["metadata"]


def test_texts_of_a_gated_data_set_are_not_exported(run, small_data, tmp_path):
    rows = [
        {
            "id": "g",
            "question": "A secret question?",
            "choices": ["a secret", "b secret"],
            "answer": "a secret",
        }
    ]
    for part in ("", "train", "test"):
        files.write_json(Paths(small_data, "gpqa").questions(part), rows)
    llm = ScriptedLLM(lambda prompt: "secret thoughts <ans>(A)</ans>")
    run("-d gpqa -m base", llm)
    run("-d gpqa -m base --merge --export-batches 1")
    (path,) = tmp_path.glob("preds/react/gpqa_fullwiki/*/*.json")
    assert "secret" not in path.read_text()
    assert json.loads(path.read_text())["results"]["g"]["gold_answer"] == ["A"]


@pytest.mark.parametrize(
    ("run_name", "method"),
    [
        ("base", "react"),
        ("base_icl", "icl"),
        ("base_rag_bm25", "rag_bm25"),
        ("log_kv_l5", "log_kv_l5"),
    ],
)
def test_methods_are_called_as_others_call_them(run_name, method):
    assert method_of(run_name) == method


def test_export_without_merge_is_refused(run):
    with pytest.raises(ValueError, match="--merge"):
        run("-m base --export-batches 3")
