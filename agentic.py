"""Answer questions in one or more modes; append a trace for each; merge what partitions wrote.

python agentic.py -m base -d wikihop -p 0                       # seen (train)
python agentic.py -m base -d wikihop --merge --as-log           # its traces become the logs
python agentic.py -m log_text,log_kv -d wikihop --split test    # unseen
CUDA_VISIBLE_DEVICES=1 python agentic.py -m log_kv -d musique -p 1 --num-partitions 4 &
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lag import cli
from lag.runs.config import RunConfig
from lag.runs.flags import make_parser, parse
from lag.runs.merge import merge_run
from lag.runs.missing_files import check_files
from lag.runs.run import Run, recorded_runs
from lag.runs.share import Share, share_of
from lag.runs.worker import Worker

# Into how many shares `-p` cuts a split, where neither a flag nor who started us says so.
NUM_PARTITIONS = 1


def parse_args(argv: Sequence[str] | None) -> RunConfig:
    """The settings that are asked for.

    Raises:
        ValueError: flags that contradict each other, or that nothing would read.
    """
    return parse(make_parser(__doc__), argv)


def own_share(config: RunConfig) -> Share:
    """The share of this process; a merge has no share, whoever started it.

    Raises:
        ValueError: the flags, or who started us, name a share that there is not.
    """
    environment = {} if config.merge else os.environ
    return share_of(environment, config.partition, config.num_partitions, NUM_PARTITIONS)


def execute(config: RunConfig, llm: Any = None, *, train: bool) -> int:
    """Run every solver and mode on every split; `train` decides unless `--split` does."""
    share = own_share(config)
    config = replace(config, partition=share.index, num_partitions=share.count)
    work = merge_run if config.merge else Worker(llm, share.local_rank).answer
    told = "" if config.merge else f", {share}"
    runs, summaries = config.runs(train), []
    if config.ablate:
        return ablate(config, llm, runs[0].split)
    if not config.merge:
        check_files(runs)
    for run in map(Run, runs):
        seen = f"{cli.SPLITS[run.split]} ({run.split})"
        print(f"{config.dataset} {run.name}: {seen}{told}", flush=True)
        summaries.append(work(run))
    cli.print_summary(summaries[0] if len(summaries) == 1 else {"runs": summaries})
    return int(any(summary["failed"] for summary in summaries))


def ablate(config: RunConfig, llm: Any, split: str) -> int:
    """Answer again what a run turned from right to wrong, once without each log that entered."""
    worker = Worker(llm)
    summaries = [worker.ablate(run) for run in recorded_runs(config, config.ablate, split)]
    cli.print_summary(summaries[0] if len(summaries) == 1 else {"runs": summaries})
    return int(any(summary["failed"] for summary in summaries))


def main(argv: Sequence[str] | None = None, llm: Any = None) -> int:
    config = parse_args(argv)
    cli.set_up_logging(config.verbose)
    return execute(config, llm, train=True)


if __name__ == "__main__":
    cli.guarded(main)
