"""`train.py em`: its files, going on where it stopped, its ablations, and what it never reads."""

import json
import shutil

import pytest

import train
from lag import files
from lag.paths import Paths

QUICK = [
    *("--samples", "2", "--temperature", "1", "--max-steps", "1", "--max-new-tokens", "6"),
    *("--limit", "4", "--validation", "0.25", "--patience", "9", "--device", "cpu"),
    *("--epochs", "1", "--batch-size", "4", "--rank", "2", "--rate", "0.01"),
]


@pytest.fixture(scope="module")
def em(tmp_path_factory, small_root, embedder_folder, tiny_folder):
    """Call train.py em; returns its summary and its folder."""
    root = tmp_path_factory.mktemp("em")
    data = shutil.copytree(small_root, root / "data")

    def call(name, *flags, capsys, data=data):
        argv = ["em", "-d", "wikihop", "--data", str(data), "--embedder", str(embedder_folder)]
        argv += ["--model", str(tiny_folder), "--out", str(root / name), *QUICK, *map(str, flags)]
        train.main(argv)
        return json.loads(capsys.readouterr().out.splitlines()[-1]), root / name

    call.data = data
    return call


def weights_of(folder, iteration):
    return (folder / f"iter_{iteration:03}" / "adapter" / "adapter_model.safetensors").read_bytes()


def test_iterations_are_kept_and_gone_on_with(em, capsys):
    one, folder = em("a", "--iterations", "1", capsys=capsys)
    assert one["best"] == 1 and len(one["validation_em"]) == 2
    first = folder / "iter_001"
    assert {"rollouts", "weights.jsonl", "adapter", "validation", "result.json"} <= {
        path.name for path in first.iterdir()
    }
    manifest = json.loads((first / "rollouts" / "run.json").read_text())["identity"]
    assert manifest["samples"] == 2 and manifest["adapter"] is None
    result = json.loads((first / "result.json").read_text())
    assert result["weigh"]["questions"] == 3 and result["fit"]["examples"] == 6
    learned = json.loads((first / "adapter" / "lag.json").read_text())["data"]
    assert learned["gold"] and learned["wanted"] == "all", "the gold answer behind each trajectory"
    before = weights_of(folder, 1)
    two, folder = em("a", "--iterations", "2", capsys=capsys)
    assert len(two["validation_em"]) == 3 and weights_of(folder, 1) == before
    second = json.loads((folder / "iter_002" / "rollouts" / "run.json").read_text())["identity"]
    assert second["adapter"]  # rolled out with what the first iteration has learned
    whole = weights_of(folder, 2)
    assert whole != before

    # killed in the middle of the second one
    (folder / "iter_002" / "result.json").unlink()
    (folder / "iter_002" / "weights.jsonl").unlink()
    shutil.rmtree(folder / "iter_002" / "adapter")
    part = folder / "iter_002" / "rollouts" / "part-0.jsonl"
    part.write_text("".join(part.read_text().splitlines(keepends=True)[:3]) + '{"id": "torn')
    em("a", "--iterations", "2", capsys=capsys)
    assert weights_of(folder, 2) == whole

    with pytest.raises(ValueError, match="another recipe"):
        em("a", "--iterations", "2", "--uniform-weights", capsys=capsys)


def test_answers_of_test_questions_are_never_read(em, capsys, tmp_path):
    _, folder = em("plain", "--iterations", "1", capsys=capsys)
    data = shutil.copytree(em.data, tmp_path / "data")
    for split in ("test", ""):
        path = Paths(data, "wikihop").questions(split)
        rows = files.read_json(path)
        files.write_json(path, [{**row, "answer": "scrambled"} for row in rows])
    _, other = em("scrambled", "--iterations", "1", capsys=capsys, data=data)
    assert weights_of(folder, 1) == weights_of(other, 1)


def test_the_ablations_are_other_runs(em, capsys):
    _, weighted = em("plain", "--iterations", "1", capsys=capsys)
    _, uniform = em("uniform", "--iterations", "1", "--uniform-weights", capsys=capsys)
    assert not (uniform / "iter_001" / "weights.jsonl").exists()
    assert weights_of(weighted, 1) != weights_of(uniform, 1)
    with pytest.raises(ValueError, match="none of its 6 rows is correct"):
        em("filtered", "--iterations", "1", "--filter", "correct", capsys=capsys)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("imitate", ["-m", "base,log_text"]),
        ("em", ["-m", "base,log_text"]),
        ("em", ["--solver", "react,rag"]),
    ],
)
def test_what_makes_one_run_takes_one_mode_and_one_solver(command, flags, tmp_path):
    """A KeyError showed its traceback."""
    out = ["--out", str(tmp_path / "out")] if command == "em" else []
    with pytest.raises(ValueError, match="give one mode and one solver"):
        train.main([command, "-d", "wikihop", "--data", str(tmp_path), *out, *flags])
    assert not [*tmp_path.iterdir()]
