"""Print every table of results from the result files, or put them where they belong.

python benchmarks/tables.py                # all tables, by name
python benchmarks/tables.py short speed    # these
python benchmarks/tables.py --write        # between `<!-- table NAME -->` and `<!-- end -->`
"""

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import measure  # first: it finds the toolkit
from hidden import KINDS
from real_hidden import KINDS as REAL_KINDS
from real_hidden import SIDES
from solvers import MODES as SOLVER_MODES
from worlds import CONTROLS, PLACES, SHOWN

from lag import cli
from lag.evaluation.curve_figure import told_break_even
from lag.files import read_json
from lag.solvers import SOLVERS

RESULTS = measure.ROOT / "benchmarks" / "results"
FILES = (measure.ROOT / "benchmarks" / "README.md", measure.ROOT / "README.md")
OLDER = "older/*.json"  # the same measures on another processor
PLACE = re.compile(r"(<!-- table ([a-z0-9-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
SHORT = ("base", "log_text", "log_text_all", "log_kv", *CONTROLS)

TUNED = {
    "before": "before",
    "adapter": "an adapter, logs encoded with it",
    "reader": "a reader, off while logs are encoded",
    "whole": "all weights",
}

LEARNED = {
    "weighted": "solved questions, weighted",
    "uniform": "solved questions, all samples alike",
    "correct": "right samples alone",
    "all": "all questions, weighted",
}

SERVED = {"serving": "embedded", "serving_real": "SmolLM2-135M"}  # result files

Table = list[list[str]]


def read(name: str) -> dict[str, Any]:
    return read_json(RESULTS / f"{name}.json")


def difference(result: dict[str, Any], name: str, scale: float = 100) -> str:
    """A paired difference to base with its interval, of an evaluator's result."""
    compared = result["comparison"]
    return spanned(compared["differences"][name], scale) if compared else ""


def percent(result: dict[str, Any], name: str, interval: bool = False) -> str:
    text = f"{100 * result['metrics'][name]:.1f}"
    bounds = result["intervals"].get(name) if interval else None
    return f"{text} [{100 * bounds['low']:.1f}, {100 * bounds['high']:.1f}]" if bounds else text


def spanned(estimate: dict[str, Any], scale: float, sign: str = "+") -> str:
    """A value with its interval."""
    bounds = estimate["interval"] or {}
    form = f"{sign}.{1 if scale == 100 else 2}f"
    low, high = (f"{scale * bounds[end]:{form}}" if bounds else "" for end in ("low", "high"))
    return f"{scale * estimate['value']:{form}}" + (f" [{low}, {high}]" if bounds else "")


def pooled(names: Iterable[str]) -> Table:
    """Modes and controls on the unseen questions of all worlds, at the data set's step limit."""
    columns = ("EM", "EM to `base`", "steps", "steps to `base`", "prefilled", "cached", "seconds")
    rows, runs = [["mode", *columns]], read("worlds")["runs"]
    for name in dict.fromkeys(names):
        if name in runs:
            one, other = runs[name], name != "base"
            rows.append([
                f"`{name}`",
                spanned(one["em"], 100, ""),
                spanned(one["em_to_base"], 100) if other else "",
                f"{one['steps']['value']:.2f}",
                spanned(one["steps_to_base"], 1) if other else "",
                f"{one['prefilled_tokens']:.0f}",
                f"{one['cached_tokens']:.0f}",
                f"{one['seconds']:.2f}",
            ])  # fmt: skip
    return rows


def seen() -> Table:
    """Modes on train questions: with their own logs in the store, and without."""
    rows = [["mode", "EM", "EM to `base`", "steps to `base`"]]
    for name, one in read("worlds")["seen"].items():
        changes = [spanned(one["em_to_base"], 100), spanned(one["steps_to_base"], 1)]
        rows.append(
            [f"`{name}`", spanned(one["em"], 100, ""), *(changes if name != "base" else ["", ""])]
        )
    return rows


def claims() -> Table:
    rows = [["claim", "target", "measured", "reached"]]
    for one in read("worlds")["claims"]:
        reached = "yes" if one["reached"] else "**no**"
        rows.append([one["claim"], one["target"], one["measured"], reached])
    return rows


def grouped(key: str, words: Callable[[str], str], order: Iterable[str]) -> Table:
    """EM of some runs, by group of questions."""
    found = read("worlds")[key]
    groups = [name for name in order if name in found]
    runs = [name for name in SHORT if name in read("worlds")["runs"]]
    rows = [["questions", "how many", *(f"`{run}`" for run in runs)]]
    for name in groups:
        cells = [f"{100 * found[name]['em'][run]:.1f}" for run in runs]
        rows.append([words(name), str(found[name]["questions"]), *cells])
    return rows


def pairs() -> Table:
    """Differences between runs: the model's, and those of a reader that misreads nothing."""
    perfect = read("perfect_reader")["pairs"]
    rows = [["difference in EM", "this model", "a perfect reader"]]
    for name, one in read("worlds")["pairs"].items():
        runs = " - ".join(f"`{run}`" for run in name.split(" - "))
        most = spanned(perfect[name], 100) if name in perfect else ""
        rows.append([runs, spanned(one, 100), most])
    return rows


def perfect() -> Table:
    """EM of a reader that misreads nothing, and the model's in brackets: of all, and by place."""
    theirs, mine = read("perfect_reader"), read("worlds")
    runs = [name for name in ("base", "log_text", "log_text_all", "log_kv") if name in mine["runs"]]
    rows = [["questions", "how many", *(f"`{run}`" for run in runs)]]

    def add(words: str, count: int, most: Mapping[str, float], own: Mapping[str, float]) -> None:
        cells = [f"{100 * most[run]:.1f} ({100 * own[run]:.1f})" for run in runs]
        rows.append([words, str(count), *cells])

    levels = [{run: found["runs"][run]["em"]["value"] for run in runs} for found in (theirs, mine)]
    add("all", theirs["questions"], *levels)
    for name, words in PLACES.items():
        place = theirs["by_place"][name]
        add(words, place["questions"], place["em"], mine["by_place"][name]["em"])
    return rows


def reasons() -> Table:
    found = read("worlds")["reasons"]
    ordered = sorted(found.items(), key=lambda pair: -pair[1])
    return [["why an answer with logs is wrong", "questions"], *([k, str(n)] for k, n in ordered)]


def bounds() -> Table:
    """What `--min-similarity` keeps of the gain, and of the harm."""
    found = read("worlds")["min_similarity"]
    plain = found["log_kv"]
    rows = [["run", "gain (right more than `base`)", "of it", "harmed", "of them"]]
    for name, one in found.items():
        shares = [one[what] / max(1, plain[what]) for what in ("net", "harmed")]
        cells = [
            f"{one['net']:.0f}",
            f"{100 * shares[0]:.0f} %",
            str(one["harmed"]),
            f"{100 * shares[1]:.0f} %",
        ]
        rows.append([f"`{name}`", *cells])
    return rows


def bytes_per_log() -> Table:
    rows = [["mode", "KiB of KV per log", "EM, unseen, all worlds"]]
    for name, point in read("worlds")["bytes"].items():
        rows.append(
            [f"`{name}`", f"{point['bytes_per_log'] / 1024:.1f}", f"{100 * point['em']:.1f}"]
        )
    return rows


def hidden(name: str = "hidden") -> Table:
    """What enters, by kind: free replies, and which of three names is likeliest."""
    shares = read(name)["timings"]["shares"]
    names = {
        "right": "free: right, %",
        "wrong": "wrong, %",
        "untold": "answers what nothing tells, %",
        "forced": "forced choice of three: right, %",
    }
    names = {name: head for name, head in names.items() if name in shares["kv"]}
    rows = [["what enters", *names.values()]]
    for kind, what in KINDS.items():
        rows.append([what, *(f"{100 * shares[kind][name]:.1f}" for name in names)])
    return rows


def solvers() -> Table:
    rows = [["solver", *(f"`{name}`" for name in SOLVER_MODES)]]
    found = read("solvers")["solvers"]
    for name in filter(found.__contains__, SOLVERS):
        cells = [f"`{name}`"]
        for result in (found[name][mode] for mode in SOLVER_MODES):
            gain = difference(result, "em")
            cells.append(percent(result, "em") + (f" ({gain})" if gain else ""))
        rows.append(cells)
    return rows


def measures(*names: str) -> Iterator[dict[str, Any]]:
    """The measures of result files, by id."""
    found = [row for name in names for row in read(name).get("measures", [])]
    yield from sorted(found, key=lambda row: (row["id"][0], int(row["id"][1:])))


def judged(row: Mapping[str, Any]) -> list[str]:
    """A measure's value, its target and whether it is reached; two empty cells without a target."""
    value = f"{row['value']:.3g}"
    if (row["most"], row["least"]) == (None, None):
        return [value, "", ""]
    most = row["most"] is not None
    bound = f"at most {row['most']:g}" if most else f"at least {row['least']:g}"
    return [value, bound, "yes" if row["reached"] else "**no**"]


def speed() -> Table:
    """Every measure with a target, and whether it is reached; a server's have a table of their own."""
    names = sorted({path.stem for path in RESULTS.glob("*.json")} - {*SERVED})
    others = sorted(str(path.with_suffix("").relative_to(RESULTS)) for path in RESULTS.glob(OLDER))
    again = {(row["id"], row["what"]): judged(row) for row in measures(*others)}
    rows = [["id", "measure", "target", "value", "reached", "older processor", "reached there"]]
    for row in measures(*names):
        value, target, reached = judged(row)
        there, _, reached_there = again.get((row["id"], row["what"]), [""] * 3)
        rows.append([row["id"], row["what"], target, value, reached, there, reached_there])
    return [row for row in rows if row[2]]


def linking() -> Table:
    found = [[row["id"], row["what"], f"{row['value']:.3g}"] for row in measures("linking")]
    return [["id", "measure", "value"], *found]


def linked_answers() -> Table:
    """Layouts and flags over all worlds, against the plain run of the same layout."""
    rows = [["layout", "flags", "EM", "EM to plain", "steps to plain", "placed", "computed"]]
    for layout, variants in read("linked_answers")["layouts"].items():
        for variant, found in variants.items():
            one = found["all worlds"]
            flags = (
                " ".join(f"--{part}" for part in variant.split(", ")) if variant != "plain" else ""
            )
            rows.append([
                layout,
                flags and f"`{flags}`",
                percent(one, "em"),
                difference(one, "em"),
                difference(one, "steps", 1),
                f"{one['cost']['cached_tokens']:.0f}",
                f"{one['cost']['prefilled_tokens']:.0f}",
            ])  # fmt: skip
    return rows


def made() -> Table:
    """On which machine, with which versions, and when each result file was made."""
    rows = [["results", "device", "torch", "transformers", "commit", "date", "load"]]
    for path in sorted([*RESULTS.glob("*.json"), *RESULTS.glob(OLDER)]):
        name = path.relative_to(RESULTS)
        by = read(str(name.with_suffix("")))["made_by"]
        versions, changed = by["versions"], " and changes" if by["dirty"] else ""
        rows.append([
            f"`{name}`",
            f"{by['device']}, {by['cores']} cores",
            versions["torch"],
            versions["transformers"],
            by["commit"][:7] + changed,
            by["date"][:10],
            str(by["load_average"]),
        ])  # fmt: skip
    return rows


def of_worlds(metric: str, scale: float) -> Table:
    """The difference to base on unseen questions, one column per world."""
    found = read("worlds")
    rows = [["mode", *found["worlds"]]]
    for name in (name for name in SHOWN if name in found["runs"] and name != "base"):
        by = found["runs"][name]["by_world"].values()
        rows.append([f"`{name}`", *(spanned(one[metric], scale) if one else "" for one in by)])
    return rows


REAL = (
    "base", "log_text", "log_kv", "log_text_random", "log_kv_random", "log_kv_wrong-context",
    "log_text_all", "log_kv_all", "log_kv_last_action", "log_kv_last_as_context", "log_cheatsheet",
    "log_text_lall", "base_direct", "log_text_exclude-self", "log_kv_exclude-self",
)  # fmt: skip
REAL_SHORT = (
    "base", "log_text", "log_kv", "log_kv_random", "log_kv_wrong-context", "log_text_lall", "base_direct",
)  # fmt: skip


REAL_SPLITS = {"test": "unseen", "train": "train, cross-fitted"}


def real_names(known: Mapping[str, Any]) -> list[str]:
    """`<split>/<run>` of those that are there, in the order of the tables."""
    names = [f"{split}/{name}" for split in REAL_SPLITS for name in REAL]
    return [name for name in names if name in known]


def real(file: str = "real") -> Table:
    """A pretrained model on real questions: unseen ones, and train ones, cross-fitted."""
    names = ("EM", "EM to `base`", "F1", "answered", "well-formed", "steps", "steps to `base`")
    rows = [["split", "mode", *names, "prefilled", "cached", "seconds"]]
    runs = read(file)["runs"]
    for key in real_names(runs):
        split, name = key.split("/")
        result = runs[key]
        replies, cost = result["replies"], result["cost"]
        rows.append([
            REAL_SPLITS[split],
            f"`{name}`",
            percent(result, "em", True),
            difference(result, "em"),
            percent(result, "f1", True),
            percent(result, "answer_rate"),
            f"{100 * replies['in_format'] / replies['replies']:.1f}",
            f"{cost['steps']:.2f}",
            difference(result, "steps", 1),
            f"{cost['prefilled_tokens']:.0f}",
            f"{cost['cached_tokens']:.0f}",
            f"{cost['seconds']['all']:.2f}",
        ])  # fmt: skip
    return rows


def real_short() -> Table:
    """What the README shows of it: the unseen questions, in few rows and columns."""
    kept = (1, 2, 3, 5, 7, 9)  # no seconds: other jobs shared the core, not alike for all rows
    head, *rows = real()
    kinds = read("real")["kinds"]
    found = [[*(head[n] for n in kept), *(f"right, {kind}" for kind in kinds)]]
    for row in rows:
        name = row[1].strip("`")
        if row[0] == REAL_SPLITS["test"] and name in REAL_SHORT:
            ones = [runs[f"test/{name}"] for runs in kinds.values()]
            found.append([*(row[n] for n in kept), *map(share_right, ones)])
    return found


def share_right(one: Mapping[str, int]) -> str:
    return f"{one['right']} of {one['questions']}"


def real_kinds() -> Table:
    """By what a question names: yes, no or one of two can be guessed, the end of a chain cannot."""
    kinds = read("real")["kinds"]
    heads = [f"{what}, {kind}" for kind in kinds for what in ("answered", "right", "EM to `base`")]
    rows = [["split", "mode", *heads]]
    for key in real_names(next(iter(kinds.values()))):
        split, name = key.split("/")
        row = [REAL_SPLITS[split], f"`{name}`"]
        for one in (runs[key] for runs in kinds.values()):
            more = spanned(one["em"], 100) if one["em"] else ""
            row += [str(one["answered"]), share_right(one), more]
        rows.append(row)
    return rows


def real_limits() -> Table:
    """What so few questions with so little overlap can say."""
    found = read("real")
    shared = found["overlap"]
    effects = found["smallest_effect"].values()
    return [
        ["what", "value"],
        ["unseen questions", str(shared["test"])],
        ["of them, share a supporting document with a train question", str(shared["documents"])],
        ["of them, share a fact with a train question", str(shared["facts"])],
        ["smallest difference in EM that they can show (points, 80 % power)", f"{100 * min(effects):.0f} to {100 * max(effects):.0f}"],
    ]  # fmt: skip


def real_exactness() -> Table:
    found = [[row["id"], row["what"], f"{row['value']:.3g}"] for row in measures("real_exactness")]
    return [["id", "measure", "value"], *found]


def real_hidden() -> Table:
    """What enters, by kind: right by forced choice and freely, without and with the adapter."""
    found = read("real_hidden")
    said = ("forced choice of three", "KV minus these", "right, freely", "wrong, freely")
    rows = [["model", "what enters", *said]]
    for side in SIDES:
        for kind, what in REAL_KINDS.items():
            one, more = found["timings"][side][kind], found["timings"]["kv_minus"][side].get(kind)
            forced, right, wrong = (spanned(one[n], 100, "") for n in ("forced", "right", "wrong"))
            rows.append([side, what, forced, spanned(more, 100) if more else "", right, wrong])
    return rows


def log_tuning() -> Table:
    """What is read of tags that are kept as KV: forced, and free, by how the model was tuned."""
    rows = [["model", "what enters", "forced choice of three", "right, freely", "wrong, freely"]]
    for tuned, kinds in read("log_tuning")["timings"]["shares"].items():
        for kind, one in kinds.items():
            shares = (f"{100 * one[name]:.1f}" for name in ("forced", "right", "wrong"))
            rows.append([TUNED[tuned], KINDS[kind], *shares])
    return rows


def markers() -> Table:
    """Per arm the accuracy of each seed; below, what markers change, pooled."""
    found = read("markers")
    values = {row["id"]: row["value"] for row in found["measures"]}
    rows = [["replies", "mean, %", "by seed", "markers minus these, points"]]
    for n, (arm, seeds) in enumerate(found["timings"]["by_seed"].items()):
        change = {"none": 0, "random": 1}.get(arm)
        bounds = [100 * values[f"{end}{change}"] for end in "dlh"] if change is not None else []
        rows.append([
            {"none": "without markers", "markers": "with markers", "random": "markers at random"}[arm],
            f"{100 * values[f'a{n}']:.1f}",
            ", ".join(f"{100 * share:.1f}" for share in seeds),
            "{:+.1f} [{:+.1f}, {:+.1f}]".format(*bounds) if bounds else "",
        ])  # fmt: skip
    return rows


def em_learns() -> Table:
    """EM on unseen questions before and after, by seed and by what is learned from."""
    rows = [["seed, world", "learned from", "EM before", "after", "gain", "weighted minus these"]]
    for seed, one in read("em_learns")["timings"]["seeds"].items():
        for arm, what in LEARNED.items():
            rows.append([
                f"{seed}, {one['settings']['world']}",
                what,
                f"{100 * one['em']['before']:.1f}",
                f"{100 * one['em'][arm]:.1f}",
                spanned(one["to_before"][arm], 100),
                spanned(one["weighted_to"][arm], 100) if arm in one["weighted_to"] else "",
            ])  # fmt: skip
    return rows


def served_runs() -> Table:
    """vLLM with log KV against this process: the same replies, and seconds of whole runs."""
    rows = [
        [
            "model",
            "mode",
            "questions",
            "replies compared",
            "equal",
            "errors",
            "seconds here",
            "vLLM",
        ]
    ]
    for name, model in SERVED.items():
        for mode, one in read(name)["timings"]["runs"].items():
            counts = (one[what] for what in ("questions", "replies", "equal", "errors"))
            seconds = (f"{one[f'seconds_{where}']:.0f}" for where in ("in_process", "vllm"))
            rows.append([model, f"`{mode}`", *map(str, counts), *seconds])
    return rows


def served_checks() -> Table:
    """What must not go wrong there, and how many times sooner it is."""
    rows = [["id", "model", "measure", "value", "target", "reached"]]
    for name, model in SERVED.items():
        named = re.compile(f", {model}( model)?")
        rows += [
            [row["id"], model, named.sub("", row["what"]), *judged(row)] for row in measures(name)
        ]
    return rows


def served_seconds() -> Table:
    """Seconds to the first token, and of eight requests at once."""
    rows = [
        ["model", "seconds", "vLLM, logs as text", "vLLM, KV", "here, logs as text", "here, KV"]
    ]
    said = {"first": "to the first token, one at a time", "eight": "8 at once, 16 tokens each"}
    for name, model in SERVED.items():
        told = read(name)["timings"]["seconds"]
        for part, what in said.items():
            names = ("plain", "kv", "in_process_text", "in_process")
            cells = [f"{told[f'{part}_{one}']:.2f}" for one in names]
            rows.append([model, what, *cells])
    return rows


def four_way(name: str = "four_way", timed: bool = True) -> Table:
    """Every way to keep logs on one stream: what it brings, and all that it costs.

    timed: whether its seconds compare with each other.
    """
    columns = ["orders", "EM", "EM to `base`", "steps", "computed tokens"]
    times = ["seconds", "writing", "times `base`'s seconds", "break-even question"]
    rows = [["way", *columns, *(times if timed else ())]]
    for row in read(name)["rows"]:
        rows.append([
            f"`{row['run']}`",
            str(row["orders"]),
            f"{100 * row['em']:.1f}",
            spanned(row["to_base"], 100) if row["to_base"] else "",
            f"{row['steps']:.2f}",
            f"{row['tokens']:.0f}",
        ])  # fmt: skip
        if timed:
            rows[-1] += [
                f"{row['seconds']:.2f}",
                f"{row['writing']:.3f}",
                f"{row['times']:.2f}",
                told_break_even(row),
            ]
    return rows


TABLES: dict[str, Callable[[], Table]] = {
    "short": lambda: pooled(SHORT),
    "worlds": lambda: pooled(SHOWN),
    "perfect": perfect,
    "claims": claims,
    "pairs": pairs,
    "hops": lambda: grouped("by_hops", lambda n: f"{n} hops", "23456"),
    "places": lambda: grouped("by_place", PLACES.__getitem__, PLACES),
    "seen": seen,
    "reasons": reasons,
    "min-similarity": bounds,
    "worlds-em": lambda: of_worlds("em", 100),
    "worlds-steps": lambda: of_worlds("steps", 1),
    "bytes": bytes_per_log,
    "hidden": hidden,
    "hidden-response": lambda: hidden("hidden_response"),
    "solvers": solvers,
    "speed": speed,
    "linking": linking,
    "linked-answers": linked_answers,
    "log-tuning": log_tuning,
    "em-learns": em_learns,
    "markers": markers,
    "four-way": four_way,
    "real": real,
    "real-float32": lambda: real("real_float32"),
    "real-short": real_short,
    "real-kinds": real_kinds,
    "real-limits": real_limits,
    "real-exactness": real_exactness,
    "real-hidden": real_hidden,
    "real-four-way": lambda: four_way("real_four_way"),
    "real-long-context": lambda: four_way("real_four_way_long", timed=False),
    "served-runs": served_runs,
    "served-checks": served_checks,
    "served-seconds": served_seconds,
    "hidden-served": lambda: hidden("hidden_vllm"),
    "made": made,
}


def markdown(table: Table) -> str:
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def filled(text: str) -> str:
    """A page with every table in its place as the result files have it."""
    return PLACE.sub(lambda place: place[1] + markdown(TABLES[place[2]]()) + place[4], text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(TABLES))
    parser.add_argument("--write", action="store_true", help="into the README files")
    args = parser.parse_args()
    if unknown := set(args.names) - set(TABLES):
        parser.error(
            f"no table is called {', '.join(sorted(unknown))}; expected {', '.join(TABLES)}"
        )
    if args.write:
        for path in FILES:
            path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        pages = (f"{name}\n\n{markdown(TABLES[name]())}" for name in args.names or TABLES)
        print(*pages, sep="\n", end="")


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
