"""The data set and models that are shipped: what they are, and how an agent made of them behaves."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

import agentic
import dataset
import embed
import store_log_kv
from lag import trace_files
from lag.miniwiki.world import generate
from lag.model.llm import LLM
from lag.modes import MODES
from lag.paths import Paths

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "data" / "miniwiki"
SEED = 1234
FEW = 48

sys.path.insert(0, str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a folder with the world, its vectors, and the logs of its first questions."""
    root = tmp_path_factory.mktemp("embedded")
    flags = ["-d", "miniwiki", "--data", str(root)]
    own = ["--embedder", str(SHIPPED / "embedder")]
    assert dataset.main(flags) == 0
    assert embed.main([*flags, *own]) == 0
    flags += ["--limit", str(FEW), "--max-new-tokens", "96", "--model", str(SHIPPED / "model")]
    # So small a model spends its time in Python, which rows share.
    flags += ["--batch-size", str(FEW)]
    assert agentic.main([*flags, *own, "-m", "base"]) == 0
    assert agentic.main([*flags, *own, "-m", "base", "--merge", "--as-log"]) == 0
    return [*flags, *own]


def rows_of(flags, run, split="train"):
    return trace_files.read_parts(Paths(Path(flags[3]), "miniwiki").run(split, run))


def mean_steps(rows):
    return sum(row["num_steps"] for row in rows.values()) / len(rows)


def exact(rows):
    return sum(row["pred"] in row["gold_answer"] for row in rows.values()) / len(rows)


def test_the_shipped_world_is_its_seeds_byte_for_byte(tmp_path):
    assert dataset.main(["-d", "miniwiki", "--data", str(tmp_path), "--seed", str(SEED)]) == 0
    made = sorted((tmp_path / "miniwiki").glob("*.json"))
    assert len(made) == 5
    for path in made:
        assert path.read_bytes() == (SHIPPED / path.name).read_bytes(), path.name


def test_the_model_is_small_and_stands_on_its_own():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(SHIPPED / "model")
    assert model.config.model_type == "llama"
    assert sum(p.numel() for p in model.parameters()) <= 3_500_000
    sizes = [path.stat().st_size for path in (SHIPPED / "model").iterdir()]
    assert sum(sizes) <= 15e6
    assert AutoTokenizer.from_pretrained(SHIPPED / "model").chat_template
    for name in ("model", "embedder"):
        assert "no other data" in (SHIPPED / name / "README.md").read_text(encoding="utf-8")
        assert list((SHIPPED / name).glob("*.safetensors"))


def test_the_agent_answers_most_questions_in_several_steps(flags):
    rows = rows_of(flags, "base")
    assert exact(rows) > 0.6
    assert 4 < mean_steps(rows) < 5  # of eight, for 2 to 6 hops
    actions = Counter(step["action"] for row in rows.values() for step in row["trace"])
    assert actions["nothing"] <= 0.03 * actions.total()


def test_its_own_logs_answer_at_once_and_the_rows_do_not_depend_on_the_batch(flags):
    assert store_log_kv.main([*flags[:4], "--model", str(SHIPPED / "model")]) == 0
    for mode in ("log_text", "log_kv"):
        assert agentic.main([*flags, "-m", mode]) == 0
        rows = rows_of(flags, mode)
        assert mean_steps(rows) < mean_steps(rows_of(flags, "base")) - 0.5
        assert exact(rows) > exact(rows_of(flags, "base")) - 0.05
    single = ["-m", "log_kv", "--run", "single", "--batch-size", "1"]
    assert agentic.main([*flags, *single, "--limit", "12"]) == 0
    alone = trace_files.without_seconds(rows_of(flags, "single"))
    assert alone == trace_files.without_seconds({id: rows[id] for id in alone})


def test_a_run_that_was_cut_goes_on_to_the_same_rows(flags):
    paths = Paths(Path(flags[3]), "miniwiki")
    whole = rows_of(flags, "base")
    assert agentic.main([*flags, "-m", "base", "--run", "cut"]) == 0
    part = paths.part("train", "cut", 0)
    text = part.read_bytes()
    part.write_bytes(text[: len(text) * 2 // 3])  # killed in the middle of a line
    assert agentic.main([*flags, "-m", "base", "--run", "cut"]) == 0
    assert trace_files.without_seconds(rows_of(flags, "cut")) == trace_files.without_seconds(whole)


def test_every_mode_runs_on_unseen_questions(flags, capsys):
    modes = ",".join(MODES)
    assert agentic.main([*flags, "-m", modes, "--split", "test", "--limit", "16"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [run["failed"] for run in summary["runs"]] == [0] * len(MODES)
    for run in summary["runs"]:
        assert run["answered"] >= 8, run["run"]


def test_closed_book_it_knows_no_more_than_the_best_constant_answers(flags):
    world = generate(SEED)
    answers: dict[str, Counter] = {}
    for row in world.train:
        answers.setdefault(world.chains[row["id"]].nouns[-1], Counter())[row["answer"]] += 1
    best = {noun: counts.most_common(1)[0][0] for noun, counts in answers.items()}
    direct = ["-m", "base", "--solver", "direct", "--split", "test", "--limit", "300"]
    assert agentic.main([*flags, *direct]) == 0
    rows = rows_of(flags, "base_direct", "test")
    constant = [best[world.chains[row["id"]].nouns[-1]] == row["answer"] for row in world.test]
    assert exact(rows) <= sum(constant) / len(constant)


def test_kv_of_a_response_carries_what_led_to_it(tmp_path):
    """Which of three names is likeliest: behind the same words as text it is a guess."""
    import hidden

    llm, mode = LLM.load(str(SHIPPED / "model"), max_new_tokens=64), MODES["log_kv"]
    llm.open_store(tmp_path, mode)
    asked = list(hidden.cases(generate(hidden.SEED), 40, mode))
    right = {
        kind: hidden.share_chosen(llm, asked, lambda c, kind=kind: hidden.prompt_of(c, kind))
        for kind in ("kv", "wrong", "text")
    }
    assert right["kv"] > 0.9 and max(right["wrong"], right["text"]) < 0.6


@pytest.mark.xfail(
    strict=True, reason="the shipped model does not trust hidden text: benchmarks/README.md"
)
def test_kv_carries_what_the_kept_words_do_not_say(tmp_path):
    import hidden

    llm = LLM.load(str(SHIPPED / "model"), max_new_tokens=64)
    llm.open_store(tmp_path, hidden.MODE)
    asked = list(hidden.cases(generate(hidden.SEED), 60))
    right = {}
    for kind in ("kv", "text"):
        right[kind], _ = hidden.share_right(
            llm, asked, lambda c, kind=kind: hidden.prompt_of(c, kind)
        )
    assert right["kv"] > right["text"] + 0.5
