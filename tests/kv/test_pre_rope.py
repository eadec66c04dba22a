"""Keys taken before rotation: from the right module, in the model's own precision, to the last bit."""

from dataclasses import replace

import families
import oracle
import pytest
import torch

from lag.kv import encode, rope, sequence, support
from lag.kv.forward import fill
from lag.model import decoder

SOURCES = {family: "k_proj" for family in families.MOVABLE} | {
    "qwen3": "k_norm",
    "gemma3": "k_norm",
    "partial gpt-neox": None,  # queries, keys and values leave one projection
    "phi3 longrope": None,
}
KEEP = tuple(range(20, 60))
OFFSETS = (37, 900)


def last_names(mover: rope.KeyRotator) -> set[str | None]:
    pairs = zip(mover.rotaries, mover.sources, strict=True)
    return {source and source.module.split(".")[-1] for turn, source in pairs if turn}


@pytest.mark.parametrize("family", families.MOVABLE)
def test_the_module_is_found_by_trial(family):
    assert last_names(families.mover(family)) == {SOURCES[family]}


@pytest.mark.parametrize("family", families.MOVABLE)
def test_low_precision_keys_of_the_first_layer_are_the_models_own(family):
    """Bit for bit where they were captured, near where they were turned back."""
    model = families.low_precision(family)
    mover = support.check_movable(model)
    span = encode.encode(model, mover, [((), KEEP)])[0]
    for offset in OFFSETS:
        expected = fill(model, [KEEP], offset).layers[0].keys
        positions = torch.arange(offset, offset + len(KEEP))[None]
        placed = next(mover.rotate_to((keys[None] for keys in span.keys), positions))
        assert placed.dtype == torch.bfloat16
        if SOURCES[family]:
            assert torch.equal(placed, expected)
        else:
            away = (placed.float() - expected.float()).norm() / expected.float().norm()
            assert away < 2**-7  # some roundings of half a last place, 2**-9, each


def test_cohere_multiplies_in_float32_what_was_rounded():
    turn = support.check_movable(families.low_precision("interleaved cohere")).rotaries[0]
    assert (turn.tables, turn.products) == (torch.bfloat16, torch.float32)


def test_planted_keys_taken_before_their_norm():
    """A projection of the right shape in front of the norm: the oracle notices."""
    model, mover = families.movable("qwen3"), families.mover("qwen3")
    early = [replace(s, module=s.module.replace("k_norm", "k_proj")) for s in mover.sources]
    tail, errors = tuple(range(90, 101)), []
    for one in (mover, replace(mover, sources=tuple(early))):
        spans = tuple(encode.encode(model, one, [((), KEEP)]))
        found = decoder.Decoder(model, mover).prefill([sequence.SequencePlan((), spans, tail)])[0]
        errors.append(oracle.error(found, oracle.logits(model, (), [((), KEEP)], tail)))
    assert errors[0] < 1e-4 and errors[1] > 1e-2


def test_captured_and_turned_back_agree():
    """Of a padded batch too, with hidden text in front."""
    pairs = [((9, 8, 7), KEEP), ((), KEEP[:5]), (KEEP, (5, 6))]
    for family in ("llama3", "yarn", "gemma3", "interleaved cohere"):
        model, mover = families.movable(family), families.mover(family)
        turned_back = encode.encode(model, replace(mover, sources=()), pairs)
        for a, b in zip(encode.encode(model, mover, pairs), turned_back, strict=True):
            assert a.ids == b.ids
            assert all(torch.allclose(x, y, atol=1e-4) for x, y in zip(a.keys, b.keys, strict=True))


def test_nothing_stays_hooked():
    model, mover = families.movable("llama"), families.mover("llama")
    encode.encode(model, mover, [((), KEEP)])
    assert not any(module._forward_hooks for module in model.modules())
