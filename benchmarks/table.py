"""Print the README's table of what was measured, and against which target, from the result files.

python benchmarks/table.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
HEAD = ["| id | measure | value | target | reached |", "| --- | --- | --- | --- | --- |"]


def measures() -> Iterator[dict[str, Any]]:
    """Every measure with a target, by its id."""
    found = []
    for path in sorted(RESULTS.glob("*.json")):
        rows = json.loads(path.read_text(encoding="utf-8")).get("measures", [])
        found += [row for row in rows if (row["most"], row["least"]) != (None, None)]
    yield from sorted(found, key=lambda row: (row["id"][0], int(row["id"][1:])))


def line(row: dict[str, Any]) -> str:
    bound = f"at most {row['most']:g}" if row["most"] is not None else f"at least {row['least']:g}"
    reached = "yes" if row["reached"] else "**no**"
    return f"| {row['id']} | {row['what']} | {row['value']:.3g} | {bound} | {reached} |"


def lines() -> list[str]:
    return [*HEAD, *map(line, measures())]


if __name__ == "__main__":
    print(*lines(), sep="\n")
