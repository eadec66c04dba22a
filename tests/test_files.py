"""Whole files: replaced in one step, locked, digested, and a full disk told in one line."""

import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from sweeps import sweep

from lag import cli, files

ROOT = Path(__file__).resolve().parents[1]
on_files = sweep(300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def python(code, *argv, limit=0):
    """Run some code in a process of its own; limit: bytes that a file may have there."""

    def bound():
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, argv)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, preexec_fn=bound, cwd=ROOT
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- writing ------------------------------------------------------------------------------------
def test_what_fails_halfway_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"new": object()})
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert files.read_json(path) == {"old": 1} and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_keeps_its_permissions(tmp_path, mode):
    """An owner-only file became readable for all when it was written again."""
    path = tmp_path / "a"
    files.write_text(path, "old")
    path.chmod(mode)
    files.write_text(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == mode | stat.S_IWUSR
    assert path.read_text() == "new"


def test_a_new_file_has_the_permissions_that_were_asked_for(tmp_path):
    (tmp_path / "aside").mkdir()
    files.write_bytes(tmp_path / "a", b"x", b"y", mode=0o600, aside=tmp_path / "aside")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert (tmp_path / "a").read_bytes() == b"xy" and not names(tmp_path / "aside")


def test_many_writers_of_one_file_do_not_meet(tmp_path):
    """Two merges shared one temporary name: one renamed the half-written file of the other."""
    path, texts = tmp_path / "log.json", [str(n) * 200_000 for n in range(8)]
    threads = [threading.Thread(target=files.write_text, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_text() in texts
    assert path.read_text() in texts and names(tmp_path) == ["log.json"]


WRITER = """
import sys
from pathlib import Path
from lag import files
print("ready", flush=True)
for n in range(10_000):
    files.write_text(Path(sys.argv[1]), str(n % 10) * 300_000)
"""


def test_a_killed_writer_leaves_a_whole_file_and_what_it_left_is_swept(tmp_path):
    path = tmp_path / "a"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for delay in (0.01, 0.03, 0.05, 0.08):
        command = [sys.executable, "-c", WRITER, path]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not path.exists() or (len(path.read_text()), len(set(path.read_text()))) == (
            300_000,
            1,
        )
    mine = tmp_path / f".a.{os.uname().nodename}-{os.getpid()}-{'0' * 32}.tmp"
    other = tmp_path / f".a.elsewhere-7-{'0' * 32}.tmp"
    foreign = tmp_path / ".a.swp.tmp"
    for kept in (mine, other, foreign):
        kept.write_text("")
    files.sweep(tmp_path)
    assert set(names(tmp_path)) - {"a"} == {mine.name, other.name, foreign.name}


# --- a full disk ----------------------------------------------------------------------------------
def test_a_full_disk_is_told_with_the_file_its_size_and_what_to_do(tmp_path):
    """It read `[Errno 28] No space left on device`."""
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "x", tmp_path], check=False
    ).returncode:
        pytest.skip("no file system of one megabyte can be mounted here")
    try:
        path, part = tmp_path / "a.json", tmp_path / "part-0.jsonl"
        files.write_text(path, "old")
        files.append_bytes(part, b"one line\n")
        for write in (files.write_text, lambda path, text: files.append_bytes(path, text.encode())):
            target = path if write is files.write_text else part
            with pytest.raises(files.DiskFull) as caught:
                write(target, "x" * 3_000_000)
            assert str(caught.value).startswith(f"{target}: no space is left on its disk: 3.000 MB")
            assert "1.0 MB are free" in str(caught.value) and "make room" in str(caught.value)
            assert cli.explained(caught.value) == str(caught.value)
        assert path.read_text() == "old" and part.read_bytes() == b"one line\n"
        assert names(tmp_path) == ["a.json", "part-0.jsonl"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_file_beyond_the_limit_is_told(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lag import cli, files\n"
        "cli.guarded(lambda: files.write_text(Path(sys.argv[1]), 'x' * 100_000))"
    )
    done = python(code, tmp_path / "a.json", limit=50_000)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and f"error: {tmp_path / 'a.json'}: it is larger than" in line
    assert "0.100 MB" in line and names(tmp_path) == []


def test_what_is_full_without_a_name_is_told_too():
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError) as caught:
        full.write(b"x")
    assert "no space is left on its disk" in cli.explained(caught.value)


@pytest.mark.parametrize("limit", [20_000, 60_000])
def test_dataset_py_on_a_full_disk_leaves_the_old_set(tmp_path, limit):
    flags = ["dataset.py", "-d", "miniwiki", "--data", str(tmp_path), "--seed"]
    assert (
        subprocess.run([sys.executable, *flags, "7"], cwd=ROOT, capture_output=True).returncode == 0
    )
    before = {path.name: path.read_bytes() for path in (tmp_path / "miniwiki").iterdir()}
    code = f"import runpy, sys; sys.argv = {[*flags, '8']}; runpy.run_path('dataset.py', run_name='__main__')"
    done = python(code, limit=limit)
    assert done.returncode == 2 and "make room" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "miniwiki").iterdir()} == before


# --- locks --------------------------------------------------------------------------------------
HOLDER = """
import sys, time
from pathlib import Path
from lag import files
with files.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_is_refused_with_a_message_or_waited_for_and_dies_with_its_holder(tmp_path, kind):
    path = tmp_path / "held"
    if kind == "folder":
        path.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLDER, path, "60"]
    holder = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(ValueError, match="held is busy"), files.locked(path, "is busy"):
        pass
    threading.Timer(0.3, holder.kill).start()
    start = time.monotonic()
    with files.locked(path):
        assert time.monotonic() - start > 0.2
    holder.communicate()


# --- digests ------------------------------------------------------------------------------------
def test_digests_are_what_they_were(tmp_path):
    """KV, vectors and identities of earlier runs are found by them."""
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    whole = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.bytes_digest(b"abc") == files.file_digest(path) == whole
    assert files.pieces_digest([b"a", memoryview(b"bc")], 16) == whole[:16]
    assert files.digest_of({"b": [1, 2.5, None], "a": "é"}, 24) == "84afbf1d4853005f9dd0c81c"


# --- reading ------------------------------------------------------------------------------------
@given(st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
@on_files
def test_any_bytes_are_json_or_one_line(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    try:
        files.read_json(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert isinstance(files.remembered(path), dict)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (b"[" * 100_000, "nested too deep"),
        (b"9" * 5000, "limit"),
        (b'"caf\xe9"', "not UTF-8 text: .* at byte 4"),
        (b'{"a": 1', "not valid JSON: .* at line 1, column 8"),
        (b"", "not valid JSON"),
    ],
)
def test_what_is_no_json_is_named_with_its_place(tmp_path, content, told):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=told) as caught:
        files.read_json(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_json(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert files.read_json(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(FileNotFoundError, match=r"b\.json not found; do this"):
        files.read_json(tmp_path / "b.json", "do this")
    shutil.rmtree(tmp_path)
    assert files.remembered(tmp_path / "a.json") == {}
