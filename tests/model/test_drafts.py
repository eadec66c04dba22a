"""Drafts change no reply: what is guessed is checked, and what is wrong leaves nothing behind."""

from dataclasses import replace
from itertools import pairwise, product

import families
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sweeps import sweep
from test_scheduler import make_llm, rows

import agentic
from lag.kv.masks import Masks
from lag.kv.sequence import SequencePlan
from lag.model.decoder import Decoder
from lag.model.drafts import (
    FIRST_GUESS,
    LONGEST,
    MOST,
    PATIENCE,
    SELDOM,
    START,
    Chances,
    Costs,
    Draft,
    Drafter,
    joined,
    written,
)
from lag.model.request import Request
from lag.model.sampling import Sampling, choose
from lag.prompts import Prompt

COSTS = Costs(fixed=0.5)


def replies(found: dict) -> dict:
    return {id: [step["reply"] for step in row["trace"]] for id, row in found.items()}


# --- where drafts come from ---------------------------------------------------------------------
def places(text: list[int | None], end: list[int | None]) -> list[int]:
    """Where a text goes on after these tokens, the last place first."""
    last = range(len(text) - len(end) - 1, -1, -1)
    return [at + len(end) for at in last if text[at : at + len(end)] == end]


def slow_look(sources: list[list[int]], reply: list[int], most: int) -> tuple[str, list[int]]:
    """The same as lists, each place looked at: the reply's own words, then the last source first."""
    own = [None, *reply]
    texts = [own, *([None, *source] for source in reversed(sources))]
    for count in range(min(LONGEST, len(own)), 0, -1):
        found = [(text, at) for text in texts for at in places(text, own[-count:])]
        ways = [text[at] for text, at in found]
        if ways:
            way = max(ways, key=ways.count)
            text, at = found[ways.index(way)]
            share = ways.count(way) / len(ways)
            return "all" if share == 1 else "most" if share > 0.5 else "few", text[at:][:most]
    return "", []


SOME = st.integers(0, 4).flatmap(lambda most: st.lists(st.integers(0, most), max_size=12))


@sweep(300)
@given(st.lists(SOME, max_size=4), SOME, st.integers(1, MOST))
def test_a_draft_goes_on_as_most_places_do_that_agree_longest(sources, reply, most):
    if overlapping(reply):
        return
    draft = Draft(joined(map(written, sources)))
    draft.add(reply)
    draft.look(most)
    assert (draft.sure, [*map(ord, draft.next)]) == slow_look(sources, reply, most)


def overlapping(reply: list[int]) -> bool:
    """Whether an end of the reply can stand so that it overlaps itself: it is counted once then."""
    ends = [[None, *reply][-n:] for n in range(1, LONGEST + 1)]
    return any(end[k:] == end[: len(end) - k] for end in ends for k in range(1, len(end)))


def test_where_words_overlap_themselves_something_is_drafted_still():
    draft = Draft(written([1, 1, 1, 1]))
    draft.add([1, 1])
    draft.look(2)
    assert draft.next == written([1])[:1] * len(draft.next) and draft.next


def test_nothing_is_drafted_where_there_is_no_room():
    draft = Draft(written([1, 2, 3]))
    draft.add([1])
    for most in (0, -1, -5):
        draft.look(most)
        assert (draft.sure, draft.next) == ("", "")


@pytest.mark.parametrize("token", [0, 0xD800, 0xDFFF, 0x10FFFE])
def test_every_id_of_a_vocabulary_is_a_character(token):
    draft = Draft(written([7, token, token]))
    draft.add([7])
    draft.look(8)
    assert list(map(ord, draft.next)) == [token, token] and START not in draft.next


def test_drafts_that_are_never_right_are_soon_not_asked_for_and_right_ones_are_again():
    chances, draft = Chances(Costs()), Draft(written([1, *range(10, 20)]))
    draft.add([1])
    draft.look(MOST)
    assert draft.sure == "all"
    for ids in ([99], [*range(10, 20)]):
        for _ in range(200):
            chances.learn(draft, ids)
        assert bool(chances.lengths([draft])[0]) == (ids[0] == 10)
    assert Chances(Costs()).lengths([Draft(""), Draft("")]) == [0, 0]


def test_what_is_learnt_is_how_often_a_place_was_right():
    """Of 3 drafts in 4 the first token, of these half the second; what is behind a wrong one says
    nothing."""
    chances, draft = Chances(Costs()), Draft("", sure="most", next=written([5, 6]))
    for _ in range(400):
        for ids in ([5, 6], [5, 7], [8, 6], [5, 6], [5, 7], [5, 6], [8, 6], [5, 7]):
            chances.learn(draft, ids)
    assert chances.right["most"] == pytest.approx(0.75, abs=0.1)
    assert chances.right["on"] == pytest.approx(0.5, abs=0.1)
    assert chances.right["all"] == FIRST_GUESS["all"]


@given(
    st.lists(st.tuples(st.sampled_from(["", "few", "all"]), st.integers(1, 3)), min_size=1, max_size=3),
    st.lists(st.floats(0.01, 0.99), min_size=len(FIRST_GUESS), max_size=len(FIRST_GUESS)),
    st.booleans(),
)  # fmt: skip
def test_the_lengths_are_those_that_write_most_per_cost(shapes, right, padded):
    drafts = [Draft("", sure=sure, next="x" * count * (sure != "")) for sure, count in shapes]
    costs = replace(COSTS, padded=padded)
    chances = Chances(costs, dict(zip(FIRST_GUESS, right)))

    def rate(counts):
        written = len(drafts)
        for draft, count in zip(drafts, counts):
            first = chances.right.get(draft.sure, 0)
            written += sum(first * chances.right["on"] ** place for place in range(count))
        longest = 1 + max(counts)
        return written / costs.forward(len(drafts), len(drafts) + sum(counts), longest)

    best = max(map(rate, product(*(range(len(draft.next) + 1) for draft in drafts))))
    found = rate(chances.lengths(drafts))
    assert found <= best + 1e-9
    if not padded:  # the likeliest first is the best for every number of tokens
        assert found == pytest.approx(best)


def test_an_end_is_not_drafted_nor_what_stands_behind_it():
    """It would be one token more of a forward that writes it anyway, and counted as spared."""
    drafter = Drafter("prompt", Costs(), frozenset([9]))
    drafter.chances.right = dict.fromkeys(FIRST_GUESS, 1.0)
    draft = drafter.begin(written([1, 2, 3, 9, 4, 5]), [])
    for last, expected in ((1, [2, 3]), (3, []), (9, [4, 5])):
        draft.reply = START + written([last])
        assert drafter.propose([draft], [8]) == [expected]


def test_a_forward_of_more_tokens_costs_more_and_less_than_as_many_forwards():
    for costs in (COSTS, Costs(0.0, 0.0, 1 / 256, (), 1.0, 0.0)):
        found = [costs.forward(1, count, count) for count in range(1, 257)]
        assert all(a <= b <= a + found[0] for a, b in pairwise(found))
    assert replace(COSTS, padded=True).forward(3, 5, 3) == COSTS.forward(3, 9, 3)


def test_who_never_guesses_right_soon_looks_seldom_and_goes_on_learning():
    """To look costs as much as some layers of a small model."""
    drafter, looked = Drafter("prompt", Costs()), []
    draft = drafter.begin(written([1, 2, 3]), [])
    drafter.chances.right = dict.fromkeys(FIRST_GUESS, 0.0)
    draft.reply = START + written([1])
    for _ in range(PATIENCE + 4 * SELDOM):
        assert drafter.propose([draft], [8]) == [[]]
        looked.append(draft.sure != "")
    assert all(looked[:PATIENCE]) and sum(looked[PATIENCE:]) == 4
    drafter.chances.right = dict.fromkeys(FIRST_GUESS, 1.0)
    assert any(drafter.propose([draft], [8]) != [[]] for _ in range(SELDOM))
    assert drafter.propose([draft], [8]) == [[2, 3]]


# --- what is checked ----------------------------------------------------------------------------
def request(draw=None, limit=100) -> Request:
    return Request("t", Prompt("x"), limit, draw)


@sweep(40)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=3),
    st.sampled_from([0.0, 1.0]),
    st.integers(1, 6),
    st.integers(0, 2**32),
)
def test_what_is_followed_is_what_would_have_come(drafts, temperature, limit, seed):
    """The oracle takes one token at a time, of the same logits; an end id and a limit cut in."""
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(len(draft) + 1, 4, generator=generator) for draft in drafts]
    sampling = Sampling(temperature, seed)
    found = [request(sampling.sampler(str(n)), limit) for n in range(len(drafts))]
    lengths = choose(torch.cat(logits), found, frozenset([3]), drafts)
    for n, draft in enumerate(drafts):
        alone = request(sampling.sampler(str(n)), limit)
        for row, proposed in zip(logits[n], [*draft, None]):
            choose(row[None], [alone], frozenset([3]))
            if alone.ended or alone.ids[-1] != proposed:
                break
        assert (found[n].ids, found[n].ended) == (alone.ids, alone.ended)
        assert (lengths[n], found[n].near_ties) == (len(alone.ids), alone.near_ties)
        assert (found[n].drafted, alone.drafted) == (len(draft), 0)
        assert found[n].accepted == sum(a == b for a, b in zip(alone.ids, draft))


def test_logits_that_are_not_finite_fail_their_row_only():
    logits = torch.zeros(4, 4)
    logits[1, 2] = float("nan")
    rows = [request(), request()]
    assert choose(logits, rows, frozenset(), [[0], [0]]) == [1, 2]
    assert rows[0].error and not rows[1].error


# --- the decoder --------------------------------------------------------------------------------
FAMILIES = ["llama3", "mistral", "gemma3", "partial gpt-neox", "interleaved cohere"]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_take_tokens_and_give_them_back_as_if_nothing_had_been(family):
    """Each its own number; rows join and leave meanwhile. The oracle computes each row alone."""
    model = families.movable(family)
    source = torch.Generator().manual_seed(1)

    def some(count):
        return torch.randint(10, 200, (count,), generator=source).tolist()

    decoder, held = Decoder(model, slots=4), [some(n) for n in (9, 3, 12)]
    decoder.prefill([SequencePlan(tail=tuple(ids)) for ids in held])
    for turn in range(14):
        given = [some(int(n)) for n in torch.randint(1, 6, (len(held),), generator=source)]
        logits = decoder.extend(given).split([len(ids) for ids in given])
        for ids, new, found in zip(held, given, logits, strict=True):
            with torch.no_grad():
                alone = model(torch.tensor([ids + new])).logits[0, -len(new) :]
            assert torch.allclose(found, alone, atol=2e-4 * float(alone.abs().max()))
        back = [int(torch.randint(0, len(ids), (1,), generator=source)) for ids in given]
        decoder.take_back(back)
        held = [ids + new[: len(new) - n] for ids, new, n in zip(held, given, back)]
        assert decoder.lengths == list(map(len, held))
        if turn in (4, 9):  # one leaves, and another comes in its place
            ids = some(5 + 20 * (turn == 9))
            _, started = decoder.start([SequencePlan(tail=tuple(ids))])
            decoder.arrange([0, 3, 2], started)
            held[1] = ids


def test_a_model_that_makes_its_own_masks_takes_drafts_one_row_at_a_time():
    model = families.build("BloomConfig", dict(n_layer=2, n_head=4))
    decoder = Decoder(model, slots=2)
    assert decoder.masks is None and Masks.of(families.movable("llama")) is not None
    decoder.prefill([SequencePlan(tail=(5, 6)), SequencePlan(tail=(5, 6, 7))])
    assert not decoder.takes_drafts
    decoder.prefill([SequencePlan(tail=(5, 6))])
    assert decoder.takes_drafts
    decoder.extend([[7, 8, 9]])
    decoder.take_back([2])
    found = decoder.extend([[10, 11]])
    with torch.no_grad():
        alone = model(torch.tensor([[5, 6, 7, 10, 11]])).logits[0, -2:]
    assert torch.allclose(found, alone, atol=1e-4)


# --- whole runs ---------------------------------------------------------------------------------
KV = ["log_kv", "log_kv_all", "log_kv_last_action", "log_kv_last_as_context"]


@pytest.mark.parametrize("mode", ["base", "log_text", "log_cheatsheet", *KV])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_replies_are_the_same_with_drafts_and_without(tmp_path, mode, temperature):
    """S4 in small. Random models go round in circles when they are greedy: drafts are right."""
    model = families.movable("llama3")
    named = dict(max_new_tokens=11, temperature=temperature)
    plain = rows(make_llm(model, tmp_path, mode, draft="off", **named), mode, 1, max_steps=2)
    for draft, in_flight in (("logs", 1), ("logs", 4)):
        llm = make_llm(model, tmp_path, mode, draft=draft, **named)
        found = rows(llm, mode, in_flight, max_steps=2)
        assert replies(found) == replies(plain), (draft, in_flight)


def asked_twice(llm) -> list:
    """The replies to a prompt that comes again once it is answered."""
    batch, found = llm.in_flight(1), []
    for ticket in (0, 1):
        batch.submit(ticket, Prompt("one two"))
        while not (done := batch.step()):
            pass
        found.append(done[0][1])
    return found


@pytest.mark.parametrize("limit", [1, 2, 40])
def test_forwards_are_spared_and_counted(limit):
    """Said again, a reply is mostly guessed; a forward writes one token and what was accepted."""
    model = families.movable("llama")
    forwards = []
    hook = model.model.register_forward_hook(lambda *_: forwards.append(1))
    plain, drafted = (
        asked_twice(make_llm(model, None, draft=draft, max_new_tokens=limit, reuse=False))
        for draft in ("off", "logs")
    )
    hook.remove()  # the model is other tests' as well
    assert [reply.text for reply in plain] == [reply.text for reply in drafted]
    assert not any(reply.drafted_tokens or reply.accepted_tokens for reply in plain)
    accepted = [reply.accepted_tokens for reply in drafted]
    assert len(forwards) == 2 * sum(reply.new_tokens for reply in plain) - sum(accepted)
    assert all(n <= reply.drafted_tokens for n, reply in zip(accepted, drafted))
    assert limit < 40 or accepted[1] > plain[1].new_tokens / 2


def test_drafts_are_no_part_of_what_a_run_is():
    flags = ["-d", "wikihop", "-m", "base"]
    off, logs = (agentic.parse_args([*flags, "--draft", draft]) for draft in ("off", "logs"))
    assert off.identity() == logs.identity() and off.name == logs.name
    assert off.recorded()["draft"] == "off"
    with pytest.raises(ValueError, match="--draft prompt is for --provider hf; leave it out"):
        agentic.main([*flags, "--draft", "prompt", "--provider", "openai"])
