"""Vectors on disk: what is there is found, what is not is made once, what is wrong is named."""

import json
import os
import random
import resource
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import warm
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from sweeps import sweep

from lag.retrieval import vectors


class Letters:
    """A real, tiny encoder: letter counts, scaled. Counts the texts it is asked for."""

    def __init__(self, name="letters", digest="d1"):
        self.name, self.digest, self.asked = name, digest, []

    def batches(self, texts):
        for start in range(0, len(texts), 2):
            yield texts[start : start + 2], self(texts[start : start + 2])

    def __call__(self, texts):
        self.asked += texts
        counts = np.array([[text.count(chr(97 + n)) + 0.1 for n in range(26)] for text in texts])
        counts = counts.reshape(len(texts), 26)
        return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)


def fill(path, texts, encoder, **options):
    return vectors.fill(path, texts, encoder, encoder.batches, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "embeds" / "doc.npy"


def test_what_was_written_is_read(path):
    encoder = Letters()
    filled, made = fill(path, ["ab", "c", "ab"], encoder)
    stored = vectors.read_current(path, ["ab", "c", "ab"], encoder)
    assert made == 2 and encoder.asked == ["ab", "c"]
    assert stored.keys == filled.keys and len(stored.matrix) == 3  # a row per text, in order
    np.testing.assert_array_equal(stored.matrix, encoder(["ab", "c", "ab"]))


def test_the_manifest_says_what_the_vectors_were_made_from(path):
    fill(path, ["ab", "c"], Letters("some/encoder"))
    facts = json.loads(path.with_suffix(".json").read_text())
    assert (facts["model"], facts["count"], facts["dimensions"]) == ("some/encoder", 2, 26)
    before = facts["digest"]
    fill(path, ["c", "ab"], Letters("some/encoder"))
    assert json.loads(path.with_suffix(".json").read_text())["digest"] != before


def test_only_new_texts_are_embedded(path):
    encoder = Letters()
    fill(path, ["a", "b"], encoder)
    encoder.asked.clear()
    filled, made = fill(path, ["b", "new", "a"], encoder)
    assert (made, encoder.asked) == (1, ["new"])
    np.testing.assert_array_equal(filled.matrix, Letters()(["b", "new", "a"]))
    assert fill(path, ["b", "new", "a"], encoder)[1] == 0


def test_reordering_embeds_nothing_but_is_written(path):
    encoder = Letters()
    fill(path, ["a", "b"], encoder)
    assert fill(path, ["b", "a"], encoder)[1] == 0
    np.testing.assert_array_equal(
        vectors.read_current(path, ["b", "a"], encoder).matrix, Letters()(["b", "a"])
    )


def test_several_owners_share_a_file(path):
    encoder = Letters()
    fill(path, ["a", "b"], encoder, keep_others=True)
    fill(path, ["b", "c"], encoder, keep_others=True)
    encoder.asked.clear()
    filled, made = fill(path, ["c", "a"], encoder, keep_others=True)
    assert (made, encoder.asked, len(filled.keys)) == (0, [], 3)
    np.testing.assert_array_equal(filled.of(vectors.keys_of(["c", "a"])), Letters()(["c", "a"]))


def test_without_others_what_is_gone_is_dropped(path):
    fill(path, ["a", "b"], Letters())
    assert len(fill(path, ["b"], Letters())[0].keys) == 1


def test_afresh_embeds_everything_again(path):
    encoder = Letters()
    fill(path, ["a", "b"], encoder)
    assert fill(path, ["a", "b"], encoder, afresh=True)[1] == 2


def test_another_encoder_is_named_and_its_vectors_are_not_used(path, caplog):
    fill(path, ["a"], Letters("old/encoder", "d1"))
    new = Letters("new/encoder", "d2")
    with pytest.raises(ValueError, match=r"not made by new/encoder but by old/encoder"):
        vectors.read_current(path, ["a"], new)
    assert fill(path, ["a"], new)[1] == 1
    assert "not made by new/encoder" in caplog.text


def test_a_retrained_encoder_of_the_same_name_is_another_one(path):
    fill(path, ["a"], Letters("e", "d1"))
    with pytest.raises(ValueError, match="an earlier state of it"):
        vectors.read_current(path, ["a"], Letters("e", "d2"))


def test_a_moved_encoder_is_the_same_one(path):
    fill(path, ["a"], Letters("old/place", "d1"))
    assert fill(path, ["a"], Letters("new/place", "d1"))[1] == 0


@pytest.mark.parametrize(
    ("texts", "new", "gone"),
    [(["a", "changed"], 1, 1), (["a", "b", "c"], 1, 0), (["a"], 0, 1), (["b", "a"], 0, 0)],
)
def test_other_texts_are_stale(path, texts, new, gone):
    fill(path, ["a", "b"], Letters())
    with pytest.raises(ValueError, match=f"is stale: .* {new} are not in it, {gone} others"):
        vectors.read_current(path, texts, Letters())


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def without_manifest(path):
    path.with_suffix(".json").unlink()


def half_a_manifest(path):
    manifest = path.with_suffix(".json")
    manifest.write_text(manifest.read_text()[:40])


def other_manifest(path):
    path.with_suffix(".json").write_text('["count"]')


def edit(**changes):
    def damage(path):
        manifest = path.with_suffix(".json")
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))

    return damage


DAMAGE = {
    "truncated": (truncate, "truncated or changed"),
    "empty": (empty, "truncated or changed"),
    "flipped bit": (flip, "truncated or changed"),
    "no manifest": (without_manifest, r"doc\.json is missing"),
    "half a manifest": (half_a_manifest, "not valid JSON"),
    "another manifest": (other_manifest, "not a manifest of vectors"),
    "wrong count": (edit(count=3), r"holds \(2, 26\); its manifest says \(3, 26\)"),
    "wrong width": (edit(dimensions=25), r"holds \(2, 26\)"),
    "missing keys": (edit(texts=["a"]), r"holds \(2, 26\)"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_in_one_line_and_repaired(path, name, caplog):
    damage, message = DAMAGE[name]
    fill(path, ["a", "b"], Letters())
    damage(path)
    with pytest.raises(ValueError, match=message) as caught:
        vectors.read_current(path, ["a", "b"], Letters())
    assert "\n" not in str(caught.value) and str(path.parent) in str(caught.value)
    assert fill(path, ["a", "b"], Letters())[1] == 2
    assert "embedding again" in caplog.text
    assert len(vectors.read_current(path, ["a", "b"], Letters()).matrix) == 2


def test_a_kill_between_matrix_and_manifest_is_noticed(path):
    fill(path, ["a", "b"], Letters())
    old = path.with_suffix(".json").read_text()
    fill(path, ["a", "c"], Letters())  # as many vectors, of the same width
    path.with_suffix(".json").write_text(old)
    with pytest.raises(ValueError, match="truncated or changed"):
        vectors.read_current(path, ["a", "b"], Letters())


def test_a_file_is_replaced_not_written_over(path):
    fill(path, ["a", "b"], Letters())
    reading = path.with_name("opened by a reader")
    os.link(path, reading)
    before = reading.read_bytes()
    fill(path, ["a", "b", "c"], Letters())
    assert reading.read_bytes() == before != path.read_bytes()


def test_pickles_are_not_read(path):
    stored, _ = fill(path, ["a"], Letters())
    objects = replace(stored, matrix=np.array([[None]], dtype=object))
    with pytest.raises(ValueError, match="the vectors are object; expected float32"):
        vectors.write_vectors(path, objects)
    assert len(vectors.read_current(path, ["a"], Letters()).matrix) == 1  # nothing half-written


def fill_on(path, first, step, ready):
    ready.touch()
    texts = []
    for n in range(first, 60, step):
        texts.append(chr(97 + n % 26) * (n + 1))
        filled, _ = fill(path, texts, Letters(), keep_others=True)
        assert (filled.of(vectors.keys_of(texts)) == Letters()(texts)).all()


def started(work, path, *args):
    """A process that has begun with its work."""
    ready = path.parents[1] / "ready"
    ready.unlink(missing_ok=True)
    process = warm.start(work, path, *args, ready)
    while process.is_alive() and not ready.exists():
        time.sleep(0.001)
    return process


def test_several_processes_fill_one_file_at_once(path):
    fillers = [started(fill_on, path, first, 3) for first in range(3)]
    for filler in fillers:
        filler.join()
    assert [filler.exitcode for filler in fillers] == [0, 0, 0]
    everything = [chr(97 + n % 26) * (n + 1) for n in range(60)]
    filled, made = fill(path, everything, Letters(), keep_others=True)
    assert (made, len(filled.keys)) == (0, 60)  # no update was lost, no text has two rows


def test_a_killed_writer_leaves_a_file_that_is_whole_or_named(path):
    texts = [chr(97 + n % 26) * (n + 1) for n in range(60)]
    for delay in (0.0, 0.004, 0.009, 0.015, 0.025):
        filler = started(fill_on, path, 0, 1)
        time.sleep(delay)
        filler.kill()
        filler.join()
        filled, _ = fill(path, texts[:3], Letters(), keep_others=True)  # the lock died with it
        np.testing.assert_array_equal(filled.of(vectors.keys_of(texts[:3])), Letters()(texts[:3]))


# --- interrupted -------------------------------------------------------------------------------
MANY = [chr(97 + n % 26) * (n + 1) for n in range(120)]


class Slow(Letters):
    def __call__(self, texts):
        time.sleep(0.01)
        return super().__call__(texts)


def fill_slowly(path, made, ready):
    vectors.PART_SECONDS = 0.02
    ready.touch()
    made.write_text(str(fill(path, MANY, Slow())[1]))


def both_files(path):
    return path.read_bytes(), path.with_suffix(".json").read_bytes()


def killed_until_done(path, rng):
    """Start it again and again, each time killed a little later; how many vectors each start left."""
    left, made = [0], path.parents[1] / "made"
    for start in range(40):
        process = started(fill_slowly, path, made)
        process.join(0.05 + 0.25 * rng.random() * (1 + start / 5))
        process.kill()
        process.join()
        if process.exitcode == 0:
            return left, int(made.read_text())
        assert process.exitcode == -signal.SIGKILL
        if not path.exists():  # else it was killed while it cleared away
            left.append(len(list(vectors.read_parts(path.with_suffix(".parts"), Letters()))))
    raise AssertionError(f"it never ended: {left}")


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_it_goes_on_and_ends_as_if_never_killed(path, seed):
    """1,185 of 6,119 vectors were made, and the next start began with the first one again."""
    whole = path.with_name("whole.npy")
    fill(whole, MANY, Letters())
    left, made = killed_until_done(path, random.Random(seed))
    assert left == sorted(left) and left[-1] > 0, "no start left anything to the next one"
    assert made < len(MANY)
    assert both_files(path) == both_files(whole)
    assert not [p.name for p in path.parent.iterdir() if p.suffix not in (".npy", ".json", ".lock")]


class Interrupted(Letters):
    """Is interrupted after some batches, as by Ctrl-C."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def __call__(self, texts):
        if len(self.asked) >= self.after:
            raise KeyboardInterrupt
        return super().__call__(texts)


def interrupt(path, texts, after, **options):
    with pytest.raises(KeyboardInterrupt):
        fill(path, texts, Interrupted(after), **options)


def test_ctrl_c_keeps_every_vector_that_was_made(path, caplog):
    caplog.set_level("INFO")
    interrupt(path, MANY, after=30)
    encoder = Letters()
    assert fill(path, MANY, encoder)[1] == 90 and encoder.asked == MANY[30:]
    assert "30 vectors are there from an interrupted start" in caplog.text
    np.testing.assert_array_equal(vectors.read_current(path, MANY, encoder).matrix, encoder(MANY))


def test_a_corpus_that_changed_meanwhile_takes_what_is_the_same_text_and_nothing_else(path):
    interrupt(path, MANY, after=30)
    changed = [text + "!" if n % 2 else text for n, text in enumerate(MANY)][::-1]
    encoder = Letters()
    filled, made = fill(path, changed, encoder)
    assert made == 105  # of the 30 texts 15 are as they were
    np.testing.assert_array_equal(filled.matrix, encoder(changed))
    assert vectors.read_current(path, changed, encoder).keys == vectors.keys_of(changed)


def test_parts_of_another_encoder_or_damaged_ones_are_not_used(path, caplog):
    interrupt(path, MANY, after=30)
    interrupt(path, MANY, after=60)
    second = path.with_suffix(".parts") / "000001.npy"
    second.write_bytes(second.read_bytes()[:-1])
    encoder = Letters()
    fill(path, MANY, encoder)
    assert "truncated or changed" in caplog.text and encoder.asked == MANY[30:]
    interrupt(path.with_name("b.npy"), MANY, after=30)
    assert fill(path.with_name("b.npy"), MANY, Letters(digest="d2"))[1] == len(MANY)


def test_what_an_ordinary_start_left_is_not_used_afresh(path):
    interrupt(path, MANY, after=30)
    interrupt(path, MANY, after=10, afresh=True)
    encoder = Letters()
    fill(path, MANY, encoder, afresh=True)
    assert encoder.asked == MANY[10:]
    assert not path.with_suffix(".parts").exists()


def test_parts_of_another_log_store_are_kept(path):
    """Two stores share a file of vectors; one was interrupted, the other one is embedded next."""
    interrupt(path, MANY[:60], after=30, keep_others=True)
    fill(path, MANY[60:], Letters(), keep_others=True)
    encoder = Letters()
    filled, _ = fill(path, MANY[:60], encoder, keep_others=True)
    assert encoder.asked == MANY[30:60]
    np.testing.assert_array_equal(filled.of(vectors.keys_of(MANY)), Letters()(MANY))


def fill_with_little_room(path, said):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    try:
        fill(path, MANY, Letters())
    except OSError as error:
        said.write_text(f"{type(error).__name__}: {error}")


def test_a_full_disk_is_one_line_and_what_was_there_stays(path, tmp_path):
    fill(path, MANY[:3], Letters())
    before = both_files(path)
    process = warm.start(fill_with_little_room, path, tmp_path / "said")
    process.join()
    last = (tmp_path / "said").read_text()
    assert last.startswith(f"DiskFull: {path}: it is larger than a file may be there")
    assert "0.013 MB asked for" in last and "make room" in last
    assert both_files(path) == before and not list(path.parent.glob("*.tmp"))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
changed = st.dictionaries(st.sampled_from(vectors.FACTS), anything, max_size=3)


@given(st.one_of(st.binary(max_size=60), changed, anything), st.booleans())
@sweep(150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_manifest_is_one_of_vectors_or_one_line(path, content, known):
    fill(path, ["a", "b"], Letters(), afresh=True)
    manifest = path.with_suffix(".json")
    if isinstance(content, dict) and known:
        content = {**json.loads(manifest.read_text()), **content}
    whole = content if isinstance(content, bytes) else json.dumps(content).encode()
    manifest.write_bytes(whole)
    try:
        vectors.read_current(path, ["a", "b"], Letters())
    except ValueError as error:
        assert "\n" not in str(error) and str(path.parent) in str(error)
    fill(path, ["a", "b"], Letters())  # whatever was there is used or made again
    np.testing.assert_array_equal(vectors.read_vectors(path).matrix, Letters()(["a", "b"]))
