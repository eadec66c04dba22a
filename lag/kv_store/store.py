"""KV spans on disk: one immutable file per log, found by what it was made from.

A key covers the token ids, the strategy and the fingerprint, so that a changed log, or another
model, can never meet an old file. Opening a store reads one small file, however many logs it has.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lag.files import digest_of, is_orphan, write_bytes
from lag.kv.quantize import KV_FORMATS, as_read, pack
from lag.kv.span import KVSpan, Pair
from lag.kv_store.budgets import DiskBudget, SpanCache
from lag.kv_store.fingerprint import LAYOUT_VERSION, difference
from lag.kv_store.read_memory import ReadMemory
from lag.kv_store.span_file import Damaged, read_span, span_bytes
from lag.paths import Strategy

logger = logging.getLogger(__name__)
OWNER_ONLY = 0o600
TEMPORARY = re.compile(r"(?:\..+\.)?(?P<host>.+)-(?P<pid>\d+)-\w+(?:\.tmp)?")  # of old stores too


# hits: spans that needed no encoding, of which so many from memory; by_choice: encoded because no
# files are used; evicted: files that went for the sake of --kv-disk; held: spans in memory now
COUNTS = (
    "hits",
    "from_memory",
    "held",
    "encoded",
    "by_choice",
    "damaged",
    "unpublished",
    "evicted",
)


@dataclass(frozen=True, eq=False, slots=True)
class Fetched:
    """A span and where it came from: `kv` (read) or `encoded` (missing or damaged until now)."""

    span: KVSpan
    source: str
    num_bytes: int


class KVStore:
    """The spans of one model under one strategy."""

    def __init__(
        self,
        folder: Path,
        fingerprint: dict[str, str],
        strategy: Strategy,
        encode: Callable[[Sequence[Pair]], list[KVSpan]],
        span_cache: SpanCache | None = None,
        disk: DiskBudget | None = None,
        uses_files: bool = True,
    ):
        """
        folder: of all models and strategies; created when the first span is published.
        encode: makes the spans of (after, keep) token ids.
        span_cache, disk: budgets that several stores may share; without them no span is held in
            memory, and files may take any room.
        uses_files: False encodes what memory does not hold, and neither reads nor writes a file.

        Raises:
            ValueError: the folder of this fingerprint was made by something else; names what.
        """
        self.fingerprint, self.encode = fingerprint, encode
        self.kv_format = KV_FORMATS[strategy.kv_dtype]
        self.root = Path(folder) / fingerprint["digest"]
        self.folder = self.root / str(strategy)
        self.temporary = self.root / "temporary"
        self.identity = identity_of(fingerprint, strategy)
        self.span_cache, self.disk = span_cache or SpanCache(), disk or DiskBudget(folder)
        self.uses_files, self.writable, self.memory = uses_files, False, ReadMemory()
        self.counts = dict.fromkeys(COUNTS, 0)
        _check_made_by(self.root / "fingerprint.json", fingerprint)

    def key(self, after: Sequence[int], keep: Sequence[int]) -> str:
        return key_of(after, keep, self.identity)

    def path(self, after: Sequence[int], keep: Sequence[int]) -> Path:
        return self.folder / f"{self.key(after, keep)}.safetensors"

    def has(self, after: Sequence[int], keep: Sequence[int]) -> bool:
        """Whether there is a file for this log; it is verified when it is fetched."""
        return self.path(after, keep).is_file()

    def claim(self, after: Sequence[int], keep: Sequence[int]) -> bool:
        """As `has`; a file that is there counts as used by this run."""
        there = self.has(after, keep)
        if there:
            self.disk.use(self.path(after, keep))
        return there

    def bytes_per_token(self) -> float:
        """What a kept token takes, of a log of some length; exact where numbers stay as they are."""
        span = self.encode([((), (0,))])[0]
        length, tensors = 128, (span.keys, span.values)
        longer = [tuple(one.expand(-1, length, -1) for one in part) for part in tensors]
        packed = pack(KVSpan((0,) * length, *longer), self.kv_format)
        return sum(tensor.nbytes for tensor in packed.values()) / length

    def fetch(self, pairs: Sequence[Pair]) -> list[Fetched]:
        """The spans of logs, in order; what is missing or damaged is encoded and published."""
        found = {pair: self.span_cache.get(self.key(*pair)) for pair in pairs}
        self.counts["from_memory"] += sum(found[pair] is not None for pair in pairs)
        found = {pair: span or self._read(pair) for pair, span in found.items()}
        missing = [pair for pair, span in found.items() if span is None]
        self.counts["hits"] += sum(found[pair] is not None for pair in pairs)
        found |= self._encoded(missing)
        self.counts["held"] = len(self.span_cache.spans)
        fresh = set(missing)
        return [
            Fetched(found[pair], "encoded" if pair in fresh else "kv", found[pair].num_bytes)
            for pair in pairs
        ]

    def publish(self, after: Sequence[int], keep: Sequence[int], span: KVSpan) -> None:
        """Write one span.

        Raises:
            NoRoom: it does not fit into the budget.
            DiskFull, OSError: it cannot be written; nothing is left behind.
        """
        assert tuple(keep) == span.ids
        content = span_bytes(span, after, self.identity, self.kv_format)
        path, before = self.path(after, keep), self.disk.removed
        self.make_writable()
        self.disk.make_room(path, len(content))
        self.counts["evicted"] += self.disk.removed - before
        write_bytes(path, content, mode=OWNER_ONLY, aside=self.temporary)

    def _read(self, pair: Pair) -> KVSpan | None:
        """The span in a log's file; None if there is none, or it is damaged, which is said."""
        path = self.path(*pair)
        try:
            if not self.uses_files:
                return None
            span = read_span(path, *pair, self.identity, self.kv_format, self.memory)
        except FileNotFoundError:
            return None
        except (Damaged, OSError) as error:
            self.counts["damaged"] += 1
            logger.warning("%s is damaged (%s); encoding it again", path, error)
            return None
        self.disk.use(path)
        self.span_cache.put(self.key(*pair), span)
        return span

    def _encoded(self, pairs: Sequence[Pair]) -> dict[Pair, KVSpan]:
        """Encode logs and publish them, where files are used."""
        found = {}
        for pair, span in zip(pairs, self.encode(pairs) if pairs else (), strict=True):
            self._try_publish(pair, span)
            # what a file would give, so that a reply does not depend on who came first
            found[pair] = as_read(span, self.kv_format)
            self.span_cache.put(self.key(*pair), found[pair].on_cpu())
        self.counts["encoded"] += len(pairs)
        self.counts["by_choice"] += 0 if self.uses_files else len(pairs)
        return found

    def _try_publish(self, pair: Pair, span: KVSpan) -> None:
        try:
            if self.uses_files:
                self.publish(*pair, span)
        except OSError as error:
            told = self.counts["unpublished"]
            level = logging.DEBUG if told else logging.WARNING
            logger.log(level, "KV could not be stored (told once, counted): %s", error)
            self.counts["unpublished"] += 1

    def make_writable(self) -> None:
        """Create the folders, say whose they are, and sweep what killed writers left."""
        if self.writable:
            return
        for folder in (self.root.parent, self.root, self.folder, self.temporary):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made_by = self.root / "fingerprint.json"
        if not made_by.exists():
            text = json.dumps(self.fingerprint, indent=1)
            write_bytes(made_by, text.encode(), mode=OWNER_ONLY, aside=self.temporary)
        for orphan in orphans(self.temporary):
            orphan.unlink(missing_ok=True)
        self.writable = True


def key_of(after: Sequence[int], keep: Sequence[int], identity: dict[str, str]) -> str:
    """The name of a span: what it was made from, how, and by which model."""
    return digest_of([list(after), list(keep), identity["strategy"], identity["digest"]])


def identity_of(fingerprint: dict[str, str], strategy: Strategy) -> dict[str, str]:
    """What the header of every file must say."""
    known = {name: fingerprint.get(name, "") for name in ("digest", "model", "dtype")}
    return {**known, "strategy": str(strategy), "layout_version": str(LAYOUT_VERSION)}


def orphans(temporary: Path) -> Iterator[Path]:
    """Temporary files whose writer is gone: dead on this machine, or silent for a day."""
    for path in temporary.iterdir():
        named = TEMPORARY.fullmatch(path.name)
        if named and is_orphan(path, named["host"], int(named["pid"])):
            yield path


def _check_made_by(path: Path, fingerprint: dict[str, str]) -> None:
    try:
        made_by = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); remove {path.parent}") from error
    if different := difference(made_by, fingerprint):
        raise ValueError(
            f"{path.parent} was made with another {', '.join(different)}; remove that folder, or "
            "load the model that made it"
        )
