"""Gather what solvers gain from logs on the unseen questions of the shipped world.

python agentic.py --solver react,direct,icl,rag -m base,log_text,log_kv -d miniwiki --split test
python evaluate.py -d miniwiki --split test --outdir data/miniwiki/results
python benchmarks/solvers.py data

Writes solvers.json, by solver and mode.
"""

import argparse
from pathlib import Path
from typing import Any

import measure  # first: it finds the toolkit

from lag import cli
from lag.files import read_json, write_json

NAME = "miniwiki"
SPLIT = "test"
MODES = ("base", "log_text", "log_kv")
KEPT = ("metrics", "intervals", "comparison", "cost")


def gather(folder: Path) -> dict[str, dict[str, Any]]:
    """What the evaluator wrote, by solver and mode; runs with other flags are left out.

    Raises:
        FileNotFoundError: nothing is there.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        result = read_json(path)
        meta = result["meta"]
        plain = (meta["mode"], f"{meta['mode']}_{meta['solver']}")
        if meta["split"] == SPLIT and meta["mode"] in MODES and meta["run"] in plain:
            kept = {name: result[name] for name in KEPT}
            found.setdefault(meta["solver"], {})[meta["mode"]] = kept
    if not found:
        raise FileNotFoundError(f"{folder} holds no results; run evaluate.py as said above")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DIR", type=Path, help="folder of all data sets")
    default = measure.ROOT / "benchmarks" / "results" / "solvers.json"
    parser.add_argument("--out", type=Path, default=default, help="result file (%(default)s)")
    args = parser.parse_args()
    solvers = gather(args.data / NAME / "results")
    write_json(args.out, {"benchmark": "solvers", "solvers": solvers, "made_by": measure.made_by()})


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
