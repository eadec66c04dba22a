"""What a run needs and nobody has made yet: all of it at once, as commands that can be pasted."""

from collections.abc import Sequence
from pathlib import Path

from lag.modes import MODES
from lag.paths import Paths
from lag.runs.config import RunConfig
from lag.solvers import SOLVERS

# Flags that a user's other commands need too; each is passed on where it was given.
OF_VECTORS = ("data", "embedder", "device", "trust_remote_code")
OF_LOGS = (
    "data", "model", "gguf", "adapter", "embedder", "dtype", "device", "trust_remote_code", "batch_size", "provider",
    "base_url", "timeout", "tokenizer", "retriever", "retriever_url", "max_new_tokens",
)  # fmt: skip


def check_files(runs: Sequence[RunConfig]) -> None:
    """Refuse runs of one data set whose files are not made.

    Raises:
        FileNotFoundError: names the files and every command that is to be run before, in order.
    """
    config, paths = runs[0], Paths(runs[0].data, runs[0].dataset)
    with_logs = any(MODES[run.mode].enters for run in runs)
    given = config.log_store or config.grow
    no_logs = with_logs and not given and not paths.log_store.exists()
    needed = [*runs, making_logs(config)] if no_logs else list(runs)
    splits = dict.fromkeys([*(run.split or "" for run in needed), *["train"] * with_logs])
    missing = [path for path in map(paths.questions, splits) if not path.exists()]
    source = " --from FILE" * bool(config.task.like)
    steps = [f"dataset.py -d {config.dataset}{config.typed('data')}{source}"] * bool(missing)
    if any(map(searches_vectors, needed)) and not paths.vectors("doc").exists():
        missing.append(paths.vectors("doc"))
        steps.append(f"embed.py -d {config.dataset}{config.typed(*OF_VECTORS)}")
    if no_logs:
        missing.append(paths.log_store)
        base = f"agentic.py -m base -d {config.dataset} --split train{config.typed(*OF_LOGS)}"
        steps += [base, f"{base} --merge --as-log"]
    if missing:
        raise FileNotFoundError(told(missing, steps, no_logs))


def making_logs(config: RunConfig) -> RunConfig:
    """The run whose traces become the logs."""
    kept = {name: getattr(config, name) for name in OF_LOGS}
    return RunConfig(dataset=config.dataset, mode="base", split="train", **kept).settled()


def searches_vectors(config: RunConfig) -> bool:
    searches = SOLVERS[config.solver].documents_from == "searched" and config.num_docs
    return bool(searches) and config.retriever == "dense"


def told(missing: Sequence[Path], steps: Sequence[str], no_logs: bool) -> str:
    reason = ": no logs to reuse" if no_logs else ""
    commands = " && ".join(f"python {step}" for step in steps)
    return f"{', '.join(map(str, missing))} not found{reason}; run: {commands}"
