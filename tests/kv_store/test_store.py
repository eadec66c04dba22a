"""The store serves what was published, bit for bit, or nothing; and says what it did."""

import json
import logging
import multiprocessing
import os
import random
import signal
import stat
import sys
import time

import families
import pytest
import tiny
import torch
from counted import calls

from lag.kv import encode
from lag.kv.span import KVSpan
from lag.kv_store import fingerprint
from lag.kv_store.read_memory import LARGE, ReadMemory
from lag.kv_store.span_file import read_span, read_whole
from lag.kv_store.store import COUNTS, KVStore, orphans
from lag.paths import Strategy

PAIRS = [((), (9, 8, 7)), ((1, 2, 3), (4, 5)), ((4,), (5,))]
FINGERPRINT = {"model": "llama", "dtype": "float32", "weights": "aa", "digest": "d1"}


def made_up(pairs) -> list[KVSpan]:
    """Spans that follow from their tokens alone, without a model."""
    spans = []
    for after, keep in pairs:
        generator = torch.Generator().manual_seed(sum(after) * 1000 + sum(keep))
        layers = torch.randn(2, 3, 2, len(keep), 4, generator=generator).unbind()
        spans.append(KVSpan(tuple(keep), *(tuple(t.clone() for t in part) for part in layers)))
    return spans


def open_store(folder, strategy="log_kv", **changes) -> KVStore:
    return KVStore(folder, {**FINGERPRINT, **changes}, Strategy(strategy), made_up)


def same(a: KVSpan, b: KVSpan) -> bool:
    return a.ids == b.ids and all(map(torch.equal, (*a.keys, *a.values), (*b.keys, *b.values)))


@pytest.fixture
def warmed(tmp_path):
    open_store(tmp_path / "kv").fetch(PAIRS)
    return tmp_path / "kv"


def test_encoded_once_then_read(tmp_path):
    store = open_store(tmp_path / "kv")
    first = store.fetch([*PAIRS, PAIRS[0]])
    assert [one.source for one in first] == ["encoded"] * 4
    again = open_store(tmp_path / "kv")
    second = again.fetch([*PAIRS, PAIRS[0]])
    assert [one.source for one in second] == ["kv"] * 4
    assert all(same(a.span, b.span) for a, b in zip(first, second))
    assert [one.num_bytes for one in second] == [one.span.num_bytes for one in first]
    assert store.counts == dict.fromkeys(COUNTS, 0) | {"encoded": 3}
    assert again.counts == dict.fromkeys(COUNTS, 0) | {"hits": 4}


def test_a_real_span_comes_back_bit_for_bit(tmp_path):
    model, mover = families.movable("llama"), families.mover("llama")
    store = KVStore(
        tmp_path, FINGERPRINT, Strategy("log_kv"), lambda pairs: encode.encode(model, mover, pairs)
    )
    made = store.fetch(PAIRS)
    assert all(same(a.span, b.span) for a, b in zip(made, store.fetch(PAIRS)))


def test_low_precision_comes_back_bit_for_bit(tmp_path):
    keys, values = (tuple(torch.randn(2, 2, 3, 4).bfloat16().unbind()) for _ in range(2))
    store = open_store(tmp_path)
    store.publish((1,), (2, 3, 4), span := KVSpan((2, 3, 4), keys, values))
    assert same(store.fetch([((1,), (2, 3, 4))])[0].span, span)


def test_memory_is_read_into_again_only_when_nobody_holds_it(tmp_path):
    """Planted: a view of what was read is all that is left of it, and others are read meanwhile."""
    files, memory = [tmp_path / name for name in "abc"], ReadMemory(most_idle=LARGE)
    for number, path in enumerate(files):
        path.write_bytes(bytes([number]) * (LARGE + 5 + number))
    first = read_whole(files[0], memory)
    view, place = first[7:9].view(2, 1), first.data_ptr()
    del first
    others = [read_whole(path, memory) for path in files]
    assert [set(other.tolist()) for other in others] == [{0}, {1}, {2}]
    assert place not in [other.data_ptr() for other in others] and view.tolist() == [[0], [0]]
    del view, others
    assert read_whole(files[0], memory).data_ptr() == place, "the smallest that is large enough"
    path = tmp_path / "large"
    path.write_bytes(bytes(3 * LARGE))
    held = read_whole(path, memory)
    assert sum(map(len, memory.blocks)) <= 2 * LARGE + 10 + len(held), "idle blocks were given up"


def test_what_was_read_is_not_changed_by_reading_on(tmp_path):
    """Spans of a megabyte and more, held and let go while others are read."""
    pairs = [((n,), tuple(range(9000))) for n in range(4)]
    store = open_store(tmp_path)
    expected = [found.span for found in store.fetch(pairs)]
    for order in ([0, 1], [2], [3, 0], [1]):
        found = [store.fetch([pairs[n]])[0] for n in order]
        assert all(one.source == "kv" for one in found)
        assert all(same(one.span, expected[n]) for one, n in zip(found, order))
    assert len(store.memory.blocks) == 3, "those of one turn, while those of the last are held"


def test_what_was_hidden_is_part_of_the_key(warmed):
    """A changed log, another strategy, or a shifted border meets no old file."""
    store = open_store(warmed)
    assert store.has((1, 2, 3), (4, 5))
    assert not store.has((1, 2), (3, 4, 5))
    assert not store.has((1, 2, 9), (4, 5))
    assert not open_store(warmed, "log_kv_all").has((1, 2, 3), (4, 5))


def test_owner_only(warmed):
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [warmed, *warmed.rglob("*")]}
    assert {modes[path] for path in modes if path.is_dir()} == {0o700}
    assert {modes[path] for path in modes if path.is_file()} == {0o600}
    assert not list((warmed / "d1" / "temporary").iterdir())


def damage_and_fetch(warmed, change, caplog) -> KVStore:
    """Change the bytes of one file, fetch it, and see that it was named, counted and made anew."""
    store = open_store(warmed)
    path, expected = store.path(*PAIRS[1]), made_up(PAIRS[1:2])[0]
    path.write_bytes(change(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        fetched = store.fetch([PAIRS[1]])[0]
    assert fetched.source == "encoded" and same(fetched.span, expected)
    assert store.counts["damaged"] == 1 and path.name in caplog.text
    assert store.fetch([PAIRS[1]])[0].source == "kv"
    return store


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def test_planted_flipped_byte_is_named_and_encoded_again(warmed, caplog):
    damage_and_fetch(warmed, lambda content: flipped(content, len(content) - 5, 3), caplog)


def test_no_flipped_bit_anywhere_is_served(warmed):
    """Every third byte of a file: header, offsets, token ids, tensors."""
    store = open_store(warmed)
    path = store.path(*PAIRS[1])
    content = path.read_bytes()
    draw = random.Random(0)
    for place in range(0, len(content), 3):
        path.write_bytes(flipped(content, place, draw.randrange(8)))
        assert store._read(PAIRS[1]) is None, f"a flip at byte {place} went unnoticed"


def test_bytes_under_another_dtype_are_damaged(warmed, caplog):
    """The bytes are intact; only what they are said to be has changed."""
    damage_and_fetch(warmed, lambda content: content.replace(b'"F32"', b'"I32"'), caplog)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_cut_file_is_damaged(warmed, caplog, length):
    damage_and_fetch(warmed, lambda content: content[:length], caplog)


def test_a_file_under_another_name_is_damaged(warmed, caplog):
    other = open_store(warmed).path(*PAIRS[0]).read_bytes()
    damage_and_fetch(warmed, lambda content: other, caplog)


def test_planted_file_of_another_model_under_the_right_name(warmed, tmp_path, caplog):
    """Equal shapes, valid checksums: only the identity in the header tells."""
    foreign = open_store(tmp_path / "other", digest="d2", weights="bb")
    foreign.publish(*PAIRS[1], made_up([((6,), PAIRS[1][1])])[0])
    content = foreign.path(*PAIRS[1]).read_bytes()
    damage_and_fetch(warmed, lambda _: content, caplog)
    assert "another digest" in caplog.text


def test_planted_other_models_folder_is_refused_by_name(warmed):
    with pytest.raises(ValueError, match="made with another dtype, weights"):
        open_store(warmed, weights="bb", dtype="bfloat16")
    (warmed / "d1" / "fingerprint.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot be read.*remove"):
        open_store(warmed)


def test_planted_single_mlp_weight_is_another_model(tmp_path):
    """The weights decide, to the last one of them; a store then holds nothing for the model."""
    tokenizer = tiny.byte_tokenizer()
    model = families.build(*families.MOVABLE["llama"])
    before = fingerprint.fingerprint(model, tokenizer)
    store = KVStore(tmp_path, before, Strategy("log_kv"), made_up)
    store.fetch(PAIRS)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    after = fingerprint.fingerprint(model, tokenizer)
    assert fingerprint.difference(before, after) == ["weights"]
    other = KVStore(tmp_path, after, Strategy("log_kv"), made_up)
    assert [one.source for one in other.fetch(PAIRS)] == ["encoded"] * 3


def test_a_store_that_cannot_be_written_still_serves(tmp_path, caplog):
    (tmp_path / "kv").write_text("in the way")
    with pytest.raises(OSError):
        open_store(tmp_path / "kv").publish(*PAIRS[0], made_up(PAIRS[:1])[0])
    (tmp_path / "kv").unlink()
    store = open_store(tmp_path / "kv")
    store.fetch(PAIRS[:1])
    store.path(*PAIRS[1]).mkdir()
    fetched = store.fetch(PAIRS[1:2])[0]
    assert fetched.source == "encoded" and store.counts["unpublished"] == 1
    assert "could not be stored" in caplog.text


# ----- processes


def publish_forever(folder) -> None:
    store = open_store(folder)
    spans = made_up(PAIRS)
    while True:
        for pair, span in zip(PAIRS, spans):
            store.publish(*pair, span)


def in_child(work, *args) -> multiprocessing.Process:
    child = multiprocessing.get_context("fork").Process(target=work, args=args)
    child.start()
    return child


def kill_while_publishing(folder, times: int) -> None:
    draw, expected = random.Random(0), made_up(PAIRS)
    for _ in range(times):
        child = in_child(publish_forever, folder)
        time.sleep(draw.uniform(0.005, 0.05))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        store = open_store(folder)
        found = [store._read(pair) for pair in PAIRS]
        assert store.counts["damaged"] == 0
        assert all(same(a, b) for a, b in zip(found, expected) if a)
    store.publish(*PAIRS[0], expected[0])
    assert not list(store.temporary.iterdir()), "orphans were not swept"


def test_a_kill_during_publication_leaves_nothing_that_is_served(tmp_path):
    kill_while_publishing(tmp_path / "kv", 15)


@pytest.mark.stress
def test_two_hundred_kills(tmp_path):
    kill_while_publishing(tmp_path / "kv", 200)


def warm_all(folder, pairs, seed) -> None:
    mixed = random.Random(seed).sample(pairs, len(pairs))
    fetched = open_store(folder).fetch(mixed)
    assert all(same(one.span, span) for one, span in zip(fetched, made_up(mixed)))


def test_eight_processes_warm_one_store(tmp_path):
    pairs = [((n,), (n + 1, n + 2)) for n in range(30)]
    children = [in_child(warm_all, tmp_path / "kv", pairs, seed) for seed in range(8)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 8
    store = open_store(tmp_path / "kv")
    assert {one.source for one in store.fetch(pairs)} == {"kv"}
    assert store.counts == dict.fromkeys(COUNTS, 0) | {"hits": 30}
    assert not list(store.temporary.iterdir())


def test_only_orphans_are_swept(warmed):
    """A dead writer's file, or a day old one of another machine; not that of a living one."""
    store = open_store(warmed)
    host = os.uname().nodename
    dead = in_child(os._exit, 0)
    dead.join()
    names = [f"{host}-{dead.pid}-a", f"{host}-{os.getpid()}-b", "elsewhere-1-c", "elsewhere-1-d"]
    for name in names:
        (store.temporary / name).write_bytes(b"")
    os.utime(store.temporary / names[3], (0, 0))
    assert {path.name for path in orphans(store.temporary)} == {names[0], names[3]}


# ----- size


class FileEvents:
    """Counts what Python asks of the file system while it is on."""

    names = ("open", "os.listdir", "os.scandir")

    def __init__(self):
        self.seen, self.on = [], False
        sys.addaudithook(
            lambda name, args: self.on and name in self.names and self.seen.append(args)
        )


def test_a_thousand_logs_cost_no_more_than_ten(tmp_path):
    """Opening a store and serving its first log asks the same of the disk, whatever its size."""
    events, costs = FileEvents(), []
    for count in (10, 1000):
        folder = tmp_path / str(count)
        store = open_store(folder)
        store.fetch(PAIRS[:1])
        for n in range(count - 1):
            (store.folder / f"{n:064x}.safetensors").touch()
        found, events.seen, events.on = [], [], True
        work = calls(lambda folder=folder, found=found: found.extend(open_store(folder).fetch(PAIRS[:1])))  # fmt: skip
        events.on = False
        assert [one.source for one in found] == ["kv"]
        assert str(store.folder) not in [str(args[0]) for args in events.seen], "it was listed"
        costs.append((len(events.seen), work))
    assert costs[0] == costs[1]


# ----- fingerprints


def fingerprint_of(**overrides):
    return fingerprint.fingerprint(
        tiny.tiny_model(tiny.tiny_config(**overrides)), tiny.byte_tokenizer()
    )


def test_fingerprint_says_what_differs():
    base = fingerprint_of()
    assert base == fingerprint_of() and fingerprint.difference(base, fingerprint_of()) == []
    scaled = fingerprint_of(rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    assert fingerprint.difference(base, scaled) == ["config", "inv_freq"]
    assert fingerprint.difference(base, fingerprint_of(rms_norm_eps=1e-3)) == ["config"]
    model = tiny.tiny_model()
    model.model.rotary_emb.inv_freq[3] *= 1.01
    assert fingerprint.difference(base, fingerprint.fingerprint(model, tiny.byte_tokenizer())) == [
        "inv_freq"
    ]
    half = fingerprint.fingerprint(tiny.tiny_model().to(torch.float16), tiny.byte_tokenizer())
    assert fingerprint.difference(base, half) == ["dtype", "inv_freq", "weights"]


def test_fingerprint_knows_the_tokenizer_but_not_its_padding():
    model, plain, other = tiny.tiny_model(), tiny.byte_tokenizer(), tiny.byte_tokenizer()
    base = fingerprint.fingerprint(model, plain)
    plain(["a", "bcd"], padding=True)
    assert fingerprint.fingerprint(model, plain) == base
    other.add_tokens(["extra"])
    assert fingerprint.difference(base, fingerprint.fingerprint(model, other)) == ["tokenizer"]


def test_weights_are_hashed_once_per_stamp_of_their_files(tmp_path):
    """Remembered by path, size and time; a touched file, or another dtype, is hashed again."""
    folder = tiny.save_tiny(tmp_path / "model")
    files = sorted(folder.glob("*.safetensors"))
    model, tokenizer, cache = tiny.tiny_model(), tiny.byte_tokenizer(), tmp_path / "kv"
    base = fingerprint.fingerprint(model, tokenizer, cache, files)
    assert base == fingerprint.fingerprint(model, tokenizer)
    remembered = json.loads((cache / "weights.json").read_text())
    assert list(remembered.values()) == [base["weights"]]
    (cache / "weights.json").write_text(json.dumps(dict.fromkeys(remembered, "from the cache")))
    assert fingerprint.fingerprint(model, tokenizer, cache, files)["weights"] == "from the cache"
    os.utime(files[0], ns=(1, 1))
    assert fingerprint.fingerprint(model, tokenizer, cache, files) == base
    (cache / "weights.json").write_text("torn")
    assert fingerprint.fingerprint(model, tokenizer, cache, files) == base


def test_digest_covers_name_dtype_shape_and_order_free():
    a, b = torch.zeros(2, 3), torch.ones(4)
    digest = fingerprint.tensors_digest
    assert digest([("a", a), ("b", b)]) == digest([("b", b), ("a", a)])
    assert digest([("a", a)]) != digest([("b", a)])
    assert digest([("a", a)]) != digest([("a", a.view(3, 2))])
    assert digest([("a", a)]) != digest([("a", a.view(torch.int32))])
    assert digest([("a", torch.tensor(1.5))]) != digest([("a", torch.tensor(2.5))])


def test_header_names_what_made_it(warmed):
    """A file explains itself: model, dtype, strategy, layout."""
    from safetensors import safe_open

    store = open_store(warmed)
    with safe_open(store.path(*PAIRS[0]), framework="pt") as file:
        header = json.loads(file.metadata()["lag"].split(" ", 1)[1])
    assert header["model"] == "llama" and header["strategy"] == "log_kv"
    read = read_span(store.path(*PAIRS[0]), *PAIRS[0], store.identity, store.kv_format)
    assert same(read, made_up(PAIRS)[0])
