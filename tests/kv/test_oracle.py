"""The cache route equals one masked forward: every family, layout, mode, batch and shape."""

import copy

import families
import oracle
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from sweeps import sweep

from lag.kv import encode as encode_module
from lag.kv import sequence, support
from lag.model.decoder import Decoder
from lag.modes import MODES
from lag.records import Log

CLOSE = 1e-4
KV_MODES = [name for name, mode in MODES.items() if mode.enters == "kv"]
LOGS = [
    Log("a", "Who?", ("First look at it.", "No. <keywords>pet</keywords>", "So <ans>Bo</ans>")),
    Log("b", "Where?", ("It is by the sea, <ans>Aldburg</ans> I think",)),
    Log("c", "What?", ("Nothing here.", "Still <keywords>a city</keywords> and more")),
]


def tokens(count: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(7, 263, (count,), generator=generator).tolist())


# head, logs as (after, keep), tail. The `paper` layout has no head; `system-first` has one.
CASES = {
    "paper, three logs": ((), [(tokens(11, 1), tokens(9, 2)), ((), tokens(20, 3)), (tokens(3, 4), tokens(1, 5))], tokens(12, 6)),
    "paper, one log, one token": ((), [(tokens(30, 7), tokens(5, 8))], tokens(1, 9)),
    "system-first, two logs": (tokens(6, 10), [(tokens(4, 11), tokens(13, 12)), (tokens(8, 13), tokens(4, 14))], tokens(25, 15)),
    "system-first, nothing hidden": (tokens(2, 16), [((), tokens(3, 17))], tokens(4, 18)),
    "no log": (tokens(9, 19), [], tokens(9, 20)),
    "no head, no log": ((), [], tokens(3, 21)),
}  # fmt: skip


def rows_of(model, mover, cases) -> list[sequence.SequencePlan]:
    return [
        sequence.SequencePlan(h, tuple(encode_module.encode(model, mover, logs)), tail)
        for h, logs, tail in cases
    ]


def worst(model, mover, cases, steps: int = 3, decoder=Decoder) -> float:
    """Greatest error of the logits over some greedy steps of one batch, against the oracle."""
    decoder = decoder(model, mover)
    logits = decoder.prefill(rows_of(model, mover, cases))
    tails = [list(tail) for _, _, tail in cases]
    error = 0.0
    for _ in range(steps):
        expected = [oracle.logits(model, h, p, t) for (h, p, _), t in zip(cases, tails)]
        error = max([error, *map(oracle.error, logits, expected)])
        chosen = logits.argmax(-1)
        assert chosen.tolist() == [int(row.argmax()) for row in expected]
        for tail, token in zip(tails, chosen.tolist()):
            tail.append(token)
        logits = decoder.advance(chosen)
    return error


@pytest.mark.parametrize("family", families.MOVABLE)
def test_ragged_batch_equals_the_oracle(family):
    model, mover = families.movable(family), families.mover(family)
    assert worst(model, mover, list(CASES.values())) < CLOSE


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["llama3", "mistral", "yarn"])
def test_batch_of_one_equals_the_oracle(family, case):
    assert worst(families.movable(family), families.mover(family), [CASES[case]]) < CLOSE


@pytest.mark.parametrize("layout", ["paper", "system-first"])
@pytest.mark.parametrize("mode", KV_MODES)
@pytest.mark.parametrize("family", ["llama3", "mistral"])
def test_every_kv_mode_equals_the_oracle(family, mode, layout):
    """What a mode keeps and hides reaches the cache as the oracle has it."""
    encode = tiny.byte_tokenizer().encode
    pairs = [
        tuple(tuple(encode(f(log))) for f in (MODES[mode].after, MODES[mode].keep)) for log in LOGS
    ]
    head = tuple(encode("Answer.")) if layout == "system-first" else ()
    cases = [(head, pairs[:n], tuple(encode(f"Question {n}?"))) for n in (3, 1, 2)]
    assert worst(families.movable(family), families.mover(family), cases) < CLOSE


shapes = st.tuples(
    st.integers(0, 9),
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), max_size=4),
    st.integers(1, 15),
)


@sweep(15)
@given(st.lists(shapes, min_size=1, max_size=4), st.sampled_from(["llama", "mistral", "gemma3"]))
def test_any_shape_equals_the_oracle(rows, family):
    cases = [
        (
            tokens(h, 1),
            [(tokens(a, 2 + i), tokens(k, 9 + i)) for i, (a, k) in enumerate(logs)],
            tokens(t, 20),
        )
        for h, logs, t in rows
    ]
    assert worst(families.movable(family), families.mover(family), cases, steps=2) < CLOSE


class InGroups(Decoder):
    tokens_per_forward = 40


def test_groups_of_a_prefill_are_joined_in_order():
    """A batch beyond the token budget runs in groups; rows come back in their own order."""
    assert list(sequence.batches([50, 12, 20, 33, 9], 40)) == [[4, 1], [2], [3], [0]]
    assert list(sequence.batches([20, 11, 10, 12, 21], 99, padding=2)) == [[2, 1, 3], [0, 4]]
    model, mover = families.movable("mistral"), families.mover("mistral")
    assert worst(model, mover, list(CASES.values()), decoder=InGroups) < CLOSE


class InPieces(Decoder):
    tokens_per_forward = 7

    def _forward(self, ids, *more):
        assert ids.numel() <= 7, "a prompt is computed whole"
        return super()._forward(ids, *more)


@pytest.mark.parametrize("family", families.MOVABLE)
def test_prompts_in_pieces_equal_the_oracle(family):
    """Behind heads, logs and nothing; a window is as long as a piece, and shorter than a prompt."""
    model, mover = families.movable(family), families.mover(family)
    assert worst(model, mover, list(CASES.values()), decoder=InPieces) < CLOSE


REFUSED_TEXT = ["gpt2", "opt", "bloom", "mpt", "deepseek_v3", "llama4"]


WIDE = [family for family in REFUSED_TEXT if family != "deepseek_v3"]  # its experts take no float64


@pytest.mark.parametrize("family", ["llama3", "mistral", "gemma3", "yarn", *WIDE])
def test_pieces_are_the_whole_up_to_rounding(family):
    """In float64 a token seen too much, or at another position, would be all that is left.

    Some compute ALiBi or a part of their attention in float32 all the same.
    """
    known = families.movable if family in families.MOVABLE else families.refused
    model = copy.deepcopy(known(family)).double()
    rows = [sequence.SequencePlan(tail=tokens(n, n)) for n in (31, 5, 20)]
    whole, pieces = Decoder(model), InPieces(model)
    close = 1e-12 if family in families.MOVABLE else 1e-6
    assert oracle.error(pieces.prefill(rows), whole.prefill(rows)) < close
    for a, b in zip(pieces.cache.layers, whole.cache.layers, strict=True):
        for row, plan in enumerate(rows):
            for name in ("keys", "values"):
                one, other = (getattr(layer, name)[row, :, -len(plan) :] for layer in (a, b))
                assert oracle.error(one, other) < close


def test_a_row_beyond_a_switch_of_angles_is_computed_whole():
    """LongRoPE turns all tokens of a forward by how far the longest is: a piece would not know."""
    model = families.movable("phi3 longrope")
    long, short = (sequence.SequencePlan(tail=tokens(n, n)) for n in (1030, 40))
    (begun,) = InPieces(model).begin([long])
    assert (begun.size, InPieces(model).begin([short])[0].size) == (1030, 7)


def test_rows_leave_the_batch():
    """`select` keeps the chosen rows as they were, and frees what only the others needed."""
    model, mover = families.movable("mistral"), families.mover("mistral")
    cases = list(CASES.values())
    decoder = Decoder(model, mover)
    chosen = decoder.prefill(rows_of(model, mover, cases)).argmax(-1)
    decoder.arrange([5, 1])
    logits = decoder.advance(chosen[[5, 1]])
    for row, case in zip(logits, (5, 1)):
        head, logs, tail = cases[case]
        expected = oracle.logits(model, head, logs, (*tail, int(chosen[case])))
        assert oracle.error(row, expected) < CLOSE
    assert decoder.cache.layers[0].keys.shape[-2] == max(decoder.lengths) == 7


@pytest.mark.parametrize("family", ["llama3", "yarn", "mistral", "interleaved cohere"])
def test_one_log_at_the_front_is_plain_text(family):
    """`paper` layout, nothing hidden: the same tokens as the log's text before the chat."""
    model, mover = families.movable(family), families.mover(family)
    keep, tail = tokens(23, 1), tokens(11, 2)
    as_kv, as_text = Decoder(model, mover), Decoder(model)
    a = as_kv.prefill(
        [sequence.SequencePlan((), tuple(encode_module.encode(model, mover, [((), keep)])), tail)]
    )
    b = as_text.prefill([sequence.SequencePlan((), (), keep + tail)])
    for _ in range(8):
        assert oracle.error(a[0], b[0]) < CLOSE
        assert a.argmax() == b.argmax()
        a, b = as_kv.advance(a.argmax(-1)), as_text.advance(b.argmax(-1))


@pytest.mark.parametrize("family", families.MOVABLE)
def test_without_logs_it_is_a_plain_forward(family):
    """Rule 1, bit for bit: no cache that a log would have needed changes a prompt without one."""
    model = families.movable(family)
    ids = torch.tensor([tokens(40, 1)])
    with torch.no_grad():
        plain = model(ids, use_cache=True, logits_to_keep=1).logits[:, -1]
    row = sequence.SequencePlan(tokens(40, 1)[:9], (), tokens(40, 1)[9:])
    assert torch.equal(Decoder(model).prefill([row]), plain)


@pytest.mark.parametrize("family", REFUSED_TEXT)
def test_text_runs_batched_on_models_that_kv_refuses(family):
    model = families.refused(family)
    decoder = Decoder(model)
    rows = [sequence.SequencePlan(tail=tokens(n, n)) for n in (31, 5, 20)]
    texts = [list(row.tail) for row in rows]
    logits = decoder.prefill(rows)
    for _ in range(4):
        for row, text in zip(logits, texts):
            with torch.no_grad():
                assert oracle.error(row, model(torch.tensor([text])).logits[0, -1]) < CLOSE
            text.append(int(row.argmax()))
        logits = decoder.advance(logits.argmax(-1))


@pytest.mark.parametrize("family", ["mamba", "qwen3_next", "gemma3n"])
def test_text_runs_one_at_a_time_on_models_with_a_state(family):
    model = families.refused(family)
    decoder, text = Decoder(model), list(tokens(20, 1))
    logits = decoder.prefill([sequence.SequencePlan(tail=tuple(text))])
    for _ in range(4):
        with torch.no_grad():
            assert oracle.error(logits[0], model(torch.tensor([text])).logits[0, -1]) < CLOSE
        text.append(int(logits.argmax()))
        logits = decoder.advance(logits.argmax(-1))
    with pytest.raises(ValueError, match="--batch-size 1"):
        decoder.prefill([sequence.SequencePlan(tail=(7, 8)), sequence.SequencePlan(tail=(9,))])


def test_low_precision_stays_near_the_oracle():
    """bfloat16 spans stay bfloat16, and differ from the float32 oracle by rounding only."""
    model = families.low_precision("llama3")
    mover = support.check_movable(model)
    head, logs, tail = CASES["system-first, two logs"]
    rows = rows_of(model, mover, [(head, logs, tail)])
    assert {tensor.dtype for tensor in rows[0].spans[0].keys} == {torch.bfloat16}
    expected = oracle.logits(families.movable("llama3"), head, logs, tail)
    assert oracle.error(Decoder(model, mover).prefill(rows)[0].float(), expected) < 0.1


def test_too_long_is_refused_not_misplaced():
    """Nothing complains beyond `max_position_embeddings` unless we do."""
    model = families.build("LlamaConfig", dict(max_position_embeddings=64))
    mover = support.check_movable(model)
    decoder = Decoder(model, mover)
    with pytest.raises(ValueError, match="65 tokens is longer than the 64"):
        decoder.prefill([sequence.SequencePlan(tail=tokens(65, 1))])
    with pytest.raises(ValueError, match="a log of 65 tokens"):
        encode_module.encode(model, mover, [(tokens(60, 1), tokens(5, 1))])
    logits = decoder.prefill([sequence.SequencePlan(tail=tokens(63, 1))])
    decoder.advance(logits.argmax(-1))
    with pytest.raises(ValueError, match="has reached the 64 tokens"):
        decoder.advance(logits.argmax(-1))


def test_rows_that_make_no_sense_are_refused():
    model, mover = families.movable("llama"), families.mover("llama")
    spans = tuple(encode_module.encode(model, mover, [((), (7, 8))]))
    with pytest.raises(ValueError, match="nothing to predict"):
        Decoder(model, mover).prefill([sequence.SequencePlan((), spans, ())])
    with pytest.raises(ValueError, match="check_movable"):
        Decoder(model).prefill([sequence.SequencePlan((), spans, (7,))])
    with pytest.raises(ValueError, match="token to keep"):
        encode_module.encode(model, mover, [((7,), ())])
