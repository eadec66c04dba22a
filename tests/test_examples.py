"""The example from Python says what `agentic.py` says."""

import json
from pathlib import Path

import pytest

import agentic
import dataset
import embed
from examples.kv_in_twenty_lines import main, reply
from lag import prompts
from lag.logs.store import LogStore
from lag.modes import MODES
from lag.paths import Paths
from lag.tasks import TASKS, read_documents, read_questions
from lag.trace_files import read_parts

ROOT = Path(__file__).resolve().parents[1]
WORLD = Paths(ROOT / "data", "miniwiki")
MODEL = ROOT / TASKS["miniwiki"].model


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A few questions of the embedded world with their own documents, answered with logs as KV."""
    folder = tmp_path_factory.mktemp("example")
    rows = json.loads(WORLD.questions("train").read_text())[:4]
    documents, needed = (
        json.loads(WORLD.docs.read_text()),
        {id for r in rows for id in r["paragraph_ids"]},
    )
    docs = [{"id": id, **documents[id]} for id in sorted(needed)]
    for name, value in (("mine", rows), ("docs", docs)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    paths = Paths(folder / "data", "some")
    own = ["-d", "some", "--data", str(paths.root)]
    files = ["--from", str(folder / "mine.json"), "--docs", str(folder / "docs.json")]
    models = ["--embedder", str(ROOT / TASKS["miniwiki"].embedder)]
    assert dataset.main([*own, "--like", "miniwiki", *files, "--train-share", "1"]) == 0
    assert embed.main([*own, *models]) == 0
    run = [*own, *models, "--model", str(MODEL)]
    assert agentic.main([*run, "-m", "base"]) == 0
    assert agentic.main([*own, "-m", "base", "--merge", "--as-log"]) == 0
    assert agentic.main([*run, "-m", "log_kv"]) == 0
    return paths


def test_the_example_replies_as_agentic_does(answered, tmp_path):
    """By its own way: the library's `generate` on a cache of placed spans, one prompt at a time."""
    questions = {q.id: q for q in read_questions(answered, TASKS["miniwiki"])}
    logs = LogStore.load(answered.log_store, list(questions.values())).logs
    corpus, mode = read_documents(answered), MODES["log_kv"]
    rows = read_parts(answered.run("train", "log_kv"))
    assert len(rows) == 4
    for id, row in rows.items():
        step = row["trace"][0]
        asked = prompts.qa_prompt(questions[id].text, [corpus[doc] for doc in step["docs"]])
        texts = [(mode.after(logs[one["id"]]), mode.keep(logs[one["id"]])) for one in step["logs"]]
        assert len(texts) == 3 and any(hidden for hidden, _ in texts)
        chat = [
            {"role": "system", "content": prompts.SYSTEM},
            {"role": "user", "content": asked.user},
        ]
        assert (
            reply(str(MODEL), tmp_path, texts, chat, asked.prefill).strip() == step["reply"].strip()
        )
    assert len(list(tmp_path.rglob("*.safetensors"))) == len(logs)


def test_the_example_shows_what_a_log_changes(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    main()
    without, behind = capsys.readouterr().out.splitlines()
    assert without.endswith("<keywords>Lorlim's teacher</keywords>")
    assert behind.endswith("<ans>Crea</ans>")
