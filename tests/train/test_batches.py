"""Batches of examples: what they predict, and that their mask is what inference does with logs as KV."""

import itertools

import families
import oracle
import pytest
import tiny
import torch

from lag.model.chat import Chat
from lag.prompts import Note, Prompt
from lag.train.batches import collate, encode_examples, lay_out, predict
from lag.train.examples import Format, TrainingExample

NOTES = (
    Note("a", "Ada lives in Orla.\n\n", "Where does Ada live? ", kv=True),
    Note("b", "Orla lies by the sea. It has no mayor.\n\n", "", kv=True),
)
FORMATS = [Format("log_kv", layout) for layout in ("paper", "system-first")]


def example(format: Format, notes=NOTES, **more) -> TrainingExample:
    return TrainingExample(
        Prompt("Who is Ada?", "Facts:", notes), " She <ans>x</ans>", format, **more
    )


def trained(family: str) -> torch.nn.Module:
    class_name, overrides = families.MOVABLE[family]
    return families.build(class_name, overrides).eval()


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.layout)
@pytest.mark.parametrize("family", families.MOVABLE)
def test_a_batch_is_the_oracles_block_mask(family, format):
    """Of every family: windows, scaled logits, layers without rotation; hidden text included."""
    model, tokenizer = trained(family), tiny.byte_tokenizer()
    chat = Chat(tokenizer, format.layout)
    row = lay_out(example(format), chat, tokenizer.eos_token_id)
    longer = lay_out(example(format, NOTES[:1] * 4), chat, tokenizer.eos_token_id)
    with torch.no_grad():
        logits, targets = predict(model, collate([row, longer]))
    assert len(targets) == 2 * (len(chat.content_ids(" She <ans>x</ans>")) + 1)
    pieces = chat.encode(example(format).prompt)
    expected = oracle.logits(model, pieces.head, pieces.notes, pieces.tail)
    assert oracle.error(logits[0], expected) < 1e-5


def test_hidden_text_is_seen_by_its_own_log_only():
    tokenizer = tiny.byte_tokenizer()
    model = tiny.tiny_model()
    chat, end = Chat(tokenizer), tokenizer.eos_token_id
    other = Note("b", NOTES[1].keep, "Another text that stays hidden. ", kv=True)
    rows = [lay_out(example(FORMATS[0], (NOTES[0], note)), chat, end) for note in (NOTES[1], other)]
    with torch.no_grad():
        a, b = (predict(model, collate([row]))[0] for row in rows)
    assert not torch.allclose(a, b)  # it changes what its log is worth
    first = [n for n, block in enumerate(rows[0].blocks) if block == 1]
    assert [rows[0].positions[n] for n in first] == [rows[1].positions[n] for n in first]


def test_targets_are_the_reply_and_the_end_of_the_turn():
    tokenizer = tiny.byte_tokenizer()
    (row,) = encode_examples([example(FORMATS[1])], tokenizer)
    targets = collate([row])["targets"][0]
    said = [id for id in targets.tolist() if id >= 0]
    assert said == [*Chat(tokenizer).content_ids(" She <ans>x</ans>"), tokenizer.eos_token_id]
    assert row.num_targets == len(said)


AS_TEXT = tuple(Note(note.id, note.keep) for note in NOTES)
THEN = (("\n\nWho is Bo? Facts:", " He <ans>y</ans>"), ("\n\nAnd Cy? Facts:", " <ans>z</ans>"))


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("notes", [(), AS_TEXT, NOTES], ids=["none", "text", "kv"])
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.layout)
def test_what_follows_a_reply_is_laid_out_as_one_text_whose_replies_are_targets(
    format, notes, ended
):
    tokenizer = tiny.byte_tokenizer()
    chat, end = Chat(tokenizer, format.layout), tokenizer.eos_token if ended else ""
    several = example(format, notes, then=THEN, ended=ended)
    row = lay_out(several, chat, tokenizer.eos_token_id)
    replies = [several.reply, *(reply for _, reply in THEN)]
    first, *others = (reply + end for reply in replies)
    behind = first + "".join(given + reply for (given, _), reply in zip(THEN, others, strict=True))
    pieces = chat.encode(several.prompt)
    tail = [*pieces.tail, *tokenizer(behind, add_special_tokens=False)["input_ids"]]
    if notes == NOTES:
        whole = oracle.sequence(pieces.head, pieces.notes, tail)
    else:  # as plain words
        kept = [id for _, keep in pieces.notes for id in keep]
        whole = oracle.sequence([*pieces.head, *kept], (), tail)
    assert row.ids == whole.ids.tolist()
    assert row.positions == whole.positions.tolist()
    assert row.blocks == whole.block.tolist()
    assert row.hidden == whole.hidden.tolist()
    parts = itertools.groupby(zip(row.ids, row.trained), key=lambda pair: pair[1])
    texts = [(now, tokenizer.decode([id for id, _ in part])) for now, part in parts]
    assert [text for now, text in texts if now] == [first, *others]
    assert [text for now, text in texts if not now][1:] == [given for given, _ in THEN]


def test_a_later_reply_is_predicted_from_all_that_stands_before_it():
    model, tokenizer = tiny.tiny_model(), tiny.byte_tokenizer()
    chat, end = Chat(tokenizer), tokenizer.eos_token_id
    several = example(FORMATS[0], then=THEN)
    with torch.no_grad():
        logits, _ = predict(model, collate([lay_out(several, chat, end)]))
    pieces, said = chat.encode(several.prompt), [*chat.content_ids(several.reply), end]
    before = [*pieces.tail, *said, *chat.content_ids(THEN[0][0])]
    expected = oracle.logits(model, pieces.head, pieces.notes, before)
    assert oracle.error(logits[len(said)], expected) < 1e-5


def test_only_what_follows_a_word_is_a_target():
    tokenizer = tiny.byte_tokenizer()
    (row,) = encode_examples([example(FORMATS[0], only_after="n")], tokenizer)
    text = "".join(tokenizer.decode([id]) for id, now in zip(row.ids, row.trained) if now)
    assert text == "ss"  # of "<ans>x</ans>"
