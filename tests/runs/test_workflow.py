"""The paper's workflow through the real commands, on real questions where they are at hand.

Once with a scripted model whose scores are known in advance, once with a tiny real one.
"""

import json

import pytest
from scripted import ScriptedLLM

import agentic
import dataset
import embed
import evaluate
import store_log_kv
from lag import trace_files
from lag.modes import MODES
from lag.paths import Paths

FEW = ["--max-steps", "1", "--limit", "5", "--max-new-tokens", "32", "--num-docs", "1"]


@pytest.fixture(scope="module")
def real(shared_data, embedder_folder, tmp_path_factory):
    """The data folder after `dataset.py` and `embed.py`, and flags that name it."""
    root = tmp_path_factory.mktemp("real") / "data"
    source = shared_data / "wikihop"
    flags = ["-d", "wikihop", "--data", str(root)]
    files = ["--from", str(source / "dev.json"), "--docs", str(source / "corpus.json")]
    assert dataset.main([*flags, *files]) == 0
    assert embed.main([*flags, "--embedder", str(embedder_folder)]) == 0
    return Paths(root, "wikihop"), [*flags, "--embedder", str(embedder_folder)]


class Plan:
    """Who answers when: by its place in the file a question ends after 1, 2, 3 steps, or never.

    Of those that answer, every fifth answers wrongly.
    """

    def __init__(self, rows):
        self.rows = {row["id"]: (n, row["answer"]) for n, row in enumerate(rows)}

    def steps(self, id):
        return self.rows[id][0] % 4 + 1

    def answer(self, id):
        n, gold = self.rows[id]
        return "something else entirely" if n % 5 == 0 else gold

    def reply(self, prompt):
        id, step = prompt.key.split()
        if self.steps(id) == int(step):
            return f"It is so. <ans>{self.answer(id)}</ans>"
        return f"Not yet. <keywords>{self.answer(id)} {step}</keywords>"

    def llm(self):
        return ScriptedLLM(self.reply)


def test_scores_of_a_scripted_model_are_the_planned_ones(real, tmp_path, capsys):
    """Runs, two partitions, merge, log store, seen, unseen and scores, all known in advance."""
    paths, flags = real
    plan = Plan(json.loads(paths.questions().read_text()))
    loop = [*flags, "--max-steps", "3"]
    for partition in (0, 1):
        shares = ["-p", str(partition), "--num-partitions", "2"]
        agentic.main([*loop, "-m", "base", *shares], plan.llm())
    agentic.main([*loop, "-m", "base", "--merge", "--as-log"])
    agentic.main([*loop, "-m", "log_text"], plan.llm())
    unseen = plan.llm()
    agentic.main([*loop, "-m", "log_text,log_text_all", "--split", "test"], unseen)
    assert any(prompt.notes for prompt in unseen.seen)
    out = tmp_path / "eval"
    assert evaluate.main(["-d", "wikihop", "--data", str(paths.root), "--outdir", str(out)]) == 0
    found = {}
    for path in out.glob("*.json"):
        result = json.loads(path.read_text())
        found[result["meta"]["split"], result["meta"]["mode"]] = result["metrics"]
    for split, mode in [("train", "base"), ("train", "log_text"), ("test", "log_text_all")]:
        ids = [row["id"] for row in json.loads(paths.questions(split).read_text())]
        answered = [id for id in ids if plan.steps(id) <= 3]
        right = [id for id in answered if plan.rows[id][0] % 5]
        metrics = found[split, mode]
        assert metrics["count"] == len(ids) == {"train": 161, "test": 69}[split]
        assert metrics["em"] == pytest.approx(len(right) / len(ids))
        assert metrics["answered"] == len(answered)


def test_a_tiny_model_goes_through_every_mode_in_both_splits(real, tiny_folder, capsys):
    paths, flags = real
    model = ["--model", str(tiny_folder)]
    run = [*flags, *model, *FEW, "--batch-size", "3"]
    assert agentic.main([*run, "-m", "base", "--run", "tiny"]) == 0
    for partition in (0, 1):
        shares = ["-p", str(partition), "--num-partitions", "2"]
        agentic.main([*run, "-m", "base", "--run", "halves", *shares])
    one, two = (trace_files.read_parts(paths.run("train", name)) for name in ("tiny", "halves"))
    assert trace_files.without_seconds(one) == trace_files.without_seconds(
        {id: two[id] for id in one}
    )
    agentic.main([*run, "-m", "base", "--run", "tiny", "--merge", "--as-log"])
    stored = [*flags[:4], *model]
    assert store_log_kv.main([*stored, "-m", "log_kv,log_kv_all"]) == 0
    others = [name for name in MODES if name != "base"]
    assert agentic.main([*run, "-m", ",".join(others), "--split", "train,test"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [r["questions"] for r in summary["runs"]] == [5] * 2 * len(others)
    kv = {r["run"].split("/")[-1].split("_d1")[0]: r["kv"] for r in summary["runs"]}
    assert kv["log_kv"]["encoded"] == kv["log_kv_all"]["encoded"] == 0 < kv["log_kv"]["hits"]
    assert kv["log_text"] == {}
