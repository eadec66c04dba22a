"""A real vLLM with the KV of logs: the replies of this process, or an error with a reason.

`make vllm-test` runs these. Nothing here depends on what the embedded model has learned: what a
reply says is compared with what the same model says in this process.
"""

import contextlib
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import agentic
from lag import trace_files
from lag.model.llm import LLM
from lag.modes import MODES
from lag.prompts import Note, Prompt, qa_prompt
from lag.records import Document

pytestmark = pytest.mark.vllm
MODEL = "data/miniwiki/model"
MODE = MODES["log_kv"]
BLOCK = 128  # tokens of a block on a CPU
TOKENS = 8


@pytest.fixture(scope="session")
def llm():
    return LLM.load(MODEL, max_new_tokens=TOKENS, reuse=False, draft="off")


@pytest.fixture(scope="session")
def store(llm, world):
    return llm.open_store(world / "miniwiki" / "kv", MODE)


def replies(rows):
    return {id: [step["reply"] for step in row["trace"]] for id, row in rows.items()}


@pytest.fixture
def run(world, engine, capsys):
    def call(mode, *flags):
        here = [
            "-m",
            mode,
            "-d",
            "miniwiki",
            "--data",
            str(world),
            "--split",
            "test",
            "--limit",
            "12",
        ]
        agentic.main([*here, *flags])
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        return summary, trace_files.read_parts(Path(summary["run"]))

    return call


@pytest.mark.parametrize("mode", ["base", "log_text", "log_kv", "log_kv_last_action"])
def test_runs_on_the_server_say_what_runs_here_say(run, engine, mode):
    _, here = run(mode)
    summary, there = run(mode, "--provider", "vllm", "--base-url", engine.url)
    assert summary["failed"] == 0
    # a near tie may fall otherwise where sums are taken in another order: rule 7
    differ = [id for id in here if replies(here)[id] != replies(there)[id]]
    assert len(differ) <= 1, differ
    for row in there.values():
        for step in row["trace"]:
            assert {log["source"] for log in step["logs"]} <= {"kv" if "kv" in mode else "text"}
            assert bool(step["cached_tokens"]) is bool(step["logs"] and "kv" in mode)


def body(llm, store, prompt, **more):
    pieces = llm.chat.encode(prompt)
    spans = [{"key": store.key(*pair), "length": len(pair[1])} for pair in pieces.notes]
    asked = {"strategy": "log_kv", "spans": spans, "ticket": prompt.key}
    kept = [id for _, keep in pieces.notes for id in keep]
    shape = {"prompt": [*kept, *pieces.tail], "max_tokens": TOKENS, "temperature": 0}
    return shape | {"kv_transfer_params": {"lag": asked}} | more


def prompt_of(llm, store, key, *notes):
    """A prompt whose logs, of (hidden, kept) words, have their KV in the store."""
    asked = qa_prompt("Who is Alrik's founder?", [Document("a", "Alrik", "Alrik is a company.")])
    found = tuple(Note(str(n), keep, hidden, True) for n, (hidden, keep) in enumerate(notes))
    prompt = Prompt(asked.user, asked.prefill, found, key=key)
    store.fetch([llm.chat.note_ids(note) for note in found])
    return prompt


def words(count, start=0):
    return " ".join(
        ["Lorlim", "founder", "teacher", "Crea", "is"][(start + n) % 5] for n in range(count)
    )


def said(llm, answer):
    ids = answer["choices"][0]["token_ids"]
    return llm.chat.text([id for id in ids if id not in llm.end_ids])


def expected(llm, prompts):
    return [llm.generate([prompt])[0].text for prompt in prompts]


def test_spans_that_end_anywhere_in_a_block(engine, llm, store):
    counts = [
        1,
        2,
        5,
        63,
        100,
        *range(BLOCK - 4, BLOCK + 5),
        200,
        *range(2 * BLOCK - 3, 2 * BLOCK + 3),
    ]
    prompts = [prompt_of(llm, store, f"n{n}", ("Crea is old. ", words(n))) for n in counts]
    found = [engine.ask(body(llm, store, one))[1] for one in prompts]
    assert [said(llm, one) for one in found] == expected(llm, prompts)
    lengths = [one["kv_transfer_params"]["lag"]["kv_tokens"] for one in found]
    assert lengths == [len(llm.chat.encode(one).notes[0][1]) for one in prompts]


def test_twins_and_plain_words_never_meet_in_the_prefix_cache(engine, llm, store):
    """The same visible tokens behind other hidden words, many at once, and asked again."""
    kept = [words(150, n) for n in range(5)]
    prompts = [
        prompt_of(llm, store, f"twin {n} {hidden}", (hidden, keep))
        for n, keep in enumerate(kept)
        for hidden in ("Alrik's founder is Crea. ", "Alrik's founder is Thobo. ", "")
    ]
    bodies = [body(llm, store, one) for one in prompts]
    for one in bodies[2::3]:  # the third of each enters as plain words
        one.pop("kv_transfer_params")
    plain = [Prompt(p.user, p.prefill, tuple(Note(n.id, n.keep) for n in p.notes)) for p in prompts]
    want = expected(llm, [plain[n] if n % 3 == 2 else p for n, p in enumerate(prompts)])
    for _ in range(2):
        with ThreadPoolExecutor(15) as pool:
            found = list(pool.map(lambda one: engine.ask(one)[1], bodies))
        assert [said(llm, one) for one in found] == want


def test_interrupted_requests_load_again(engine, llm, store):
    """Long replies in a small cache: some requests lose their blocks and begin anew."""
    before = engine.metric("vllm:num_preemptions_total")
    prompts = [
        prompt_of(
            llm, store, f"long {n}", *((f"{words(9, n)} ", words(300, n + k)) for k in range(2))
        )
        for n in range(12)
    ]
    bodies = [body(llm, store, one, max_tokens=200, min_tokens=200) for one in prompts]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(engine.ask, bodies))
    assert all(status == 200 for status, _ in found)
    assert engine.metric("vllm:num_preemptions_total") > before
    alone = [engine.ask(one)[1] for one in bodies]
    first = [answer["choices"][0]["token_ids"][:20] for _, answer in found]
    assert first == [answer["choices"][0]["token_ids"][:20] for answer in alone]


def why(engine, ticket):
    _, answer = engine.ask(
        {"prompt": [0], "max_tokens": 1, "kv_transfer_params": {"lag": {"why": ticket}}}
    )
    return answer["kv_transfer_params"]["lag"]["reason"]


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


BREAKS = {
    "is not in the store": Path.unlink,
    "checksum": flipped,
    "is damaged": lambda path: path.write_bytes(path.read_bytes()[:-99]),
    "another log's file": lambda path: path.write_bytes(
        next(p for p in path.parent.iterdir() if p != path).read_bytes()
    ),
}


@pytest.mark.parametrize("reason", BREAKS)
def test_a_broken_file_fails_its_request_with_a_reason(engine, llm, store, reason):
    notes = ((f"{reason} ", words(40)), ("Crea. ", words(40, 1)))
    prompt = prompt_of(llm, store, f"b{abs(hash(reason))}", *notes)
    path = store.path(*llm.chat.encode(prompt).notes[0])
    BREAKS[reason](path)
    assert engine.ask(body(llm, store, prompt))[0] == 500
    assert reason in why(engine, prompt.key)
    path.unlink(missing_ok=True)
    llm.kv.span_cache.drop(path.stem)
    prompt_of(llm, store, "", *notes)
    status, answer = engine.ask(body(llm, store, prompt))
    assert status == 200 and [said(llm, answer)] == expected(llm, [prompt])


@pytest.mark.parametrize(
    "params, reason",
    [
        ({"lag": {"spans": 7}}, "expected a list"),
        (
            {"lag": {"strategy": "../../etc", "spans": [{"key": "a" * 64, "length": 1}]}},
            "names no KV",
        ),
        (
            {"lag": {"strategy": "log_kv", "spans": [{"key": "a" * 64, "length": 9999}]}},
            "one token",
        ),
        ({"lag": {"fingerprint": "other"}}, "another model"),
    ],
)
def test_nonsense_fails_its_request_only(engine, llm, store, params, reason):
    params["lag"]["ticket"] = "nonsense"
    shape = {"prompt": list(range(10, 40)), "max_tokens": 4, "temperature": 0}
    assert engine.ask(shape | {"kv_transfer_params": params})[0] == 500
    assert reason in why(engine, "nonsense")
    assert engine.ask(shape)[0] == 200


def test_prompt_log_probabilities_are_refused_and_leave_nothing_behind(engine, llm, store):
    """vLLM loads nothing for them: logs were computed as words, under the log's salt."""
    prompt = prompt_of(llm, store, "echo", ("Thobo is the founder. ", words(200)))
    assert engine.ask(body(llm, store, prompt, prompt_logprobs=1))[0] == 500
    assert "prompt log-probabilities" in why(engine, "echo")
    assert [said(llm, engine.ask(body(llm, store, prompt))[1])] == expected(llm, [prompt])


def leave(engine, content):
    """Send a request and hang up at once."""
    with socket.create_connection(("127.0.0.1", engine.port)) as connection:
        data = json.dumps(content).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        connection.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            connection.recv(1)


def test_clients_that_leave_while_their_kv_is_loaded(engine, llm, store):
    prompts = [prompt_of(llm, store, f"l{n}", ("Crea. ", words(250, n))) for n in range(5)]
    bodies = [body(llm, store, one, model=MODEL, max_tokens=100) for one in prompts] * 4
    threads = [threading.Thread(target=leave, args=(engine, one)) for one in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [engine.ask(body(llm, store, one))[1] for one in prompts]
    assert [said(llm, one) for one in found] == expected(llm, prompts)


def test_a_model_that_made_no_kv_here_is_refused_at_the_start(vllm, settings, tmp_path):
    other = vllm.EngineServer(MODEL, settings, tmp_path / "log", dtype="bfloat16")
    with pytest.raises(RuntimeError):
        other.__enter__()
    assert "served in bfloat16, the KV was made in float32" in other.words()
