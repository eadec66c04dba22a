"""The cache has room: tokens are written behind the others, whatever was there before."""

import families
import oracle
import torch

from lag.kv import encode, sequence
from lag.kv.cache import MIN_ROOM, GrowableCache, with_room
from lag.model.decoder import Decoder

LOG, TAIL = (tuple(range(20, 31)), tuple(range(40, 53))), tuple(range(90, 101))


def start(family: str = "llama3") -> tuple[Decoder, torch.Tensor]:
    model, mover = families.movable(family), families.mover(family)
    decoder = Decoder(model, mover)
    spans = tuple(encode.encode(model, mover, [LOG]))
    return decoder, decoder.prefill(
        [sequence.SequencePlan((), spans, TAIL), sequence.SequencePlan((), (), TAIL[:4])]
    )


def test_a_token_moves_no_other_token():
    """Concatenating copies everything at every step; here the memory stays where it is."""
    decoder, logits = start()
    places = {layer.keys.data_ptr() for layer in decoder.cache.layers}
    for _ in range(5):
        logits = decoder.advance(logits.argmax(-1))
    assert {layer.keys.data_ptr() for layer in decoder.cache.layers} == places
    assert all(layer.keys.shape[-2] == layer.get_seq_length() for layer in decoder.cache.layers)


def test_decoding_past_the_room_equals_the_oracle():
    decoder, logits = start("mistral")
    room = with_room(len(LOG[1]) + len(TAIL))
    texts = [list(TAIL), list(TAIL[:4])]
    for _ in range(room + 3):
        for text, token in zip(texts, logits.argmax(-1).tolist(), strict=True):
            text.append(token)
        logits = decoder.advance(logits.argmax(-1))
    model = families.movable("mistral")
    for row, text, logs in zip(logits, texts, ([LOG], []), strict=True):
        assert oracle.error(row, oracle.logits(model, (), logs, text)) < 1e-4


def test_growing_keeps_what_was_written():
    """Rows, heads and dimensions of their own for keys and values."""
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 3, 400, dim, generator=generator) for dim in (4, 6))
    cache, places = GrowableCache(), set()
    for start in range(0, 400, 5):
        here = slice(start, start + 5)
        found = cache.update(keys[:, :, here], values[:, :, here], 0)
        assert [one.shape[-2] for one in found] == [here.stop] * 2
        places.add(cache.layers[0].keys.data_ptr())
    assert torch.equal(cache.layers[0].keys, keys) and torch.equal(cache.layers[0].values, values)
    assert len(places) <= 400 // MIN_ROOM + 1


def test_a_long_prompt_moves_none_of_its_own_tokens():
    """Memory is taken for all of its pieces with the first one."""
    model = families.movable("llama")
    decoder = Decoder(model)
    decoder.tokens_per_forward = 20
    (begun,) = decoder.begin([sequence.SequencePlan(tail=tuple(range(7, 207)))])
    places = set()
    while decoder.go_on(begun) is None:
        places.add(begun.cache.layers[0].buffers[0].data_ptr())
    assert places == {begun.cache.layers[0].buffers[0].data_ptr()}


def test_rows_that_stay_keep_their_memory():
    decoder, logits = start()
    expected = decoder.cache.layers[1].keys[1, :, -4:].clone()
    decoder.arrange([1])
    layer = decoder.cache.layers[1]
    assert torch.equal(layer.keys[0], expected) and layer.buffers[0].shape[-2] > 4
    place = layer.keys.data_ptr()
    decoder.advance(logits.argmax(-1)[1:])
    assert decoder.cache.layers[1].keys.data_ptr() == place


def test_memory_of_a_batch_that_is_gone_is_used_again():
    """Longer, shorter, then what does not fit; replies are those of fresh memory, bit for bit."""
    model, mover = families.movable("llama"), families.mover("llama")
    decoder, places = Decoder(model, mover), []
    lengths = [(40, 7), (9, 33), (50,), (3, 3, 3), (700,)]
    for number, each in enumerate(lengths):
        logs = [((5, 6), tuple(10 + (i + at) % 80 for at in range(n))) for i, n in enumerate(each)]
        spans = encode.encode(model, mover, logs)
        rows = [sequence.SequencePlan((), (span,), (7, 8 + number)) for span in spans]
        alone = Decoder(model, mover)
        for route in ("prefill", "advance"):
            given = rows if route == "prefill" else torch.tensor([4] * len(rows))
            assert torch.equal(getattr(decoder, route)(given), getattr(alone, route)(given))
        places.append(decoder.cache.layers[0].buffers[0].untyped_storage().data_ptr())
    assert places[0] == places[1] == places[2] == places[3] != places[4]
