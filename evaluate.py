"""Score runs by their data set's official rule, compare them with a baseline, report.

python evaluate.py -d wikihop                                # every run found there
python evaluate.py -d wikihop --report report.html --figures figures --table table.md
python evaluate.py --preds data/wikihop/preds/test/{base,log_kv}/preds.json --baseline base
python evaluate.py --input-dir preds --split test --seed 1 --batch-size 50 -d musique
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lag import cli
from lag.evaluation.find_runs import (
    Run,
    Skipping,
    files_of_folder,
    files_of_pattern,
    name_dataset,
    runs_of_dataset,
    runs_of_files,
)
from lag.metrics import SCORERS
from lag.paths import Paths
from lag.runs.flags import add_flags
from lag.tasks import SPLITS, task_of

if TYPE_CHECKING:  # they bring numpy along, which `--help` does without
    from lag.evaluation.curve_figure import Curves
    from lag.evaluation.harm import Harm
    from lag.evaluation.results import Evaluator, Result

logger = logging.getLogger(__name__)

TABLES = (".csv", ".md", ".tex")
INPUTS = ("preds", "pattern", "input_dir")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(description=__doc__)
    # fmt: off
    inputs = parser.add_argument_group("what to score, one of -d, --preds, --pattern, --input-dir")
    add_flags(inputs, "dataset", "data", dataset=None)
    inputs.add_argument("--split", metavar="SPLIT", default="", help="-d: train (seen), test (unseen) or train,test; --input-dir: any")
    inputs.add_argument("--preds", metavar="FILE", type=Path, nargs="+", help="predictions files; batches of one run are aggregated")
    inputs.add_argument("--pattern", metavar="GLOB", help="predictions files by a quoted pattern")
    inputs.add_argument("--input-dir", metavar="DIR", type=Path, help="all predictions files below a folder")
    inputs.add_argument("--seed", metavar="N", default="", help="with --input-dir: only files of this seed")
    inputs.add_argument("--batch-size", metavar="N", default="", help="with --input-dir: only files of this batch size")
    how = parser.add_argument_group("how")
    how.add_argument("--scorer", choices=("auto", *SCORERS), default="auto", help="official rule; auto takes the data set's (%(default)s)")
    how.add_argument("--source", choices=("local", "hf"), default="local", help="where gold answers are looked up that the rows lack (%(default)s)")
    how.add_argument("--baseline", metavar="RUN", default="", help="the run that all others are compared with; default: the base of each run's own solver")
    how.add_argument("--bootstrap-seed", metavar="N", type=int, default=1234, help="seed of the intervals (%(default)s)")
    how.add_argument("--bootstrap-samples", metavar="N", type=cli.at_least(100), default=1000, help="samples of the intervals (%(default)s)")
    out = parser.add_argument_group("what to write")
    out.add_argument("--outdir", metavar="DIR", type=Path, default=Path("results/eval"), help="one JSON file per run (%(default)s)")
    out.add_argument("--json", action="store_true", help="print all results as JSON instead of tables")
    out.add_argument("--table", metavar="FILE", type=Path, help="one row per run with scores, differences, intervals and costs; the name ends in .csv, .md or .tex")
    out.add_argument("--report", metavar="FILE", type=Path, help="one HTML file: tables, figures, every trace")
    out.add_argument("--figures", metavar="DIR", type=Path, help="the figures as PNG and their data as CSV")
    out.add_argument("--curve", action="store_true", help="of runs that grow a store (--grow): scores and costs against the questions seen, as a table, and as CSV and PNG in --outdir")
    out.add_argument("--harm", action="store_true", help="of runs that agentic.py --ablate answered again: which log turned which answer wrong")
    out.add_argument("--unredacted", action="store_true", help="show texts of gated data sets (GPQA) in the report")
    add_flags(out, "verbose")
    # fmt: on
    return parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags.

    Raises:
        ValueError: no input, several, or a flag that this input does not read.
    """
    args = make_parser().parse_args(argv)
    given = [name for name in INPUTS if getattr(args, name)]
    if len(given) > 1 or not (given or args.dataset):
        raise ValueError(
            "give one of -d DATASET, --preds FILE.., --pattern GLOB, --input-dir DIR; "
            "-d beside another one names the data set of its files"
        )
    for name in ("seed", "batch_size"):
        if getattr(args, name) and not args.input_dir:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} chooses among the files of --input-dir, which is not given")
    if args.split and given and not args.input_dir:
        raise ValueError(f"--split goes with -d or --input-dir; --{given[0]} names its files")
    if args.split and not given and set(args.split.split(",")) - {*SPLITS}:
        raise ValueError(f"--split {args.split}: expected train, test or train,test")
    if args.unredacted and not args.report:
        raise ValueError("--unredacted is about the report; give --report FILE with it")
    if args.table and args.table.suffix not in TABLES:
        raise ValueError(f"--table {args.table}: expected a name that ends in {', '.join(TABLES)}")
    check_places(args)
    return args


def check_places(args: argparse.Namespace) -> None:
    """Refuse places that cannot be written before anything is.

    Raises:
        ValueError: a folder where a file is expected, or a file where a folder is.
    """
    for name in ("report", "table"):
        path = getattr(args, name)
        if path and path.is_dir():
            raise ValueError(f"--{name} {path} is a folder; give the name of a file")
    for name in ("outdir", "figures"):
        path = getattr(args, name)
        if path and path.exists() and not path.is_dir():
            raise ValueError(f"--{name} {path} is a file; give the name of a folder")


def find_runs(args: argparse.Namespace, skipping: Skipping) -> list[Run]:
    """The runs that the flags name.

    Raises:
        FileNotFoundError, ValueError: nothing is there, or it cannot be read as runs.
    """
    if args.dataset:
        task_of(Paths(args.data, args.dataset))
    if args.input_dir:
        if not args.input_dir.is_dir():
            raise FileNotFoundError(f"--input-dir {args.input_dir} is no folder")
        wanted = {name: getattr(args, name) for name in ("split", "seed", "batch_size")}
        runs = runs_of_files(files_of_folder(args.input_dir, wanted), args.data)
    elif args.pattern:
        runs = runs_of_files(files_of_pattern(args.pattern), args.data)
    elif args.preds:
        runs = runs_of_files(args.preds, args.data)
    else:
        return runs_of_dataset(Paths(args.data, args.dataset), args.split, skipping)
    for run in runs if args.dataset else ():
        name_dataset(run, args.dataset)
    return runs


def write_results(results: "Sequence[Result]", outdir: Path) -> list[str]:
    """One JSON file per run; returns their paths."""
    from lag.files import write_json

    written = []
    for result in results:
        path = outdir / result.file_name
        write_json(path, result.to_json())
        written.append(str(path))
    return written


def summary_of(results: "Sequence[Result]") -> dict[str, Any]:
    """All results without their single questions."""
    rows = [result.to_json() for result in results]
    return {"runs": [{k: v for k, v in row.items() if k != "questions"} for row in rows]}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    cli.set_up_logging(args.verbose)
    from lag.evaluation.gold import Catalogue
    from lag.evaluation.intervals import Sampling
    from lag.evaluation.results import Evaluator
    from lag.evaluation.tables import as_text

    sampling = Sampling(args.bootstrap_seed, args.bootstrap_samples)
    skipping = Skipping(strict=any(getattr(args, name) for name in INPUTS))
    evaluator = Evaluator(Catalogue(args.data, args.source), sampling, args.scorer, skipping)
    results = evaluator.results(find_runs(args, skipping), args.baseline)
    told = tell_skipped(skipping.skipped, results)
    curves = curves_of(results, args) if args.curve else []
    harm = harm_of(results, args) if args.harm else []
    summary = write_files(args, results, evaluator) | told  # first: who reads may stop early
    if curves:
        summary["curves"] = [path for one in curves for path in one.write(args.outdir)]
    if harm:
        summary["harm"] = [one.to_json() for one in harm]
    print("" if args.json else as_text(results) + "".join(map(str, [*curves, *harm])), end="")
    cli.print_summary(summary_of(results) | summary if args.json else summary)
    return 1 if skipping.skipped else 0


def tell_skipped(skipped: dict[str, str], results: "Sequence[Result]") -> dict[str, Any]:
    """Name every run that was left out; the same for the summary.

    Raises:
        ValueError: all were.
    """
    if skipped and not results:
        folder, why = next(iter(skipped.items()))
        raise ValueError(f"none of {len(skipped)} runs can be scored; {folder}: {why}")
    for folder, why in skipped.items():
        logger.warning("skipped %s: %s", folder, why)
    return {"skipped": skipped} if skipped else {}


def curves_of(results: "Sequence[Result]", args: argparse.Namespace) -> "list[Curves]":
    """
    Raises:
        ValueError: no run has grown a store.
    """
    from lag.evaluation.curve_figure import Curves

    found = Curves.all_of(results, args.data)
    if not found:
        raise ValueError("--curve: none of these runs grew a store; run: agentic.py --grow")
    return found


def harm_of(results: "Sequence[Result]", args: argparse.Namespace) -> "list[Harm]":
    """
    Raises:
        ValueError: no run was ablated.
    """
    from lag.evaluation.harm import harm_of_all

    found = harm_of_all(results, args.data)
    if not found:
        raise ValueError("--harm: no run was ablated; run: agentic.py --ablate RUN")
    return found


def write_files(
    args: argparse.Namespace, results: "Sequence[Result]", evaluator: "Evaluator"
) -> dict[str, Any]:
    """Write all that was asked for; returns where it lies."""
    summary: dict[str, Any] = {"written": write_results(results, args.outdir)}
    if args.table:
        from lag.evaluation.tables import write_table

        write_table(args.table, results)
        summary["table"] = str(args.table)
    if args.figures:
        from lag.evaluation.figures import write_figures

        summary["figures"] = write_figures(results, args.figures)
    if args.report:
        from lag.report.page import write_report

        write_report(args.report, results, evaluator, unredacted=args.unredacted)
        summary["report"] = str(args.report)
    return summary


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
