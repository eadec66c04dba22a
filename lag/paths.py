"""Where every file lies, so that no other module builds a path."""

import re
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

ADAPTER_FACTS = "lag.json"  # what it was trained with and on, beside them
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")  # peft's names
KV_DTYPES = ("auto", "bf16", "int8", "int4")  # how files keep numbers; auto: as the model has them


@dataclass(frozen=True, slots=True)
class Strategy:
    """What all KV files of a folder have in common; its spelling is the folder's name.

    sink: how many of a chat's first tokens every log was encoded behind.
    """

    mode: str
    sink: int = 0
    kv_dtype: str = "auto"

    def __str__(self) -> str:
        sink = f".sink{self.sink}" if self.sink else ""
        return self.mode + sink + (f".{self.kv_dtype}" if self.kv_dtype != "auto" else "")

    @classmethod
    def parse(cls, name: str) -> "Strategy":
        """
        Raises:
            ValueError: no strategy is spelled like this.
        """
        kinds = "|".join(KV_DTYPES[1:])
        match = re.fullmatch(rf"(\w+)(?:\.sink([1-9]\d*))?(?:\.({kinds}))?", name, re.ASCII)
        if not match:
            raise ValueError(f"{name!r} names no KV folder; expected MODE[.sinkN][.{kinds}]")
        mode, sink, kv_dtype = match.groups()
        return cls(mode, int(sink or 0), kv_dtype or "auto")


@dataclass(frozen=True, slots=True)
class Paths:
    """The files of one data set below one data folder."""

    root: Path
    dataset: str

    @property
    def folder(self) -> Path:
        return Path(self.root) / self.dataset

    @property
    def flags(self) -> str:
        """The flags that name these files, as they are typed."""
        return f"-d {self.dataset}" + (
            f" --data {quote(str(self.root))}" if str(self.root) != "data" else ""
        )

    @property
    def task(self) -> Path:
        """What a data set of the user's own is like; the toolkit's have none."""
        return self.folder / "task.json"

    def questions(self, split: str = "") -> Path:
        """`dev.json`, or with a split `dev_train.json` and `dev_test.json`."""
        return self.folder / (f"dev_{split}.json" if split else "dev.json")

    @property
    def docs(self) -> Path:
        return self.folder / "dev_docs.json"

    @property
    def meta(self) -> Path:
        """What the data files were made from; written last, so that its absence tells."""
        return self.folder / "dev.meta.json"

    def vectors(self, kind: str) -> Path:
        """The vectors of `doc`, `q` or `log`; what they were made from lies beside, in `.json`."""
        return self.folder / "embeds" / f"{kind}.npy"

    @property
    def preds(self) -> Path:
        return self.folder / "preds"

    def run(self, split: str, name: str) -> Path:
        return self.preds / split / name

    def part(self, split: str, name: str, partition: int) -> Path:
        return self.run(split, name) / f"part-{partition}.jsonl"

    def manifest(self, split: str, name: str) -> Path:
        return self.run(split, name) / "run.json"

    def grown(self, name: str, partition: int = 0, num_partitions: int = 1) -> Path:
        """The versions of a store that grew, one store per partition."""
        stem = "store" if num_partitions == 1 else f"store-{partition}-of-{num_partitions}"
        return self.preds / "grow" / name / f"{stem}.jsonl"

    def ablated(self, split: str, name: str, partition: int = 0) -> Path:
        """A run's harmed questions answered again, each without one of its logs."""
        return self.preds / "ablate" / split / name / f"part-{partition}.jsonl"

    def merged(self, split: str, name: str) -> Path:
        return self.run(split, name) / "preds.json"

    @property
    def log_store(self) -> Path:
        return self.preds / "log.json"

    @property
    def kv(self) -> Path:
        return self.folder / "kv"

    def kv_folder(self, digest: str, strategy: Strategy) -> Path:
        """The spans that the model of a fingerprint's digest has under a strategy."""
        return self.kv / digest / str(strategy)


def adapters_in(folder: Path) -> list[Path]:
    """The folder itself if it is an adapter's, else its sub-folders that are, by name."""

    def whole(one: Path) -> bool:
        return all((one / name).is_file() for name in ADAPTER_FILES)

    return [folder] if whole(folder) else sorted(one for one in folder.glob("*") if whole(one))
