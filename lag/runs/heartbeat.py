"""The sign of life of a worker: a small file beside its part, touched while the worker lives.

A lock tells who writes on one machine; on a shared disk it may not reach other machines, or stay
when its machine is gone. There the time of this file tells.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lag import files

EVERY = 5.0  # seconds between two beats
STALE = 60.0  # seconds of silence after which a worker of another machine counts as dead


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker says of itself while it lives.

    start: when it began, seconds since 1970.
    offset: bytes of its part that were there before.
    beat: when it last was alive.
    """

    host: str
    pid: int
    num_partitions: int
    start: float
    offset: int
    beat: float = 0.0

    @property
    def age(self) -> float:
        return time.time() - self.beat

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, last seen {self.age:.0f} s ago"


def heartbeat_of(part: Path) -> Path:
    return part.with_name(f".{part.stem}.heartbeat")


def read(part: Path) -> Heartbeat | None:
    """The heartbeat of a part's worker; None if it ended by itself, or never began.

    The file is opened before it is asked for its time: shared disks tell the true one only then.
    """
    try:
        with open(heartbeat_of(part), encoding="utf-8") as file:
            known = json.load(file)
            return Heartbeat(**known | {"beat": os.fstat(file.fileno()).st_mtime})
    except (FileNotFoundError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def beating(part: Path, num_partitions: int) -> Iterator[None]:
    """Keep a heartbeat while the block runs; a worker that is killed leaves it behind."""
    path, ended = heartbeat_of(part), threading.Event()
    size = part.stat().st_size
    said = Heartbeat(socket.gethostname(), os.getpid(), num_partitions, time.time(), size)
    files.write_json(path, asdict(said))

    def beat() -> None:
        while not ended.wait(EVERY):
            with contextlib.suppress(OSError):  # the folder was deleted, or its disk is away
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)


def wait_for_silence(part: Path) -> None:
    """Return once no worker of another machine writes a part, whatever locks say.

    Raises:
        ValueError: one is alive.
    """
    first = found = read(part)
    while found and not found.is_here and found.age < STALE:
        if first is None or found.beat > first.beat:
            raise ValueError(f"{part} is being written by {found}; start each partition once")
        time.sleep(min(1.0, EVERY))
        found = read(part)


@contextlib.contextmanager
def only_writer(part: Path, num_partitions: int) -> Iterator[None]:
    """Hold a part and show that its worker lives, while the block runs.

    Raises:
        ValueError: another process holds it.
    """
    with held(part, "is being written by another process; start each partition once"):
        wait_for_silence(part)
        with beating(part, num_partitions):
            yield


@contextlib.contextmanager
def held(path: Path, message: str) -> Iterator[None]:
    """Lock a file while the block runs; one that fails before it wrote leaves nothing.

    Raises:
        ValueError: another process holds it.
    """
    with files.locked(path, message):
        try:
            yield
        except BaseException:
            if not path.stat().st_size:
                path.unlink()
                with contextlib.suppress(OSError):  # other files are there
                    path.parent.rmdir()
            raise
