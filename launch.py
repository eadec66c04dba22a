"""Start, follow and finish workers that share the questions of a run; other flags are agentic.py's.

python launch.py -d wikihop -m base,log_kv --workers 4     # on CPUs, or one per GPU
python launch.py -d wikihop -m log_kv --devices 0,1,2,3 --num-partitions 16
python launch.py -d wikihop -m log_kv --workers 16 --slurm --dry-run    # an sbatch script instead
python launch.py --status -d wikihop                       # how far every run is, from its files
python launch.py --status -d wikihop --watch

A worker that dies is started again; Ctrl-C ends all; workers outlive a launcher that is killed, and
the same command goes on where it was. At the end the runs are merged.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lag import cli
from lag.paths import Paths
from lag.runs.flags import add_flags, make_parser, parse
from lag.runs.launch import Plan, devices_here, is_train, launch, write_sbatch
from lag.runs.missing_files import check_files
from lag.runs.status import DatasetStatus, shown
from lag.tasks import task_of

SCRIPT = Path(__file__).resolve().with_name("agentic.py")
EVERY = 5.0  # seconds between two looks of --watch


def parse_own(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The flags of this script, and what is left for agentic.py."""
    parser = cli.Parser(description=__doc__, allow_abbrev=False)
    add, number = parser.add_argument, cli.at_least
    # fmt: off
    add("--workers", type=number(1), metavar="N", help="how many processes work at once (one per device, else 2)")
    add("--num-partitions", type=number(1), metavar="N", help="into how many shares the questions are cut (as many as workers)")
    add("--devices", type=lambda text: tuple(text.split(",")), metavar="I[,I]", help="GPUs, one worker each (all that are here)")
    add("--restarts", type=number(0), metavar="N", default=2, help="how often one share is begun again after its worker died (%(default)s)")
    add("--as-log", action="store_true", help="make the merged run the log store, preds/log.json")
    add("--slurm", action="store_true", help="start nothing; write the sbatch script of a job array")
    add("--dry-run", action="store_true", help="with --slurm: print it instead")
    add("--status", action="store_true", help="start nothing; say how far every run is, and what would finish it")
    add("--json", action="store_true", help="with --status: as one JSON object")
    add("--watch", action="store_true", help=f"with --status: again every {EVERY:.0f} s")
    # fmt: on
    own, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    for name, needed in (("dry_run", "slurm"), ("json", "status"), ("watch", "status")):
        if getattr(own, name) and not getattr(own, needed):
            parser.error(f"--{name.replace('_', '-')} goes with --{needed}")
    return own, rest


def make_plan(own: argparse.Namespace, rest: Sequence[str]) -> Plan:
    """
    Raises:
        ValueError: flags that agentic.py refuses, or that only a worker has.
    """
    config = parse(make_parser(None), rest)
    if config.merge or config.partition is not None:
        raise ValueError("launch.py gives its workers -p and merges at the end; leave both out")
    runs = config.runs(is_train(SCRIPT))
    if own.as_log and len(runs) > 1:
        raise ValueError("--as-log goes with one mode, one solver and one split")
    check_files(runs)
    devices = devices_here(config) if own.devices is None else own.devices
    workers = own.workers or len(devices) or 2
    shares = own.num_partitions or config.num_partitions or workers
    merging = ("--as-log",) * own.as_log
    return Plan(SCRIPT, tuple(rest), tuple(runs), workers, shares, devices, own.restarts, merging)


def status(own: argparse.Namespace, rest: Sequence[str]) -> int:
    """Print what the files say; the exit code is 1 while something is missing."""
    parser = cli.Parser(prog="launch.py --status", allow_abbrev=False)
    add_flags(parser, "dataset", "data", "run")
    args = parser.parse_args(rest)
    paths = Paths(args.data, args.dataset)
    task_of(paths)
    runs = DatasetStatus(paths, args.run)
    while True:
        found = [run.summary() for run in runs.update()]
        if own.json:
            cli.print_summary({"runs": found})
        else:
            print("\n".join(map(shown, found)) or f"{runs.paths.preds} holds no runs", flush=True)
        if not own.watch:
            return int(any(run["done"] < run["questions"] for run in found))
        time.sleep(EVERY)


def main(argv: Sequence[str] | None = None) -> int:
    own, rest = parse_own(argv)
    cli.set_up_logging("-v" in rest or "--verbose" in rest)
    if own.status:
        return status(own, rest)
    plan = make_plan(own, rest)
    return write_sbatch(plan, own.dry_run) if own.slurm else launch(plan)


if __name__ == "__main__":
    cli.guarded(main)
