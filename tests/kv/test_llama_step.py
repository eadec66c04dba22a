"""A Llama's next tokens, past the library's classes: what these compute, bit for bit where rows are alike."""

import copy

import families
import oracle
import pytest
import tiny
import torch

from lag.kv.llama_step import FEW, LlamaStep
from lag.kv.masks import Masks
from lag.kv.sequence import SequencePlan
from lag.model.decoder import Decoder
from lag.model.gqa_cpu import share_keys, speed_up_products


def step_of(model):
    return LlamaStep.of(model, Masks.of(model))


@pytest.mark.parametrize("family", ["llama", "llama3", "yarn", "qwen2"])
@pytest.mark.parametrize("lengths", [[5], [7, 7], [9, 30, 4, 30]])
def test_logits_are_the_library_s_bit_for_bit(family, lengths):
    """One token of each row and several, equal rows and ragged ones; tokens are taken back."""
    model = copy.deepcopy(families.movable(family))
    share_keys(model)
    speed_up_products(model)
    ours, library = Decoder(model, slots=4), Decoder(model, slots=4)
    assert ours.llama
    library.llama = None
    source = torch.Generator().manual_seed(1)
    for decoder in (ours, library):
        decoder.prefill([SequencePlan(tail=tuple(range(10, 10 + n))) for n in lengths])
    for turn in range(12):
        most = 2 if turn < 3 else FEW + 1
        counts = torch.randint(1, most, (len(lengths),), generator=source).tolist()
        fed = [torch.randint(10, 200, (n,), generator=source).tolist() for n in counts]
        found, expected = (decoder.extend(fed) for decoder in (ours, library))
        if len(set(counts)) == 1:
            assert torch.equal(found, expected)
        else:  # the library computes what pads rows: other shapes, other orders of sums
            assert oracle.error(found, expected) < 1e-5
        for decoder in (ours, library):
            decoder.take_back([n // 2 for n in counts])


@pytest.mark.parametrize("family", ["mistral", "gemma2", "qwen3", "partial phi", "dynamic"])
def test_other_families_go_the_library_s_way(family):
    assert bool(step_of(families.movable(family))) == (family == "dynamic")


def test_what_it_does_not_compute_goes_the_library_s_way():
    model = tiny.tiny_model()
    assert step_of(model) and step_of(model).takes(FEW) and not step_of(model).takes(FEW + 1)
    assert not step_of(tiny.tiny_model().bfloat16())
    model.set_attn_implementation("eager")
    assert not step_of(model)


def test_who_listens_to_a_layer_hears_it():
    model = copy.deepcopy(families.movable("llama"))
    decoder, heard = Decoder(model), []
    decoder.prefill([SequencePlan(tail=(5, 6))])
    layer = model.model.layers[1]
    for place in (layer, model.model, model):
        hook = place.register_forward_hook(lambda *_: heard.append(1))
        decoder.extend([[7]])
        hook.remove()
        decoder.extend([[7]])
    assert len(heard) == 3
