"""Make the data files of a data set, from a local file or from the hub, and split them.

python dataset.py -d wikihop --from dev.json --docs corpus.json
python dataset.py -d musique --from musique_ans_v1.0_dev.jsonl
python dataset.py -d hotpotqa                  # from the hub
python dataset.py -d miniwiki --seed 1234      # generated
python dataset.py -d myqa --like musique --from FILE    # one of your own; see its task.json
python dataset.py -d wikihop --check           # are the files as they should be?
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lag import cli
from lag.data.convert import Converted, Corpus, convert, load_corpus
from lag.data.dataset_files import check, sampled, split, write_set
from lag.data.readers import SUFFIXES, read_rows
from lag.data.sources import SOURCES, fetch
from lag.files import file_digest
from lag.paths import Paths
from lag.runs.flags import add_flags
from lag.tasks import SPLITS, TASKS, Task, find_task, own_row, task_of

logger = logging.getLogger("lag.dataset")
KINDS = ", ".join(SUFFIXES)
SETTINGS = "; ".join(f"{k}: {' or '.join(s.settings)}" for k, s in SOURCES.items() if s.settings)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    add_flags(parser, "dataset", "data", "seed", "verbose")
    add = parser.add_argument
    add("--from", dest="source", metavar="FILE", type=Path, help=f"questions to convert: {KINDS}")
    add("--docs", metavar="FILE", type=Path,
        help="the corpus to retrieve from; default: the questions' own paragraphs")  # fmt: skip
    add("--like", metavar="NAME", type=cli.one_of(TASKS, "data set"),
        help="make -d a data set of your own, whose questions are read, asked and scored as this one's")  # fmt: skip
    add("--hub", metavar="NAME", default="",
        help="another hub repository, or a local copy of one, with the same columns")  # fmt: skip
    add("--revision", default="", help="branch, tag or commit on the hub; default: the newest")
    add("--setting", default="", help=f"{SETTINGS}; default: the first")
    add("--sample", metavar="N", type=cli.at_least(0),
        help="draw N questions with --seed, 0 keeps all; default: all of a local file, and from "
        "the hub as many as the LAG paper")  # fmt: skip
    add("--split-seed", metavar="N", type=int, default=0, help="seed of the split (%(default)s)")
    add("--train-share", metavar="X", type=cli.at_least(0, float), default=0.7,
        help="share of the questions that is train, up to 1 (%(default)s)")  # fmt: skip
    add("--check", action="store_true", help="only check the files that are there")
    args = parser.parse_args(argv)
    args.task = chosen_task(args, Paths(args.data, args.dataset))
    check_flags(args)
    if not args.source and args.dataset in SOURCES:
        args.setting = args.setting or next(iter(SOURCES[args.dataset].settings), "")
    return args


def chosen_task(args: argparse.Namespace, paths: Paths) -> Task:
    """What is asked for; with --like one of the user's own, which keeps the task.json that it has.

    Raises:
        ValueError: there is no such data set, or --like says another thing than what is there.
    """
    if not args.like:
        return task_of(paths)
    if args.dataset in TASKS:
        raise ValueError(
            f"--like {args.like}: {args.dataset} is a data set of the toolkit; give -d a new name"
        )
    known = find_task(paths)
    if known and known.like != args.like:
        raise ValueError(
            f"--like {args.like}: {paths.task} says like {known.like}; leave --like out, or edit it"
        )
    return known or replace(TASKS[args.like], name=args.dataset, like=args.like)


def check_flags(args: argparse.Namespace) -> None:
    """Refuse flags that would be read by nothing.

    Raises:
        ValueError: names the flags.
    """
    kind = args.task.like or args.dataset
    settings = SOURCES[kind].settings if kind in SOURCES else ()
    if args.setting and args.setting not in settings:
        known = f"expected one of: {', '.join(settings)}" if settings else "it has no settings"
        raise ValueError(f"--setting {args.setting} is unknown to {args.dataset}; {known}")
    if args.source and (args.hub or args.revision):
        raise ValueError("--hub and --revision say where on the hub; leave them out with --from")
    made_from = (args.source, args.docs, args.hub, args.revision, args.setting, args.like)
    if args.check and (any(made_from) or args.sample is not None):
        raise ValueError("--check reads the files that are there; give it alone")
    if args.train_share > 1:
        raise ValueError(f"--train-share {args.train_share}: expected at most 1")


@dataclass(frozen=True, slots=True)
class Taken:
    """Rows of a source, what the manifest says of it, and how many to draw (0: all)."""

    rows: list[dict[str, Any]]
    origin: dict[str, Any]
    sample: int

    @property
    def name(self) -> str:
        return self.origin.get("path") or self.origin["repo"]


def read_source(args: argparse.Namespace) -> Taken:
    if args.source:
        digest = file_digest(args.source) if args.source.is_file() else ""
        origin = {"kind": "file", "path": str(args.source), "sha256": digest}
        return Taken(read_rows(args.source), origin, args.sample or 0)
    if args.dataset not in SOURCES:
        raise ValueError(f"{args.dataset} is not on the hub; give --from FILE")
    rows, origin = fetch(args.dataset, args.hub, args.setting, args.revision)
    usual = min(SOURCES[args.dataset].sample, len(rows))
    return Taken(rows, origin, usual if args.sample is None else args.sample)


def draw_world(args: argparse.Namespace) -> tuple[Corpus, Taken]:
    """Generate a world: the same seed gives the same files everywhere.

    Raises:
        ValueError: flags that say where files are from; there are none.
    """
    from lag.data.readers import Passage
    from lag.miniwiki.world import generate

    if args.docs or args.hub or args.revision:
        raise ValueError("miniwiki is generated from --seed; leave out --docs, --hub, --revision")
    world = generate(args.seed)
    corpus = Corpus(given=True)
    for article in world.articles:
        corpus.add(Passage(article.id, article.title, article.content))
    origin = {"kind": "world", "path": f"world {args.seed}"}
    return corpus, Taken(world.rows, origin, args.sample or 0)


def read_docs(path: Path | None) -> tuple[Corpus, dict[str, str] | None]:
    """The corpus, and where it is from; without a file an empty one that takes documents in."""
    if path is None:
        return Corpus(), None
    return load_corpus(path), {"path": str(path), "sha256": file_digest(path)}


def check_corpus(args: argparse.Namespace, paths: Paths, made: Converted) -> None:
    """Say what a missing corpus means.

    Raises:
        ValueError: the folder has a corpus of other data, which would not belong to the new files.
    """
    if made.corpus.num_repeats:
        logger.info("%d repeated documents are kept once", made.corpus.num_repeats)
    if made.corpus.documents:
        return
    if paths.docs.exists():
        raise ValueError(
            f"{paths.docs} exists, but these questions bring no corpus; give --docs {paths.docs}, "
            "or remove it"
        )
    if args.task.num_docs:
        made.warnings["without a corpus: embed.py will refuse; give --docs FILE"] = 1


def warn_of_seed(args: argparse.Namespace, made: Converted) -> None:
    """Say that a world is none of those that a model can be tested on: it was made from it."""
    from lag.miniwiki.recipe import met_in_training

    if known := met_in_training(args.seed):
        made.warnings[f"world {args.seed} is not unseen: {known}; use a seed below 9000"] = 1


def converted(args: argparse.Namespace, taken: Taken, corpus: Corpus) -> Converted:
    """The rows that were drawn, as rows of `dev.json`.

    Raises:
        ValueError: a row is wrong, or none is left.
    """
    drawn = sampled(taken.rows, taken.sample, args.seed)
    logger.info("converting %d of %d rows", len(drawn), len(taken.rows))
    made = convert(args.task, drawn, taken.name, corpus, args.seed, args.setting)
    if not made.rows:
        raise ValueError(f"{taken.name} has no answerable question; expected at least one")
    return made


def make(args: argparse.Namespace, paths: Paths) -> dict[str, Any]:
    """Read, convert, split and write; returns what the manifest says, without its digests."""
    if args.dataset == "miniwiki" and not args.source:
        (corpus, taken), docs = draw_world(args), None
    else:
        corpus, docs = read_docs(args.docs)
        taken = read_source(args)
    made = converted(args, taken, corpus)
    check_corpus(args, paths, made)
    if taken.origin["kind"] == "world":
        warn_of_seed(args, made)
    parts = split(made.rows, args.split_seed, args.train_share)
    files = {paths.questions(): made.rows}
    files |= {paths.questions(part): parts[part] for part in SPLITS}
    if corpus.documents:
        files[paths.docs] = corpus.documents
    if args.task.like and not paths.task.exists():
        files[paths.task] = own_row(args.task)
    counts = {"rows": len(taken.rows), "questions": len(made.rows)}
    counts |= {part: len(parts[part]) for part in SPLITS} | {"documents": len(corpus.documents)}
    meta = {"dataset": args.dataset, "source": taken.origin, "docs": docs, "sample": taken.sample}
    meta |= {name: getattr(args, name) for name in ("setting", "seed", "split_seed", "train_share")}
    meta |= {"counts": counts, "warnings": dict(made.warnings)}
    write_set(paths, files, meta)
    return meta


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    cli.set_up_logging(args.verbose)
    paths = Paths(args.data, args.dataset)
    made = check(paths, args.task) if args.check else make(args, paths)
    for warning, count in made["warnings"].items():
        logger.warning("warning: %s (%d)", warning, count)
    summary = {"dataset": args.dataset, "folder": str(paths.folder), **made["counts"]}
    cli.print_summary({**summary, "warnings": made["warnings"]})
    return 0


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
