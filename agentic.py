"""Answer questions in one or more modes; append a trace for each; merge what partitions wrote.

python agentic.py -m base -d wikihop -p 0                       # seen (train)
python agentic.py -m base -d wikihop --merge --as-log           # its traces become the logs
python agentic.py -m log_text,log_kv -d wikihop --split test    # unseen
CUDA_VISIBLE_DEVICES=1 python agentic.py -m log_kv -d musique -p 1 --num-partitions 4 &
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

from lag import cli
from lag.logs.controls import CONTROLS
from lag.modes import MODES
from lag.retrieval.retrievers import DEFAULT_RETRIEVER, RETRIEVERS
from lag.runs.merge import merge_run
from lag.runs.providers import CONCURRENCY, DEFAULT_PROVIDER, PROVIDERS, TIMEOUT
from lag.runs.providers import settle as settle_provider
from lag.runs.run import Run
from lag.runs.worker import Worker
from lag.solvers import DEFAULT_SOLVER, SOLVERS, settle
from lag.tasks import TASKS

NUM_PARTITIONS = 1  # into how many shares `-p` cuts a split; `--num-partitions` overrides it

ORDERS = ("similar-last", "similar-first", "entered")
LAYOUTS = ("paper", "system-first", "user")
PREFILLS = ("turn", "folded", "auto")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = cli.at_least
    cli.add_flags(parser, "mode", "dataset")
    solvers = cli.list_of(SOLVERS, "solver")
    # fmt: off
    parser.add_argument("-p", "--partition", type=number(0), default=0, metavar="I", help="which share of the questions, from 0 (%(default)s)")
    parser.add_argument("--num-partitions", type=number(1), default=NUM_PARTITIONS, metavar="N", help="how many shares there are, one process each (%(default)s)")
    parser.add_argument("--split", metavar="SPLIT", help="train (seen), test (unseen) or train,test; default: what the last line of this file says")
    cli.add_flags(parser, "model", "embedder", "dtype", "device", "trust_remote_code", "batch_size", "data")
    served = parser.add_argument_group("the model's side")
    served.add_argument("--provider", choices=PROVIDERS, default=DEFAULT_PROVIDER, help="a model in this process, or any OpenAI-compatible server (%(default)s)")
    served.add_argument("--base-url", metavar="URL", help="where the server's API begins; default: the environment's OPENAI_BASE_URL; a key is read from OPENAI_API_KEY alone")
    served.add_argument("--concurrency", type=number(1), metavar="N", help=f"questions in flight at the server ({CONCURRENCY})")
    served.add_argument("--timeout", type=number(0.01, float), metavar="S", help=f"seconds that the server has for a reply ({TIMEOUT:g})")
    served.add_argument("--tokenizer", metavar="NAME", help="the served model's tokenizer, folder or hub name: lets prompts be counted and shortened before they are sent")
    loop = parser.add_argument_group("the loop")
    loop.add_argument("--solver", metavar="NAME", type=solvers, default=DEFAULT_SOLVER, help=f"how a question is answered, a comma list runs several: {', '.join(SOLVERS)} (%(default)s)")
    loop.add_argument("--retriever", choices=RETRIEVERS, default=DEFAULT_RETRIEVER, help="how documents are found; logs are always found by the embedder (%(default)s)")
    loop.add_argument("--retriever-url", metavar="URL", help="server of --retriever http; default: the environment's RETRIEVER_URL")
    loop.add_argument("--num-docs", type=number(0), metavar="N", help="documents that each query adds; default: the solver's (rag 4) or the data set's (QA 2)")
    loop.add_argument("--num-logs", type=number(0), metavar="N", help="logs that each query adds; default: the data set's (3)")
    loop.add_argument("--max-steps", type=number(1), metavar="N", help="calls per question; default: the data set's (QA 8, multiple choice 3)")
    loop.add_argument("--trace-steps", type=number(0), default=0, metavar="N", help="show the last N queries and replies of the question in its prompt (%(default)s: none)")
    loop.add_argument("--trace-tokens", type=number(0), default=0, metavar="N", help="at most so many tokens of them, whole steps only; 0: what fits (%(default)s)")
    loop.add_argument("--prefill", choices=PREFILLS, help="what begins a reply stands in the model's turn (default), or at the end of the user's (default of an endpoint); auto asks a server which it can do")
    loop.add_argument("--max-new-tokens", type=number(1), default=1024, metavar="N", help="longest reply in tokens (%(default)s)")
    loop.add_argument("--temperature", type=number(0, float), default=0.0, metavar="T", help="0 takes the likeliest token (%(default)s)")
    cli.add_flags(loop, "seed")
    logs = parser.add_argument_group("the logs")
    logs.add_argument("--layout", choices=LAYOUTS, help="where logs stand: before the chat (default), after its system block, or, text only, in the user's turn (an endpoint's only one)")
    logs.add_argument("--log-order", choices=ORDERS, default="similar-last", help="order of the logs in the prompt (%(default)s)")
    cli.add_flags(logs, "log_store", "log_limit", "kv_dtype", "kv", "kv_memory", "kv_disk", "sink")
    logs.add_argument("--recompute", type=number(0), default=0, metavar="K", help="compute the first K tokens of every log again where it stands, seeing all that stands before (KV modes; %(default)s)")
    logs.add_argument("--log-tokens", type=number(0), default=0, metavar="N", help="at most so many tokens of logs in a prompt; 0: what fits (%(default)s)")
    logs.add_argument("--exclude-self", action="store_true", help="a question may not retrieve its own log")
    logs.add_argument("--min-similarity", type=number(-1, float, most=1), default=-1.0, metavar="X", help="below this cosine no log enters (%(default)s: all do)")
    logs.add_argument("--log-control", choices=CONTROLS, default="none", help="logs drawn at random, those of another question, or (KV) encoded after another log's hidden text (%(default)s)")
    logs.add_argument("--sheet", choices=("fresh", "carried"), default="fresh", help="cheatsheet: written anew per question, or living on from one to the next (%(default)s)")
    run = parser.add_argument_group("the run")
    run.add_argument("--limit", type=number(1), metavar="N", help="only the first N questions of the split")
    run.add_argument("--ids", metavar="ID[,ID]", help="only these questions")
    run.add_argument("--run", metavar="NAME", help="name of the run's folder; default: the mode and what differs from the defaults")
    run.add_argument("--merge", action="store_true", help="merge the parts of a run into preds.json, and do nothing else")
    run.add_argument("--as-log", action="store_true", help="with --merge: make the merged run the log store, preds/log.json")
    run.add_argument("--export-batches", type=number(1), metavar="B", help="with --merge: also write the finished run as batch files of B questions, as multi-hop toolkits do")
    run.add_argument("--export-to", type=Path, default=Path("preds"), metavar="DIR", help="folder of these files (%(default)s)")
    run.add_argument("--config", type=Path, metavar="FILE", help="JSON file with flags, such as a run.json; the command line wins")
    cli.add_flags(run, "verbose")
    # fmt: on
    return parser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags; solver and data set fill in their limits, per solver in `runs`.

    Raises:
        ValueError: flags that contradict each other.
    """
    parser = make_parser()
    args = cli.parse_with_config(parser, argv)
    args.defaults = {name: make_parser().get_default(name) for name in vars(args)}
    task = TASKS[args.dataset]
    for name in ("num_logs", "model", "embedder"):
        args.defaults[name] = getattr(task, name)
        if getattr(args, name) is None:
            setattr(args, name, args.defaults[name])
    check(args)
    args.runs = [settle(args, solver, task) for solver in args.solver]
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be done before anything is loaded.

    Raises:
        ValueError: names the flags and what to give instead.
    """
    modes = [MODES[name] for name in args.mode]
    settle_provider(args, modes)
    kv = [mode.name for mode in modes if mode.enters == "kv"]
    if args.partition >= args.num_partitions:
        raise ValueError(
            f"-p {args.partition}: there are {args.num_partitions} partitions, counted from 0; "
            "give --num-partitions"
        )
    if kv and args.layout == "user":
        raise ValueError(
            f"--layout user holds text only; {', '.join(kv)} needs paper or system-first"
        )
    if args.kv == "encode" and args.kv_disk is not None:
        raise ValueError("--kv encode stores nothing; leave out --kv-disk")
    for flag in ("sink", "recompute", "kv_disk", "kv"):
        value = getattr(args, flag)
        if value and value != "store" and not kv:
            able = ", ".join(name for name, mode in MODES.items() if mode.enters == "kv")
            raise ValueError(
                f"--{flag.replace('_', '-')} {value} is for logs that enter as KV; give -m one of {able}"
            )
    if args.log_control == "wrong-context" and not all(mode.hides for mode in modes):
        hiding = ", ".join(name for name, mode in MODES.items() if mode.hides)
        raise ValueError(f"--log-control wrong-context is for modes that hide text: {hiding}")
    several = len(modes) * len(args.solver) > 1
    if args.as_log and (not args.merge or several):
        raise ValueError("--as-log goes with --merge, one mode and one solver")
    if args.export_batches and not args.merge:
        raise ValueError("--export-batches goes with --merge")
    if args.run and several:
        raise ValueError("--run names one run; give one mode and one solver with it")
    if args.trace_tokens and not args.trace_steps:
        raise ValueError("--trace-tokens bounds the steps of --trace-steps; give both")
    if args.run and Path(args.run).name != args.run:
        raise ValueError(f"--run {args.run}: expected a plain name, which becomes a folder's")
    if args.limit and args.ids:
        raise ValueError("--limit and --ids exclude each other")


def execute(args: argparse.Namespace, llm: Any = None, *, train: bool) -> int:
    """Run every solver and mode on every split; `train` decides unless `--split` does."""
    splits = (args.split or ("train" if train else "test")).split(",")
    unknown = [split for split in splits if split not in cli.SPLITS]
    if unknown:
        raise ValueError(f"--split {args.split}: expected train, test or train,test")
    work = merge_run if args.merge else Worker(args, llm).answer
    summaries = []
    for split in splits:
        for settled, name in itertools.product(args.runs, args.mode):
            run = Run(settled, MODES[name], split)
            share = "" if args.merge else f", partition {args.partition} of {args.num_partitions}"
            print(f"{args.dataset} {run.name}: {cli.SPLITS[split]} ({split}){share}", flush=True)
            summaries.append(work(run))
    cli.print_summary(summaries[0] if len(summaries) == 1 else {"runs": summaries})
    return int(any(summary["failed"] for summary in summaries))


def main(argv: list[str] | None = None, llm: Any = None) -> int:
    args = parse_args(argv)
    cli.set_up_logging(args.verbose)
    return execute(args, llm, train=True)


if __name__ == "__main__":
    cli.guarded(main)
