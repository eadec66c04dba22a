"""A store that grows: what it keeps, what it says of itself, and that nothing changes its end."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import small
import warm
from scripted import ScriptedLLM

import agentic
from lag.logs.growing import GrowingLogs, Keeping, nearest
from lag.logs.versions import LogVersions
from lag.paths import Paths
from lag.records import Step, Trace, UsedLog
from lag.trace_files import read_parts, without_seconds

ROOT = Path(__file__).resolve().parents[2]
NAME = "log_text_s3_grow4_o1"


class Encoder:
    """Every text has the vector that the test gives to its last word."""

    name, digest, dimensions = "made up", "made up", 3

    def __init__(self, vectors=None):
        self.vectors, self.asked = vectors or {}, []

    def documents(self, texts):
        self.asked += texts
        made = [self.vectors.get(text.split()[-1], (1, 0, 0)) for text in texts]
        return np.array(made, dtype=np.float32).reshape(-1, 3)

    def queries(self, texts):
        return self.documents(texts)


def trace(id, reply="r", status="answered", used=()):
    found = Trace(id, f"question {id}", pred="x" if status == "answered" else "")
    logs = tuple(UsedLog(log, 0.5) for log in used)
    found.steps = [Step("q", "answer", reply=reply, logs=logs)] if reply else []
    if status == "error":
        found.error = {"stage": "s", "type": "t", "message": "m", "traceback": ""}
    return found


def grown(path, encoder=None, **keeping):
    store = GrowingLogs(path / "store.jsonl", Keeping(**keeping), encoder or Encoder())
    store.begin({"mode": "x"}, {})
    return store


# --- what is kept ---------------------------------------------------------------------------------
def test_traces_that_say_something_become_logs_and_the_others_are_counted(tmp_path):
    store = grown(tmp_path)
    traces = [trace("a"), trace("b", status="error"), trace("c", reply="  "), trace("d")]
    store.grow("train", traces, len)
    store.grow("train", [trace("a"), trace("e", status="unanswered")], len)
    assert list(store.versions) == ["a", "d", "e"]
    assert store.summary()["left_out"] == {"empty": 1, "error": 1, "known": 1}
    assert store.summary()["version"] == 2 and store.summary()["encoded"] == 3


def test_keep_answered_leaves_out_what_ended_without_an_answer(tmp_path):
    store = grown(tmp_path, keep="answered")
    store.grow("train", [trace("a"), trace("b", status="unanswered")], len)
    assert list(store.versions) == ["a"]
    assert store.versions.newest.left_out == {"b": "unanswered"}


def test_keep_novel_compares_with_the_store_and_with_what_comes_along(tmp_path):
    vectors = {"x": (1, 0, 0), "near": (0.8, 0.6, 0), "y": (0, 1, 0), "z": (0, 0, 1)}
    store = grown(tmp_path, Encoder(vectors), keep="novel", novel_below=0.7)
    store.grow("train", [trace("a", "x"), trace("b", "near"), trace("c", "y")], len)
    assert list(store.versions) == ["a", "c"]
    store.grow("train", [trace("d", "y"), trace("e", "z")], len)
    assert list(store.versions) == ["a", "c", "e"]
    assert store.summary()["left_out"] == {"similar": 2}
    exact = grown(tmp_path / "exact", Encoder(vectors), keep="novel", novel_below=0.8)
    exact.grow("train", [trace("a", "x"), trace("b", "near")], len)
    assert list(exact.versions) == ["a"], "a cosine that is not below the bound is not novel"


@pytest.mark.parametrize(
    "evict, left",
    [("oldest", ["c", "d", "e"]), ("least-used", ["a", "c", "e"]), ("redundant", ["b", "d", "e"])],
)
def test_a_full_store_lets_one_go(tmp_path, evict, left):
    """a and c are alike; d is like a, e is like c; a and c were used, and then d was not."""
    vectors = {"a": (1, 0, 0), "c": (0, 1, 0), "b": (0, 0, 1), "d": (1, 0, 0), "e": (0, 1, 0)}
    store = grown(tmp_path, Encoder(vectors), log_limit=3, evict=evict)
    store.grow("train", [trace(id, id) for id in "abc"], len)
    store.grow("train", [trace("d", "d", used=["a", "c"])], len)
    store.grow("train", [trace("e", "e", used=["c"])], len)
    assert list(store.versions) == left
    assert store.summary()["evicted"] == 2 and store.summary()["logs"] == 3


def test_more_new_logs_than_room_leave_the_newest_and_make_no_kv_in_vain(tmp_path):
    store, made = grown(tmp_path, log_limit=2), []
    store.grow("train", [trace(id) for id in "abcde"], lambda logs: made.extend(logs) or len(logs))
    assert list(store.versions) == ["d", "e"] == [log.id for log in made]
    assert store.summary()["left_out"] == {"no room": 3} and store.summary()["evicted"] == 0


# --- versions -------------------------------------------------------------------------------------
def test_each_version_is_seen_as_it_was(tmp_path):
    store = grown(tmp_path, Encoder({"b": (0, 1, 0)}), log_limit=2)
    for id in "abc":
        store.grow("train", [trace(id, id)], len)
    seen = []
    for number in range(4):
        store.versions.show(number)
        hits = store.index.rank("x", 9)
        seen.append((list(store.versions), [hit.id for hit in hits]))
    assert seen == [
        ([], []),
        (["a"], ["a"]),
        (["a", "b"], ["a", "b"]),
        (["b", "c"], ["c", "b"]),
    ]
    assert store.versions["a"].question == "question a", "a row of an earlier version names it"
    assert [hit.id for hit in store.index.rank("x", 9, frozenset("c"))] == ["b"]


def test_digests_name_the_content_and_its_past(tmp_path):
    def digests(folder, *steps):
        store = grown(tmp_path / folder)
        for ids in steps:
            store.grow("train", [trace(id) for id in ids], len)
        return [version.digest for version in store.versions.versions]

    one, same = digests("1", "ab", "c"), digests("2", "ab", "c")
    assert one == same
    assert digests("3", "ab", "d")[:2] == one[:2] and digests("3", "ab", "d")[2] != one[2]
    assert digests("4", "ba", "c")[1:] != one[1:]
    assert digests("5", "a", "bc")[-1] != one[-1]


def test_what_a_killed_writer_left_is_cut_off(tmp_path):
    """After any number of bytes of any of the three files the last whole version goes on."""
    whole = grown(tmp_path / "whole")
    for ids in ("ab", "cd", "ef"):
        whole.grow("train", [trace(id) for id in ids], len)
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert sorted(files) == ["logs.jsonl", "store.jsonl", "vectors.f32"]
    lines = files["store.jsonl"].splitlines(keepends=True)
    for torn in range(0, len(lines[3]), 37):
        folder = tmp_path / f"torn-{torn}"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        (folder / "store.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:torn])
        (folder / "logs.jsonl").write_bytes(
            files["logs.jsonl"][: len(files["logs.jsonl"]) - torn % 40]
        )
        store = grown(folder)
        assert list(store.versions) == list("abcd")
        store.grow("train", [trace(id) for id in "ef"], len)
        assert store.versions.newest.digest == whole.versions.newest.digest
        for name in ("logs.jsonl", "vectors.f32"):
            assert (folder / name).read_bytes() == files[name]


def test_vectors_that_are_damaged_are_made_again(tmp_path, caplog):
    store = grown(tmp_path, Encoder({"b": (0, 1, 0)}))
    for ids in ("ab", "cd"):
        store.grow("train", [trace(id, id) for id in ids], len)
    path = tmp_path / "vectors.f32"
    whole = path.read_bytes()
    for content in (whole[:20], whole[:-1] + b"x", b""):
        path.write_bytes(content)
        grown(tmp_path, Encoder({"b": (0, 1, 0)}))
        assert path.read_bytes() == whole
    path.unlink()
    again = Encoder({"b": (0, 1, 0)})
    assert [hit.id for hit in grown(tmp_path, again).index.rank("b", 1)] == ["b"]
    assert grown(tmp_path, Encoder()).versions.newest.digest == store.versions.newest.digest


def test_a_store_whose_logs_were_changed_is_refused(tmp_path):
    grown(tmp_path).grow("train", [trace("a")], len)
    path = tmp_path / "logs.jsonl"
    path.write_bytes(path.read_bytes().replace(b"question a", b"question b"))
    with pytest.raises(ValueError, match=r"does not hold what version 1 of store.jsonl"):
        grown(tmp_path)
    (tmp_path / "store.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="line 1 is no version"):
        grown(tmp_path)


def test_another_stream_is_refused(tmp_path):
    grown(tmp_path)
    with pytest.raises(ValueError, match=r"grew in another stream \(keeping: .*'all'.* -> .*answ"):
        grown(tmp_path, keep="answered")


def test_nearest_is_exact_whatever_stands_beside_it():
    """Against sorting all cosines in float64; many equal vectors, some rows barred."""
    random = np.random.default_rng(0)
    few = random.normal(size=(40, 24)).astype(np.float32)
    matrix = few[random.integers(0, 40, 600)]
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    ids = [f"id{n:03}" for n in random.permutation(600)]
    for query in matrix[:20]:
        barred = set(random.integers(0, 600, 30).tolist())
        cosines = (matrix.astype(np.float64) @ query.astype(np.float64)).round(6)
        order = sorted(set(range(600)) - barred, key=lambda row: (-cosines[row], ids[row]))
        for k in (1, 3, 50, 9999):
            found = nearest(query, k, matrix, ids, barred)
            assert [hit.id for hit in found] == [ids[row] for row in order[:k]]
    assert nearest(query, 3, matrix[:0], [], ()) == []


def test_memory_holds_no_texts(tmp_path):
    """Logs are read when they are asked for: opening a store keeps no word of them."""
    store = grown(tmp_path)
    store.grow("train", [trace(f"{n}", "w" * 100_000) for n in range(100)], len)
    store.versions.close()
    import tracemalloc

    tracemalloc.start()
    again = LogVersions(tmp_path / "store.jsonl")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 300_000 and len(again["7"].replies[0]) == 100_000


# --- runs -----------------------------------------------------------------------------------------
@pytest.fixture
def run(small_data, embedder_folder, capsys):
    """Call agentic's main on the small data; returns the exit code and the summary."""

    def call(command, llm=None, root=small_data):
        flags = ["-d", "wikihop", "--data", str(root), "--embedder", str(embedder_folder)]
        flags += ["--max-steps", "3", "--grow", "--grow-every", "4"]
        code = agentic.main(command.split() + flags, llm or ScriptedLLM(small.stepwise))
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def rows_of(root, split, name=NAME):
    rows = read_parts(Paths(root, "wikihop").run(split, name))
    return {id: without_seconds(row) for id, row in sorted(rows.items())}


def store_of(root, name=NAME):
    return LogVersions(Paths(root, "wikihop").grown(name))


def fates(root, name=NAME):
    """Everything that a growing run leaves and that no clock decides."""
    versions = [
        (v.number, v.digest, v.split, v.asked, v.added, v.evicted, v.left_out, v.used, v.vectors)
        for v in store_of(root, name).versions
    ]
    return versions, rows_of(root, "train", name), rows_of(root, "test", name)


def test_a_stream_through_both_splits(run, small_data):
    """16 questions, 4 at a time: each sees the logs of those before its round, and no other."""
    llm = ScriptedLLM(small.stepwise)
    code, summary = run("-m log_text --split train,test", llm)
    assert code == 0
    versions = store_of(small_data).versions
    sizes = [(v.split, len(v.asked)) for v in versions]
    assert sizes == [("", 0), ("train", 4), ("train", 4), ("train", 2), ("test", 4), ("test", 2)]
    order = [id for v in versions for id in v.asked]
    assert sorted(order[:10]) != order[:10] and set(order) == {f"w{n}" for n in range(16)}
    rows = rows_of(small_data, "train") | rows_of(small_data, "test")
    for version in versions[1:]:
        before = versions[version.number - 1]
        known = set(order[: order.index(version.asked[0])])
        for id in version.asked:
            assert rows[id]["store"] == {"version": before.number, "digest": before.digest}
            entered = {log["id"] for step in rows[id]["trace"] for log in step["logs"]}
            assert entered <= known and len(entered) >= min(3, len(known))
    assert not [n for p in llm.seen if p.key.split()[0] in versions[1].asked for n in p.notes]
    store = summary["runs"][1]["store"]
    assert store["added"] == 16 and store["version"] == 5
    assert store["digest"] == versions[-1].digest


def test_orders_are_runs_of_their_own_and_base_has_none(run, small_data):
    _, summary = run("-m base,log_text --order-seed 0,2")
    names = [Path(one["run"]).name for one in summary["runs"]]
    assert names == ["base_s3", "log_text_s3_grow4_o0", "log_text_s3_grow4_o2"]
    asked = [
        [id for v in store_of(small_data, f"log_text_s3_grow4_o{n}").versions for id in v.asked]
        for n in "02"
    ]
    assert asked[0] == [f"w{n}" for n in range(10)]
    assert asked[1] != asked[0] and sorted(asked[1]) == sorted(asked[0])


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--num-logs all",
        "--log-control random",
        "--log-limit 5 --evict redundant",
        "--keep novel --novel-below 0.8",
    ],
)
def test_the_batch_size_changes_nothing(run, small_data, tmp_path, flags):
    found = []
    for size in (1, 3, 16):
        root = shutil.copytree(small_data, tmp_path / f"data{size}")
        run(f"-m log_text --run x --split train,test {flags} --batch-size {size}", root=root)
        found.append(fates(root, "x"))
    assert found[0] == found[1] == found[2]
    assert found[0][0][-1][0] == 5


def test_gold_answers_change_nothing(run, small_data, tmp_path):
    """Rows keep the gold answers for the scorer; no decision sees them."""
    other = shutil.copytree(small_data, tmp_path / "other")
    for split in ("train", "test"):
        path = Paths(other, "wikihop").questions(split)
        rows = json.loads(path.read_text())
        for row in rows:
            row["answer"] = "scrambled"
        path.write_text(json.dumps(rows))
    for root in (small_data, other):
        run(
            "-m log_text --split train,test --keep answered --log-limit 6 --evict least-used --run x",
            root=root,
        )
    assert fates(small_data, "x")[0] == fates(other, "x")[0]


def test_a_store_begins_with_the_logs_of_another(run, small_data, embedder_folder):
    flags = ["-d", "wikihop", "--data", str(small_data), "-m", "base"]
    for more in (["--embedder", str(embedder_folder)], ["--merge", "--as-log"]):
        agentic.main([*flags, *more], ScriptedLLM(small.stepwise))
    given = str(Paths(small_data, "wikihop").log_store)
    run(f"-m log_text --split test --log-store {given} --run x")
    first = store_of(small_data, "x").versions[0]
    assert first.added == tuple(f"w{n}" for n in range(10)) and not first.asked
    rows = rows_of(small_data, "test", "x")
    assert all(step["logs"] for row in rows.values() for step in row["trace"])


def test_partitions_grow_a_store_each(run, small_data):
    for partition in (0, 1):
        run(f"-m log_text --num-partitions 2 -p {partition}")
    folder = Paths(small_data, "wikihop").grown(NAME).parent
    assert sorted(p.name for p in folder.glob("store*")) == [
        "store-0-of-2.jsonl",
        "store-1-of-2.jsonl",
    ]
    stores = [LogVersions(path) for path in sorted(folder.glob("store*"))]
    asked = [{id for v in store.versions for id in v.asked} for store in stores]
    assert not asked[0] & asked[1] and asked[0] | asked[1] == {f"w{n}" for n in range(10)}
    with pytest.raises(ValueError, match="num_partitions: 2 -> 1"):
        run("-m log_text")


def test_a_question_that_failed_retrieves_from_its_own_version_when_asked_again(run, small_data):
    def failing(prompt):
        if "bela" in prompt.user and "does bela" in prompt.user:
            raise RuntimeError("lost")
        return small.stepwise(prompt)

    code, _ = run("-m log_text --order-seed 0", ScriptedLLM(failing))
    assert code == 1
    name = "log_text_s3_grow4_o0"
    before = store_of(small_data, name).newest
    code, summary = run("-m log_text --order-seed 0")
    assert code == 0 and summary["answered"] == 8
    row = rows_of(small_data, "train", name)["w1"]
    assert row["status"] == "answered" and row["store"]["version"] == 0
    assert store_of(small_data, name).newest == before and "w1" not in store_of(small_data, name)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--grow-every 4", "--grow-every 4 goes with --grow; give both"),
        ("--order-seed 1,2", "--order-seed 2 goes with --grow; give both"),
        ("--grow --evict redundant", "--evict redundant goes with --log-limit; give both"),
        ("--grow --novel-below 0.5", "--keep all asks for no similarity; leave it out"),
        ("--grow -m log_kv --log-control wrong-context", "needs logs that stay"),
        ("--grow --order-seed 1,2 --run x", "one order with it"),
    ],
)
def test_what_nothing_would_read_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        agentic.parse_args(["-d", "wikihop", "-m", "log_text", *flags.split()])
    with pytest.raises(SystemExit):
        agentic.parse_args(["-d", "wikihop", "--grow", "--order-seed", "1,1"])


def test_a_manifest_of_one_split_asks_for_the_whole_stream_again(run, small_data):
    run("-m log_text --split train,test")
    manifest = Paths(small_data, "wikihop").manifest("train", NAME)
    again = agentic.parse_args(["--config", str(manifest)]).runs()
    assert [(one.split, one.grow, one.name) for one in again] == [
        ("train", "train,test", NAME),
        ("test", "train,test", NAME),
    ]
    with pytest.raises(ValueError, match="grow: train,test -> train"):
        run("-m log_text")


@pytest.fixture
def start(embedder_folder, tiny_folder, tmp_path):
    """Begin a run in a process of its own."""

    def begin(root):
        words = f"-d wikihop --data {root} --embedder {embedder_folder} --model {tiny_folder} "
        words += "--split train,test -m log_kv --grow --grow-every 4 --max-steps 2 "
        words += "--max-new-tokens 12 --run x --batch-size 2"
        return warm.start_script(tmp_path, "agentic.py", *words.split())

    return begin


def test_a_second_writer_ends_with_exit_code_2(run, small_data, start):
    first, path = start(small_data), Paths(small_data, "wikihop").grown("x")
    while not path.exists() and first.is_alive():
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGSTOP)
    part = Paths(small_data, "wikihop").part("train", "x", 0)
    try:
        for _ in (part, path):
            second = start(small_data)
            second.join()
            assert second.exitcode == 2
            part.unlink(missing_ok=True)  # what remains held is the store
    finally:
        first.kill()
        first.join()


def kill_and_compare(root, other, start, kills, seed):
    """Kill a run so often at a random moment; its end is that of one that nobody killed."""
    whole, began = start(other), time.monotonic()
    whole.join()
    seconds, draw = time.monotonic() - began, random.Random(seed)
    assert whole.exitcode == 0
    killed = 0
    while killed < kills:
        going = start(root)
        going.join(draw.uniform(0, seconds / 2))
        killed += going.is_alive()
        if not going.is_alive():  # it had ended: begin anew
            assert going.exitcode == 0 and fates(root, "x") == fates(other, "x")
            shutil.rmtree(Paths(root, "wikihop").preds)
        going.kill()
        going.join()
    last = start(root)
    last.join()
    assert last.exitcode == 0 and fates(root, "x") == fates(other, "x")


def test_a_killed_run_ends_as_one_that_nobody_killed(small_data, tmp_path, start):
    other = shutil.copytree(small_data, tmp_path / "other")
    kill_and_compare(small_data, other, start, 4, 1)


@pytest.mark.stress
def test_fifty_kills(small_data, tmp_path, start):
    other = shutil.copytree(small_data, tmp_path / "other")
    kill_and_compare(small_data, other, start, 50, 2)


def test_scores_and_report_of_a_stream(run, small_data, tmp_path, capsys):
    """Prompts are made again to the word, although half of their logs are gone by the end."""
    from lag.evaluation.find_runs import read_folder
    from lag.evaluation.gold import Catalogue
    from lag.evaluation.intervals import Sampling
    from lag.evaluation.leakage import leakage
    from lag.evaluation.results import Evaluator
    from lag.report.rebuild_prompts import RunPrompts

    llm = ScriptedLLM(small.stepwise)
    run("-m log_text --split train,test --log-limit 6", llm)
    name = f"{NAME.replace('_grow', '_first6_grow')}"
    evaluator = Evaluator(Catalogue(small_data), Sampling(1, 100))
    asked = {prompt.key: prompt for prompt in llm.seen}
    for split in ("train", "test"):
        found = read_folder(Paths(small_data, "wikihop").run(split, name))
        made = RunPrompts(found, evaluator)
        for trace in found.traces.values():
            for number, one in enumerate(made.prompts_of(trace), 1):
                prompt = asked[f"{trace.id} {number}"]
                assert (one.prompt.user, one.prompt.notes) == (prompt.user, prompt.notes)
        counted = leakage(evaluator.evaluate(found), evaluator.stores)
        assert counted.own_possible == counted.own_entered == 0 and "grew" in counted.note
