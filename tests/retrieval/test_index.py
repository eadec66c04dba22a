"""Retrieval against a float64 reference, and everything that must not change a ranking."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from sweeps import sweep

from lag.paths import Paths
from lag.records import Document, Hit
from lag.retrieval import vectors
from lag.retrieval.embedder import Embedder
from lag.retrieval.index import Index, document_text, embed_command, load_documents_index

ROOT = Path(__file__).resolve().parents[2]


class Counting(Embedder):
    """An embedder that notes what its model is really asked."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.asked = []

    def encode(self, texts, kind):
        self.asked += [(kind, text) for text in texts]
        return super().encode(texts, kind)


@pytest.fixture
def embedder(embedder_folder):
    return Counting.load(str(embedder_folder), "cpu")


@pytest.fixture
def corpus():
    names = ["Arden", "Brill", "Corvo", "Delft", "Ember", "Fjord", "Gale"]
    return {
        f"d{n}": Document(f"d{n}", name, f"{name} lies on the river {names[n - 3]}.")
        for n, name in enumerate(names)
    }


@pytest.fixture
def paths(tmp_path):
    return Paths(tmp_path, "wikihop")


def embed_corpus(paths, corpus, embedder):
    texts = [document_text(document) for document in corpus.values()]
    return vectors.fill(paths.vectors("doc"), texts, embedder, embedder.document_batches)


def reference(ids, matrix, query, k, exclude):
    """Float64 cosines, ties in the order of ids."""
    matrix, query = matrix.astype(np.float64), query.astype(np.float64)
    lengths = np.linalg.norm(matrix, axis=1) * np.linalg.norm(query)
    cosines = (matrix @ query) / lengths
    found = [(-round(c, 6), id) for c, id in zip(cosines, ids) if id not in exclude]
    return [id for _, id in sorted(found)][:k]


@pytest.mark.parametrize("seed", range(20))
def test_ranks_as_the_reference(seed):
    random = np.random.default_rng(seed)
    count, width = int(random.integers(1, 400)), int(random.integers(2, 70))
    matrix = random.normal(size=(count, width)).astype(np.float32) * random.uniform(0.1, 30)
    matrix[count // 2 :] = matrix[: count - count // 2]  # every second one is a duplicate
    ids = [f"x{n}" for n in random.permutation(count)]
    index = Index(ids, matrix)
    for _ in range(5):
        query = random.normal(size=width).astype(np.float32)
        k = int(random.integers(1, count + 3))
        exclude = frozenset(random.choice(ids, int(random.integers(0, count))))
        hits = index.rank(query, k, exclude)
        assert [hit.id for hit in hits] == reference(ids, matrix, query, k, exclude)


def test_the_similarity_is_the_cosine():
    hits = Index(["a", "b", "c"], np.array([[3, 0], [1, 1], [-2, 0]])).rank(np.array([5, 0]), 3)
    assert hits == [Hit("a", 1.0), Hit("b", 0.707107), Hit("c", -1.0)]


@given(st.integers(2, 300), st.integers(1, 40), st.integers(0, 999))
@sweep(25)
def test_equal_vectors_rank_by_id_wherever_they_stand(count, k, seed):
    random = np.random.default_rng(seed)
    ids = [f"{n:03d}" for n in random.permutation(count)]
    row = random.normal(size=37).astype(np.float32)
    hits = Index(ids, np.tile(row, (count, 1))).rank(row, k)
    assert [hit.id for hit in hits] == sorted(ids)[:k]


def test_what_float32_cannot_tell_apart_is_a_tie():
    query = np.array([1.0, 0.0])
    nearly = np.array([[1.0, 1e-4], [1.0, 0.0], [1.0, 5e-5]])
    assert [hit.id for hit in Index(["c", "b", "a"], nearly).rank(query, 2)] == ["a", "b"]


def test_a_larger_k_only_appends():
    random = np.random.default_rng(0)
    matrix = random.integers(-1, 2, size=(200, 5)).astype(np.float32) + 0.01  # many ties
    index, query = Index([str(n) for n in range(200)], matrix), random.normal(size=5)
    full = index.rank(query, 200)
    assert all(index.rank(query, k) == full[:k] for k in range(200))


def test_excluded_ids_make_room_for_the_next():
    index = Index(list("abcd"), np.array([[1, 0], [0.9, 0.1], [0.5, 0.5], [0, 1]]))
    found = index.rank(np.array([1, 0]), 2, frozenset("ab"))
    assert [hit.id for hit in found] == ["c", "d"]
    assert index.rank(np.array([1, 0]), 2, frozenset("abcd")) == []
    assert len(index.rank(np.array([1, 0]), 9, frozenset({"not there"}))) == 4


def test_nothing_to_find():
    assert Index([], np.empty((0, 4))).rank(np.ones(4), 3) == []
    assert Index(["a"], np.ones((1, 4))).rank(np.ones(4), 0) == []


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_vector_without_direction_is_refused(bad):
    with pytest.raises(ValueError, match="the vector of 'b' is zero or not finite"):
        Index(["a", "b"], np.array([[1.0, 0.0], [bad, 0.0]]))
    with pytest.raises(ValueError, match="the vector of 'the query'"):
        Index(["a"], np.array([[1.0, 0.0]])).rank(np.array([bad, 0.0]), 1)


def test_ids_and_vectors_must_match():
    with pytest.raises(ValueError, match=r"2 ids \(2 different\) for 3 vectors"):
        Index(["a", "b"], np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"2 ids \(1 different\)"):
        Index(["a", "a"], np.ones((2, 2)))
    with pytest.raises(ValueError, match="3 dimensions, the index 2"):
        Index(["a"], np.ones((1, 2))).rank(np.ones(3), 1)


def test_vectors_are_float32_of_length_one(embedder):
    for matrix in (embedder.queries(["a b", "c"]), embedder.documents(["a b", "c"])):
        assert matrix.dtype == np.float32 and matrix.shape == (2, 64)
        np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-6)
    assert embedder.queries([]).shape == embedder.documents([]).shape == (0, 64)


def test_a_query_is_embedded_once(embedder):
    embedder.queries(["a", "b", "a"])
    embedder.queries(["b"])
    assert embedder.asked == [("query", "a"), ("query", "b")]


def test_threads_embed_a_query_once(embedder):
    threads = [threading.Thread(target=embedder.queries, args=(["same"],)) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert embedder.asked == [("query", "same")]


class Forgetful(Counting):
    max_cached_queries = 2


def test_old_queries_make_room(embedder):
    embedder = Forgetful(embedder.name, embedder.model)
    embedder.queries(["a", "b", "c"])
    assert len(embedder.cache) == 2
    embedder.queries(["a"])
    assert len(embedder.asked) == 4


def test_documents_keep_their_order_and_equal_texts_are_embedded_once(embedder):
    texts = ["short", "a rather long text about rivers", "short", "mid size"]
    counting = Counting(embedder.name, embedder.model, batch_size=2)
    assert [len(batch) for batch, _ in counting.document_batches(texts)] == [2, 1]
    matrix = counting.documents(texts)
    for text, row in zip(texts, matrix):
        np.testing.assert_allclose(row, embedder.documents([text])[0], atol=1e-6)
    np.testing.assert_array_equal(matrix[0], matrix[2])


def test_a_text_that_says_nothing_is_named(embedder):
    with pytest.raises(ValueError, match="the vector of '' is zero or not finite"):
        embedder.queries([""])
    with pytest.raises(ValueError, match=r"the vector of '  ' .* \(1 of 2 are\)"):
        embedder.documents(["a", "  "])


def test_the_models_own_prompts_apply(embedder, tmp_path):
    embedder.model.prompts = {"query": "search for: ", "document": "passage: "}
    embedder.model.save(str(tmp_path))
    prompted = Embedder.load(str(tmp_path), "cpu")
    plain = Embedder.load(embedder.name, "cpu")
    np.testing.assert_allclose(
        prompted.queries(["x y"]), plain.queries(["search for: x y"]), atol=1e-6
    )
    np.testing.assert_allclose(
        prompted.documents(["x y"]), plain.documents(["passage: x y"]), atol=1e-6
    )
    assert prompted.digest != plain.digest


def test_the_digest_is_of_the_weights_not_of_the_folder(embedder, embedder_folder, tmp_path):
    import torch

    embedder.queries(["what is used may keep state"])
    embedder.model.save(str(tmp_path / "moved"))
    assert Embedder.load(str(tmp_path / "moved"), "cpu").digest == embedder.digest
    with torch.no_grad():
        next(embedder.model.parameters())[5, 5] += 1e-3
    embedder.model.save(str(tmp_path / "trained"))
    assert Embedder.load(str(tmp_path / "trained"), "cpu").digest != embedder.digest


def test_the_digest_does_not_change_with_use(attending_folder, tmp_path):
    """A tokenizer keeps how it last padded and cut, and saves that with itself."""
    embedder = Embedder.load(str(attending_folder), "cpu")
    embedder.model.max_seq_length = 8
    digest = Embedder("cut", embedder.model).digest
    embedder.queries(["a text of more than eight tokens"])
    embedder.model.save(str(tmp_path))
    again = Embedder.load(str(tmp_path), "cpu")
    again.model.max_seq_length = 8
    assert Embedder("cut", again.model).digest == digest


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_model_that_does_not_load_is_one_line_that_says_what_to_do(tmp_path, embedder_folder):
    empty, code = tmp_path / "empty", tmp_path / "code"
    empty.mkdir()
    write(
        code / "modules.json", '[{"idx": 0, "name": "0", "path": "", "type": "own_code.Encoder"}]'
    )
    write(code / "config_sentence_transformers.json", "{}")
    write(code / "own_code.py", "raise SystemExit('was run')")
    expected = {
        "": "expected a folder or a hub name",
        str(tmp_path / "absent"): "neither a folder nor a model on the hub; check the spelling",
        str(write(tmp_path / "file")): "expected a GGUF file, or the folder that holds the model",
        str(empty): "check --device, and that the folder or repository holds such a model",
        str(code): "add --trust-remote-code",
        "some-lab/misspelt": "the hub cannot be reached; pass a folder",
    }
    for name, advice in expected.items():
        with pytest.raises(ValueError, match=advice) as caught:
            Embedder.load(name, "cpu")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="check --device"):
        Embedder.load(str(embedder_folder), "banana")


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for a model that is gated, and for one that is not there."""

    def do_GET(self):
        code, reason = (403, "GatedRepo") if "gated" in self.path else (404, "RepoNotFound")
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words):
        pass


@pytest.fixture
def hub():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(hub):
    code = (
        "from lag.retrieval.embedder import load_model\n"
        "for name in ('lab/gated', 'lab/misspelt'):\n"
        "    try: load_model(name, 'cpu', False)\n"
        "    except ValueError as error: print(error)\n"
    )
    offline = {"HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"}
    environment = {k: v for k, v in os.environ.items() if k not in offline}
    environment |= {"HF_ENDPOINT": hub, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    gated, misspelt = run.stdout.decode().splitlines()
    assert "accept its terms at https://huggingface.co/lab/gated and set HF_TOKEN" in gated
    assert "neither a folder nor a model on the hub; check the spelling" in misspelt


@pytest.fixture(scope="module")
def attending_folder(tmp_path_factory):
    """A tiny transformer without a chat template, as an encoder has none."""
    folder = tmp_path_factory.mktemp("attending")
    tiny.tiny_model().save_pretrained(folder)
    tiny.byte_tokenizer(template=None).save_pretrained(folder)
    return folder


def test_a_bare_checkpoint_loads_with_a_warning(tiny_folder, caplog):
    embedder = Embedder.load(str(tiny_folder), "cpu")
    assert embedder.queries(["a"]).shape == (1, 32)
    assert "its pooling is a guess: Pooling" in caplog.text


def test_texts_that_the_model_cannot_read_to_their_end_are_counted(attending_folder, caplog):
    embedder = Embedder.load(str(attending_folder), "cpu")
    embedder.model.max_seq_length = 8
    embedder.documents(["12345678", "123456789", "1234567890"])
    assert "reads 8 tokens; 2 longer texts are cut" in caplog.text
    caplog.clear()
    embedder.documents(["12345678"])
    assert "are cut" not in caplog.text


def test_a_query_does_not_depend_on_what_is_beside_it(attending_folder):
    """With attention, unlike with static vectors, padding would move the last digits."""
    texts = ["a", "a much longer question than the first", "why?"]
    together = Embedder.load(str(attending_folder), "cpu").queries(texts)
    alone = Embedder.load(str(attending_folder), "cpu")
    for text, row in zip(reversed(texts), reversed(list(together))):
        np.testing.assert_array_equal(alone.queries([text])[0], row)


def test_documents_are_found_by_their_words(paths, corpus, embedder):
    embed_corpus(paths, corpus, embedder)
    index = load_documents_index(paths, corpus, embedder)
    assert [hit.id for hit in index.rank("Delft lies on the river Arden.", 1)] == ["d3"]
    assert "d3" not in [hit.id for hit in index.rank("Delft", 9, frozenset({"d3"}))]


def test_documents_that_were_not_embedded_are_refused_with_the_command(paths, corpus, embedder):
    command = f"run: python embed.py -d wikihop --data {paths.root} --embedder {embedder.name}"
    with pytest.raises(FileNotFoundError, match="not found") as caught:
        load_documents_index(paths, corpus, embedder)
    assert str(caught.value).endswith(command)


def test_documents_that_changed_are_refused_with_the_command(paths, corpus, embedder):
    embed_corpus(paths, corpus, embedder)
    changed = {**corpus, "d2": Document("d2", "Corvo", "Something else.")}
    with pytest.raises(ValueError, match="is stale: of 7 texts 1 are not in it") as caught:
        load_documents_index(paths, changed, embedder)
    assert "run: python embed.py -d wikihop" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_embedders_documents_are_refused(paths, corpus, embedder, tiny_folder):
    embed_corpus(paths, corpus, embedder)
    with pytest.raises(ValueError, match=f"was not made by {tiny_folder} but by {embedder.name}"):
        load_documents_index(paths, corpus, Embedder.load(str(tiny_folder), "cpu"))


def test_the_command_leaves_out_the_default_folder(embedder):
    command = embed_command(Paths("data", "musique"), embedder)
    assert command == f"run: python embed.py -d musique --embedder {embedder.name}"


def test_questions_that_were_embedded_before_are_not_embedded_again(paths, corpus, embedder):
    embed_corpus(paths, corpus, embedder)
    questions = ["where is Delft?", "where is Gale?"]
    vectors.fill(paths.vectors("q"), questions, embedder, embedder.query_batches)
    fresh = Counting(embedder.name, embedder.model)
    index = load_documents_index(paths, corpus, fresh)
    ranked = [index.rank(question, 7) for question in questions]
    assert fresh.asked == []
    index.rank("another query", 1)
    assert fresh.asked == [("query", "another query")]
    paths.vectors("q").unlink()
    without = load_documents_index(paths, corpus, Counting(fresh.name, fresh.model))
    assert [without.rank(question, 7) for question in questions] == ranked


def test_damaged_question_vectors_are_named_and_not_used(paths, corpus, embedder, caplog):
    embed_corpus(paths, corpus, embedder)
    vectors.fill(paths.vectors("q"), ["where?"], embedder, embedder.query_batches)
    paths.vectors("q").write_bytes(b"cut")
    fresh = Counting(embedder.name, embedder.model)
    load_documents_index(paths, corpus, fresh).rank("where?", 1)
    assert "questions are embedded as they come" in caplog.text
    assert fresh.asked == [("query", "where?")]
