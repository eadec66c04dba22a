"""Train models: the embedded data set's own, and adapters that hold logs in their weights.

python train.py miniwiki                       # as the shipped ones; resumes where it stopped
python train.py miniwiki --tokens 2000000 --out /tmp/small
python train.py imitate -d wikihop             # gold annotations, told as the loop's own traces
python train.py sft -d wikihop --from data/wikihop/preds/log.json --out adapters/wikihop
python train.py sft -d wikihop --from data/wikihop/preds/train/log_text --logs kv --reader --out adapters/reader
python train.py annotate -d wikihop --labeller rules
python train.py weigh -d wikihop --preds data/wikihop/preds/train/base_temperature0.8_samples4
python train.py em -d wikihop --iterations 3 --samples 4 --out runs/wikihop
python train.py export --model NAME --adapter adapters/wikihop --out merged
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lag import cli
from lag.miniwiki.recipe import WITHOUT, Recipe
from lag.runs.flags import add_flags
from lag.train.log_examples import FORMS
from lag.train.past_run import FILTERS

# The flags of agentic.py that decide, behind the data set, which model labels, and how `em` rolls out.
LABELLING = (
    *("dataset", "data", "model", "dtype", "device", "batch_size", "provider", "base_url"),
    "timeout",
)
ROLLOUTS = (
    *("dataset", "data", "model", "embedder", "dtype", "device", "batch_size", "solver", "mode"),
    *("retriever", "num_docs", "num_logs", "log_store", "exclude_self", "max_steps"),
    *("max_new_tokens", "limit", "seed"),
)


@dataclass(frozen=True, slots=True)
class Command:
    """A sub-command: its flags, and what it does with them; returns the summary."""

    name: str
    help: str
    flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict[str, Any]]


def miniwiki_flags(parser: argparse.ArgumentParser) -> None:
    add, usual = parser.add_argument, Recipe()

    def size(flag: str, least: int, text: str) -> None:
        default = getattr(usual, flag.strip("-").replace("-", "_"))
        kind = cli.at_least(least)
        add(flag, metavar="N", type=kind, default=default, help=f"{text} (%(default)s)")

    add("--out", metavar="DIR", type=Path, default=Path("data/miniwiki"),
        help="folder for model/ and embedder/ (%(default)s)")  # fmt: skip
    add("--work", metavar="DIR", type=Path,
        help="folder for checkpoints; default: training/ beside them")  # fmt: skip
    size("--tokens", 1, "tokens to read, prompts included")
    size("--annealing", 1, "tokens to read after them, at a lower rate, mostly of logs")
    size("--articles", 50, "articles of each training world")
    size("--questions", 10, "questions of each training world")
    size("--width", 32, "hidden size, a multiple of 32")
    size("--embedder-steps", 1, "updates of the embedder")
    add("--start", metavar="DIR", type=Path,
        help="folder with model/ and embedder/ to go on from: --annealing tokens, none before them")  # fmt: skip
    add("--without", choices=WITHOUT, default="",
        help="what the model is not taught: logs as KV, or replies that search; default: all is")  # fmt: skip
    add("--validation", metavar="N", type=cli.at_least(1), default=64,
        help="replies of each format that are checked at the end (%(default)s)")  # fmt: skip
    add_flags(parser, "seed", "verbose", seed=usual.seed)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe with the sizes that were asked for.

    Raises:
        ValueError: a width that heads of 32 do not divide, or a size that nothing would read.
    """
    names = (
        "tokens",
        "annealing",
        "articles",
        "questions",
        "width",
        "embedder_steps",
        "seed",
        "without",
    )
    given = {name: getattr(args, name) for name in names}
    usual = Recipe()
    for name in ("tokens", "embedder_steps"):
        if args.start and given[name] != getattr(usual, name):
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} {given[name]}: nothing reads it beside --start; leave it out")
    if args.width % 32:
        raise ValueError(f"--width {args.width}: expected a multiple of 32, which each head takes")
    return Recipe(**given, heads=args.width // 32)


def miniwiki(args: argparse.Namespace) -> dict[str, Any]:
    recipe = recipe_of(args)
    from lag.miniwiki.shipped_models import make_models

    work = args.work or args.out / "training"
    return make_models(recipe, args.out, work, args.validation, args.start)


def imitate_flags(parser: argparse.ArgumentParser) -> None:
    names = ("mode", "dataset", "data", "embedder", "device", "retriever", "num_docs", "max_steps",
             "layout", "num_logs", "exclude_self", "log_store", "run", "verbose")  # fmt: skip
    add_flags(parser, *names, mode="base")
    parser.add_argument("--fold", metavar="I/N", type=fold, help="only part I, from 0, of N parts of the questions that share no document")  # fmt: skip


def fold(text: str) -> tuple[int, int]:
    """An argparse type: which part of how many."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"'{text}': expected I/N, such as 0/2 or 1/2")
    return int(number), int(count)


def imitate(args: argparse.Namespace) -> dict[str, Any]:
    from lag.runs.config import RunConfig
    from lag.runs.flags import check_one
    from lag.train.imitate import imitate as answer

    given = {k: v for k, v in vars(args).items() if k not in ("command", "fold") and v is not None}
    config = RunConfig(**given)
    check_one(config)
    return answer(config, args.fold)


def tuning_flags(parser: argparse.ArgumentParser, batch: str) -> None:
    """What is trained, and how; `batch` says what --batch-size counts."""
    add, number = parser.add_argument, cli.at_least
    # fmt: off
    add("--tune", choices=("full", "lora", "tokens", "lora+tokens"), default="lora", help="what is trained (%(default)s)")
    add("--tokens", metavar="WORD[,WORD]", default="", help="words whose rows are trained; new ones become tokens")
    add("--reader", action="store_true", help="the adapter is off while logs are encoded, so that KV of the base model stays valid")
    add("--rank", metavar="N", type=number(1), default=16, help="of LoRA's matrices (%(default)s)")
    add("--alpha", metavar="N", type=number(1), default=32, help="LoRA's scale times its rank (%(default)s)")
    add("--dropout", metavar="X", type=number(0, float, 0.9), default=0.0, help="of what enters LoRA's matrices (%(default)s)")
    add("--batch-size", metavar="N", type=number(1), default=8, help=f"{batch} (%(default)s)")
    add("--epochs", metavar="N", type=number(1), default=2, help="times that every example is read (%(default)s)")
    add("--rate", metavar="X", type=number(0, float), default=2e-4, help="highest learning rate (%(default)s)")
    add("--warmup", metavar="X", type=number(0, float, 0.9), default=0.05, help="share of the updates in which it rises (%(default)s)")
    add("--every", metavar="N", type=number(1), default=25, help="updates between checkpoints (%(default)s)")
    add("--tokens-per-forward", metavar="N", type=number(1), default=8192, help="an update is computed in parts of so many tokens (%(default)s)")
    # fmt: on


def sft_flags(parser: argparse.ArgumentParser) -> None:
    add, number = parser.add_argument, cli.at_least
    add_flags(parser, "dataset", "data", "model", "dtype", "device")
    # fmt: off
    add("--from", dest="path", metavar="FILE", type=Path, required=True, help="predictions file, log store or folder of a run on the train split")
    add("--out", metavar="DIR", type=Path, required=True, help="folder of the adapter, or of the model with --tune full; checkpoints lie in training/ there")
    add("--adapter", metavar="DIR", type=Path, help="an adapter of the same shape, whose training goes on in the new one")
    add("--also", metavar="FILE[:SHARE]", type=run_and_share, action="append", default=[], help="a further run, and the share of its questions that is drawn (1); may stand several times")
    add("--one-form", action="store_true", help="each question stands in one of the forms, drawn, instead of in all")
    add("--longest", metavar="N", type=number(0), default=0, help="leave out examples of more tokens; 0: of more than the model takes (%(default)s)")
    add("--save-dtype", choices=("float32", "bfloat16"), default="", help="of an adapter's stored numbers; default: as they were trained")
    add("--filter", choices=tuple(FILTERS), default="correct", help="which rows are learned from; solved: all rows of a question that has a right one (%(default)s)")
    add("--gold-answers", action="store_true", help="the answer of a wrong row is exchanged for the gold one, as em does it")
    add("--weights", metavar="FILE", type=Path, help="a weight per row, as train.py weigh writes them; default: all alike")
    add("--logs", metavar="FORM", type=cli.list_of(FORMS, "form of logs"), help=f"how the run's logs stand in the examples, a comma list: {', '.join(FORMS)}; default: as in the run")
    add("--layout", choices=("paper", "system-first", "user"), default="", help="where logs stand; default: as in the run")
    add("--log-store", metavar="FILE", type=Path, help="the log store that the run had; default: preds/log.json")
    add("--labels", metavar="FILE", type=Path, help="parts of the replies that get markers, as train.py annotate writes them; goes with a --tune with tokens")
    add("--tokens-per-marker", metavar="N", type=number(1), default=1, help="a marker is a run of so many tokens (%(default)s)")
    add("--validation", metavar="X", type=number(0, float, 0.9), default=0.1, help="share of the questions that is held out for the curve (%(default)s)")
    # fmt: on
    tuning_flags(parser, "examples of an update")
    add_flags(parser, "seed", "verbose")


def run_and_share(text: str) -> tuple[Path, float]:
    """An argparse type: a run, and how much of it is drawn."""
    path, colon, share = text.rpartition(":")
    if not colon:
        return Path(text), 1.0
    return Path(path), cli.at_least(0, float, 1)(share)


def recipes_of(args: argparse.Namespace) -> tuple[Any, Any]:
    """What is trained, and how examples become weights."""
    from lag.train.adapters import AdapterRecipe
    from lag.train.markers import all_words
    from lag.train.sft import TuningRecipe

    tokens = tuple(word for word in args.tokens.split(",") if word)
    if getattr(args, "labels", None):
        tokens += all_words(args.tokens_per_marker)
    adapter = AdapterRecipe(args.tune, args.rank, args.alpha, args.dropout, tokens, args.reader)
    names = ("epochs", "batch_size", "rate", "warmup", "every", "seed")
    return adapter, TuningRecipe(**{name: getattr(args, name) for name in names})


def sft(args: argparse.Namespace) -> dict[str, Any]:
    from lag.paths import Paths
    from lag.tasks import task_of
    from lag.train.sft import Source, tune

    adapter, recipe = recipes_of(args)
    source = Source(
        args.dataset,
        args.data,
        args.path,
        args.filter,
        tuple(args.logs or ()),
        args.layout,
        args.weights,
        args.log_store,
        args.validation,
        tuple(args.also),
        args.one_form,
        args.longest,
        args.labels,
        args.tokens_per_marker,
        args.gold_answers,
    )
    model = args.model or task_of(Paths(args.data, args.dataset)).model
    place = (args.dtype, args.device, args.tokens_per_forward, args.save_dtype, args.adapter)
    return tune(model, source, adapter, recipe, args.out, *place)


def annotate_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_flags(parser, *LABELLING)
    # fmt: off
    add("--labeller", choices=("rules", "llm", "random", "published"), default="rules", help="who says of each part of a reply whether it is memory or reasoning; published reads cot_steps of the data set (%(default)s)")
    add("--from", dest="path", metavar="FILE", type=Path, help="predictions file, log store or folder of a run on the train split; default: preds/log.json")
    add("--out", metavar="FILE", type=Path, help="default: labels.jsonl beside the rows")
    add("--tries", metavar="N", type=cli.at_least(1), default=3, help="how often a model is asked for the labels of a reply (%(default)s)")
    # fmt: on
    add_flags(parser, "seed", "verbose")


def annotate(args: argparse.Namespace) -> dict[str, Any]:
    from lag.files import read_json
    from lag.paths import Paths
    from lag.runs.providers import LOADERS
    from lag.tasks import id_of
    from lag.train import annotate
    from lag.train.markers import write_labels
    from lag.train.past_run import PastRun

    config, paths = labelling(args), Paths(args.data, args.dataset)
    rows = read_json(paths.questions("train"), f"run: python dataset.py {paths.flags}")
    if args.labeller == "published":
        path = args.path or paths.preds / "published.json"
        traces, labels = annotate.published_rows(rows, config.task.load)
        if not labels:
            raise ValueError(f"{paths.questions('train')} has no row with cot_steps")
        annotate.write_published(path, traces, args.dataset)
    else:
        path = args.path or paths.log_store
        run = PastRun.read(path)
        items = annotate.items_of(run)
        if args.labeller == "rules":
            facts = {id_of(row): annotate.gold_facts(row) for row in rows}
            labels = annotate.with_rules(items, facts)
        elif args.labeller == "random":
            labels = annotate.with_chance(items, args.seed)
        else:
            llm = LOADERS[config.provider](config)
            labels = annotate.with_model(items, llm, args.batch_size, args.tries)
    out = args.out or (path if path.is_dir() else path.parent) / "labels.jsonl"
    write_labels(out, labels)
    return {"labels": str(out), "rows": str(path), **annotate.counted(labels)}


def labelling(args: argparse.Namespace) -> Any:
    """The settings of the model that labels.

    Raises:
        ValueError: flags that contradict each other, or that nothing reads as no model labels.
    """
    from lag.runs.config import DEFAULTS, RunConfig, spelling
    from lag.runs.flags import check

    values = {name: getattr(args, name) for name in LABELLING}
    given = [name for name in LABELLING[2:] if values[name] != DEFAULTS[name]]
    if given and args.labeller != "llm":
        raise ValueError(f"{spelling(given[0])} is for --labeller llm; leave it out")
    config = RunConfig(**{k: v for k, v in values.items() if v is not None}, mode="base")
    check(config)
    return config.filled()


def weigh_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_flags(parser, "dataset", "data", "model", "adapter", "dtype", "device")
    # fmt: off
    add("--preds", metavar="RUN", type=Path, required=True, help="folder of a run on the train split, or its predictions file")
    add("--out", metavar="FILE", type=Path, help="default: weights.jsonl beside the rows")
    add("--log-store", metavar="FILE", type=Path, help="the log store that the run had; default: preds/log.json")
    add("--temperature-weights", metavar="X", type=cli.at_least(0.01, float), default=1.0, help="the log-probabilities are divided by it (%(default)s)")
    # fmt: on
    add_flags(parser, "verbose")


def weigh(args: argparse.Namespace) -> dict[str, Any]:
    from lag.train.log_examples import maker_of
    from lag.train.weigh import weigh as run

    maker = maker_of(args.preds, args.dataset, args.data, log_store=args.log_store)
    maker.check_adapter(args.adapter)
    model = args.model or maker.run.settings.get("model") or maker.settings[0].task.model
    folder = args.preds if args.preds.is_dir() else args.preds.parent
    out = args.out or folder / "weights.jsonl"
    return run(maker, model, args.adapter, out, args.temperature_weights, args.dtype, args.device)


def em_flags(parser: argparse.ArgumentParser) -> None:
    add, number = parser.add_argument, cli.at_least
    add_flags(parser, *(name for name in ROLLOUTS if name != "batch_size"), mode="base")
    # fmt: off
    add("--out", metavar="DIR", type=Path, required=True, help="folder of iter_001/, iter_002/ ...; the same command goes on where it stopped")
    add("--iterations", metavar="N", type=number(1), default=3, help="at most so many (%(default)s)")
    add("--samples", metavar="K", type=number(1), default=4, help="trajectories per question (%(default)s)")
    add("--temperature", metavar="T", type=number(0.01, float), default=0.8, help="at which they are drawn (%(default)s)")
    add("--filter", choices=tuple(FILTERS), default="all", help="which rows are learned from: correct is rejection sampling, solved takes all of a question that has a right one (%(default)s)")
    add("--uniform-weights", action="store_true", help="all samples weigh alike")
    add("--validation", metavar="X", type=number(0, float, 0.9), default=0.1, help="share of the train questions that is held out, to stop by (%(default)s)")
    add("--patience", metavar="N", type=number(1), default=1, help="stop after N iterations in a row that are no better on them (%(default)s)")
    # fmt: on
    tuning_flags(parser, "questions that are worked on at once, and examples of an update")
    add_flags(parser, "verbose")


def em(args: argparse.Namespace) -> dict[str, Any]:
    from lag.runs.config import RunConfig
    from lag.runs.flags import check_one
    from lag.train.em import EM, EMRecipe

    adapter, tuning = recipes_of(args)
    adapter.check()
    given = {name: getattr(args, name) for name in ROLLOUTS}
    config = RunConfig(**{name: value for name, value in given.items() if value is not None})
    check_one(config)
    recipe = EMRecipe(
        args.iterations,
        args.samples,
        args.temperature,
        args.filter,
        args.uniform_weights,
        args.validation,
        args.patience,
    )
    return EM(config, recipe, tuning, adapter, args.out, args.tokens_per_forward).run()


def export_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="NAME", required=True, help="the base model, folder or hub name")
    add("--adapter", metavar="DIR", type=Path, required=True, help="what train.py sft wrote")
    add("--out", metavar="DIR", type=Path, required=True, help="folder of the merged model")
    add_flags(parser, "dtype", "verbose")


def export(args: argparse.Namespace) -> dict[str, Any]:
    from lag.train.adapters import export as merge

    return merge(args.model, args.adapter, args.out, args.dtype)


# fmt: off
COMMANDS = {command.name: command for command in (
    Command("miniwiki", "the embedded data set's language model and embedder", miniwiki_flags, miniwiki),
    Command("imitate", "answer the train questions as their annotations say, for sft", imitate_flags, imitate),
    Command("sft", "an adapter, or a whole model, from the logs of a run", sft_flags, sft),
    Command("annotate", "which parts of past replies are memory and which reasoning", annotate_flags, annotate),
    Command("weigh", "how likely each sample of a question makes its gold answer", weigh_flags, weigh),
    Command("em", "again and again: roll out, weigh, fit", em_flags, em),
    Command("export", "base model and adapter in one folder, for servers that take no adapters", export_flags, export),
)}
# fmt: on


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    shape = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = cli.Parser(description=__doc__, **shape)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        command.flags(commands.add_parser(command.name, help=command.help))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    cli.set_up_logging(args.verbose)
    cli.print_summary(COMMANDS[args.command].run(args))
    return 0


if __name__ == "__main__":
    cli.guarded(main)
