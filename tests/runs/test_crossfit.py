"""Cross-fitting: no question is answered by an adapter that was trained on it."""

import json

import pytest
import tiny
import torch

import agentic
from lag.agent.crossfit import Fitted, owners, several
from lag.files import files_digest
from lag.logs.versions import LogVersions
from lag.paths import ADAPTER_FILES, Paths
from lag.records import Question
from lag.tasks import TASKS, read_questions
from lag.train.adapters import AdapterRecipe, Tuned
from lag.train.folds import folds

RUN = ["-d", "wikihop", "--max-steps", "1", "--num-docs", "1", "--max-new-tokens", "8"]
RUN += ["--device", "cpu", "--dtype", "float32"]


def make_adapter(folder, seed, questions):
    tuned = Tuned(tiny.tiny_model(), tiny.byte_tokenizer(), AdapterRecipe(rank=2))
    torch.manual_seed(seed)
    for weight in tuned.model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight.data, std=0.2)
    tuned.save(folder, {"questions": questions})


@pytest.fixture
def halves(small_data, tmp_path):
    """Two adapters, each taught on half of the train questions."""
    asked = read_questions(Paths(small_data, "wikihop"), TASKS["wikihop"], "train")
    for half in folds(asked, 2):
        make_adapter(tmp_path / "halves" / f"{half.number}", half.number, sorted(half.ids))
    return tmp_path / "halves"


@pytest.fixture
def run(small_data, embedder_folder, tiny_folder):
    given = ["--data", str(small_data), "--embedder", str(embedder_folder)]
    given += ["--model", str(tiny_folder)]

    def call(*flags, name):
        assert agentic.main([*RUN, *given, *map(str, flags), "--run", name]) == 0
        folder = Paths(small_data, "wikihop").run("train", name)
        lines = [line for part in folder.glob("part-*") for line in part.read_text().splitlines()]
        return {row["id"]: row for row in map(json.loads, lines)}

    return call


def replies(row):
    return [step["reply"] for step in row["trace"]]


@pytest.mark.parametrize("mode", ["base", "log_kv"])
def test_each_question_is_answered_by_the_adapter_that_never_saw_it(run, halves, mode):
    if mode == "log_kv":
        run("-m", "base", name="first")
        run("-m", "base", "--merge", "--as-log", name="first")
    more = ["--exclude-self"] if mode == "log_kv" else []
    rows = run("-m", mode, *more, "--adapter", halves, name="cross")
    taught = {one.digest: one for one in several(halves)}
    assert {row["adapter"] for row in rows.values()} == set(taught) and len(rows) == 10
    for id, row in rows.items():
        assert id not in taught[row["adapter"]].taught
    for digest, one in taught.items():
        mine = [id for id, row in rows.items() if row["adapter"] == digest]
        flags = ["-m", mode, *more, "--adapter", one.folder, "--ids", ",".join(mine)]
        alone = run(*flags, name=f"alone-{digest}")
        assert {id: replies(row) for id, row in alone.items()} == {
            id: replies(rows[id]) for id in mine
        }
        assert not any("adapter" in row for row in alone.values())


def test_shares_of_two_processes_make_the_same_rows(run, halves):
    flags = ["-m", "base", "--adapter", halves]
    whole = run(*flags, name="whole")
    run(*flags, "-p", "0", "--num-partitions", "2", name="parts")
    parts = run(*flags, "-p", "1", "--num-partitions", "2", name="parts")
    seen = {id: (row["adapter"], replies(row)) for id, row in whole.items()}
    assert {id: (row["adapter"], replies(row)) for id, row in parts.items()} == seen


def test_a_stream_grows_on_in_a_split_that_one_adapter_answers(run, halves, small_data):
    """All test questions are new to both adapters, and the first answers them; the store is one."""
    flags = ["-m", "log_kv", "--adapter", halves, "--split", "train,test", "--grow"]
    rows = run(*flags, "--grow-every", "4", name="stream")
    paths = Paths(small_data, "wikihop")
    later = [*map(json.loads, (paths.run("test", "stream") / "part-0.jsonl").open())]
    first, _ = several(halves)
    assert (
        {row["adapter"] for row in later} == {first.digest} < {r["adapter"] for r in rows.values()}
    )
    store = LogVersions(paths.grown("stream"))
    assert (
        len(store.versions) == 1 + 3 + 2 and len(store.versions[0].settings["model_digest"]) == 24
    )
    assert sum(len(version.asked) for version in store.versions) == len(rows) + len(later)


def test_another_set_of_adapters_is_another_run(run, halves, tmp_path):
    run("-m", "base", "--adapter", halves, name="cross")
    make_adapter(halves / "2", 5, [])
    with pytest.raises(ValueError, match="adapter: "):
        run("-m", "base", "--adapter", halves, name="cross")


def test_a_question_that_all_were_taught_is_refused(tmp_path):
    adapters = [Fitted(tmp_path / n, n, frozenset("ab")) for n in "xy"]
    assert not owners([Question("a", "?")], [])
    with pytest.raises(ValueError, match="every adapter there was trained on question 'b'"):
        owners([Question("c", "?"), Question("b", "?")], adapters)


def test_adapters_that_do_not_say_what_they_were_taught_are_refused(halves):
    (halves / "0" / "lag.json").write_text("{}")
    with pytest.raises(ValueError, match="names no questions that the adapter was trained on"):
        several(halves)


def test_one_adapter_is_not_several(halves):
    assert several(halves / "0") == several(None) == []
    digests = {files_digest(halves / name, ADAPTER_FILES, 16) for name in "01"}
    assert {one.digest for one in several(halves)} == digests
