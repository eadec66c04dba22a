"""The recipe of the embedded models: lessons, batches, the mask, resuming, and a small whole run."""

import json
import random
import subprocess
import sys
from pathlib import Path

import oracle
import pytest
import torch

import train
from lag import prompts
from lag.actions import parse
from lag.miniwiki.curriculum import Training, check_replies, encode_lessons, rate
from lag.miniwiki.drills import make_drills, make_primers
from lag.miniwiki.embedder import mean_vector, search_pairs, train_embedder
from lag.miniwiki.gold_agent import FORMATS, GoldAgent, make_lessons, stated
from lag.miniwiki.init_weights import make_model
from lag.miniwiki.recipe import EXAM_SEED, FIRST_SEED, Recipe, make_world
from lag.miniwiki.tokenizer import make_tokenizer, phrases, word_pieces
from lag.miniwiki.world import NAMES, Chain, generate
from lag.model.chat import Chat
from lag.modes import MODES
from lag.train.batches import batches, collate, lay_out, predict

ROOT = Path(__file__).resolve().parents[2]
SMALL = Recipe(
    tokens=70_000, polish=20_000, articles=80, questions=40, width=32, heads=2, layers=2, drills=150, primed=0.3,
    batch_tokens=1024, early=0.6, embedder_steps=30, dimensions=32, warmup=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def weights():
    return train_embedder(SMALL)


@pytest.fixture(scope="module")
def lessons(weights):
    world = generate(77, articles=300, questions=200)
    return list(make_lessons(world, mean_vector(weights, word_pieces())))


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_formats_cover_every_mode():
    assert {format.mode for format in FORMATS} == set(MODES)


def test_every_name_and_every_fixed_text_is_one_token(tokenizer):
    # a prompt whose wording changed would be spelled in letters: train again
    chat = Chat(tokenizer)
    texts = [prompts.SYSTEM, prompts.QA_RULES, prompts.CURATOR_RULES, prompts.LOGS_HEADER]
    for text in (*texts, prompts.SHEET_HEADER, *phrases(), *NAMES[::50]):
        assert len(chat.content_ids(text)) == 1, text
    assert len(chat.content_ids(prompts.qa_prompt("Who?", ()).user)) < 12


def test_gold_replies_survive_the_tokenizer(tokenizer, lessons):
    chat = Chat(tokenizer)
    for lesson in lessons:
        assert chat.text(list(chat.content_ids(lesson.reply))) == lesson.reply
        assert tokenizer.unk_token_id not in chat.content_ids(lesson.prompt.user)


def test_unknown_words_are_spelled_and_control_tokens_stay_text(tokenizer):
    chat = Chat(tokenizer)
    ids = chat.content_ids("zebra <|end|>")
    assert tokenizer.eos_token_id not in ids
    assert chat.text(list(ids[:5])) == "zebra"


def test_lessons_come_in_every_format_and_end_in_a_tag(lessons):
    assert {lesson.format for lesson in lessons} == set(FORMATS)
    for lesson in lessons:
        if lesson.prompt.user.startswith(prompts.CURATOR_RULES):
            assert lesson.reply.endswith("</cheatsheet>")
        else:
            assert parse(lesson.reply, "keywords").name in ("answer", "search")


def test_a_reply_says_only_what_its_prompt_holds(lessons):
    # the agent may not know more than its prompt: names that it brings in would be guesses
    for lesson in lessons:
        prompt = lesson.prompt
        seen = prompt.user + "".join(note.after + note.keep for note in prompt.notes)
        for fact in stated(lesson.reply):
            assert fact.object in seen


def test_logs_are_used(lessons):
    # a log's fact that no document of the prompt holds stands in some reply of every log format
    used = set()
    for lesson in lessons:
        documents = lesson.prompt.user.partition(prompts.QA_RULES)[2]
        if any(fact.object not in documents for fact in stated(lesson.reply)):
            used.add(lesson.format.mode)
    assert used >= {mode for mode in MODES if mode != "base"}


def test_an_answer_alone_carries_the_fact_that_it_was_encoded_after():
    world = generate(3, articles=100, questions=20)
    gold = GoldAgent(world)
    note = prompts.Note("x", "<ans>Alan</ans>\n\n", "The mayor of Bara is Alan. ", kv=True)
    prompt = prompts.Prompt(prompts.QA_RULES, notes=(note,))
    chain = Chain("Bara", ("mayor",))
    assert gold.reply(prompt, chain) == "The mayor of Bara is Alan. <ans>Alan</ans>"
    bare = prompts.Prompt(prompts.QA_RULES, notes=(prompts.Note("x", note.keep),))
    assert gold.reply(bare, chain).endswith("<keywords>the mayor of Bara</keywords>")


def test_a_batch_is_the_oracles_block_mask(tokenizer, lessons):
    """A lesson's logits in a batch are those of the oracle's one forward pass, hidden text included."""
    model = make_model(0, width=32, heads=2, layers=2).eval()
    kv = [lesson for lesson in lessons if any(note.after for note in lesson.prompt.notes)]
    first = [lesson for lesson in kv if lesson.format.layout == "system-first"][:2]
    for lesson in [*first, *kv[:2]]:
        chat = Chat(tokenizer, lesson.format.layout)
        row = lay_out(lesson, chat, tokenizer.eos_token_id)
        other = lay_out(lessons[0], Chat(tokenizer), tokenizer.eos_token_id)
        batch = collate([row, other])
        with torch.no_grad():
            logits, _ = predict(model, batch)
        pieces = chat.encode(lesson.prompt)
        expected = oracle.logits(model, pieces.head, pieces.notes, pieces.tail)
        assert oracle.error(logits[0], expected) < 1e-5


def test_only_replies_are_trained_on(tokenizer, lessons):
    row = lay_out(lessons[3], Chat(tokenizer), tokenizer.eos_token_id)
    targets = collate([row])["targets"][0]
    said = [id for id in targets.tolist() if id >= 0]
    assert said == [*Chat(tokenizer).content_ids(lessons[3].reply), tokenizer.eos_token_id]


def test_primers_train_on_the_objects_of_facts_only(tokenizer):
    (lesson,) = make_primers(generate(3, articles=100, questions=20), 1, "x")
    row = lay_out(lesson, Chat(tokenizer), tokenizer.eos_token_id)
    asked = [tokenizer.decode(id) for id, now in zip(row.ids, row.trained) if now]
    assert asked == [fact.object for fact in stated(lesson.reply)]
    text = lesson.prompt.user + "".join(note.keep for note in lesson.prompt.notes)
    assert all(name in text for name in asked)


def test_batches_hold_every_row_once_and_keep_to_the_budget():
    rows = encode_lessons(make_drills(generate(3, articles=100, questions=20), 60, "x"))
    groups = batches(rows, 800, random.Random(1))
    assert sorted(id(row) for group in groups for row in group) == sorted(map(id, rows))
    assert all(len(group) * max(map(len, group)) <= 800 for group in groups)


def test_embedder_finds_the_article_of_a_subject(weights):
    world = make_world(SMALL, EXAM_SEED)
    embed = mean_vector(weights, word_pieces())
    texts = {a.id: f"{a.title}\n{a.content}" for a in world.articles}
    found = 0
    for article in world.articles:
        query = embed(f"the mayor of {article.facts[0].subject}")
        best = sorted(texts, key=lambda id: -float(query @ embed(texts[id])))[:2]
        found += article.id in best
    assert found > 0.9 * len(world.articles)
    assert len(search_pairs(world, random.Random(0))) > len(world.articles)


def test_loss_drops_and_a_resumed_training_equals_one_run(tmp_path, weights):
    torch.set_num_threads(1)
    whole = Training(SMALL, weights, tmp_path / "whole")
    losses = []
    for _ in whole.run():
        losses.append(whole.loss)
    assert losses[-1] < 0.9 * losses[0]
    half = Training(SMALL, weights, tmp_path / "half")
    for _ in half.run():
        if half.group == 2:
            break  # killed inside the third group
    again = Training(SMALL, weights, tmp_path / "half")
    again.resume()
    assert 0 < again.tokens < whole.tokens
    for _ in again.run():
        pass
    assert (again.tokens, again.steps) == (whole.tokens, whole.steps)
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_another_recipe_does_not_resume(tmp_path, weights):
    training = Training(SMALL, weights, tmp_path)
    training.step(training.lessons()[:4])
    training.save()
    other = Training(Recipe(**{**vars_of(SMALL), "rate": 1e-4}), weights, tmp_path)
    with pytest.raises(ValueError, match="another rate"):
        other.resume()


def vars_of(recipe):
    return {name: getattr(recipe, name) for name in Recipe.__dataclass_fields__}


def test_rate_rises_and_falls():
    recipe = Recipe()
    rates = [rate(recipe, n / 100) for n in range(101)]
    assert rates.index(max(rates)) == 2
    assert rates[100] < 0.05 * recipe.rate < rates[50]


def test_replies_are_counted_through_the_real_route(tmp_path, lessons):
    model = make_model(0, width=32, heads=2, layers=2).eval()
    kv = [lesson for lesson in lessons if lesson.format.mode == "log_kv"][:3]
    counts = check_replies(model, kv, tmp_path)
    assert sum(count["replies"] for count in counts.values()) == 3
    assert all(count["exact"] == 0 for count in counts.values())


def test_the_command_makes_both_models(tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    from lag.retrieval.embedder import Embedder

    sizes = ["--articles", "80", "--questions", "40", "--width", "32", "--embedder-steps", "5"]
    sizes += ["--exam", "2"]
    arguments = [
        "miniwiki",
        "--out",
        str(tmp_path / "made"),
        "--tokens",
        "6000",
        "--polish",
        "2000",
        *sizes,
    ]
    assert train.main(arguments) == 0
    output = capsys.readouterr().out
    summary = json.loads(output.splitlines()[-1])
    assert set(summary["formats"]) <= {format.name for format in FORMATS}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made" / "model")
    assert model.config.hidden_size == 32
    embedder = Embedder.load(str(tmp_path / "made" / "embedder"))
    assert embedder.queries(["the mayor of Alan"]).shape == (1, 128)
    for name in ("model", "embedder"):
        assert "no other data" in (tmp_path / "made" / name / "README.md").read_text()
    capsys.readouterr()
    assert train.main(arguments) == 0  # finished: nothing is trained again
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == summary["steps"]


def test_help_is_quick_and_loads_nothing_heavy():
    check = "import sys, train; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    "arguments", [["miniwiki", "--width", "50"], ["miniwiki", "--tokens", "0"], ["other"]]
)
def test_bad_flags_exit_with_2(arguments, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_worlds_that_are_trained_on_are_no_reported_ones():
    assert FIRST_SEED > EXAM_SEED > 2000


def test_vectors_of_names_never_change(tmp_path, weights):
    training = Training(SMALL, weights, tmp_path)
    vectors = training.model.model.embed_tokens.weight
    before = vectors.detach().clone()
    for _ in range(3):
        training.step(training.lessons()[:8])
    vocab = word_pieces().get_vocab()
    names = [vocab[name] for name in NAMES]
    assert torch.equal(vectors[names], before[names])
    assert not torch.equal(vectors[vocab["is"]], before[vocab["is"]])
