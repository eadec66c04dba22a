"""Encode the logs of a data set ahead of time: keys and values on disk, one file per log.

python store_log_kv.py -d wikihop --dry-run             # how much there is to do, and its size
python store_log_kv.py -d wikihop                       # for log_kv
python store_log_kv.py -d musique -m log_kv,log_kv_all --log-limit 500
python store_log_kv.py -d wikihop --compare 20          # what fewer bits would change
python store_log_kv.py -d wikihop --prune               # delete KV that no log uses any more
python store_log_kv.py -d wikihop --stats --check       # what is there, and whether it is whole

What is there already is left alone, so the same command goes on where it was stopped. A run that
meets a log without a file encodes it itself: this only saves the run that time.
"""

import argparse
import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lag import cli
from lag.files import DiskFull
from lag.modes import DEFAULT_MODE, MODES, Mode
from lag.paths import Paths
from lag.records import Log
from lag.runs.config import RunConfig
from lag.runs.flags import add_flags
from lag.runs.missing_files import check_files
from lag.runs.share import Share, local_device, share_of
from lag.tasks import read_questions, task_of

logger = logging.getLogger("lag.store_log_kv")

KV_MODES = {name: mode for name, mode in MODES.items() if mode.enters == "kv"}


@dataclass(frozen=True, slots=True)
class Job:
    """One log to encode: its id, the ids it is encoded after, and the ids that are kept."""

    id: str
    after: tuple[int, ...]
    keep: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.after) + len(self.keep)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    add_flags(parser, "dataset")
    parser.add_argument(
        *("-m", "--mode"),
        metavar="MODE",
        type=cli.list_of(KV_MODES, "KV mode"),
        default=DEFAULT_MODE,
        help=f"a comma list stores for several: {', '.join(KV_MODES)} (%(default)s)",
    )
    add_flags(parser, "model", "gguf", "adapter", "dtype", "device", "trust_remote_code")
    add_flags(parser, "kv_dtype", "kv_disk", "sink", "batch_size", "log_store", "log_limit")
    add_flags(parser, "partition", "num_partitions")
    add_flags(parser, "data")
    parser.add_argument("--dry-run", action="store_true", help="only say how much there is to do")
    parser.add_argument(
        "--prune",
        action="store_true",
        help="encode nothing; delete the files of this model that no log of the log store uses any more, whatever their --kv-dtype and --sink",
    )
    parser.add_argument(
        "--compare",
        type=cli.at_least(1),
        metavar="N",
        help="store nothing; say what each --kv-dtype does to logits and replies on N of the logs",
    )
    parser.add_argument(
        "--stats",
        action="store_true",
        help="encode nothing; list what is there, of every model, mode and --kv-dtype",
    )
    parser.add_argument(
        "--check", action="store_true", help="with --stats: read every file and its checksums"
    )
    add_flags(parser, "verbose")
    args = parser.parse_args(argv)
    refuse_contradictions(parser, args)
    args.model = args.model or task_of(Paths(args.data, args.dataset)).model
    return args


def refuse_contradictions(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    asked = [name for name in ("dry_run", "prune", "compare", "stats") if getattr(args, name)]
    if len(asked) > 1:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in asked)
        parser.error(f"{flags} exclude each other: give one of them")
    if args.check and not args.stats:
        parser.error("--check goes with --stats")
    if (args.prune or args.compare or args.stats) and (args.partition or args.num_partitions):
        parser.error(f"--{asked[0]} goes by the whole log store: give no -p or --num-partitions")
    if args.log_limit and (args.prune or args.stats):
        parser.error(f"--{asked[0]} goes by the whole log store: give no --log-limit with it")


def load_logs(args: argparse.Namespace, paths: Paths) -> Any:
    from lag.logs.store import LogStore

    path = args.log_store or paths.log_store
    if path == paths.log_store and not path.exists():
        names = ("dataset", "data", "model", "gguf", "adapter")
        names += ("dtype", "device", "trust_remote_code")
        given = {name: getattr(args, name) for name in names}
        check_files([RunConfig(**given, split="train", mode=args.mode[0]).settled()])
    train = paths.questions("train")
    questions = read_questions(paths, task_of(paths), "train") if train.exists() else None
    logs = LogStore.load(path, questions=questions, limit=args.log_limit or None)
    logger.info("%s: %d logs (%d rows without one)", path, len(logs.logs), logs.skipped)
    return logs


def own_share(args: argparse.Namespace) -> Share:
    """The share of the logs that this process encodes; nothing else is shared.

    Raises:
        ValueError: the flags, or who started us, name a share that there is not.
    """
    whole = args.prune or args.compare or args.stats
    return share_of({} if whole else os.environ, args.partition, args.num_partitions)


def load_llm(args: argparse.Namespace) -> Any:
    logger.info("loading the model %s", args.model)
    from lag.kv_store.budgets import KVBudget
    from lag.model.llm import LLM

    names = ("dtype", "device", "trust_remote_code", "gguf", "adapter")
    given = {name: getattr(args, name) for name in names}
    packed = dict(kv_dtype=args.kv_dtype, sink=args.sink)
    keeping = KVBudget(memory=0, disk=args.kv_disk)
    return LLM.load(args.model, **given, **packed, keeping=keeping)


def jobs_of(logs: Any, mode: Mode, llm: Any) -> list[Job]:
    """What to encode, shortest first; logs that agree in every token are one."""
    jobs = {}
    for past in logs.logs.values():
        pair = llm.chat.kv_ids(past, mode)
        jobs.setdefault(pair, Job(past.id, *pair))
    return sorted(jobs.values(), key=lambda job: job.num_tokens)


def check_room(
    paths: Paths,
    mode: Mode,
    todo: Sequence[Job],
    done: int,
    per_token: float,
    left: float = math.inf,
) -> int:
    """Say how much there is to do; return the bytes that it takes.

    left: bytes of `--kv-disk` that files of this run do not take already.

    Raises:
        ValueError: the disk or its budget has less.
    """
    kept = sum(len(job.keep) for job in todo)
    size = round(kept * per_token)
    free = shutil.disk_usage(next(p for p in paths.kv.absolute().parents if p.exists())).free
    logger.info(
        "%s: %d logs to encode (%d are there), %d tokens, of which %d are kept: "
        "%.2f GB at %.0f bytes per token (%.2f GB free)",
        *(mode.name, len(todo), done, sum(job.num_tokens for job in todo), kept),
        *(size / 1e9, per_token, free / 1e9),
    )
    if size > free:
        raise ValueError(
            f"{mode.name} needs {size / 1e9:.2f} GB, {paths.folder} has {free / 1e9:.2f} GB free; "
            "give a smaller --log-limit, or another --data"
        )
    if size > left:
        raise ValueError(
            f"{mode.name} needs {size:,} bytes, --kv-disk has {left:,.0f} bytes left for it; "
            "give a larger one, or a smaller --log-limit"
        )
    return size


def warm(store: Any, jobs: Sequence[Job]) -> Iterator[tuple[Job, Exception | None]]:
    """Encode and publish; each job with what went wrong. A batch that fails is halved.

    Raises:
        DiskFull: nothing more can be stored.
    """
    try:
        spans = store.encode([(job.after, job.keep) for job in jobs])
    except (ValueError, RuntimeError) as error:
        if len(jobs) == 1:
            yield jobs[0], error
            return
        middle = len(jobs) // 2
        yield from warm(store, jobs[:middle])
        yield from warm(store, jobs[middle:])
        return
    for job, span in zip(jobs, spans, strict=True):
        yield job, publish(store, job, span)


def publish(store: Any, job: Job, span: Any) -> Exception | None:
    """
    Raises:
        DiskFull: nothing more can be stored.
    """
    try:
        store.publish(job.after, job.keep, span)
    except DiskFull:
        raise
    except OSError as error:
        return error
    return None


def fill(store: Any, mode: Mode, todo: Sequence[Job], batch_size: int) -> dict[str, int]:
    """Encode what is missing, in batches of similar length; count what was done."""
    counts, start = {"encoded": 0, "failed": 0, "tokens": 0}, time.monotonic()
    progress = cli.Progress(len(todo), mode.name)
    for first in range(0, len(todo), batch_size):
        for job, error in warm(store, todo[first : first + batch_size]):
            counts["failed" if error else "encoded"] += 1
            counts["tokens"] += 0 if error else job.num_tokens
            if error:
                logger.error("log %s is skipped: %s", job.id, " ".join(str(error).split()))
            rate = counts["tokens"] / (time.monotonic() - start)
            progress.update(failed=counts["failed"], tokens_per_second=f"{rate:.0f}")
    progress.close()
    return counts


def run_mode(args: argparse.Namespace, mode: Mode, logs: Any, llm: Any) -> dict[str, Any]:
    paths = Paths(args.data, args.dataset)
    store = llm.open_store(paths.kv, mode)
    jobs = jobs_of(logs, mode, llm)[args.share.index :: args.share.count]
    todo = [job for job in jobs if not store.claim(job.after, job.keep)]
    done = len(jobs) - len(todo)
    per_token = store.bytes_per_token()
    size = check_room(paths, mode, todo, done, per_token, store.disk.left)
    summary = {"mode": mode.name, "logs": len(logs.logs), "skipped": logs.skipped, "present": done}
    summary |= {"missing": len(todo), "bytes": size, "store": str(store.folder)}
    counts = {} if args.dry_run else fill(store, mode, todo, args.batch_size)
    return summary | {"failed": 0, **counts, "evicted": store.counts["evicted"]}


def prune_mode(args: argparse.Namespace, mode: Mode, logs: Any, llm: Any) -> dict[str, Any]:
    from lag.kv_store.inventory import prune

    store = llm.open_store(Paths(args.data, args.dataset).kv, mode)
    known = told_by(llm.tokenizer, logs.logs.values())
    counts = prune(store.root, store.fingerprint, mode, known)
    return {"mode": mode.name, "failed": 0, **counts, "store": str(store.root)}


def compare_mode(args: argparse.Namespace, mode: Mode, logs: Any, llm: Any) -> dict[str, Any]:
    """What each `--kv-dtype` saves and changes, on logs from all over the store."""
    from lag.model.quantization_report import compare

    llm.open_store(Paths(args.data, args.dataset).kv, mode)
    known = list(logs.logs.values())
    sample = known[:: max(1, len(known) // args.compare)][: args.compare]
    summary = {"mode": mode.name, "logs": len(sample), "failed": 0}
    return summary | {"compared": compare(llm, mode, sample)}


def stats(args: argparse.Namespace) -> int:
    """Print what is there; the exit code is 1 if some of it is damaged."""
    from lag.kv_store import inventory

    known = known_logs(args, Paths(args.data, args.dataset))
    found = inventory.holdings(Paths(args.data, args.dataset).kv, known, args.check)
    print(holdings_table(found))
    total = inventory.total(found) | {"checked": args.check}
    cli.print_summary({**total, "holdings": [asdict(one) for one in found]})
    return int(total["damaged"] > 0)


def known_logs(args: argparse.Namespace, paths: Paths) -> Any:
    """What tells which logs use a file; None, and why, where there is no telling."""
    from lag.model.loaded import load_tokenizer

    try:
        logs = load_logs(args, paths)
        return told_by(load_tokenizer(args.model, "--model", args.gguf or ""), logs.logs.values())
    except (ValueError, FileNotFoundError) as error:
        logger.warning("which logs use these files is not known: %s", error)
        return None


def told_by(tokenizer: Any, logs: Iterable[Log]) -> Any:
    """What tells which of these logs a KV folder holds."""
    from lag.kv_store.fingerprint import tokenizer_digest
    from lag.kv_store.inventory import Known
    from lag.model.chat import Chat

    def pairs(mode: Mode, sink: int) -> Iterator[tuple]:
        chat = Chat(tokenizer, sink=sink)
        return (chat.kv_ids(log, mode) for log in logs)

    return Known(tokenizer_digest(tokenizer), pairs)


def holdings_table(found: Iterable[Any]) -> str:
    """For people: one line per folder."""
    from lag.evaluation.columns import num_bytes
    from lag.evaluation.tables import aligned

    def cells(one: Any) -> list[str]:
        counts = (one.logs, one.unused, one.orphans, one.damaged)
        shown = ["-" if count is None else str(count) for count in counts]
        name = f"{one.model} {one.fingerprint[:8]}"
        mode = one.mode + (f" sink {one.sink}" if one.sink else "")
        sizes = [str(one.files), num_bytes(one.bytes), str(one.tokens)]
        return [name, mode, one.kv_dtype, *sizes, *shown, f"{one.age:.1f}", f"{one.idle:.1f}"]

    head = ["model", "mode", "numbers", "files", "size", "tokens"]
    head += ["logs", "unused", "orphans", "damaged", "days old", "days idle"]
    return aligned(head, [cells(one) for one in found])


def main(argv: Sequence[str] | None = None, llm: Any = None) -> int:
    args = parse_args(argv)
    cli.set_up_logging(args.verbose)
    args.share = own_share(args)
    args.device = local_device(args.share.local_rank, args.device)
    if args.stats:
        return stats(args)
    logger.info("%s %s: %s", args.dataset, ",".join(args.mode), args.share)
    logs = load_logs(args, Paths(args.data, args.dataset))
    llm = llm or load_llm(args)
    work = prune_mode if args.prune else compare_mode if args.compare else run_mode
    summaries = [work(args, MODES[name], logs, llm) for name in args.mode]
    cli.print_summary(summaries[0] if len(summaries) == 1 else {"runs": summaries})
    return int(any(summary["failed"] for summary in summaries))


if __name__ == "__main__":
    cli.guarded(main)
