"""What stands in the way of a file: a full disk, a folder that cannot be written, a pipe."""

import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import test_store
import test_store_log_kv as script
import tiny
import warm

from lag.kv_store import fingerprint
from lag.kv_store.span_file import Damaged, read_header, read_whole
from lag.model.llm import LLM
from lag.modes import MODES
from lag.paths import Paths

PAIRS = test_store.PAIRS


def with_little_room() -> None:
    """As on a full disk, part of a file is written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_full_disk_ends_the_script_in_one_line_and_leaves_nothing_half(tmp_path, tiny_folder):
    """The defect: `[Errno 28]`, without a file, a size or what to do; once per log."""
    paths = script.write_logs(tmp_path)
    flags = ["-d", "wikihop", "--data", tmp_path, "--model", tiny_folder, "--device", "cpu"]
    done = warm.run_script("store_log_kv.py", *flags, before=with_little_room)
    assert done.returncode == 2 and not done.stdout, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
    assert line.startswith("store_log_kv.py: error: ") and ".safetensors: " in line
    assert "MB asked for" in line and "make room or name a folder on another disk" in line
    assert "Errno" not in line
    assert not list(paths.kv.rglob("*.safetensors"))
    assert not any(files_below(folder) for folder in paths.kv.glob("*/temporary"))
    again = warm.run_script("store_log_kv.py", *flags)
    assert again.returncode == 0 and json.loads(again.stdout)["encoded"] == 4


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 64 KiB; where it cannot be mounted, there is nothing to see."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_serves_without_storing_and_says_so_once(small_disk, caplog):
    pairs = [((n,), tuple(range(n, n + 60))) for n in range(20)]
    store = test_store.open_store(small_disk / "kv")
    fetched = [store.fetch([pair])[0] for pair in pairs]
    stored = [pair for pair in pairs if store.has(*pair)]
    assert 0 < len(stored) < len(pairs)
    assert store.counts["unpublished"] == len(pairs) - len(stored)
    expected = test_store.made_up(pairs)
    assert all(test_store.same(a.span, b) for a, b in zip(fetched, expected))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "no space is left on its disk" in line and "MB asked for" in line
    assert "make room" in line and "Errno" not in line
    again = test_store.open_store(small_disk / "kv").fetch(stored)
    assert [one.source for one in again] == ["kv"] * len(stored)


def test_a_disk_that_is_full_from_the_start_serves_the_model_that_made_the_store(
    small_disk, tiny_folder, caplog
):
    """The digest of the weights cannot be remembered either: it is made, and the run goes on."""
    (small_disk / "filled").write_bytes(b"0" * (64 << 10))
    llm = LLM.load(str(tiny_folder), device="cpu", max_new_tokens=8)
    with caplog.at_level(logging.WARNING):
        fetched = llm.open_store(small_disk, MODES["log_kv"]).fetch(PAIRS)
    assert [one.source for one in fetched] == ["encoded"] * 3
    assert "the digest of the weights is made again next time" in caplog.text


def test_a_store_that_cannot_be_written_serves_a_model_under_a_new_path(tmp_path, caplog):
    """A copy of the model has other stamps, so that its digest is not known yet."""
    folder = tiny.save_tiny(tmp_path / "model")
    files = sorted(folder.glob("*.safetensors"))
    model, tokenizer = tiny.tiny_model(), tiny.byte_tokenizer()
    (tmp_path / "kv").mkdir()
    (tmp_path / "kv" / "weights.json").mkdir()  # nobody, root included, writes there
    found = fingerprint.fingerprint(model, tokenizer, tmp_path / "kv", files)
    assert found == fingerprint.fingerprint(model, tokenizer)
    assert "the digest of the weights is made again next time" in caplog.text


def test_planted_a_pipe_under_a_spans_name_is_refused_at_once(tmp_path, caplog):
    """Opening a pipe waits for its other end: for ever."""
    store = test_store.open_store(tmp_path)
    store.fetch(PAIRS)
    path = store.path(*PAIRS[1])
    path.unlink()
    os.mkfifo(path)
    for read in (read_whole, lambda path: read_header(path, store.identity)):
        with pytest.raises(Damaged, match="no regular file"):
            read(path)
    assert [one.source for one in store.fetch(PAIRS)] == ["kv", "encoded", "kv"]
    assert store.counts["damaged"] == 1 and "is no regular file" in caplog.text
    assert path.is_file(), "a file has taken its place"


def test_planted_a_folder_under_a_spans_name_is_refused_and_named(tmp_path, caplog):
    store = test_store.open_store(tmp_path)
    store.path(*PAIRS[1]).mkdir(parents=True)
    assert [one.source for one in store.fetch(PAIRS)] == ["encoded"] * 3
    assert (store.counts["damaged"], store.counts["unpublished"]) == (1, 1)
    assert store.path(*PAIRS[1]).name in caplog.text


def test_a_stats_of_a_store_with_a_pipe_ends(tmp_path, tiny_folder, capsys):
    import test_inventory

    paths = script.write_logs(tmp_path)
    llm = LLM.load(str(tiny_folder), device="cpu", max_new_tokens=8)
    script.run(capsys, tmp_path, llm)
    path = next(Paths(tmp_path, "wikihop").kv.rglob("*.safetensors"))
    path.unlink()
    os.mkfifo(path)
    code, summary = test_inventory.stats(capsys, paths, tiny_folder, "--check")
    assert (code, summary["damaged"]) == (1, 1) and "is no regular file" in summary["log"]
