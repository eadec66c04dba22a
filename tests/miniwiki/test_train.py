"""The recipe of the embedded models: examples, batches, the mask, resuming, and a small whole run."""

import hashlib
import itertools
import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch

import train
from lag import prompts
from lag.actions import parse
from lag.logs import playbook
from lag.miniwiki.curriculum import Curriculum, check_replies, rate, trainer, well_formed
from lag.miniwiki.drills import make_lookups
from lag.miniwiki.embedder import mean_vector, search_pairs, train_embedder
from lag.miniwiki.gold_agent import FORMATS, UNKNOWN, make_examples, stated
from lag.miniwiki.init_weights import make_model
from lag.miniwiki.recipe import FIRST_SEED, NUM_PAIR_WORLDS, VALIDATION_SEED, Recipe, make_world
from lag.miniwiki.shipped_models import put_into, read
from lag.miniwiki.tokenizer import make_tokenizer, phrases, word_pieces
from lag.miniwiki.world import NAMES, TRAINING_NAMES, generate
from lag.model.chat import Chat
from lag.train.batches import batches, collate, encode_examples, lay_out, predict
from lag.train.trainer import Progress

ROOT = Path(__file__).resolve().parents[2]
SMALL = Recipe(
    tokens=70_000, annealing=20_000, articles=80, questions=40, width=32, heads=2, layers=2, drills=150, exercises=15, kept=20,
    lookups=0.25, exams=0.4, batch_tokens=1024, embedder_steps=10, dimensions=32, warmup=0.1, rate=0.012,
)  # fmt: skip
LOOKUPS, EXAMS, LOOP, ANNEALING = 0, 24_500, 28_000, 70_000  # tokens at which its parts have begun


@pytest.fixture(scope="module")
def weights():
    return train_embedder(SMALL)


EVEN = [replace(format, share=1.0) for format in FORMATS]


@pytest.fixture(scope="module")
def examples(embed):
    """Of every format about as many."""
    return list(make_examples(generate(77, articles=300, questions=200), embed, EVEN))


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_every_name_and_every_fixed_text_is_one_token(tokenizer):
    # a prompt whose wording changed would be spelled in letters: train again
    chat = Chat(tokenizer)
    texts = [prompts.SYSTEM, prompts.QA_RULES, prompts.CURATOR_RULES, prompts.LOGS_HEADER]
    texts += [prompts.DIRECT_RULES, prompts.STEPS_HEADER, prompts.SHEET_HEADER]
    texts += [playbook.EDITOR_RULES, "The entries:", UNKNOWN]
    for text in (*texts, *phrases(), *NAMES, *TRAINING_NAMES):
        assert len(chat.content_ids(text)) == 1, text
    assert len(chat.content_ids(prompts.qa_prompt("Who?", ()).user)) < 12


def test_no_word_of_a_prompt_is_spelled_in_letters(tokenizer, examples):
    """The new wordings (former values, both names, entries) must be in the vocabulary, too."""
    vocab = tokenizer.get_vocab()
    letters = {id for token, id in vocab.items() if token.startswith("##") and len(token) == 3}
    chat = Chat(tokenizer)
    for example in examples:
        notes = [note.after + note.keep for note in example.prompt.notes]
        for text in (example.prompt.user, example.reply, *notes):
            ids = chat.content_ids(re.sub(r"\[p\d+\]", "", text))  # an entry's number is spelled
            assert not {*ids} & letters, tokenizer.decode([id for id in ids if id in letters])


def test_gold_replies_survive_the_tokenizer(tokenizer, examples):
    chat = Chat(tokenizer)
    for example in examples:
        assert chat.text(list(chat.content_ids(example.reply))) == example.reply
        assert tokenizer.unk_token_id not in chat.content_ids(example.prompt.user)


def test_unknown_words_are_spelled_and_control_tokens_stay_text(tokenizer):
    chat = Chat(tokenizer)
    ids = chat.content_ids("zebra <|end|>")
    assert tokenizer.eos_token_id not in ids
    assert chat.text(list(ids[:5])) == "zebra"


def test_examples_come_in_every_format_and_end_as_they_were_told_to(examples):
    assert {example.format for example in examples} == set(EVEN)
    for example in examples:
        assert well_formed(example, example.reply), example.reply
        assert not well_formed(example, f"{example.reply} And so on.")
        if not example.prompt.user.startswith((prompts.CURATOR_RULES, playbook.EDITOR_RULES)):
            assert parse(example.reply, "keywords").name in ("answer", "search")


def test_a_batch_is_the_oracles_block_mask(tokenizer, examples):
    """A example's logits in a batch are those of the oracle's one forward pass, hidden text included."""
    model = make_model(0, width=32, heads=2, layers=2).eval()
    kv = [example for example in examples if any(note.after for note in example.prompt.notes)]
    first = [example for example in kv if example.format.layout == "system-first"][:2]
    for example in [*first, *kv[:2]]:
        chat = Chat(tokenizer, example.format.layout)
        row = lay_out(example, chat, tokenizer.eos_token_id)
        other = lay_out(examples[0], Chat(tokenizer), tokenizer.eos_token_id)
        batch = collate([row, other])
        with torch.no_grad():
            logits, _ = predict(model, batch)
        pieces = chat.encode(example.prompt)
        expected = oracle.logits(model, pieces.head, pieces.notes, pieces.tail)
        assert oracle.error(logits[0], expected) < 1e-5


def test_only_replies_are_trained_on(tokenizer, examples):
    row = lay_out(examples[3], Chat(tokenizer), tokenizer.eos_token_id)
    targets = collate([row])["targets"][0]
    said = [id for id in targets.tolist() if id >= 0]
    assert said == [*Chat(tokenizer).content_ids(examples[3].reply), tokenizer.eos_token_id]


def test_lookups_train_on_the_objects_of_facts_only(tokenizer):
    (example,) = make_lookups(generate(3, articles=100, questions=20), 1, "x")
    row = lay_out(example, Chat(tokenizer), tokenizer.eos_token_id)
    asked = [tokenizer.decode(id) for id, now in zip(row.ids, row.trained) if now]
    assert asked == [fact.object for fact in stated(example.reply)]
    text = example.prompt.user + "".join(n.after + n.keep for n in example.prompt.notes)
    assert all(name in text for name in asked)


def test_batches_hold_every_row_once_and_keep_to_the_budget():
    lookups = make_lookups(generate(3, articles=100, questions=20), 60, "x")
    rows = encode_examples(lookups, make_tokenizer())
    groups = batches(rows, 800, random.Random(1))
    assert sorted(id(row) for group in groups for row in group) == sorted(map(id, rows))
    assert all(len(group) * max(map(len, group)) <= 800 for group in groups)


def test_embedder_finds_the_article_of_a_subject(weights):
    world = make_world(SMALL, VALIDATION_SEED)
    embed = mean_vector(weights, word_pieces())
    texts = {a.id: f"{a.title}\n{a.content}" for a in world.articles}
    found = 0
    for article in world.articles:
        query = embed(f"{article.facts[0].subject}'s mayor")
        best = sorted(texts, key=lambda id: -float(query @ embed(texts[id])))[:2]
        found += article.id in best
    assert found > 0.9 * len(world.articles)
    assert len(search_pairs(world, random.Random(0))) > len(world.articles)


def test_loss_drops_and_a_resumed_training_equals_one_run(tmp_path, weights):
    torch.set_num_threads(1)
    whole = trainer(SMALL, weights, tmp_path / "whole")
    losses = []
    for _ in whole.run():
        losses.append(whole.loss)
    assert losses[-1] < 0.95 * losses[0]
    half = trainer(SMALL, weights, tmp_path / "half")
    for _ in half.run():
        if half.progress.group == 2:
            break  # killed inside the third group, the first one of exams
    again = trainer(SMALL, weights, tmp_path / "half")
    again.resume()
    assert 0 < again.progress.tokens < whole.progress.tokens
    for _ in again.run():
        pass
    assert again.progress == whole.progress
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


# digests of the examples that the code drew which made the shipped model: tokens, positions, mask
DRAWN = {
    LOOKUPS: "7d47d9a783144fc3",
    EXAMS: "d4f669df3c78284b",
    LOOP: "c05c765e13282808",
    ANNEALING: "6c22bfc3104daa1e",
}


@pytest.mark.parametrize("tokens", DRAWN)
def test_the_same_examples_are_drawn_as_for_the_shipped_model(weights, tokens):
    rows = Curriculum(SMALL, weights).examples(Progress(tokens))
    entries = [[row.ids, row.positions, row.blocks, row.hidden, row.trained] for row in rows]
    assert hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16] == DRAWN[tokens]


def test_the_first_losses_are_those_of_the_shipped_models_code(tmp_path, weights):
    torch.set_num_threads(1)
    training, losses = trainer(SMALL, weights, tmp_path), []
    for _ in itertools.islice(training.run(), 4):
        losses.append(training.last_loss)
    assert losses == pytest.approx([7.7370081, 8.2136087, 7.9166164, 7.3205662], rel=1e-4)


@pytest.mark.parametrize("tokens", DRAWN)
def test_a_model_without_kv_reads_none(weights, tokens):
    """One look-up as KV in a thousand would teach what the second model is not to know."""
    lacking = replace(SMALL, without="kv")
    for recipe, some in ((SMALL, True), (lacking, False)):
        rows = Curriculum(recipe, weights).examples(Progress(tokens))
        assert any(any(row.blocks) for row in rows) == some
        formats = {row.format for row in rows}
        assert formats >= {"lookup/paper"} | ({"exam/paper"} if tokens else set())
        assert bool(formats - {"lookup/paper", "exam/paper"}) == (tokens >= LOOP)
    assert "without" not in SMALL.identity and lacking.identity["without"] == "kv"


@pytest.mark.parametrize("tokens", [EXAMS, LOOP])
def test_a_model_without_search_never_says_how_to(weights, tokenizer, tokens):
    """Exams are cut where they search; what they have answered until then stays."""
    lacking = replace(SMALL, without="search")
    searching = tokenizer.convert_tokens_to_ids("<keywords>")
    for recipe, some in ((SMALL, True), (lacking, False)):
        rows = Curriculum(recipe, weights).examples(Progress(tokens))
        said = {id for row in rows for id, now in zip(row.ids, row.trained) if now}
        assert (searching in said) == some
        assert "exam/paper" in {row.format for row in rows}


def test_another_recipe_does_not_resume(tmp_path, weights):
    training = trainer(SMALL, weights, tmp_path)
    training.step(training.examples.examples(training.progress)[:4])
    training.save()
    other = trainer(Recipe(**{**vars_of(SMALL), "rate": 1e-4}), weights, tmp_path)
    with pytest.raises(ValueError, match="another rate"):
        other.resume()


def vars_of(recipe):
    return {name: getattr(recipe, name) for name in Recipe.__dataclass_fields__}


def test_rate_rises_and_falls():
    recipe = Recipe()
    rates = [rate(recipe, n / 100) for n in range(101)]
    assert rates.index(max(rates)) == 2
    assert rates[100] < 0.05 * recipe.rate < rates[50]


def test_replies_are_counted_through_the_real_route(tmp_path, examples):
    model = make_model(0, width=32, heads=2, layers=2).eval()
    kv = [example for example in examples if example.format.mode == "log_kv"][:3]
    counts = check_replies(model, kv, tmp_path)
    assert sum(count["replies"] for count in counts.values()) == 3
    assert all(count["exact"] == 0 for count in counts.values())


SIZES = ["--articles", "80", "--questions", "40", "--width", "32", "--validation", "2"]
FRESH = ["--tokens", "6000", "--annealing", "2000", "--embedder-steps", "5", *SIZES]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two small models."""
    folder = tmp_path_factory.mktemp("models") / "made"
    words = ["miniwiki", "--out", str(folder), *FRESH]
    assert train.main(words) == 0
    return folder


def test_the_command_makes_both_models(made, capsys):
    from transformers import AutoModelForCausalLM

    from lag.retrieval.embedder import Embedder

    words = ["miniwiki", "--out", str(made), *FRESH]
    changed = (made / "training" / "training.safetensors").stat().st_mtime_ns
    assert train.main(words) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(summary["formats"]) <= {format.name for format in FORMATS}
    assert summary["tokens"] >= 8000 and summary["steps"]
    assert (made / "training" / "training.safetensors").stat().st_mtime_ns == changed, "done before"
    model = AutoModelForCausalLM.from_pretrained(made / "model")
    assert model.config.hidden_size == 32
    embedder = Embedder.load(str(made / "embedder"))
    assert embedder.queries(["Alan's mayor"]).shape == (1, 128)
    for name in ("model", "embedder"):
        assert "no other data" in (made / name / "README.md").read_text()


def distance(one, other):
    """Without vectors of words: those of names are drawn anew at every update."""
    names = [name for name in one if "embed_tokens" not in name]
    return sum(float(np.square(one[name] - other[name]).sum()) for name in names)


def test_a_training_goes_on_from_models_that_are_there(made, tmp_path, capsys):
    words = ["miniwiki", "--start", str(made), "--annealing", "2000", "--without", "search", *SIZES]
    assert train.main([*words, "--out", str(tmp_path)]) == 0
    assert 2000 <= json.loads(capsys.readouterr().out.splitlines()[-1])["tokens"] < 6000
    before, after = (read(folder, "model") for folder in (made, tmp_path))
    fresh = {name: p.detach().numpy() for name, p in make_model(1, 32, 1, 4).named_parameters()}
    assert 0 < distance(after, before) < distance(after, fresh) / 2
    embedders = [read(folder, "embedder")["embedding.weight"] for folder in (made, tmp_path)]
    assert np.array_equal(*embedders)
    with pytest.raises(ValueError, match="another annealing"):
        train.main([*words, "--out", str(tmp_path), "--annealing", "3000"])


def test_a_model_takes_over_the_weights_of_its_shape(made):
    model = make_model(9, 32, 1, 4)
    put_into(model, read(made, "model"))
    held = dict(model.named_parameters())
    for name, weight in read(made, "model").items():
        assert np.array_equal(held[name].detach().numpy(), weight)
    with pytest.raises(ValueError, match="another shape; repeat its --width"):
        put_into(make_model(9, 64, 2, 4), read(made, "model"))
    with pytest.raises(ValueError, match="another shape"):
        put_into(make_model(9, 32, 1, 3), read(made, "model"))


def test_help_is_quick_and_loads_nothing_heavy():
    check = "import sys, train; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["miniwiki", "--width", "50"],
        ["miniwiki", "--tokens", "0"],
        ["miniwiki", "--start", "nowhere"],
        ["miniwiki", "--start", str(ROOT / "data" / "miniwiki"), "--tokens", "9"],
        ["other"],
    ],
)
def test_bad_flags_exit_with_2(arguments, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_worlds_that_are_trained_on_are_no_reported_ones():
    assert FIRST_SEED > VALIDATION_SEED > 2000


def test_the_embedder_reads_about_as_many_worlds_as_are_told():
    """Worlds that the embedder was trained on passed for new ones after its recipe had changed."""
    recipe = Recipe()
    pairs = len(search_pairs(make_world(recipe, FIRST_SEED - 1), random.Random(0)))
    few, many = (recipe.embedder_steps / (pairs // 256 + n) for n in (1, -1))
    assert few <= NUM_PAIR_WORLDS <= many + 1


def test_names_have_other_vectors_at_every_update_from_some_point_on(tmp_path, weights):
    """A model that had learned those of its training was right on 16 % of new worlds' questions, not 44."""
    training = trainer(replace(SMALL, fresh_names=0.0), weights, tmp_path)
    vectors, vocab = training.model.model.embed_tokens.weight, word_pieces().get_vocab()
    learned, others = ([vocab[name] for name in names] for names in (TRAINING_NAMES, NAMES))
    rows = training.examples.examples(training.progress)[:4]
    seen = [vectors.detach().clone()]
    for _ in range(3):
        training.step(rows)
        seen.append(vectors.detach().clone())
    for before, after in itertools.pairwise(seen):
        assert not (before[learned, 1:] == after[learned, 1:]).any()
        assert torch.equal(before[learned, 0], after[learned, 0])
        assert torch.equal(before[others], after[others])
        assert after[learned, 1:].std() == pytest.approx(SMALL.width**-0.5, rel=0.05)
    assert not torch.equal(seen[0][vocab["is"]], seen[-1][vocab["is"]])


def test_vectors_of_names_never_change_before(tmp_path, weights):
    training = trainer(SMALL, weights, tmp_path)
    vectors = training.model.model.embed_tokens.weight
    before = vectors.detach().clone()
    for _ in range(3):
        training.step(training.examples.examples(training.progress)[:8])
    vocab = word_pieces().get_vocab()
    names = [vocab[name] for name in (*NAMES, *TRAINING_NAMES)]
    assert torch.equal(vectors[names], before[names])
    assert not torch.equal(vectors[vocab["is"]], before[vocab["is"]])
