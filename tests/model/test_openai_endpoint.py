"""Runs on a server: nothing it does wrong loses a row or becomes an answer."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import small
import tiny
from scripted import ScriptedLLM
from stub_endpoint import FAULTS, Stub

import agentic
from lag import files, prompts, trace_files
from lag.agent import driver
from lag.agent.agent import LoopSettings
from lag.http import Client, GivenUp, Refused, Transient
from lag.model.openai_endpoint import Endpoint, escaped
from lag.modes import MODES
from lag.paths import Paths
from lag.prompts import Prompt
from lag.records import Question
from lag.runs.providers import LOADERS
from lag.solvers import SOLVERS
from lag.tasks import TASKS

TEXT_MODES = [name for name, mode in MODES.items() if mode.enters != "kv"]


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def say(body: dict) -> str:
    """Every second person is known at once, every fourth after a search, the others never."""
    user = body["messages"][-1]["content"]
    if "cheatsheet" in user[:300]:
        return "<cheatsheet>Look at the documents.</cheatsheet>"
    asked = re.search(r"does (\w+) live", user)
    if not asked:
        return ""  # to the probe of a begun turn
    name = asked[1]
    n, num_docs = small.NAMES.index(name), len(re.findall(r"^\[\d+\] ", user, re.M))
    if n % 2 == 0 or (n % 4 == 1 and num_docs > 2):
        return f"{name} lives there. <ans>{small.CITIES[n % 3]}</ans>"
    return f"Not yet. <keywords>{name} pet city</keywords>"


SOON = 0.3  # seconds, for a server that is not to answer; others have long, for the machine may be slow


def make(stub, **settings):
    timeout, patience = settings.pop("timeout", 60.0), settings.pop("patience", 0)
    client = Client(timeout=timeout, retries=4, pause=0.001, patience=patience)
    return Endpoint(stub.url, "m", client, **settings)


@pytest.fixture
def run(small_data, embedder_folder, capsys):
    def call(command, llm=None):
        flags = ["--data", str(small_data), "--embedder", str(embedder_folder)]
        if isinstance(llm, Endpoint):
            flags += ["--provider", "openai", "--base-url", llm.base_url]
        code = agentic.main([*command.split(), "-d", "wikihop", *flags], llm)
        output = capsys.readouterr()
        return code, json.loads(output.out.splitlines()[-1]), output

    return call


def rows_of(summary):
    rows = trace_files.read_parts(Path(summary["run"]))
    return {id: trace_files.without_seconds(rows[id]) for id in sorted(rows)}


@pytest.fixture(scope="module")
def logs(small_root, embedder_folder, tmp_path_factory):
    """A log store, made once."""
    root = shutil.copytree(small_root, tmp_path_factory.mktemp("logs") / "data")
    flags = ["-d", "wikihop", "-m", "base", "--data", str(root), "--embedder", str(embedder_folder)]
    assert agentic.main([*flags, "--max-steps", "3"], ScriptedLLM(small.stepwise)) == 0
    assert agentic.main([*flags, "--max-steps", "3", "--merge", "--as-log"]) == 0
    return Paths(root, "wikihop").log_store


@pytest.fixture
def log_store(logs, small_data):
    path = Paths(small_data, "wikihop").log_store
    path.parent.mkdir(parents=True)
    shutil.copy(logs, path)


@pytest.mark.parametrize("mode", TEXT_MODES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_and_text_mode_runs_on_a_server(run, log_store, small_data, solver, mode):
    path = small_data / "wikihop" / "dev_train.json"
    rows = json.loads(path.read_text())
    files.write_json(path, [row | {"paragraph_ids": ["p1", "q2"]} for row in rows])
    with Stub(say) as stub:
        flags = f"--provider openai --base-url {stub.url} --model m --solver {solver} --limit 3"
        code, summary, _ = run(f"-m {mode} {flags}")
    assert code == 0 and summary["failed"] == 0 and len(rows_of(summary)) == 3
    assert summary["served"]["requests"] == len(stub.bodies)
    steps = [step for row in rows_of(summary).values() for step in row["trace"]]
    assert all((s["prompt_tokens"], s["new_tokens"]) == (11, 7) for s in steps)
    assert any(s["logs"] for s in steps) == bool(MODES[mode].enters)
    for body in stub.bodies:
        assert body["model"] == "m" and body["temperature"] == 0 and body["seed"] == 1234
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
    known = json.loads((Path(summary["run"]) / "run.json").read_text())
    assert known["identity"]["provider"] == "openai" and known["identity"]["prefill"] == "folded"
    assert known["identity"]["layout"] == "user"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_now_and_then_is_asked_again_and_changes_no_row(run, fault):
    timeout = SOON if fault == "timeout" else 60.0
    with Stub(say) as healthy, Stub(say, lambda n: fault if n % 3 == 1 else "") as faulty:
        _, well, _ = run("-m base --run well --max-steps 3", make(healthy))
        asked = make(faulty, concurrency=1, timeout=timeout)
        code, ill, _ = run("-m base --run ill --max-steps 3", asked)
    assert code == 0 and ill["failed"] == 0 and ill["served"]["failed_tries"] > 3
    assert rows_of(ill) == rows_of(well)


@pytest.mark.parametrize("fault", [*FAULTS, "400"])
def test_a_question_that_fails_for_good_is_an_error_row_and_resume_completes_the_run(run, fault):
    """Elsewhere a provider's error became an empty answer, and resume skipped it."""

    def broken(body):
        return "does arno live" in body["messages"][-1]["content"]

    class Sick(Stub):
        def reply_or_fail(self, number):
            return fault if broken(self.bodies[number]) else ""

    with Sick(say) as stub:
        stub.fault = stub.reply_or_fail
        timeout = SOON if fault == "timeout" else 60.0
        asked = make(stub, concurrency=1, timeout=timeout)
        code, summary, _ = run("-m base --max-steps 3", asked)
        rows = rows_of(summary)
        tries = sum(map(broken, stub.bodies))
        stub.fault = lambda n: ""
        again, healed, _ = run("-m base --max-steps 3", make(stub))
        _, idle, _ = run("-m base --max-steps 3", make(stub))
        _, well, _ = run("-m base --max-steps 3 --run well", make(stub))
    assert code == 1 and summary["failed"] == 1
    assert rows["w0"]["status"] == "error" and rows["w0"]["pred"] == ""
    assert tries == (1 if fault == "400" else 5)
    assert again == 0 and healed["failed"] == 0 and healed["answered"] == 8
    assert rows_of(healed) == rows_of(well) and idle["served"]["failed_tries"] == 0
    assert "requests" not in idle["served"]


def test_concurrent_questions_give_the_rows_of_one_at_a_time(run):
    with Stub(say, lambda n: "slow") as stub:
        _, one, _ = run("-m base --run one --max-steps 3", make(stub, concurrency=1))
        assert stub.most_at_once == 1
        _, many, _ = run("-m base --run many --max-steps 3", make(stub, concurrency=4))
    assert stub.most_at_once == 4
    assert rows_of(one) == rows_of(many)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_server_that_stops_answering_ends_the_run_and_keeps_what_is_finished(
    run, small_data, concurrency
):
    with Stub(say, lambda n: "" if n < 12 else "timeout") as stub:
        with pytest.raises(
            GivenUp, match=r"given up after .* no answer within 0.3 s.*repeat the command"
        ):
            asked = make(stub, patience=6, concurrency=concurrency, timeout=SOON)
            run("-m base --run lost --max-steps 3", asked)
        assert len(stub.bodies) <= 12 + 6 + concurrency, "it went on asking"
        rows = trace_files.read_parts(small_data / "wikihop" / "preds" / "train" / "lost")
        assert rows and all(row["status"] != "error" or row["pred"] == "" for row in rows.values())
        stub.fault = lambda n: ""
        code, summary, _ = run("-m base --run lost --max-steps 3", make(stub))
    assert code == 0 and summary["failed"] == 0 and len(rows_of(summary)) == 10


def test_failures_now_and_then_never_add_up_to_giving_up(run):
    with Stub(say, lambda n: "500" if n % 2 else "") as stub:
        code, summary, _ = run("-m base --max-steps 3", make(stub, patience=3, concurrency=1))
    assert code == 0 and summary["served"]["failed_tries"] > 3


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_server_that_fails_every_question_ends_the_run_after_five_of_them(
    run, small_data, capsys, concurrency
):
    """It took five tries and 20 lines of traceback for each of thousands of questions."""
    with Stub(say, lambda n: "500") as stub:
        with pytest.raises(
            GivenUp, match=r"failures of one kind in a row.* answered 500.*--stop-after"
        ):
            run("-m base --run down --max-steps 3", make(stub, concurrency=concurrency))
        rows = trace_files.read_parts(small_data / "wikihop" / "preds" / "train" / "down")
        assert 5 <= len(rows) < 5 + concurrency
        assert all(row["error"]["type"] == "Transient" for row in rows.values())
        said = capsys.readouterr().err
        assert said.count("Transient in wire: ") == len(rows) and "Traceback" not in said
        stub.fault = lambda n: ""
        code, summary, _ = run("-m base --run down --max-steps 3", make(stub))
    assert code == 0 and summary["failed"] == 0 and len(rows_of(summary)) == 10


def test_a_dead_port_is_named_in_one_line(run):
    with Stub(say) as stub:
        url = stub.url
    client = Client(timeout=0.3, retries=4, pause=0.001, patience=6)
    with pytest.raises(GivenUp) as error:
        run("-m base --run dead", Endpoint(url, "m", client))
    assert url in str(error.value) and "\n" not in str(error.value)


def test_a_server_that_is_down_costs_one_line_and_one_try_per_question(run):
    """Each question had five tries and twenty lines of traceback."""
    with Stub(say) as stub:
        url = stub.url
    llm = Endpoint(url, "m", Client(retries=4, pause=0.001), concurrency=1)
    code, summary, output = run("-m base --run down --limit 3", llm)
    assert code == 1 and summary["failed"] == 3 and llm.client.retried == 5 + 2
    assert {row["error"]["type"] for row in rows_of(summary).values()} == {"Unreachable"}
    said = [line for line in output.err.splitlines() if "Unreachable" in line]
    assert len(said) == 3 and "Traceback" not in output.err
    _, _, output = run("-m base --run down --limit 3 -v", llm)
    assert output.err.count("Traceback") == 3


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "<ans>a"}, {"type": "text", "text": "b</ans>"}],
        [{"type": "reasoning", "summary": []}, {"type": "text", "text": "<ans>ab</ans>"}],
    ],
)
def test_a_reply_in_parts_is_read(content):
    with Stub(lambda body: content) as stub:
        (reply,) = make(stub).generate([Prompt("a")])
    assert reply.text == "<ans>ab</ans>" and len(stub.bodies) == 1


@pytest.mark.parametrize("content", [[], [{"type": "image"}], [{"text": 3}], ["x"], {}, 7])
def test_parts_without_a_text_are_no_reply(content):
    with Stub(lambda body: content) as stub, pytest.raises(Transient, match="without a text"):
        make(stub).generate([Prompt("a")])


@pytest.mark.parametrize("length", [9 * 128 + 1, 20 << 20])
def test_a_reply_beyond_what_was_asked_for_is_an_error_row(run, length):
    """A reply of 60 MB was stored, and with what was made of it 300 MB."""
    with Stub(lambda body: "x" * length) as stub:
        llm = make(stub, max_new_tokens=9)
        code, summary, _ = run("-m base --limit 1 --max-steps 1", llm)
        (row,) = rows_of(summary).values()
    assert code == 1 and len(stub.bodies) == 1 and row["error"]["type"] == "TooLarge"
    assert "characters, where 9 tokens" in row["error"]["message"] or length > 1 << 20
    assert sum(path.stat().st_size for path in Path(summary["run"]).iterdir()) < 1 << 16


def test_a_reply_as_long_as_was_asked_for_is_kept():
    with Stub(lambda body: " " * 9 * 128) as stub:
        (reply,) = make(stub, max_new_tokens=9).generate([Prompt("a")])
    assert len(reply.text) == 9 * 128


@pytest.mark.parametrize(("status", "advice"), [("401", "OPENAI_API_KEY"), ("404", "--base-url")])
def test_what_no_question_can_pass_ends_the_run_at_once(run, status, advice):
    with Stub(say, lambda n: status) as stub:
        with pytest.raises(GivenUp, match=advice):
            run("-m base", make(stub, concurrency=1))
        assert len(stub.bodies) == 1


def test_a_key_travels_in_the_header_and_is_written_nowhere(run, monkeypatch, small_data):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with Stub(say) as stub:
        _, summary, output = run(f"-m base --provider openai --base-url {stub.url} --limit 2 -v")
        assert all(h["Authorization"] == "Bearer sk-very-secret" for h in stub.headers)
        monkeypatch.delenv("OPENAI_API_KEY")
        run(f"-m base --provider openai --base-url {stub.url} --limit 2 --run keyless")
    assert "Authorization" not in stub.headers[-1]
    written = [path for path in small_data.rglob("*") if path.is_file()]
    assert not any(b"very-secret" in path.read_bytes() for path in written)
    assert "very-secret" not in output.out + output.err + json.dumps(summary)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("-m log_kv --base-url {}", "log_kv needs keys and values in this process"),
        ("-m base,log_kv_all --base-url {}", "give -m one of base, log_text"),
        ("-m log_text --layout paper --base-url {}", "--layout paper"),
        ("-m base", "OPENAI_API_KEY"),
        ("-m base --base-url ftp://x", "expected http"),
        ("-m base --base-url http://me:pw@x/v1", "keys go to the environment"),
        ("-m base --dtype float32 --base-url {}", "--dtype float32 is for --provider hf"),
        ("-m base --trace-steps 2 --trace-tokens 9 --base-url {}", "give --tokenizer"),
        ("-m log_text --log-tokens 9 --base-url {}", "give --tokenizer"),
    ],
)
def test_what_a_server_cannot_do_is_refused_before_it_is_asked(run, flags, named):
    with Stub(say) as stub:
        with pytest.raises(ValueError) as error:
            run("--provider openai " + flags.format(stub.url))
        assert named in str(error.value) and "\n" not in str(error.value)
        assert "me:pw" not in str(error.value)
        assert not stub.bodies


def test_the_flags_reach_the_server_s_client():
    """A slow server needs a longer --timeout; questions in flight are called --batch-size here, too."""
    words = (
        "-d wikihop -m base --provider openai --base-url http://x/v1 --timeout 600 --batch-size 3"
    )
    endpoint = LOADERS["openai"](*agentic.parse_args(words.split()).runs())
    assert (endpoint.client.timeout, endpoint.concurrency) == (600, 3)


@pytest.mark.parametrize("flag", ["base_url", "tokenizer", "timeout"])
def test_a_server_s_flag_without_a_server_is_refused(run, flag):
    with pytest.raises(ValueError, match="is for --provider openai"):
        run(f"-m base --{flag.replace('_', '-')} 7")


def counted(body, *, continues, opens=True, per_end=2):
    """A prompt's tokens by words, by a template that ends turns, and may open the model's."""
    turns = [len(message["content"].split()) + 1 for message in body["messages"]]
    open_end = continues and body.get("continue_final_message", False)
    return sum(turns) + per_end * (len(turns) - open_end) + (0 if open_end else int(opens))


AUTO = "-m base --max-steps 3 --prefill auto"


@pytest.mark.parametrize(
    ("count", "found"),
    [
        (lambda body: counted(body, continues=True), "turn"),
        (lambda body: counted(body, continues=False), "folded"),
        (lambda body: counted(body, continues=False, opens=False, per_end=1), "folded"),
        (lambda body: 11, "folded"),  # the begun turn was dropped
        (lambda body: 0, "folded"),  # it does not say
    ],
)
def test_whether_a_server_goes_on_with_a_turn_is_asked_once(run, count, found):
    with Stub(say) as stub:
        stub.count = count
        code, summary, _ = run(AUTO, make(stub))
    assert code == 0 and Path(summary["run"]).name == "base_openai_s3_auto"
    known = json.loads((Path(summary["run"]) / "run.json").read_text())
    assert known["identity"]["prefill"] == found
    last = {body["messages"][-1]["role"] for body in stub.bodies[2:]}
    assert last == {"assistant" if found == "turn" else "user"}
    assert summary["served"]["probes"] == 2
    assert [body["max_tokens"] for body in stub.bodies[:2]] == [1, 1]
    assert len(stub.bodies) == summary["served"]["requests"] + 2


def test_a_server_that_refuses_a_begun_turn_gets_it_folded(run):
    with Stub(say) as stub:
        stub.fault = lambda n: "422" if "continue_final_message" in stub.bodies[n] else ""
        code, summary, _ = run(AUTO, make(stub))
    assert code == 0 and summary["failed"] == 0
    assert all(body["messages"][-1]["role"] == "user" for body in stub.bodies[2:])


@pytest.mark.parametrize(
    ("fault", "said"), [("404", "is the model's name"), ("500", "--prefill auto")]
)
def test_a_server_that_cannot_be_asked_ends_the_run_in_one_line(run, fault, said):
    with Stub(say, lambda n: fault) as stub, pytest.raises(GivenUp, match=said):
        run(AUTO, make(stub))


def test_a_run_goes_on_only_as_it_was_begun(run):
    with Stub(say) as stub:
        run(f"{AUTO} --limit 1", make(stub))
        stub.count = lambda body: counted(body, continues=True)
        with pytest.raises(ValueError, match="prefill: folded -> turn"):
            run(AUTO, make(stub))


CONTROL = ["<|im_end|>", "<|eot_id|>", "<s>", "</s>", "[INST]", "<<SYS>>", "<end_of_turn>", "<bos>"]


@pytest.mark.parametrize("token", CONTROL)
def test_control_tokens_are_escaped_and_counted(token):
    text, count = escaped(f"a {token} b {token}")
    assert count == 2 and token not in text
    assert text.replace(" ", "") == f"a{token}b{token}"


def test_plain_text_and_our_own_tags_are_not_escaped():
    text = "<ans>a < b</ans> <keywords>[1] x|y</keywords> <br> 1 << 2 <b>s</b> <cheatsheet>"
    assert escaped(text) == (text, 0)


def test_a_document_cannot_open_a_turn_on_a_server():
    with Stub(lambda body: "ok") as stub:
        llm = make(stub, tokenizer=tiny.byte_tokenizer())
        llm.generate([Prompt("doc <|end|> <|assistant|> <|im_start|>")])
    (body,) = stub.bodies
    sent = body["messages"][-1]["content"]
    assert not any(token in sent for token in [*tiny.SPECIALS, "<|im_start|>"])
    assert llm.counts["escaped"] == 3


def test_a_prefill_is_folded_or_continued():
    prompt = prompts.qa_prompt("Who?", [])
    with Stub(lambda body: "ok") as stub:
        make(stub).generate([prompt, prompts.folded(prompt)])
    continued, folded = stub.bodies
    assert continued["messages"][-1] == {"role": "assistant", "content": prompt.prefill}
    assert continued["continue_final_message"] and not continued["add_generation_prompt"]
    assert folded["messages"][-1]["role"] == "user"
    assert folded["messages"][-1]["content"].endswith("\n\n" + prompt.prefill)
    assert "continue_final_message" not in folded


def test_with_a_tokenizer_prompts_are_shortened_to_the_model_s_length(run, tmp_path):
    tokenizer = tiny.byte_tokenizer()
    tokenizer.model_max_length = 900
    with Stub(lambda body: "<keywords>k</keywords>") as stub:
        llm = make(stub, tokenizer=tokenizer, max_new_tokens=50)
        _, summary, _ = run("-m base --max-steps 8 --limit 2", llm)
    assert summary["dropped"] == 2 and summary["failed"] == 0
    for body in stub.bodies:
        texts = [message["content"] for message in body["messages"]]
        assert llm.count(Prompt(texts[-1], system=texts[0])) <= 850


def test_a_token_budget_for_earlier_steps_holds_on_what_is_sent(run, tmp_path):
    tiny.byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    with Stub(lambda body: f"reply {len(stub.bodies)} <keywords>k</keywords>") as stub:
        flags = (
            f"--provider openai --base-url {stub.url} --model m --tokenizer {tmp_path}/tokenizer"
        )
        run(
            f"-m base --limit 1 --num-docs 0 --trace-steps 4 --trace-tokens 200 --max-steps 6 {flags}"
        )
    lengths = [len(body["messages"][-1]["content"].encode()) for body in stub.bodies]
    assert len(lengths) == 6
    assert 0 < max(lengths) - lengths[0] <= 200


def test_sampling_is_passed_on():
    with Stub(lambda body: "ok") as stub:
        make(stub, temperature=0.7, seed=5, max_new_tokens=9).generate(
            [Prompt("a"), Prompt("b", max_new_tokens=4)]
        )
    assert [body["max_tokens"] for body in stub.bodies] == [9, 4]
    assert {(body["temperature"], body["seed"]) for body in stub.bodies} == {(0.7, 5)}


@pytest.mark.parametrize(
    ("fault", "error"), [("400", Refused), ("no text", Transient), ("302", Refused)]
)
def test_errors_say_what_the_server_said(fault, error):
    with Stub(lambda body: "ok", lambda n: fault) as stub, pytest.raises(error) as raised:
        make(stub).generate([Prompt("a")])
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


@pytest.mark.parametrize(
    "usage",
    [None, {}, [], {"prompt_tokens": "9"}, {"prompt_tokens_details": [1]}, {"prompt_tokens": -1}],
)
def test_a_server_that_states_no_cost_is_counted_here(usage):
    with Stub(lambda body: "four") as stub:
        llm = make(stub, tokenizer=tiny.byte_tokenizer())
        reply = llm.costed(Prompt("a"), "four", usage, 0.1)
    assert (reply.prompt_tokens, reply.new_tokens, reply.cached_tokens) == (
        llm.count(Prompt("a")),
        4,
        0,
    )


def test_a_carried_sheet_goes_from_question_to_question_on_a_server_too(run, log_store):
    with Stub(say, lambda n: "slow") as stub:
        code, summary, _ = run("-m log_cheatsheet --sheet carried --limit 4", make(stub))
    assert code == 0 and summary["failed"] == 0 and stub.most_at_once == 1
    asked = [body["messages"][-1]["content"] for body in stub.bodies]
    assert sum("The cheatsheet so far:\nLook at the documents." in text for text in asked) == 3


def test_when_the_caller_stops_no_thread_goes_on_trying():
    """A thread that backs off for minutes would keep the process alive behind the user's back."""
    with Stub(say, lambda n: "" if n == 0 else "503") as stub:
        llm = Endpoint(stub.url, "m", Client(timeout=1, retries=9, pause=9.0), concurrency=2)
        agent = LoopSettings(task=TASKS["wikihop"], mode=MODES["base"], llm=llm, prefill="folded")
        questions = [
            Question(f"{n}", f"In which city does {small.NAMES[2 * n]} live?") for n in range(4)
        ]
        traces = driver.run(questions, agent, 2)
        start = time.monotonic()
        assert next(traces).status == "answered"
        traces.close()
        assert llm.client.stopped.is_set() and time.monotonic() - start < 30  # of minutes


def test_a_redirect_is_not_followed_for_the_key_would_go_along():
    with Stub(lambda body: "ok", lambda n: "302") as stub:
        with pytest.raises(Refused, match="answered 302"):
            make(stub).generate([Prompt("a")])
        assert len(stub.bodies) == 1
