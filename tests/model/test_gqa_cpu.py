"""Heads that share keys, computed together: a float64 reference, and every family beside itself."""

import copy

import families
import oracle
import pytest
import tiny
import torch
from test_families import FAMILIES, there
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lag.kv import encode, sequence
from lag.model.decoder import Decoder
from lag.model.gqa_cpu import (
    BLOCK,
    MOST,
    NAME,
    UNKNOWN,
    FewTokens,
    _ours,
    attend,
    share_keys,
    speed_up_products,
)

HEADS, SHARED, TOKENS, DIM = 6, 2, 37, 8


def module() -> nn.Module:
    made = nn.Identity()
    made.num_key_value_groups = HEADS // SHARED
    return made


def reference(query, key, value, mask, scaling):
    """(B, Q, H, D), head by head, in float64."""
    heads = []
    for head in range(HEADS):
        own = head // (HEADS // SHARED)
        scores = query[:, head].double() @ key[:, own].double().mT * scaling
        scores = scores.masked_fill(~mask[:, 0], float("-inf"))
        heads.append(scores.softmax(-1) @ value[:, own].double())
    return torch.stack(heads, 2)


@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("queries, masked", [(1, False), (1, True), (5, True), (12, True)])
def test_attention_is_that_of_each_head_alone(dtype, most, queries, masked):
    generator = torch.Generator().manual_seed(3)

    def draw(heads, length):
        states = torch.randn(3, heads, length + 9, DIM, generator=generator).to(dtype)
        return states[:, :, 4 : 4 + length]  # as a cache gives it: with strides

    query, key, value = draw(HEADS, queries), draw(SHARED, TOKENS), draw(SHARED, TOKENS)
    starts = torch.tensor([0, 3, min(30, TOKENS - queries)])  # each query sees something
    seen = torch.arange(TOKENS) >= starts[:, None, None, None] * masked
    last = torch.arange(TOKENS - queries, TOKENS)
    mask = seen & (torch.arange(TOKENS) <= last[:, None])
    found, weights = attend(module(), query, key, value, mask if masked else None, scaling=0.3)
    expected = reference(query, key, value, mask.expand(3, 1, queries, TOKENS), 0.3)
    assert found.shape == expected.shape and found.dtype == dtype and weights is None
    assert (found.double() - expected).abs().max() < most
    library, _ = sdpa_attention_forward(
        module(), query, key, value, mask if masked else None, scaling=0.3
    )
    assert library.shape == found.shape


@pytest.mark.parametrize("added", [False, True])
def test_of_a_prompt_a_key_that_no_query_sees_is_not_computed(added):
    """Behind a prefix, in a cache with room: what lies in the room is not a number, and harms nobody."""
    length, room, prefix, generator = 2 * BLOCK + 5, 11, 9, torch.Generator().manual_seed(4)
    total = prefix + length
    query = torch.randn(2, HEADS, length, DIM, generator=generator)
    key, value = torch.randn(2, 2, SHARED, total + room, DIM, generator=generator).unbind()
    key[:, :, total:] = value[:, :, total:] = torch.nan
    columns = torch.arange(total + room)
    seen = columns >= torch.tensor([0, 4])[:, None, None, None]
    mask = seen & (columns <= torch.arange(prefix, total)[:, None])
    lowest = torch.finfo(torch.float32).min
    given = torch.zeros(mask.shape).masked_fill_(~mask, lowest) if added else mask
    found, _ = attend(module(), query, key, value, given, scaling=0.3)
    right = reference(query, key[:, :, :total], value[:, :, :total], mask[..., :total], 0.3)
    assert found.shape == right.shape and (found - right).abs().max() < 1e-6


def test_what_it_does_not_know_goes_to_the_library():
    query, mask, per_head = (
        torch.randn(1, HEADS, 1, DIM),
        torch.ones(1, 1, 1, 4),
        torch.ones(1, 6, 1, 4),
    )
    assert _ours(query, mask, {}) and not _ours(query.to("meta"), mask, {})
    assert not _ours(query, per_head, {}) and not _ours(query.mT, None, {})
    for name in UNKNOWN:
        assert _ours(query, mask, {name: None})
        assert not _ours(query, mask, {name: 1.0})


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_answers_otherwise(family):
    """Ragged rows, behind a stored span and without one, and a token after them."""
    there(family, FAMILIES[family][0])
    model = families.build(*FAMILIES[family])
    together = copy.deepcopy(model)
    share_keys(together)
    span = encode.encode(model, families.mover(family), [((5, 6), tuple(range(20, 31)))])[0]
    rows = [
        sequence.SequencePlan((), (span,), (7, 8, 9)),
        sequence.SequencePlan((3, 4), (span,), (9,)),
        sequence.SequencePlan(tail=(1, 2)),
    ]
    for one in range(len(rows)):
        for batch in (rows, rows[one : one + 1]):
            found, expected = (
                [decoder.prefill(batch), decoder.advance(torch.tensor([11] * len(batch)))]
                for decoder in (Decoder(m, families.mover(family)) for m in (together, model))
            )
            for a, b in zip(found, expected, strict=True):
                assert oracle.error(a, b) < 1e-4


def names_in(model: nn.Module) -> list[str]:
    """The attention of every layer, by the name that its configuration gives it."""
    layers = [m for m in model.modules() if hasattr(m, "num_key_value_groups")]
    return [layer.config._attn_implementation for layer in layers]


def test_other_models_in_the_process_are_left_alone():
    """The defect: attention of ours stood under the library's own name, for every model there is.

    The other model shares even the configuration.
    """
    config = tiny.tiny_config()
    ours, other = tiny.tiny_model(config), tiny.tiny_model(config)
    assert ours.config is other.config
    before = copy.deepcopy(config.to_dict())
    share_keys(ours)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
    assert set(names_in(other)) == {"sdpa"} and set(names_in(ours)) == {NAME}
    assert ours.config is config and config.to_dict() == before
    assert config._attn_implementation == "sdpa", "masks are made by it"
    assert len({id(layer.self_attn.config) for layer in ours.model.layers}) == 1


class Peeking(nn.Module):
    """A layer whose own code asks for the name, as Falcon's and the ones with an indexer do."""

    num_key_value_groups = 2

    def __init__(self, config):
        super().__init__()
        self.config, self.own = config, config._attn_implementation == "sdpa"


def test_planted_code_that_asks_for_the_name_keeps_it():
    """Under another name it would do something else, and say nothing."""
    model = tiny.tiny_model()
    model.peeking = Peeking(model.config)
    share_keys(model)
    assert model.peeking.config is model.config and names_in(model).count("sdpa") == 1


def test_models_with_another_attention_keep_it():
    model = tiny.tiny_model()
    model.set_attn_implementation("eager")
    share_keys(model)
    assert set(names_in(model)) == {"eager"}


# --- products of few tokens ---------------------------------------------------------------------
def linear(*sizes, **more) -> nn.Linear:
    return nn.Linear(*sizes, **more).requires_grad_(False)


@pytest.mark.parametrize("count", [*range(1, 10), MOST, MOST + 1, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_few_tokens_are_multiplied_as_float64_does(count, bias):
    """Of every shape, from a single vector to rows of tokens; more than few go to the library."""
    torch.manual_seed(count)
    model = nn.Sequential(linear(512, 1024, bias=bias))
    plain = copy.deepcopy(model[0])
    speed_up_products(model)
    assert isinstance(model[0], FewTokens)
    for shape in ((count, 512), (1, count, 512), (count, 1, 512), (512,)):
        given = torch.randn(shape)
        found = model(given)
        exact = plain.double()(given.double())
        assert found.shape == exact.shape and found.dtype == torch.float32
        assert oracle.error(found, exact) < 2e-6
        plain.float()
    many = torch.randn(MOST + 1, 512)
    assert torch.equal(model(many), plain(many))


def test_a_weight_that_changed_is_packed_again():
    """In place, by another one, and in a copy of the model, which has weights of its own."""
    model = nn.Sequential(linear(512, 1024, bias=False))
    speed_up_products(model)
    given = torch.randn(3, 512)
    was = model(given)
    model[0].weight.mul_(2)
    assert oracle.error(model(given), 2 * was) < 3e-6
    other = copy.deepcopy(model)
    other[0].weight.mul_(2)
    assert oracle.error(other(given), 4 * was) < 3e-6
    assert oracle.error(model(given), 2 * was) < 3e-6
    model[0].weight = nn.Parameter(model[0].weight * 3, requires_grad=False)
    assert oracle.error(model(given), 6 * was) < 3e-6
    assert model.bfloat16()(given.bfloat16()).dtype == torch.bfloat16


def test_only_what_gains_is_multiplied_otherwise(caplog):
    """A small matrix, other numbers and another kind of layer stay the library's."""

    class Own(nn.Linear):
        pass

    model = nn.ModuleList([
        linear(512, 64), linear(512, 1024).bfloat16(), Own(512, 1024), linear(512, 1024)
    ])  # fmt: skip
    with caplog.at_level("INFO"):
        speed_up_products(model, most_bytes=1 << 20)
    assert not any(isinstance(one, FewTokens) for one in model) and "not packed" in caplog.text
    speed_up_products(model)
    assert [isinstance(one, FewTokens) for one in model] == [False] * 3 + [True]


def test_what_is_trained_has_its_gradient():
    model = nn.Sequential(nn.Linear(512, 1024))
    speed_up_products(model)
    given = torch.randn(2, 512, requires_grad=True)
    model(given).sum().backward()
    assert model[0].weight.grad is not None and given.grad is not None
    assert model(torch.zeros(0, 512)).shape == (0, 1024)
