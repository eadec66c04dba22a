"""`--provider vllm`: what is sent, to the token; what is checked; what a user reads when it fails."""

import json
import shutil
from pathlib import Path

import fake_engine
import pytest
import small
import tiny
from fake_server import FakeVllm
from scripted import ScriptedLLM

import agentic
import serve
from lag import trace_files
from lag.http import Client, GivenUp, Refused, Transient
from lag.kv_store import serving
from lag.kv_store.filling import Encoder
from lag.model.llm import LLM
from lag.model.request import items
from lag.model.vllm_endpoint import VllmEndpoint
from lag.modes import MODES
from lag.prompts import Note, Prompt, qa_prompt
from lag.records import Document

TOKENIZER = tiny.byte_tokenizer()
END = TOKENIZER.eos_token_id
KV_MODES = [name for name, mode in MODES.items() if mode.enters == "kv"]
NOTES = tuple(Note(str(n), f"kept words {n}\n\n", f"hidden {n}", True) for n in range(3))


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def say(ids):
    """Answer with a city whatever is asked; a search first where no second document is there."""
    text = TOKENIZER.decode(ids)
    reply = "<ans>aldburg</ans>" if "[3]" in text else "<keywords>city</keywords>"
    return [*TOKENIZER(reply, add_special_tokens=False)["input_ids"], END]


@pytest.fixture(scope="module")
def module():
    return fake_engine.load_connector()


@pytest.fixture
def logged(small_data, embedder_folder):
    """The small data with logs of its train questions."""
    flags = ["-m", "base", "-d", "wikihop", "--data", str(small_data)]
    flags += ["--embedder", str(embedder_folder)]
    agentic.main([*flags, "--max-steps", "3"], ScriptedLLM(small.stepwise))
    agentic.main([*flags, "--max-steps", "3", "--merge", "--as-log"])
    return small_data


@pytest.fixture
def settings(small_data, tiny_folder, capsys):
    """What `serve.py --vllm-config` prints."""
    serve.main(
        ["--vllm-config", "-d", "wikihop", "--data", str(small_data), "--model", str(tiny_folder)]
    )
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


@pytest.fixture
def server(module, settings, tiny_folder):
    engine = fake_engine.Engine(module, fake_engine.config_of(settings, str(tiny_folder)))
    with FakeVllm(say, engine, str(tiny_folder)) as server:
        yield server


@pytest.fixture
def run(small_data, embedder_folder, tiny_folder, capsys):
    def call(server, command, model=tiny_folder):
        flags = ["-d", "wikihop", "--data", str(small_data), "--embedder", str(embedder_folder)]
        flags += ["--model", str(model), "--provider", "vllm", "--base-url", server.url]
        code = agentic.main([*command.split(), *flags])
        output = capsys.readouterr()
        summary = json.loads(output.out.splitlines()[-1])
        return code, summary, trace_files.read_parts(Path(summary["run"]))

    return call


def client():
    return Client(timeout=5, retries=2, pause=0.001)


def endpoint(server, llm=None, **more):
    encoder = Encoder(lambda dtype: llm, "store_log_kv.py -d x", "m")
    settings = dict(encoder=encoder, max_new_tokens=64) | more
    return VllmEndpoint(server.url, server.name, client(), TOKENIZER, **settings)


@pytest.fixture
def llm(tiny_folder):
    return LLM.load(str(tiny_folder), max_new_tokens=64)


def prompt(notes=NOTES):
    asked = qa_prompt("Who?", [Document("a", "title", "content")])
    return Prompt(asked.user, asked.prefill, notes, key="q 1")


@pytest.mark.parametrize("mode", KV_MODES)
def test_logs_enter_as_kv_and_rows_say_so(run, server, logged, mode):
    code, summary, rows = run(server, f"-m {mode} --split test")
    assert code == 0 and summary["failed"] == 0 and summary["kv"]["encoded"] > 0
    steps = [step for row in rows.values() for step in row["trace"]]
    sources = {log["source"] for step in steps for log in step["logs"]}
    assert sources == {"kv", "encoded"}
    assert all(step["cached_tokens"] > 0 and step["kv_bytes"] > 0 for step in steps)
    _, summary, rows = run(server, f"-m {mode} --split test --run again")
    steps = [step for row in rows.values() for step in row["trace"]]
    assert {log["source"] for step in steps for log in step["logs"]} == {"kv"}
    assert summary["kv"]["encoded"] == 0 and summary["kv"]["hits"] > 0
    computed = sum(s["prompt_tokens"] - s["cached_tokens"] - s["reused_tokens"] for s in steps)
    assert summary["served"]["computed_tokens"] == computed > 0


@pytest.mark.parametrize("mode", ["base", "log_text"])
def test_text_modes_need_no_connector(run, logged, tiny_folder, mode):
    with FakeVllm(say, None, str(tiny_folder)) as server:
        code, summary, _ = run(server, f"-m {mode} --split test")
        assert code == 0 and summary["failed"] == 0
        assert all("kv_transfer_params" not in body for body in server.asked)
        with pytest.raises(ValueError, match=r"takes no KV of logs; .* serve.py --vllm-config"):
            run(server, "-m log_kv --split test")


@pytest.mark.parametrize("notes", [NOTES, NOTES[:1], (), (Note("t", "text\n\n"),)])
def test_a_prompt_is_sent_to_the_token(server, llm, small_data, notes):
    served = endpoint(server, llm)
    served.open_store(small_data / "wikihop" / "kv", MODES["log_kv"])
    reply = served.generate([prompt(notes)])[0]
    (body,) = server.asked
    pieces = llm.chat.encode(prompt(notes))
    flat = [one if isinstance(one, int) else list(one[1]) for one in items(prompt(notes), pieces)]
    ids = [id for one in flat for id in (one if isinstance(one, list) else [one])]
    assert body["prompt"] == ids and body["temperature"] == 0 and body["stream"] is False
    assert body["repetition_penalty"] == 1 and body["stop_token_ids"] == [END]
    spans = body["kv_transfer_params"]["lag"].get("spans", [])
    kept = [len(keep) for note, (_, keep) in zip(notes, pieces.notes) if note.kv]
    assert [span["length"] for span in spans] == kept
    assert reply.cached_tokens == sum(kept) and reply.prompt_tokens == len(ids)
    assert reply.sources == tuple("encoded" if note.kv else "text" for note in notes)
    assert reply.text == "<keywords>city</keywords>" and reply.new_tokens == len(say([]))


def test_no_path_is_ever_sent(server, llm, small_data):
    served = endpoint(server, llm)
    served.open_store(small_data / "wikihop" / "kv", MODES["log_kv"])
    served.generate([prompt()])
    assert str(small_data) not in json.dumps([b["kv_transfer_params"] for b in server.bodies])


def test_missing_kv_without_a_model_here_names_the_command_and_sends_nothing(
    run, server, logged, tmp_path
):
    folder = tmp_path / "tokenizer"
    TOKENIZER.save_pretrained(folder)
    code, summary, rows = run(
        server, f"-m log_kv --split test --tokenizer {folder} --stop-after 0", server.name
    )
    assert code == 1 and summary["failed"] == len(rows) and not server.asked
    for row in rows.values():
        assert "run: python store_log_kv.py -d wikihop" in row["error"]["message"]
        assert "-m log_kv --dtype float32" in row["error"]["message"]


def test_another_model_here_makes_no_kv(run, server, logged, tmp_path):
    other = tiny.save_tiny(tmp_path / "other", num_hidden_layers=2)
    code, _, rows = run(
        server, f"-m log_kv --split test --tokenizer {other} --limit 1", server.name
    )
    (row,) = rows.values()
    assert (
        code == 1 and "is not the model that is served: another config" in row["error"]["message"]
    )


LIES = {
    "nothing": lambda told: None,
    "less": lambda told: told and {"lag": told["lag"] | {"kv_tokens": 1}},
    "nonsense": lambda told: told and {"lag": told["lag"] | {"kv_tokens": "all"}},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_took_fewer_tokens_from_kv_is_an_error_and_no_answer(
    server, llm, small_data, lie
):
    served = endpoint(server, llm)
    served.open_store(small_data / "wikihop" / "kv", MODES["log_kv"])
    server.lie = LIES[lie]
    with pytest.raises(Refused, match=r"took [01] of \d+ tokens from the KV of 3 logs"):
        served.generate([prompt()])


def test_a_damaged_file_is_made_again_and_counted(server, llm, small_data):
    served = endpoint(server, llm)
    store = served.open_store(small_data / "wikihop" / "kv", MODES["log_kv"])
    served.generate([prompt()])
    pair = llm.chat.note_ids(NOTES[1])
    path = store.path(*pair)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    server.engine.worker.loader.held.drop(store.key(*pair))
    server.engine.cached.clear()
    assert served.generate([prompt()])[0].cached_tokens > 0
    assert store.counts["damaged"] == 1 and path.read_bytes() == whole


def test_the_reason_of_a_refusal_is_in_the_row(run, server, logged, small_data, tmp_path):
    """vLLM itself says "Internal server error" whatever it was."""
    run(server, "-m log_kv --split test --limit 2")
    elsewhere = tmp_path / "elsewhere"
    shutil.move(server.engine.worker.loader.folder, elsewhere)
    server.engine.worker.loader.folder = tmp_path / "empty"
    shutil.copytree(elsewhere, small_data / "wikihop" / "kv" / elsewhere.name, dirs_exist_ok=True)
    server.engine.worker.loader.held.spans.clear()
    server.engine.cached.clear()
    code, _, rows = run(server, "-m log_kv --split test --limit 1 --run again")
    (row,) = rows.values()
    assert code == 1 and row["error"]["type"] == "Refused"
    assert "is not in the store; run store_log_kv.py" in row["error"]["message"]


def test_a_failure_without_a_reason_is_tried_again(server, llm, small_data):
    served = endpoint(server, llm)
    served.open_store(small_data / "wikihop" / "kv", MODES["log_kv"])
    server.broken = 2
    assert served.generate([prompt()])[0].text
    server.broken = 99
    with pytest.raises(Transient, match="Internal server error"):
        served.generate([prompt()])


def test_many_questions_are_in_flight(server, llm, small_data):
    served = endpoint(server, llm, concurrency=16)
    served.open_store(small_data / "wikihop" / "kv", MODES["log_kv"])
    batch, found = served.in_flight(16), {}
    for number in range(40):
        notes = tuple(
            Note(str(n), f"kept {n % 7}\n\n", f"hidden {n % 5}", True) for n in range(number % 4)
        )
        batch.submit(number, prompt(notes))
    while len(found) < 40:
        found |= batch.step()
    assert all(not isinstance(one, Exception) for one in found.values())
    assert [found[n].sources for n in range(4)] and len(found[3].sources) == 3


@pytest.mark.parametrize(
    "flags, reason",
    [
        ("-m log_kv --sink 4", "--sink 4 is for --provider hf"),
        ("-m log_kv --recompute 2", "--recompute 2 is for --provider hf"),
        ("-m log_kv --kv encode", "--kv encode is for --provider hf"),
        ("-m log_kv --layout system-first", "vllm can only do paper or user"),
        ("-m log_kv --dtype float32", "--dtype float32 is for --provider hf"),
        ("-m log_kv --layout user", "--layout user"),
    ],
)
def test_flags_that_cannot_be_served_are_one_line(logged, flags, reason):
    with pytest.raises(ValueError, match=reason):
        agentic.main([*flags.split(), "-d", "wikihop", "--data", str(logged), "--provider", "vllm"])


def test_an_unknown_name_lists_what_is_served(server, run, logged, tmp_path):
    folder = tmp_path / "tokenizer"
    TOKENIZER.save_pretrained(folder)
    with pytest.raises(ValueError, match="--model other: served are "):
        run(server, f"-m base --split test --tokenizer {folder}", "other")


def test_another_tokenizer_than_the_served_ones_is_refused(server):
    other = tiny.byte_tokenizer()
    other.add_tokens(["whole words"])
    with pytest.raises(GivenUp, match="the tokenizer here is not the one"):
        VllmEndpoint(server.url, server.name, client(), other)


def test_the_served_length_bounds_a_prompt(server, llm, small_data):
    server.length = 300
    assert endpoint(server, llm).room == 300 - 64
    with pytest.raises(ValueError, match="--max-new-tokens 300 leaves no room in the 300 tokens"):
        endpoint(server, llm, max_new_tokens=300)


def test_what_an_engine_needs_lies_beside_the_fingerprint(settings, small_data, llm):
    extra = settings["kv_connector_extra_config"]
    root = Path(extra["root"])
    assert root.is_absolute() and root == (small_data / "wikihop" / "kv").resolve()
    read = serving.load(root / extra["fingerprint"])
    assert read.shapes == ((2, 8),) * 3 and settings["kv_load_failure_policy"] == "fail"


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--vllm-config", "--model", "x.gguf"], "train.py export"),
        (["--vllm-config", "--model", "nobody/nothing"], "expected a folder with safetensors"),
    ],
)
def test_a_checkpoint_that_cannot_be_served_is_one_line(small_data, flags, reason):
    with pytest.raises(ValueError, match=reason):
        serve.main([*flags, "-d", "wikihop", "--data", str(small_data)])


def test_flags_of_a_model_go_with_the_config_only(capsys):
    with pytest.raises(SystemExit) as end:
        serve.main(["-d", "wikihop", "--model", "x"])
    assert end.value.code == 2 and "--model goes with --vllm-config" in capsys.readouterr().err
