"""Prompts in flight: who else is there, what is taken over and what fails changes no row."""

from itertools import count, pairwise

import families
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from lag.agent import driver
from lag.agent.agent import LoopSettings
from lag.kv.cache import MIN_ROOM
from lag.model import scheduler
from lag.model.llm import LLM
from lag.model.request import items, refilled, shared
from lag.modes import MODES
from lag.prompts import QA_RULES, SYSTEM, Note, Prompt, qa_prompt
from lag.records import Document, Hit, Log, Question
from lag.tasks import TASKS
from lag.trace_files import without_seconds

QUESTIONS = [Question(f"q{n}", f"Who is {'very ' * n}old?") for n in range(5)]
DOCUMENTS = {
    id: Document(id, f"T{id}", f"{id} is old. " * (1 + n)) for n, id in enumerate("abcdef")
}
RULES = QA_RULES + "\n\nDocuments:\n\n[1] "  # a byte is a token here
LOGS = {id: Log(id, f"{id}?", (f"first {id}", f"last {id} {id}")) for id in "xyz"}


class Ordered:
    """A ranking that begins at another place for every query."""

    def __init__(self, ids):
        self.ids = ids

    def rank(self, query, k, exclude=frozenset()):
        start = sum(query.encode()) % len(self.ids)
        turned = self.ids[start:] + self.ids[:start]
        return [Hit(id, 1 - n / 10) for n, id in enumerate(turned[:k])]


class InPieces(LLM):
    """Computes prompts by so many tokens at a time."""

    piece = 16

    def in_flight(self, slots):
        batch = super().in_flight(slots)
        batch.decoder.tokens_per_forward = self.piece
        return batch


def make_llm(model, folder, mode="base", kind=LLM, **settings) -> LLM:
    llm = kind(model, tiny.byte_tokenizer(), **{"max_new_tokens": 9, **settings})
    if MODES[mode].enters == "kv":
        llm.open_store(folder, MODES[mode])
    return llm


def rows(llm, mode, batch_size, **settings) -> dict:
    """Rows of all questions, by id, as runs are compared."""
    agent = LoopSettings(
        task=TASKS["wikihop"],
        mode=MODES[mode],
        llm=llm,
        documents=DOCUMENTS,
        docs=Ordered(list(DOCUMENTS)),
        store=LOGS,
        logs=Ordered(list(LOGS)) if MODES[mode].enters else None,
        num_logs=1,
        **{"max_steps": 3, **settings},
    )
    found = driver.run(QUESTIONS, agent, batch_size)
    return {trace.id: without_seconds(trace.to_json()) for trace in found}


@pytest.mark.parametrize("mode", ["base", "log_text", "log_kv", "log_cheatsheet"])
@pytest.mark.parametrize("family", ["llama3", "mistral"])
def test_the_number_in_flight_changes_no_row(tmp_path, family, mode):
    """Words, costs and what was taken over; windows are shorter than any prompt."""
    model = families.movable(family)
    if MODES[mode].enters == "kv":
        rows(make_llm(model, tmp_path, mode), mode, 1)  # from now on the store has every log
    alone, two, all_at_once = (
        rows(make_llm(model, tmp_path, mode), mode, size) for size in (1, 2, 5)
    )
    assert alone == two == all_at_once
    assert all(row["status"] == "unanswered" for row in alone.values())
    assert any(row["cost"]["reused_tokens"] for row in alone.values())


def test_a_switch_of_angles_is_nobody_elses():
    """LongRoPE turns all of a forward otherwise when one row is long: such a row goes alone.

    The oracle: forwards of each prompt by itself, without a cache.
    """
    model = families.movable("phi3 longrope")
    llm = make_llm(model, None)
    assert llm.even_length == 1024
    texts = ["Who is old?", "a" * 1200, "Who is it?", "b" * 1100, "Why?", "c" * 930]
    prompts = [Prompt(text) for text in texts]
    lengths = [llm.count(prompt) for prompt in prompts]
    assert lengths[5] <= 1024 < lengths[5] + 9  # its reply crosses the switch
    batch, replies = llm.in_flight(4), {}
    for number, prompt in enumerate(prompts):
        batch.submit(number, prompt)
    while len(replies) < len(prompts):
        replies |= batch.step()
    for number, prompt in enumerate(prompts[:5]):
        ids = list(llm.chat.encode(prompt).tail)
        for _ in range(9):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert replies[number].text == llm.chat.text(ids[-9:])
    alone = make_llm(model, None, reuse=False).generate(prompts[5:])[0]
    assert replies[5].text == alone.text


@pytest.fixture
def poisoned():
    """Memory that nobody wrote holds NaN, which zero attention does not silence."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1000).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("mode", ["base", "log_kv"])
def test_no_row_reads_memory_that_nobody_wrote(tmp_path, mode, poisoned):
    """Rows come, grow past their room, move and leave."""
    settings = dict(layout="system-first", max_new_tokens=MIN_ROOM + 20)
    model = families.movable("llama3")
    alone, two, four = (
        rows(make_llm(model, tmp_path, mode, **settings), mode, size) for size in (1, 2, 4)
    )
    for id, row in alone.items():
        assert row["trace"] and row["status"] == "unanswered"
        assert [step["reply"] for step in row["trace"]] == [s["reply"] for s in two[id]["trace"]]
        assert [step["reply"] for step in row["trace"]] == [s["reply"] for s in four[id]["trace"]]


@pytest.mark.parametrize("layout", ["paper", "system-first"])
@pytest.mark.parametrize("mode", ["base", "log_text", "log_kv"])
def test_taking_over_changes_nothing_but_what_is_computed(tmp_path, mode, layout):
    model = families.movable("mistral")
    plain = make_llm(model, tmp_path, mode, layout=layout, reuse=False)
    if MODES[mode].enters == "kv":
        rows(plain, mode, 1)  # from now on the store has every log
    without = rows(plain, mode, 3)
    found = rows(make_llm(model, tmp_path, mode, layout=layout), mode, 3)
    system_block, rest = plain.chat.blocks(SYSTEM)
    opening = len(system_block) if mode != "base" else len(system_block + rest) + len(RULES)
    opening *= mode == "base" or layout == "system-first"  # else logs come first
    for id, row in found.items():
        steps = [step.pop("reused_tokens") for step in row["trace"]]
        assert steps[0] == opening and sum(steps) == row["cost"].pop("reused_tokens")
        for step in without[id]["trace"]:
            assert step.pop("reused_tokens") == 0
        assert without[id]["cost"].pop("reused_tokens") == 0
        assert row == without[id]


@pytest.mark.parametrize("recompute", [0, 3])
@pytest.mark.parametrize("mode", ["base", "log_kv"])
def test_the_tokens_that_are_computed_are_those_that_are_said(tmp_path, mode, recompute):
    """prompt - cached - reused + new is what went through the model; padding needs a batch.

    What all prompts begin with went through it besides, once and alone.
    """
    model = families.build("LlamaConfig", {})
    llm = make_llm(model, tmp_path, mode, recompute=recompute, layout="system-first", draft="off")
    llm.kv.store and rows(llm, mode, 1)
    computed = []
    model.model.register_forward_hook(
        lambda module, args, named, output: computed.append(named["input_ids"].shape[1]),
        with_kwargs=True,
    )
    found = rows(llm, mode, 1)
    assert {row["trace"][0]["reused_tokens"] for row in found.values()} == {computed[0]}
    costs = [row["cost"] for row in found.values()]
    total = {name: sum(cost[name] for cost in costs) for name in costs[0]}
    said = total["prompt_tokens"] - total["cached_tokens"] - total["reused_tokens"]
    last = total["calls"]  # the last token of a reply is never fed
    assert total["reused_tokens"] > 0
    assert sum(computed[1:]) == said + total["new_tokens"] - last


class Noting(LLM):
    """Writes down who asks what."""

    def in_flight(self, slots):
        self.batch, self.asked = super().in_flight(slots), []
        return self

    def submit(self, ticket, prompt):
        self.asked.append((ticket.trace.id, prompt))
        self.batch.submit(ticket, prompt)

    def step(self):
        return self.batch.step()

    def close(self):
        self.batch.close()


def alike(one, other) -> int:
    return next(
        (n for n, (a, b) in enumerate(zip(one, other)) if a != b), min(map(len, (one, other)))
    )


LAID_OUT = [
    (mode, layout)
    for mode in ("base", "log_text", "log_kv", "log_cheatsheet")
    for layout in ("paper", "system-first", "user")
    if layout != "user" or MODES[mode].enters != "kv"
]


@pytest.mark.parametrize("trace_steps", [0, 1, 8])
@pytest.mark.parametrize(("mode", "layout"), LAID_OUT)
def test_what_a_question_has_asked_before_is_not_computed_again(
    tmp_path, mode, layout, trace_steps
):
    """All that two prompts begin with alike, to the token, or what all chats begin with."""
    llm = make_llm(families.movable("llama"), tmp_path, mode, Noting, layout=layout)
    found = rows(llm, mode, 2, layout=layout, trace_steps=trace_steps)
    before = dict.fromkeys(found, ())
    left = {id: iter(row["trace"]) for id, row in found.items()}
    for id, prompt in llm.asked:
        pieces = llm.chat.encode(prompt)
        now = items(prompt, pieces)
        opening = pieces.head if prompt.notes else llm.chat.opening(prompt)
        known = max(alike(now, before[id]), alike(now, opening))
        tokens = sum(isinstance(item, int) for item in now[:-1][:known])
        assert next(left[id])["reused_tokens"] == tokens
        before[id] = now
    assert not any(list(rest) for rest in left.values())


def test_base_takes_over_all_documents_before_the_question():
    llm = make_llm(families.movable("llama"), None)
    documents = list(DOCUMENTS.values())
    asked = [qa_prompt("Who?", documents[:n]) for n in (2, 4, 4)]
    batch, replies = llm.in_flight(1), []
    for prompt in asked:
        batch.submit("q", prompt)
        while not (done := batch.step()):
            pass
        replies.append(done[0][1])
    first, second = (llm.chat.encode(prompt).tail for prompt in asked[:2])
    common = next(n for n, (a, b) in enumerate(zip(first, second)) if a != b)
    assert common > len(first) - len("Question: Who?" * 2) - 20  # the chat's closing and the facts
    opening = len(sum(llm.chat.blocks(SYSTEM), ())) + len(RULES)
    assert [reply.reused_tokens for reply in replies[:2]] == [opening, common]
    assert replies[2].reused_tokens == replies[2].prompt_tokens - 1
    assert batch.step() == [] and batch.decoder.cache is None and len(batch) == 0


def test_another_ticket_takes_over_what_no_question_changes():
    llm = make_llm(families.movable("llama"), None)
    batch, system = llm.in_flight(2), len(sum(llm.chat.blocks(SYSTEM), ()))
    for ticket in "abc":
        batch.submit(ticket, Prompt("Who?"))
    replies = {}
    while len(replies) < 3:
        replies |= batch.step()
    assert {reply.reused_tokens for reply in replies.values()} == {system}
    assert len({reply.text for reply in replies.values()}) == 1


@pytest.mark.parametrize("user", ["", "Question: Who?", QA_RULES, QA_RULES[:-1] + "!"])
def test_an_opening_never_takes_a_prompts_last_token(user):
    """Prompts that end in, or part from, what others begin with."""
    llm, other = (make_llm(families.movable("llama"), None, reuse=reuse) for reuse in (True, False))
    prompts = [qa_prompt("Who?", []), Prompt(user), Prompt(user, "Facts:"), Prompt(user)]
    found, expected = (one.generate(prompts) for one in (llm, other))
    assert [reply.text for reply in found] == [reply.text for reply in expected]
    assert all(0 < reply.reused_tokens < reply.prompt_tokens for reply in found)
    assert not any(reply.reused_tokens for reply in expected)


def test_a_row_that_ends_makes_room_at_once():
    """Short replies come and go while a long one is being written."""
    llm = make_llm(families.movable("llama"), None, max_new_tokens=30)
    llm.end_ids = frozenset()
    batch = llm.in_flight(2)
    batch.submit("long", Prompt("Who?"))
    for number in range(8):
        batch.submit(number, Prompt(f"What is {number}?", max_new_tokens=2))
    ended = []
    while "long" not in ended:
        ended += [ticket for ticket, _ in batch.step()]
        assert len(batch.rows) <= 2
    assert ended == [*range(8), "long"]


def test_logits_that_are_not_finite_end_one_row_only():
    model = families.build("LlamaConfig", {})
    llm = make_llm(model, None)
    with torch.no_grad():
        model.model.embed_tokens.weight[llm.chat.content_ids("~")[0]] = float("nan")
    prompts = [Prompt("Who?"), Prompt("Who~?"), Prompt("What is that?")]
    alone = llm.generate(prompts[:1])
    batch, replies = llm.in_flight(3), {}
    for number, prompt in enumerate(prompts):
        batch.submit(number, prompt)
    while len(batch):
        replies |= batch.step()
    assert isinstance(replies[1], ValueError) and "not finite" in str(replies[1])
    assert replies[0].text == alone[0].text and replies[2].new_tokens == 9


class OutOfMemory(RuntimeError):
    pass


def small_machine(rows: int, width: int) -> torch.nn.Module:
    """A model with memory for so many rows of so many new tokens at once, and for one of any."""
    model = families.build("LlamaConfig", {})

    def check(module, args, named):
        count, tokens = named["input_ids"].shape
        if count > rows and tokens >= width:
            raise OutOfMemory(f"{count} x {tokens}")

    model.model.register_forward_pre_hook(check, with_kwargs=True)
    return model


@pytest.mark.parametrize("kind", [LLM, InPieces])
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("limit", [1, 2])
def test_a_batch_that_fails_is_asked_row_by_row(width, limit, kind, caplog):
    """At the first token, or in the midst of the replies; every question has its answer."""
    llm = make_llm(small_machine(limit, width), None, kind=kind)
    found = rows(llm, "base", 4)
    expected = rows(make_llm(families.build("LlamaConfig", {}), None), "base", 1)
    for row in [*found.values(), *expected.values()]:
        row["cost"].pop("reused_tokens")
        for step in row["trace"]:
            step.pop("reused_tokens")
    assert found == expected
    assert "asking one by one" in caplog.text or (kind, width) == (InPieces, 2)  # one row at a time


def test_a_row_that_fails_alone_ends_in_its_error():
    llm = make_llm(small_machine(0, 1), None)
    found = rows(llm, "base", 3)
    assert {row["error"]["type"] for row in found.values()} == {"OutOfMemory"}
    assert len(found) == len(QUESTIONS)


def test_a_row_at_the_model_s_length_ends_alone():
    model = families.build("LlamaConfig", dict(max_position_embeddings=400))
    llm = make_llm(model, None, max_new_tokens=80)
    batch, replies = llm.in_flight(2), {}
    long = "o" * (395 - llm.count(Prompt("")))
    for ticket, text in (("long", long), ("short", "Hi"), ("next", "Ho")):
        batch.submit(ticket, Prompt(text))
    while len(batch):
        replies |= batch.step()
    assert "has reached the 400 tokens" in str(replies["long"])
    assert replies["short"].text == llm.generate([Prompt("Hi")])[0].text
    assert replies["next"].text == llm.generate([Prompt("Ho")])[0].text


def test_a_model_with_a_state_takes_one_prompt_at_a_time(caplog):
    llm = LLM(families.refused("mamba"), tiny.byte_tokenizer(), max_new_tokens=5)
    prompts = [Prompt("Who?"), Prompt("What is it?"), Prompt("Where?")]
    assert [reply.text for reply in llm.generate(prompts)] == [
        llm.generate([prompt])[0].text for prompt in prompts
    ]
    assert "one prompt at a time" in caplog.text


def test_the_seconds_of_rows_are_those_of_the_clock(monkeypatch):
    """A clock that goes on by one each time it is read, so that nothing else takes time."""
    ticks = count(1.0)
    monkeypatch.setattr(scheduler.time, "perf_counter", lambda: next(ticks))
    llm = make_llm(families.movable("llama"), None, max_new_tokens=40)
    batch, replies, clock = llm.in_flight(3), [], 0.0
    for number in range(7):
        batch.submit(number, Prompt("Who? " * (1 + 20 * number), max_new_tokens=1 + 6 * number))
    while len(batch):
        start = next(ticks)
        replies += [reply for _, reply in batch.step()]
        clock += next(ticks) - start - 2  # from the step's first look to its last
    spent = sum(sum(reply.seconds.values()) for reply in replies)
    assert spent == pytest.approx(clock)
    assert all(reply.seconds["prefill"] > 0 for reply in replies)


def test_what_two_prompts_share():
    assert shared((1, 2, 3), (1, 2, 4, 5), 0) == 2
    assert shared((1, 2, 3), (1, 2, 3), 0) == 2  # the last token is read again
    assert shared((1, 2, 3, 4), (1, 2), 0) == 1
    assert shared((1, ((2,), (3,)), 4), (1, ((2,), (3,)), 4, 5), 1) == 3
    assert shared((1, ((2,), (3,))), (1, ((9,), (3,)), 4), 1) == 1  # the same words, other KV
    assert shared((1, 2, 3), (1, 9, 3), 2) == 0  # half a head in front of logs


def test_items_are_in_the_order_of_the_row(tmp_path):
    llm = make_llm(families.movable("llama"), tmp_path, "log_kv", layout="system-first")
    notes = (Note("a", "text\n\n"), Note("b", "kept\n\n", "hidden", kv=True))
    prompt = Prompt("Who?", notes=notes)
    pieces = llm.chat.encode(prompt)
    (row,), _ = llm.kv.place([prompt], [pieces])
    found = items(prompt, pieces)
    assert found[: len(row.head)] == row.head and found[len(row.head)] == pieces.notes[1]
    assert found[len(row.head) + 1 :] == row.tail


@given(st.integers(0, 9), st.sets(st.integers(0, 8)), st.integers(0, 9))
def test_who_stands_where_after_a_refill(count, leaving, joining):
    """Everybody stays who should, in as few moves as there are holes."""
    leaving = sorted(row for row in leaving if row < count)
    order = refilled(count, leaving, joining)
    stay = [row for row in range(count) if row not in leaving]
    assert sorted(order) == [*stay, *range(count, count + joining)]
    moved = [row for to, row in enumerate(order) if row < count and row != to]
    assert len(moved) <= max(len(leaving) - joining, 0)
    assert all(a < b for a, b in pairwise(sorted(order)))


def followed(llm, slots: int, asked: dict) -> dict:
    """The replies of tickets that each ask their prompts one after the other."""
    batch, left, replies = llm.in_flight(slots), {t: list(p) for t, p in asked.items()}, {}
    for ticket, prompts in left.items():
        batch.submit(ticket, prompts.pop(0))
    while len(batch):
        for ticket, reply in batch.step():
            replies.setdefault(ticket, []).append(reply)
            if left[ticket]:
                batch.submit(ticket, left[ticket].pop(0))
    return {t: [(r.text, r.reused_tokens) for r in found] for t, found in replies.items()}


def test_what_a_prompt_took_over_outlives_the_row_while_it_waits():
    """With many rows a prompt waits for others to be computed with; its row's memory is used again."""
    llm = make_llm(families.movable("mistral"), None, max_new_tokens=20)
    llm.end_ids = frozenset()
    documents = list(DOCUMENTS.values())
    asked = {
        ticket: [
            Prompt(qa_prompt(f"Who is {ticket}?", documents[: n + 1]).user, max_new_tokens=limit)
            for n, limit in enumerate((2 + ticket % 7, 3 + ticket % 5, 1 + ticket % 3))
        ]
        for ticket in range(14)
    }
    found = followed(llm, 12, asked)
    assert found == followed(llm, 1, asked)
    assert all(reused > 0 for replies in found.values() for _, reused in replies[1:])
    in_pieces = make_llm(llm.model, None, kind=InPieces, max_new_tokens=20)
    in_pieces.end_ids = frozenset()
    assert found == followed(in_pieces, 12, asked)


# --- prompts in pieces ----------------------------------------------------------------------------
@pytest.mark.parametrize("layout", ["paper", "system-first"])
@pytest.mark.parametrize("mode", MODES)
def test_prompts_in_pieces_change_no_row(tmp_path, mode, layout):
    """Words, costs and what was taken over, with drafts, rows that come and go, and windows."""
    model = families.movable("mistral")
    if MODES[mode].enters == "kv":
        rows(make_llm(model, tmp_path, mode, layout=layout), mode, 1)  # the store has every log now
    whole = rows(make_llm(model, tmp_path, mode, layout=layout), mode, 1)
    for size in (1, 2, 5):
        llm = make_llm(model, tmp_path, mode, InPieces, layout=layout)
        assert rows(llm, mode, size) == whole, size


@pytest.mark.parametrize("settings", [dict(recompute=3), dict(sink=4), dict(temperature=1.0)])
def test_prompts_in_pieces_change_no_row_of_linked_logs_or_drawn_tokens(tmp_path, settings):
    model = families.movable("llama3")
    _, whole, pieces = (  # the first run makes the logs' KV
        rows(make_llm(model, tmp_path, "log_kv", kind, **settings), "log_kv", size)
        for kind, size in ((LLM, 1), (LLM, 1), (InPieces, 4))
    )
    assert whole == pieces


def test_rows_go_on_while_a_long_prompt_is_computed():
    """A token per row and piece; and the long one's reply is what it would be alone."""
    llm = make_llm(
        families.movable("llama"), None, "base", InPieces, max_new_tokens=60, draft="off"
    )
    llm.end_ids = frozenset()
    batch, long = llm.in_flight(4), Prompt("o" * 300, max_new_tokens=5)
    for ticket in "ab":
        batch.submit(ticket, Prompt("Who?"))
    batch.step()
    writing, steps = list(batch.rows), 0
    batch.submit("long", long)
    while len(batch.rows) == 2:
        before = [len(request.ids) for request in writing]
        assert batch.step() == [] and len(batch) == 3
        assert [len(request.ids) for request in writing] == [n + 1 for n in before]
        steps += 1
    fresh = llm.count(long) - batch.rows[2].reply.reused_tokens
    assert steps == -(-fresh // llm.piece) > 15
    replies = {}
    while len(batch):
        replies |= batch.step()
    alone = make_llm(llm.model, None, max_new_tokens=60, draft="off", reuse=False)
    alone.end_ids = frozenset()
    asked = {"a": Prompt("Who?"), "b": Prompt("Who?"), "long": long}
    for ticket, prompt in asked.items():
        assert replies[ticket].text == alone.generate([prompt])[0].text


def test_what_fails_in_its_second_piece_stops_no_other_row():
    model = families.build("LlamaConfig", {})

    def check(module, args, named):
        if named["input_ids"].shape[1] > 1 and named["position_ids"].max() > 300:
            raise OutOfMemory

    model.model.register_forward_pre_hook(check, with_kwargs=True)
    llm = make_llm(model, None, "base", InPieces, max_new_tokens=40, draft="off")
    llm.end_ids = frozenset()
    batch, replies = llm.in_flight(4), {}
    batch.submit("a", Prompt("Who?"))
    assert not batch.step()
    for ticket, text in (("long", "o" * 300), ("b", "Where?"), ("c", "Why?")):
        batch.submit(ticket, Prompt(text))
    while len(batch):
        replies |= batch.step()
    assert isinstance(replies.pop("long"), OutOfMemory)
    alone = make_llm(families.build("LlamaConfig", {}), None, max_new_tokens=40)
    alone.end_ids = frozenset()
    asked = {"a": "Who?", "b": "Where?", "c": "Why?"}
    assert {ticket: reply.text for ticket, reply in replies.items()} == {
        ticket: alone.generate([Prompt(text)])[0].text for ticket, text in asked.items()
    }
