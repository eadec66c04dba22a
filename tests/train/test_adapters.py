"""Adapters: what is trained, what comes back from disk, whose KV is whose, and readers."""

import itertools
import json
from dataclasses import dataclass, field

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from test_batches import FORMATS, NOTES, example

from lag.model.adapter import behind, load_adapter
from lag.model.llm import LLM
from lag.modes import MODES
from lag.prompts import Note, Prompt
from lag.train.adapters import AdapterRecipe, Tuned, export
from lag.train.batches import collate, encode_examples, predict
from lag.train.trainer import Trainer

PROMPT = Prompt("Who is Ada?", notes=NOTES)


@dataclass
class Once:
    """Some updates over the same two examples."""

    rows: list
    identity: dict = field(default_factory=dict)
    steps: int = 4

    def batches(self, at):
        yield from itertools.repeat(self.rows, self.steps - at.steps)

    def rate(self, at):
        return 0.02


def train(folder, recipe, model=None, tokenizer=None):
    """An adapter trained for some updates; returns what was tuned."""
    tokenizer = tokenizer or tiny.byte_tokenizer()
    tuned = Tuned(model or tiny.tiny_model(), tokenizer, recipe)
    rows = encode_examples([example(format) for format in FORMATS], tokenizer)
    trainer = Trainer(tuned.model, Once(rows), folder / "training", forward=tuned.forward)
    for _ in trainer.run():
        pass
    tuned.save(folder, {"data": "made up"})
    return tuned


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Folders of a plain adapter, another one, and a reader, of the tiny model."""
    root = tmp_path_factory.mktemp("adapters")
    for name, recipe in {
        "plain": AdapterRecipe(rank=4),
        "other": AdapterRecipe(rank=2),
        "reader": AdapterRecipe(rank=4, reader=True),
    }.items():
        train(root / name, recipe)
    return root


def reply(folder, adapter=None, prompt=PROMPT, store=None, **settings):
    llm = LLM.load(str(folder), device="cpu", max_new_tokens=12, adapter=adapter, **settings)
    if any(note.kv for note in prompt.notes):
        llm.open_store(store, MODES["log_kv"])
    return llm.generate([prompt])[0], llm


CASES = {
    "untied": tiny.tiny_config(),
    "tied": tiny.tiny_config(tie_word_embeddings=True),
    "padded": tiny.tiny_config(vocab_size=300),
    "tied and padded": tiny.tiny_config(vocab_size=300, tie_word_embeddings=True),
}


@pytest.mark.parametrize("tune", ["tokens", "lora+tokens", "lora"])
@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_an_adapter_comes_back_as_it_was_trained(tmp_path, config, tune):
    base = tiny.tiny_model(config)
    base.save_pretrained(tmp_path / "base")
    tiny.byte_tokenizer().save_pretrained(tmp_path / "base")
    words = ("<memory>", "<ans>") if "tokens" in tune else ()
    tuned = train(tmp_path / "a", AdapterRecipe(tune, 4, tokens=words), base)
    (row,) = encode_examples([example(FORMATS[0])], tuned.tokenizer)
    if words:
        assert tuned.tokenizer.convert_tokens_to_ids("<ans>") in row.ids  # a token in text
    with torch.no_grad():
        expected, _ = predict(tuned.model.eval(), collate([row]))
        llm = LLM.load(str(tmp_path / "base"), adapter=tmp_path / "a")
        again = encode_examples([example(FORMATS[0])], llm.tokenizer)
        assert again == [row]
        found, _ = predict(llm.model, collate(again))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_only_the_rows_of_the_tokens_are_trained(tmp_path, config):
    model = tiny.tiny_model(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    recipe = AdapterRecipe("tokens", tokens=("<memory>", "<ans>"))
    tuned = train(tmp_path, recipe, model)
    ids = [tuned.tokenizer.convert_tokens_to_ids(word) for word in recipe.tokens]
    assert ids == [263, 264]  # by their ids: inside the padding, where there is some
    merged = tuned.peft.merge_and_unload()
    for name, weight in merged.named_parameters():
        changed = (
            (weight[: len(before[name])] != before[name]).reshape(len(before[name]), -1).any(1)
        )
        rows = set(changed.nonzero()[:, 0].tolist())
        assert rows <= (set(ids) if "embed" in name or "lm_head" in name else set()), name
    assert merged.get_input_embeddings().weight.shape[0] == max(config.vocab_size, 265)


def test_full_writes_a_model_folder(tmp_path):
    tuned = train(tmp_path, AdapterRecipe("full"))
    with torch.no_grad():
        found, _ = predict(LLM.load(str(tmp_path)).model, collate(encode_examples([example(FORMATS[0])], tuned.tokenizer)))  # fmt: skip
        trained = LLM(
            tuned.model.eval(), tuned.tokenizer
        ).model  # with the attention of a loaded one
        expected, _ = predict(trained, collate(encode_examples([example(FORMATS[0])], tuned.tokenizer)))  # fmt: skip
    assert torch.equal(found, expected)


def test_kv_of_one_adapter_never_meets_another(tiny_folder, adapters, tmp_path):
    """Each has a folder of its own; what the first wrote, the others encode again."""
    digests = set()
    for adapter in (None, adapters / "plain", adapters / "other"):
        answer, llm = reply(tiny_folder, adapter, store=tmp_path)
        assert set(answer.sources) == {"encoded"}
        again, llm = reply(tiny_folder, adapter, store=tmp_path)
        assert set(again.sources) == {"kv"} and again.text == answer.text
        digests.add(llm.fingerprint()["digest"])
    assert len(digests) == 3
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 3


def test_changing_an_adapters_weights_changes_its_digest(tiny_folder, adapters, tmp_path):
    import shutil

    copy = shutil.copytree(adapters / "plain", tmp_path / "copy")
    digests = [LLM.load(str(tiny_folder), adapter=a).adapter.digest for a in (adapters / "plain", copy)]  # fmt: skip
    assert digests[0] == digests[1]
    weights = load_file(copy / "adapter_model.safetensors")
    first = next(iter(weights))
    save_file({**weights, first: weights[first] + 1}, copy / "adapter_model.safetensors")
    assert LLM.load(str(tiny_folder), adapter=copy).adapter.digest != digests[0]


def test_a_readers_spans_are_the_base_models_to_the_bit(tiny_folder, adapters, tmp_path):
    base, _ = reply(tiny_folder, None, store=tmp_path / "base")
    read, _ = reply(tiny_folder, adapters / "reader", store=tmp_path / "reader")
    assert set(read.sources) == {"encoded"} and read.text != base.text
    files = [sorted((tmp_path / n).rglob("*.safetensors")) for n in ("base", "reader")]
    assert len(files[0]) == len(NOTES)
    for a, b in zip(*files, strict=True):
        assert a.relative_to(tmp_path / "base") == b.relative_to(tmp_path / "reader")
        assert a.read_bytes() == b.read_bytes()
    again, _ = reply(tiny_folder, adapters / "reader", store=tmp_path / "base")
    assert set(again.sources) == {"kv"} and again.text == read.text  # what the base model stored


@pytest.mark.parametrize("layout", ["paper", "system-first"])
@pytest.mark.parametrize("kv", [True, False], ids=["kv", "text"])
def test_a_reader_reads_as_it_was_trained(tiny_folder, adapters, tmp_path, layout, kv):
    """Logits after a prompt are the training forward's, whatever stands before the chat."""
    notes = tuple(Note(n.id, n.keep, n.after if kv else "", kv) for n in NOTES)
    _, llm = reply(tiny_folder, adapters / "reader", Prompt("x", notes=notes), tmp_path, layout=layout)  # fmt: skip
    tokenizer = llm.tokenizer
    format = next(f for f in FORMATS if f.layout == layout)
    batch = collate(encode_examples([example(format, notes)], tokenizer))
    with torch.no_grad(), llm.adapter.gate.given(batch["read"]):
        expected = predict(llm.model, batch)[0][0]
    from lag.model.decoder import Decoder

    prompt = example(format, notes).prompt
    rows, _ = llm.kv.place([prompt], [llm.chat.encode(prompt)])
    found = Decoder(llm.model, llm.kv.rotator).prefill(rows)[0]
    assert torch.allclose(found, expected, atol=1e-4)
    with torch.no_grad(), llm.adapter.gate.given(torch.ones_like(batch["read"])):
        everywhere = predict(llm.model, batch)[0][0]
    same = layout == "system-first" and not kv  # the only case in which all of it is the chat's
    assert torch.allclose(found, everywhere, atol=1e-4) == same


def test_where_a_chat_begins():
    ids = torch.tensor([[5, 1, 2, 7, 1, 2], [1, 2, 0, 0, 0, 0], [9, 9, 9, 9, 9, 9]])
    found = behind(ids, (1, 2))
    assert found.int().tolist() == [[0, 1, 1, 1, 1, 1], [1] * 6, [1] * 6]
    assert behind(ids[1:], (1, 2)) is None and behind(ids[:, :1], (1, 2)) is None


def test_an_exported_model_is_base_and_adapter_in_one(tiny_folder, adapters, tmp_path):
    export(str(tiny_folder), adapters / "plain", tmp_path / "merged")
    expected, _ = reply(tiny_folder, adapters / "plain", Prompt("Who?"))
    found, _ = reply(tmp_path / "merged", None, Prompt("Who?"))
    assert found.text == expected.text
    with pytest.raises(ValueError, match="holds a model already"):
        export(str(tiny_folder), adapters / "plain", tmp_path / "merged")
    with pytest.raises(ValueError, match="is a reader"):
        export(str(tiny_folder), adapters / "reader", tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_an_adapter_of_another_base_model_is_refused(adapters):
    for other in (tiny.tiny_model(seed=1), tiny.tiny_model(tiny.tiny_config(hidden_size=64))):
        with pytest.raises(ValueError, match=r"another base model \(weights"):
            load_adapter(other, tiny.byte_tokenizer(), adapters / "plain")


def test_a_folder_without_an_adapter_is_refused(adapters, tmp_path):
    model, tokenizer = tiny.tiny_model(), tiny.byte_tokenizer()
    with pytest.raises(ValueError, match=r"no adapter_config\.json there"):
        load_adapter(model, tokenizer, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is a IA3 adapter"):
        load_adapter(model, tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        (AdapterRecipe("tokens"), "need both"),
        (AdapterRecipe("lora", tokens=("<a>",)), "need both"),
        (AdapterRecipe("full", reader=True), "only --tune lora"),
        (AdapterRecipe("tokens", tokens=(" ",)), "expected words"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(recipe, match):
    with pytest.raises(ValueError, match=match):
        Tuned(tiny.tiny_model(), tiny.byte_tokenizer(), recipe)


def test_a_reader_is_refused_where_logs_stand_behind_chat_tokens(tiny_folder, adapters):
    with pytest.raises(ValueError, match="leave them out"):
        LLM.load(str(tiny_folder), adapter=adapters / "reader", sink=2)
