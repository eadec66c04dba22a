"""Every row of `SOLVERS`, with every mode, through the real command."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import small
from scripted import ScriptedLLM

import agentic
import dataset
from lag import files, prompts, records, trace_files
from lag.modes import MODES
from lag.paths import Paths
from lag.retrieval.bm25 import K1, B, LexicalIndex, words
from lag.retrieval.index import document_text
from lag.solvers import SOLVERS
from lag.tasks import TASKS

ONE_STEP = [name for name, solver in SOLVERS.items() if solver.max_steps == 1]


@pytest.fixture
def run(small_data, embedder_folder, capsys):
    """Call agentic's main; returns the summary, the folder of the (last) run, and the prompts."""
    path = Paths(small_data, "wikihop").questions("train")
    rows = json.loads(path.read_text())
    for n, row in enumerate(rows):
        row["paragraph_ids"] = [f"q{n}", f"p{n}", small.CITIES[n % 3]]
    files.write_json(path, rows)

    def call(command, llm=None):
        flags = ["--data", str(small_data), "--embedder", str(embedder_folder)]
        if "-d " not in command:
            flags += ["-d", "wikihop"]
        llm = llm or ScriptedLLM(small.stepwise)
        agentic.main(command.split() + flags, llm)
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        return summary, llm

    return call


def rows_of(summary):
    return trace_files.read_parts(Path(summary["run"]))


@pytest.fixture
def log_store(run):
    run("-m base --max-steps 3 --run logs")
    run("-m base --run logs --merge --as-log")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_runs_with_every_mode_and_says_so(run, log_store, solver, mode):
    summary, _ = run(f"-m {mode} --solver {solver} --num-logs 2 --batch-size 3")
    rows = rows_of(summary)
    assert summary["failed"] == 0 and len(rows) == 10
    identity = json.loads((Path(summary["run"]) / "run.json").read_text())["identity"]
    assert (identity["solver"], identity["mode"]) == (solver, mode)
    assert summary["run"].endswith(
        mode + ("" if solver == "react" else f"_{solver}") + "_l2" * bool(MODES[mode].enters)
    )
    if solver in ONE_STEP:
        assert {row["num_steps"] for row in rows.values()} == {1}
    used = [used for row in rows.values() for step in row["trace"] for used in step["logs"]]
    assert bool(used) == bool(MODES[mode].enters)


def test_direct_has_no_evidence_block_and_no_word_of_documents(run):
    summary, llm = run("-m base --solver direct")
    for prompt in llm.seen:
        question = prompt.user.rpartition("Question: ")[2]
        assert prompt == prompts.with_key(prompts.direct_prompt(question), prompt.key)
        assert "ocument" not in prompt.user + prompt.prefill + prompt.system
    assert not any(step["docs"] for row in rows_of(summary).values() for step in row["trace"])


def test_icl_shows_the_question_s_own_paragraphs_in_their_order(run):
    summary, llm = run("-m base --solver icl")
    for id, row in rows_of(summary).items():
        n = int(id[1:])
        assert row["trace"][0]["docs"] == [f"q{n}", f"p{n}", small.CITIES[n % 3]]
    docs = small.documents()
    first = next(prompt for prompt in llm.seen if prompt.key == "w4 1").user
    places = [
        first.index(f"] {docs[id]['title']}\n{docs[id]['content']}")
        for id in ("q4", "p4", "beckton")
    ]
    assert places == sorted(places)


def test_rag_asks_once_for_the_bare_question_and_takes_four(run):
    summary, _ = run("-m base --solver rag")
    for row in rows_of(summary).values():
        (step,) = row["trace"]
        assert step["query"] == row["question"] and len(step["docs"]) == 4
    more, _ = run("-m base --solver rag --num-docs 6")
    assert more["run"].endswith("base_rag_d6")
    assert {len(row["trace"][0]["docs"]) for row in rows_of(more).values()} == {6}


def hand_computed(query: str, documents: dict[str, str]) -> dict[str, float]:
    """BM25 as its paper writes it, with Lucene's idf, one term at a time."""
    texts = {id: words(text) for id, text in documents.items()}
    mean = sum(map(len, texts.values())) / len(texts)
    scores = Counter()
    for word in words(query):
        having = sum(word in text for text in texts.values())
        idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        for id, text in texts.items():
            count = text.count(word)
            scores[id] += idf * count / (count + K1 * (1 - B + B * len(text) / mean))
    return scores


def test_rag_with_bm25_is_the_ranking_computed_by_hand(run):
    summary, _ = run("-m base --solver rag --retriever bm25")
    documents = {id: f"{d['title']}\n{d['content']}" for id, d in small.documents().items()}
    for row in rows_of(summary).values():
        scores = hand_computed(row["question"], documents)
        ranked = sorted(
            (id for id in scores if scores[id]), key=lambda id: (-round(scores[id], 5), id)
        )
        assert row["trace"][0]["docs"] == ranked[:4]
    assert summary["run"].endswith("base_rag_bm25")


@pytest.mark.parametrize(
    "query", ["pet", "the pet of arno", "arno arno beckton", "sea by a city city"]
)
def test_bm25_s_scores_are_those_of_its_formula(query):
    """Variants of BM25 rank a small corpus alike; their scores tell them apart."""
    rows = small.documents()
    documents = {id: records.Document(id, **row) for id, row in rows.items()}
    scores = hand_computed(query, {id: document_text(doc) for id, doc in documents.items()})
    found = {hit.id: hit.similarity for hit in LexicalIndex(documents).rank(query, 1000)}
    assert found.keys() == {id for id, score in scores.items() if score}
    assert found == {id: pytest.approx(scores[id], abs=1e-5) for id in found}


def test_bm25_breaks_ties_by_id_and_finds_nothing_without_a_shared_word():
    """The order of a corpus file may not decide a ranking."""
    texts = {"c": "sea", "b": "Sea", "a": "sea!", "d": "hill"}
    index = LexicalIndex({id: records.Document(id, "", text) for id, text in texts.items()})
    assert [hit.id for hit in index.rank("SEA", 9)] == ["a", "b", "c"]
    assert [hit.id for hit in index.rank("sea", 2, frozenset("a"))] == ["b", "c"]
    assert index.rank("river", 3) == index.rank("", 3) == index.rank("sea", 0) == []
    assert LexicalIndex({}).rank("sea", 3) == []


def test_several_solvers_in_one_command_each_with_its_own_limits(run):
    summary, _ = run("-m base --solver react,direct,icl,rag --retriever bm25 --max-steps 3")
    names = [Path(run["run"]).name for run in summary["runs"]]
    assert names == ["base_bm25_s3", "base_direct", "base_icl", "base_rag_bm25"]


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("--solver direct --max-steps 2", "--max-steps 2: --solver direct takes one step"),
        ("--solver icl --num-docs 3", "--num-docs 3: --solver icl searches no documents"),
        ("--solver direct --retriever bm25", "--retriever bm25"),
        ("--solver rag --trace-steps 2", "--trace-steps 2"),
        ("--solver direct,icl --num-docs 3", "--num-docs 3"),
        ("--solver icl -d mmlupro", "asked without documents"),
        ("--solver rag -d gpqa", "asked without documents"),
        ("--solver icl --split test", "paragraph_ids"),
        ("-d mmlupro --retriever bm25", "no documents are searched"),
        ("--num-docs 0 --retriever bm25", "no documents are searched"),
        ("--solver react,rag --run x", "--run names one run"),
        ("--trace-tokens 50", "--trace-steps"),
    ],
)
def test_what_a_solver_cannot_do_is_refused_in_one_line(run, command, named):
    llm = ScriptedLLM(small.stepwise)
    with pytest.raises(ValueError) as error:
        run(f"-m base {command}", llm)
    assert named in str(error.value) and "\n" not in str(error.value)
    assert not llm.seen


def test_multiple_choice_is_answered_directly_in_one_step(run):
    summary, llm = run("-m base -d mmlupro --solver direct")
    assert summary["answered"] == 5 and len(llm.seen) == 5


REAL = {
    "hotpotqa": ("hotpotqa/hotpot_distractor_raw_60.json", "context"),
    "musique": ("musique/musique_raw_60.json", "paragraphs"),
}


def plain(text):
    return " ".join(text.split())


def paragraphs_of(row, field):
    if field == "context":
        return [(title, " ".join(sentences)) for title, sentences in row["context"]]
    return [(p["title"], p["paragraph_text"]) for p in row["paragraphs"]]


@pytest.mark.parametrize("name", REAL)
def test_icl_shows_every_paragraph_of_a_real_question_in_order(shared_data, tmp_path, name, capsys):
    """Local HotpotQA files gave empty contexts elsewhere, so that `icl` silently ran closed-book."""
    file, field = REAL[name]
    data = ["-d", name, "--data", str(tmp_path)]
    dataset.main([*data, "--from", str(shared_data / file)])
    llm = ScriptedLLM(lambda prompt: "<ans>x</ans>")
    agentic.main([*data, "-m", "base", "--solver", "icl", "--split", "train,test"], llm)
    said = {prompt.key.split()[0]: prompt.user for prompt in llm.seen}
    rows = json.loads((shared_data / file).read_text())
    assert len(said) == len(rows)
    for row in rows:
        prompt, place = said[row.get("id") or row["_id"]], -1
        paragraphs = dict.fromkeys(paragraphs_of(row, field))
        for title, content in paragraphs:
            place = plain(prompt).index(plain(f"] {title}\n{content}"), place + 1)
        assert prompt.count("\n\n[") == len(paragraphs)


def test_the_prompts_of_react_are_those_of_before(run):
    """A model is trained on them: the new solvers may not move a character."""
    _, llm = run("-m base --max-steps 3")
    assert all(prompt.user.startswith(prompts.QA_RULES + "\n\nDocuments:") for prompt in llm.seen)
    task = TASKS["wikihop"]
    assert task.max_steps == 8 and task.num_docs == 2


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_run_s_manifest_is_its_configuration(run, solver):
    """The flags that a solver settles for itself must be accepted when they come back."""
    summary, llm = run(f"-m base --solver {solver}")
    again, same = run(f"--config {summary['run']}/run.json --run again")
    assert llm.seen == same.seen and again["run"].endswith("/again")
