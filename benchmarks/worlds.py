"""Gather what `make worlds` measured on the embedded data set: tables, and a figure.

python benchmarks/worlds.py data data/worlds/2001 data/worlds/2002

The first folder is the shipped world. Prints Markdown; writes worlds.json and worlds.png.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure  # first: it finds the toolkit

from lag.files import read_json, write_json
from lag.modes import MODES

NAME = "miniwiki"
CONTROL = "log_kv_random"
SHOWN = [*MODES, CONTROL]

Results = dict[tuple[str, str], dict[str, Any]]


def read_world(data: Path) -> Results:
    """What the evaluator wrote for one world, by split and run, without single questions.

    Raises:
        FileNotFoundError: nothing is there.
    """
    found = {}
    for path in sorted((data / NAME / "results").glob("*.json")):
        result = read_json(path)
        result.pop("questions", None)
        meta = result["meta"]
        if meta["solver"] == "react":
            found[meta["split"], meta["run"]] = result
    if not found:
        raise FileNotFoundError(f"{data / NAME}/results holds no results; run make worlds first")
    return found


def difference(result: dict[str, Any], name: str, scale: float = 100) -> str:
    """A paired difference to base with its interval."""
    compared = result["comparison"]
    if compared is None:
        return ""
    found = compared["differences"][name]
    text = f"{scale * found['value']:+.{1 if scale == 100 else 2}f}"
    interval = found["interval"]
    if not interval:
        return text
    low, high = (scale * interval[end] for end in ("low", "high"))
    return f"{text} [{low:+.{1 if scale == 100 else 2}f}, {high:+.{1 if scale == 100 else 2}f}]"


def worlds_table(worlds: dict[str, Results], metric: str, scale: float) -> list[str]:
    """The difference to base on unseen questions, one column per world."""
    lines = [
        f"| mode | {' | '.join(worlds)} |",
        f"| --- |{' --- |' * len(worlds)}",
    ]
    for name in SHOWN[1:]:
        results = [world.get(("test", name)) for world in worlds.values()]
        cells = [difference(result, metric, scale) if result else "" for result in results]
        if any(cells):  # a mode of its own stream has none here
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def bytes_against_accuracy(worlds: dict[str, Results]) -> dict[str, dict[str, float]]:
    """Per mode the bytes of KV per log on disk, and EM on unseen questions, over all worlds."""
    points = {}
    for name, mode in MODES.items():
        results = [world["test", name] for world in worlds.values() if ("test", name) in world]
        if results and mode.enters in ("", "kv"):
            stored = [r["cost"]["kv_stored"] / max(1, num_logs(r)) for r in results]
            em = [r["metrics"]["em"] for r in results]
            points[name] = {"bytes_per_log": mean(stored), "em": mean(em)}
    return points


def num_logs(result: dict[str, Any]) -> int:
    return (result["leakage"] or {}).get("logs", 0)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def draw(points: dict[str, dict[str, float]], hidden: dict[str, Any] | None, path: Path) -> None:
    """Left: bytes per log against accuracy. Right: what KV carries beyond its words."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, point in points.items():
        if name == "base":
            left.axhline(100 * point["em"], color="#888888", lw=1, ls="--")
            left.annotate("base", (0, 100 * point["em"]), fontsize=7, va="bottom")
            continue
        x, y = point["bytes_per_log"] / 1024, 100 * point["em"]
        left.plot(x, y, "o", color="#2458a6")
        lower = -10 if "last" in name else 5
        left.annotate(name, (x, y), fontsize=7, xytext=(4, lower), textcoords="offset points")
    left.set(xlabel="KiB of KV per log on disk", ylabel="EM on unseen questions, %")
    left.margins(x=0.35, y=0.2)
    shares = hidden["timings"]["shares"] if hidden else {}
    labels = {
        "full": "reasoning\nas text",
        "kv": "answer tag\nas KV",
        "wrong": "as KV, wrong\ncontext",
        "text": "answer tag\nas text",
        "none": "no log",
    }
    shown = [kind for kind in labels if kind in shares]
    right.bar(
        [labels[k] for k in shown], [100 * shares[k]["right"] for k in shown], color="#2458a6"
    )
    right.set(ylabel="right answers, %", title="Facts in the hidden text only")
    right.tick_params(axis="x", labelsize=7)
    right.title.set_fontsize(9)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DIR", type=Path, nargs="+", help="one folder per world")
    folder = measure.ROOT / "benchmarks" / "results"
    parser.add_argument("--out", type=Path, default=folder, help="folder (benchmarks/results)")
    args = parser.parse_args()
    worlds = {f"world {n + 1}": read_world(data) for n, data in enumerate(args.data)}
    print(*worlds_table(worlds, "em", 100), "", *worlds_table(worlds, "steps", 1), sep="\n")
    points = bytes_against_accuracy(worlds)
    path = folder / "hidden.json"
    draw(points, json.loads(path.read_text()) if path.exists() else None, args.out / "worlds.png")
    rows = {
        name: {f"{split}/{run}": result for (split, run), result in world.items()}
        for name, world in worlds.items()
    }
    write_json(
        args.out / "worlds.json",
        {"worlds": rows, "bytes": points, "made_by": measure.made_by()},
    )


if __name__ == "__main__":
    main()
