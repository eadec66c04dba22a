"""Which predictions belong to one run: a folder of `agentic.py`, a single file, batches of others.

Files that contradict each other, or that hold the same question twice, are refused: a score over
two settings is the score of neither.
"""

import glob
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from lag.evaluation import envelope
from lag.evaluation.envelope import KINDS, Predictions, read_envelope
from lag.files import read_json
from lag.json_checks import Row, clip, located, mapping, text
from lag.paths import Paths
from lag.records import Trace
from lag.solvers import SOLVERS
from lag.tasks import SPLITS, TASKS, Task, find_task
from lag.trace_files import is_merged, natural, parts_of

# How others call our data sets; the longest beginning counts.
ALIASES = {"2wikimultihopqa": "wikihop", "2wiki": "wikihop", "hotpot": "hotpotqa"}
DATA = Path("data")
Item, Made = TypeVar("Item"), TypeVar("Made")


@dataclass(slots=True)
class Run:
    """One run on one split.

    meta: what its files say of it: metadata, parameters, identity.
    scope: `limit` or `ids`, if it was asked fewer questions than the split has.
    traces: by question id; what is missing is not there. data: folder of all data sets.
    """

    name: str
    dataset: str
    split: str
    paths: tuple[Path, ...]
    meta: Row = field(default_factory=dict)
    scope: Row = field(default_factory=dict)
    traces: dict[str, Trace] = field(default_factory=dict)
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    data: Path = DATA

    @property
    def task(self) -> Task | None:
        return find_task(Paths(self.data, self.dataset))

    @property
    def folder(self) -> Path:
        return self.paths[0].parent

    @property
    def mode(self) -> str:
        return str(next((self.meta[key] for key in KINDS if self.meta.get(key)), self.name))

    @property
    def solver(self) -> str:
        """The way its traces were made; others call a run without logs by it; "" if not told."""
        return str(self.meta.get("solver") or (self.mode if self.mode in SOLVERS else ""))


@dataclass(slots=True)
class Skipping:
    """Work that is done run by run: who is strict stops at the first run that cannot be had.

    skipped: why a run was left out, by its folder.
    """

    strict: bool = True
    skipped: dict[str, str] = field(default_factory=dict)

    def each(
        self, items: Iterable[Item], work: Callable[[Item], Made], folder: Callable[[Item], Path]
    ) -> list[Made]:
        """What was made of each item; the folder of what could not be is in `skipped`.

        Raises:
            ValueError, OSError: as the work does, if strict.
        """
        made = []
        for item in items:
            try:
                made.append(work(item))
            except (ValueError, OSError) as error:
                if self.strict:
                    raise
                self.skipped[str(folder(item))] = str(error)
        return made


def dataset_called(name: str, data: Path) -> str:
    """Our name of a data set that others may call differently, else ""; own ones have one name."""
    if find_task(Paths(data, name)):
        return name
    plain = re.sub(r"[\W_]", "", name).lower()
    known = {name: name for name in TASKS} | ALIASES
    found = [alias for alias in known if plain.startswith(alias)]
    return known[max(found, key=len)] if found else ""


def find_dataset(meta: Row, path: Path, data: Path) -> str:
    """The data set of a file: what it says, else the first folder that is called like one."""
    if meta.get("dataset"):
        return dataset_called(str(meta["dataset"]), data) or str(meta["dataset"])
    return next(filter(None, (dataset_called(part, data) for part in path.parts[:-1])), "")


# --- run folders --------------------------------------------------------------------------------
def is_run_folder(folder: Path) -> bool:
    return (folder / "preds.json").is_file() or bool(parts_of(folder))


def read_folder(folder: Path, given: Sequence[Path] = (), data: Path = DATA) -> Run:
    """A run as `agentic.py` leaves it: merged, or its parts where they are newer.

    given: only these parts of it. data: folder of all data sets.

    Raises:
        ValueError: a file of it cannot be read; names it.
    """
    merged, parts = folder / "preds.json", list(given) or parts_of(folder)
    current = not given and is_merged(folder)
    found = read_envelope(merged) if current else envelope.read_parts(parts)
    if merged.is_file() and not (given or current):
        found.warnings.append("preds.json is older than the parts, which are read instead")
    manifest = envelope.read_manifest(folder / "run.json")
    meta = {**found.metadata, **manifest["identity"]}
    meta.setdefault("log_store", manifest["flags"].get("log_store"))
    meta.setdefault("adapter_folder", manifest["flags"].get("adapter"))
    scope = manifest["scope"] or mapping(meta.get("scope"))
    paths = (merged,) if current else tuple(parts)
    return run_of(found, meta, scope, paths, folder.name, data, folder.parent.name)


def run_of(
    found: Predictions,
    meta: Row,
    scope: Row,
    paths: tuple[Path, ...],
    name: str,
    data: Path,
    split: str = "",
) -> Run:
    """A run of what was read.

    Raises:
        ValueError: what should name something is no text.
    """
    for key in ("dataset", "split", "run", *KINDS, "solver"):
        with located(f"{found.path.parent}: its {key}"):
            text(meta.get(key))
    return Run(
        name=str(meta.get("run") or name),
        dataset=find_dataset(meta, found.path, data),
        split=str(meta.get("split") or split),
        paths=paths,
        meta=meta,
        scope=scope,
        traces=found.traces,
        options=found.options,
        warnings=found.warnings,
        data=data,
    )


def runs_of_dataset(paths: Paths, split: str, skipping: Skipping) -> list[Run]:
    """Every run of a data set, of the given splits ("" is all), in natural order.

    Raises:
        FileNotFoundError: there is none; tells the command that makes one.
        ValueError, OSError: a run cannot be read, or is of another data set; if strict.
    """

    folders = []
    for name in split.split(",") if split else SPLITS:
        there = paths.run(name, "x").parent.glob("*/")
        folders += sorted(filter(is_run_folder, there), key=natural)
    if not folders:
        raise FileNotFoundError(
            f"{paths.preds} holds no runs{' of split ' + split if split else ''}; "
            f"run: python agentic.py -m base {paths.flags}{' --split ' + split if split else ''}"
        )
    return skipping.each(
        folders,
        lambda folder: name_dataset(read_folder(folder, data=paths.root), paths.dataset),
        Path,
    )


def name_dataset(run: Run, dataset: str) -> Run:
    """Take a run as one on this data set.

    Raises:
        ValueError: its files say another one.
    """
    said = str(run.meta.get("dataset") or "")
    if said and dataset_called(said, run.data) not in ("", dataset):
        raise ValueError(
            f"{run.paths[0]} is on {said}, not on {dataset}; give it with --preds, without -d"
        )
    run.dataset = dataset
    return run


# --- files --------------------------------------------------------------------------------------
def runs_of_files(files: Iterable[Path], data: Path = DATA) -> list[Run]:
    """Runs of files and run folders; batches of one run become one.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: batches that contradict each other or hold the same question.
    """
    runs, single = [], []
    parts: dict[Path, list[Path]] = {}
    for path in sorted(set(files), key=natural):
        if path.is_dir() and is_run_folder(path):
            runs.append(read_folder(path, data=data))
        elif path.name == "preds.json" and path.is_file():
            runs.append(read_folder(path.parent, data=data))
        elif path.suffix == ".jsonl" and path.is_file():
            parts.setdefault(path.parent, []).append(path)
        else:
            single.append(read_envelope(path))
    runs += [read_folder(folder, given, data) for folder, given in parts.items()]
    return runs + [aggregate(group, data) for group in envelope.grouped(single)]


def aggregate(files: Sequence[Predictions], data: Path) -> Run:
    """One run of its batches.

    Raises:
        ValueError: two batches hold the same question.
    """
    whole = Predictions(files[0].path, dict(files[0].metadata))
    source: dict[str, Path] = {}
    for found in files:
        twice = [id for id in found.traces if id in source]
        if twice:
            raise ValueError(
                f"{found.path} and {source[twice[0]]} both answer {clip(twice[0])} "
                f"({len(twice)} questions in all); give each question once"
            )
        source.update(dict.fromkeys(found.traces, found.path))
        whole.traces |= found.traces
        whole.options |= found.options
        whole.warnings += found.warnings
    meta, paths = whole.metadata, tuple(found.path for found in files)
    name = envelope.name_of(meta, files[0].path)
    return run_of(whole, meta, mapping(meta.get("scope")), paths, name, data)


def files_of_folder(folder: Path, wanted: dict[str, str]) -> list[Path]:
    """Run folders and predictions files below a folder whose metadata is as wanted.

    wanted: metadata that must be equal, such as split, seed, batch_size; empty ones do not count.

    Raises:
        FileNotFoundError: nothing fits.
    """
    folders = {p.parent for name in ("part-*.jsonl", "preds.json") for p in folder.rglob(name)}
    inside = [p for p in folder.rglob("*.json") if not folders & {p.parent, *p.parents}]
    files = [path for path in inside if path.is_file() and has_results(path)]
    wanted = {key: value for key, value in wanted.items() if value}
    found = [path for path in [*folders, *files] if not wanted or fits(path, wanted)]
    if not found:
        asked = ", ".join(f"{key} {value}" for key, value in wanted.items())
        raise FileNotFoundError(
            f"{folder} holds no predictions{' of ' + asked if asked else ''}; "
            "give a folder of files {metadata, results}, or a run's folder"
        )
    return sorted(found, key=natural)


def has_results(path: Path) -> bool:
    """Whether a JSON file is a predictions file; others in the folder are none of ours."""
    try:
        content = read_json(path)
    except (ValueError, RecursionError):
        return "bn=" in path.name  # a broken batch must not go unseen
    return isinstance(content, dict) and isinstance(content.get("results"), dict)


def fits(path: Path, wanted: dict[str, str]) -> bool:
    meta = read_folder(path).meta if path.is_dir() else read_envelope(path).metadata
    return all(str(meta.get(key)) == value for key, value in wanted.items())


def files_of_pattern(pattern: str) -> list[Path]:
    """The files and run folders that a pattern matches.

    Raises:
        FileNotFoundError: none.
    """
    names = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute ones
    found = [path for path in map(Path, names) if path.is_file() or is_run_folder(path)]
    if not found:
        raise FileNotFoundError(f"--pattern {pattern!r} matches no file; quote it, ** goes deeper")
    return found
