"""The script: says how big, encodes what is missing, goes on where it stopped, skips what fails."""

import json
import subprocess
import sys
from pathlib import Path

import oracle
import pytest
import tiny
import torch
import warm

import store_log_kv
from lag.files import write_json
from lag.kv import sequence
from lag.model import decoder
from lag.model.llm import LLM
from lag.modes import MODES
from lag.paths import Paths

KV_MODES = list(store_log_kv.KV_MODES)
REPLIES = {
    "a": ["Look.", "No. <keywords>pet</keywords>", "So <ans>Bo</ans>"],
    "b": ["By the sea: <ans>Aldburg</ans>"],
    "c": ["Nothing here."],
    "d": ["Look.", "Again, and again.", "<ans>Dora</ans> it is"],
}


def write_logs(root: Path, replies: dict[str, list[str]] = REPLIES) -> Paths:
    paths = Paths(root, "wikihop")
    rows = {
        id: {
            "question": f"{id}?",
            "trace": [{"query": "", "action": "answer", "reply": r} for r in said],
        }
        for id, said in replies.items()
    }
    failed = {
        "question": "x?",
        "trace": [],
        "status": "error",
        "error": {"message": "it fell over"},
    }
    write_json(paths.log_store, {"metadata": {}, "results": {**rows, "failed": failed}})
    return paths


def run(capsys, root: Path, llm: LLM, *flags: str) -> tuple[int, dict]:
    """Exit code and summary; what was logged is in the summary under `log`."""
    code = store_log_kv.main(["-d", "wikihop", "--data", str(root), *flags], llm=llm)
    said = capsys.readouterr()
    return code, json.loads(said.out.splitlines()[-1]) | {"log": said.err}


@pytest.fixture
def llm():
    return LLM(
        tiny.tiny_model(tiny.tiny_config(max_position_embeddings=256)),
        tiny.byte_tokenizer(),
        max_new_tokens=8,
    )


def test_encodes_every_log_once(tmp_path, capsys, llm):
    write_logs(tmp_path)
    code, first = run(capsys, tmp_path, llm)
    assert (code, first["encoded"], first["present"], first["failed"]) == (0, 4, 0, 0)
    assert first["skipped"] == 1 and first["mode"] == "log_kv"
    files = {path: path.stat().st_mtime_ns for path in Path(first["store"]).iterdir()}
    assert len(files) == 4
    code, again = run(capsys, tmp_path, llm)
    assert (code, again["encoded"], again["present"]) == (0, 0, 4)
    assert files == {path: path.stat().st_mtime_ns for path in Path(first["store"]).iterdir()}


def test_the_estimate_is_what_the_tensors_take(tmp_path, capsys, llm):
    write_logs(tmp_path)
    code, planned = run(capsys, tmp_path, llm, "--dry-run")
    assert code == 0 and "encoded" not in planned
    assert not Path(planned["store"]).exists(), "a dry run writes no span"
    run(capsys, tmp_path, llm)
    store = llm.open_store(Paths(tmp_path, "wikihop").kv, MODES["log_kv"])
    pairs = [(job.after, job.keep) for job in jobs(tmp_path, llm)]
    assert planned["bytes"] == sum(one.num_bytes for one in store.fetch(pairs))
    assert store.counts["hits"] == 4


def jobs(root: Path, llm: LLM, mode: str = "log_kv") -> list[store_log_kv.Job]:
    args = store_log_kv.parse_args(["-d", "wikihop", "--data", str(root)])
    logs = store_log_kv.load_logs(args, Paths(root, "wikihop"))
    return store_log_kv.jobs_of(logs, MODES[mode], llm)


def test_goes_on_where_it_was_stopped(tmp_path, capsys, llm):
    write_logs(tmp_path, dict(list(REPLIES.items())[:2]))
    run(capsys, tmp_path, llm)
    write_logs(tmp_path)
    _, summary = run(capsys, tmp_path, llm, "--batch-size", "1")
    assert (summary["present"], summary["encoded"]) == (2, 2)


def test_a_changed_log_is_a_new_log(tmp_path, capsys, llm):
    write_logs(tmp_path)
    run(capsys, tmp_path, llm)
    write_logs(tmp_path, {**REPLIES, "a": [*REPLIES["a"][:2], "So <ans>Bob</ans>"]})
    _, summary = run(capsys, tmp_path, llm)
    assert (summary["present"], summary["encoded"]) == (3, 1)


@pytest.mark.parametrize("mode", KV_MODES)
def test_a_run_finds_what_the_script_stored(tmp_path, capsys, llm, mode):
    """Warmed in batches, fetched by the loop's own route, equal to the oracle."""
    write_logs(tmp_path)
    run(capsys, tmp_path, llm, "-m", mode, "--batch-size", "3")
    store = llm.open_store(Paths(tmp_path, "wikihop").kv, MODES[mode])
    pairs = [(job.after, job.keep) for job in jobs(tmp_path, llm, mode)]
    fetched = store.fetch(pairs)
    assert {one.source for one in fetched} == {"kv"}
    tail = llm.chat.content_ids("And now?")
    row = sequence.SequencePlan((), tuple(one.span for one in fetched), tail)
    found = decoder.Decoder(llm.model, llm.kv.rotator).prefill([row])[0]
    assert oracle.error(found, oracle.logits(llm.model, (), pairs, tail)) < 1e-4


def test_several_modes_in_one_process(tmp_path, capsys, llm):
    write_logs(tmp_path)
    code, summary = run(capsys, tmp_path, llm, "-m", ",".join(KV_MODES), "--log-limit", "2")
    assert code == 0 and [one["mode"] for one in summary["runs"]] == KV_MODES
    assert {one["encoded"] for one in summary["runs"]} == {2}


def test_a_failed_log_is_reported_and_skipped(tmp_path, capsys, llm):
    """One log is longer than the model: the others of its batch are stored, the exit code is 1."""
    write_logs(tmp_path, {**REPLIES, "long": ["word " * 100]})
    code, summary = run(capsys, tmp_path, llm)
    assert (code, summary["encoded"], summary["failed"]) == (1, 4, 1)
    assert "log long is skipped: a log of 502 tokens is longer than the 256" in summary["log"]
    code, summary = run(capsys, tmp_path, llm)
    assert (code, summary["present"], summary["failed"]) == (1, 4, 1)


def test_a_log_whose_values_overflow_is_skipped(tmp_path, capsys, llm):
    """NaN in a store would be served as token 0 for ever."""
    write_logs(tmp_path)
    with torch.no_grad():
        llm.model.model.embed_tokens.weight[llm.chat.content_ids("z")[0]] = float("inf")
    write_logs(tmp_path, {**REPLIES, "z": ["z"]})
    code, summary = run(capsys, tmp_path, llm)
    assert (code, summary["encoded"], summary["failed"]) == (1, 4, 1)
    assert "log z is skipped: KV overflows torch.float32" in summary["log"]


def test_a_store_that_does_not_fit_the_disk_is_refused(tmp_path, llm):
    write_logs(tmp_path)
    paths, todo = Paths(tmp_path, "wikihop"), jobs(tmp_path, llm)
    with pytest.raises(ValueError, match=r"needs [\d.]+ GB.*--log-limit"):
        store_log_kv.check_room(paths, MODES["log_kv"], todo, 0, per_token=10**15)


def test_refused_model_writes_nothing(tmp_path, capsys):
    import families

    write_logs(tmp_path)
    llm = LLM(families.refused("gpt2"), tiny.byte_tokenizer(), max_new_tokens=8)
    with pytest.raises(ValueError, match="gpt2 cannot reuse KV"):
        run(capsys, tmp_path, llm)
    assert not Paths(tmp_path, "wikihop").kv.exists()


def test_wrong_input_is_one_line_and_exit_code_2(tmp_path):
    def fails(*flags):
        result = subprocess.run(
            [sys.executable, "store_log_kv.py", "-d", "wikihop", *flags],
            capture_output=True,
            text=True,
        )
        assert result.returncode == 2 and not result.stdout
        return result.stderr.strip().splitlines()[-1]

    assert "unknown KV mode 'log_text'" in fails("-m", "log_text")
    said = fails("--data", str(tmp_path), "--model", "mine", "--prune")
    flags = f"-d wikihop --data {tmp_path}"
    base = f"python agentic.py -m base -d wikihop --split train --data {tmp_path} --model mine"
    steps = [f"python dataset.py {flags}", f"python embed.py {flags}", base]
    assert said.endswith(f"no logs to reuse; run: {' && '.join(steps)} && {base} --merge --as-log")


def test_runs_on_a_saved_model(tmp_path, tiny_folder):
    """The command of the paper's README, as a user types it."""
    write_logs(tmp_path)
    flags = ["-d", "wikihop", "--data", tmp_path, "--model", tiny_folder, "--device", "cpu"]
    result = warm.run_script("store_log_kv.py", *flags)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["encoded"] == 4
    assert "log_kv: 4/4" in result.stderr


def test_compare_says_what_fewer_bits_change(tmp_path, capsys, llm):
    """Nothing is stored; unpacked logs change nothing, fewer bits save more and change more."""
    write_logs(tmp_path)
    code, summary = run(capsys, tmp_path, llm, "--compare", "3")
    found = summary["compared"]
    assert code == 0 and summary["logs"] == 3
    assert not list(Paths(tmp_path, "wikihop").kv.rglob("*.safetensors"))
    exact = found["auto"]
    assert (exact["logits_worst"], exact["first_tokens"], exact["replies"]) == (0, 1, 1)
    sizes = [found[name]["bytes"] for name in ("auto", "bf16", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    assert 0 < found["int8"]["logits_median"] < found["int4"]["logits_median"]


def test_packed_files_are_found_by_a_run_of_that_kind_only(tmp_path, capsys):
    write_logs(tmp_path)
    packed = LLM(tiny.tiny_model(), tiny.byte_tokenizer(), max_new_tokens=8, kv_dtype="int8")
    plain = LLM(tiny.tiny_model(), tiny.byte_tokenizer(), max_new_tokens=8)
    _, first = run(capsys, tmp_path, packed)
    assert first["encoded"] == 4 and first["store"].endswith("log_kv.int8")
    assert run(capsys, tmp_path, packed)[1]["present"] == 4
    assert run(capsys, tmp_path, plain)[1]["present"] == 0


def test_deleting_the_last_log_that_uses_a_file_deletes_it(tmp_path, capsys, llm):
    """Two logs that agree in every token share a file: it goes with the second one."""
    twins = {**REPLIES, "twin": REPLIES["a"]}
    write_logs(tmp_path, twins)
    assert run(capsys, tmp_path, llm, "--prune")[1]["removed"] == 0, "there is nothing yet"
    store = Path(run(capsys, tmp_path, llm)[1]["store"])
    _, kept = run(capsys, tmp_path, llm, "--prune")
    sizes = sum(path.stat().st_size for path in store.iterdir())
    assert (kept["removed"], kept["files"], kept["bytes"]) == (0, 4, sizes)
    write_logs(tmp_path, {id: replies for id, replies in twins.items() if id != "a"})
    assert run(capsys, tmp_path, llm, "--prune")[1]["removed"] == 0
    write_logs(tmp_path, {id: REPLIES[id] for id in REPLIES if id != "a"})
    assert run(capsys, tmp_path, llm, "--prune")[1]["removed"] == 1
    assert run(capsys, tmp_path, llm)[1]["missing"] == 0, "what is used was left alone"


def test_pruning_reaches_every_kind_of_file(tmp_path, capsys):
    """A log that was deleted would live on in files of fewer bits, or behind a sink."""
    write_logs(tmp_path)
    for kinds in ({}, {"kv_dtype": "int4"}, {"sink": 3}):
        llm = LLM(tiny.tiny_model(), tiny.byte_tokenizer(), max_new_tokens=8, **kinds)
        run(capsys, tmp_path, llm)
        run(capsys, tmp_path, llm, "-m", "log_kv_all")
    write_logs(tmp_path, {id: REPLIES[id] for id in REPLIES if id != "a"})
    _, pruned = run(capsys, tmp_path, llm, "--prune")
    assert (pruned["removed"], pruned["files"]) == (3, 9)
    assert len(list(Path(pruned["store"]).rglob("*.safetensors"))) == 9 + 12, "another mode's stay"


def test_pruning_by_part_of_the_logs_is_refused(tmp_path, capsys, llm):
    with pytest.raises(SystemExit) as end:
        run(capsys, tmp_path, llm, "--prune", "--log-limit", "1")
    assert end.value.code == 2 and "--log-limit" in capsys.readouterr().err


def test_workers_share_the_logs(tmp_path, capsys, llm, monkeypatch):
    """Each log is encoded by one of three, in whatever order they come."""
    write_logs(tmp_path)
    encoded = []
    for rank in (2, 0, 1):
        for name in ("RANK", "LOCAL_RANK"):
            monkeypatch.setenv(name, str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        code, summary = run(capsys, tmp_path, llm)
        assert code == 0
        encoded.append(summary["encoded"])
    assert sorted(encoded) == [1, 1, 2]
    code, summary = run(capsys, tmp_path, llm, "-p", "0", "--num-partitions", "1")
    assert (summary["present"], summary["encoded"]) == (4, 0)


def test_the_first_line_says_the_share(tmp_path, capsys, llm, monkeypatch):
    write_logs(tmp_path)
    for name, value in {"STEP_ID": 0, "PROCID": 1, "NTASKS": 4}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert store_log_kv.main(["-d", "wikihop", "--data", str(tmp_path)], llm=llm) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "wikihop log_kv: partition 1 of 4 (from SLURM_PROCID)"
    with pytest.raises(SystemExit):
        store_log_kv.main(["-d", "wikihop", "--stats", "--num-partitions", "4"])
    assert "give no -p or --num-partitions" in capsys.readouterr().err
