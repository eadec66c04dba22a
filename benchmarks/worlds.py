"""Gather what `make worlds` measured on embedded worlds: pooled, by world, and what it shows.

python benchmarks/worlds.py data data/worlds/2001 data/worlds/2002

Unseen questions; differences are paired, and clusters of questions that share a sub-question are
drawn together, pooled over the worlds. Questions are told apart by hops, and by where what is hard to
find on their way stood. Writes worlds.json and worlds.png.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import measure  # first: it finds the toolkit
import numpy as np

from lag import cli
from lag.evaluation.intervals import CHANGE, SHARE, Resampler
from lag.files import read_json, write_json
from lag.miniwiki.gold_agent import carried, stated
from lag.miniwiki.world import World, first_name, generate, keys_of, to_resolve
from lag.modes import MODES, earlier_responses, last_response
from lag.paths import Paths
from lag.prompts import Note
from lag.records import Log, Question, Trace
from lag.tasks import TASKS, read_questions
from lag.trace_files import checked_trace, read_parts

NAME = "miniwiki"
LIMIT, MORE = "base", "base_s16"  # the same with twice the steps
HARM = "log_kv"
CONTROLS = ("log_kv_random", "log_kv_shuffled", "log_kv_wrong-context")
TEXT_ONLY = "text-only"  # log_text of a second model, which has learned of logs as text alone
SHOWN = [*MODES, *CONTROLS, MORE, TEXT_ONLY]
SEED = 1234
Values = dict[str, dict[str, float]]  # of a run: what the evaluator says, by question
PLACES = {
    "documents": "the documents say it under the name at hand",
    "last response": "a log's last response says it, too",
    "hidden": "a log's earlier response says it, which led to the name that its last one begins with",
    "earlier": "a log says it in an earlier response",
    "nowhere": "no log says it",
}


@dataclass
class Measured:
    """One world: the questions of a split, and every run on them."""

    data: Path
    split: str = "test"

    @property
    def paths(self) -> Paths:
        return Paths(self.data, NAME)

    @cached_property
    def world(self) -> World:
        return generate(read_json(self.paths.folder / "dev.meta.json")["seed"])

    @cached_property
    def questions(self) -> dict[str, Question]:
        return {q.id: q for q in read_questions(self.paths, TASKS[NAME], self.split)}

    @cached_property
    def results(self) -> dict[str, dict[str, Any]]:
        """What the evaluator wrote, by run.

        Raises:
            FileNotFoundError: nothing is there.
        """
        found = {}
        for path in sorted((self.paths.folder / "results").glob("*.json")):
            result = read_json(path)
            if result["meta"]["solver"] == "react" and result["meta"]["split"] == self.split:
                found[result["meta"]["run"]] = result
        if not found:
            raise FileNotFoundError(f"{self.paths.folder}/results is empty; run make worlds first")
        return found

    def traces(self, run: str) -> dict[str, Trace]:
        folder = self.paths.run(self.split, run)
        return {id: checked_trace(folder, id, row) for id, row in read_parts(folder).items()}

    @cached_property
    def logs(self) -> list[Log]:
        """The log store."""
        rows = read_json(self.paths.log_store)["results"]
        path = self.paths.log_store
        return [Log.of(checked_trace(path, id, row)) for id, row in rows.items()]

    @cached_property
    def said(self) -> dict[str, set[tuple[str, str]]]:
        """(noun, subject) of what some log says, by where: only what is true."""
        found: dict[str, set[tuple[str, str]]] = {name: set() for name in PLACES}
        for log in self.logs:
            last, before = last_response(log), earlier_responses(log)
            kv = set(carried(Note("", last, before, True))) - set(stated(last))
            for name, facts in (("last response", stated(last)), ("hidden", kv),
                                ("earlier", stated(before))):  # fmt: skip
                found[name] |= {(f.noun, f.subject) for f in facts if self.is_true(f)}
        return found

    def is_true(self, fact: Any) -> bool:
        """Whether a fact holds in this world, whatever name it is told by."""
        world = self.world
        if fact.noun == "name":
            return world.aliases.get(fact.subject) == fact.object
        if (fact.noun, fact.subject) not in world.facts and fact.subject not in world.aliases:
            return False
        own = world.facts.get((fact.noun, first_name(world, fact.noun, fact.subject)))
        return own is not None and fact.object in (own, world.second.get(own))

    def place(self, id: str) -> str:
        """Where what is hardest to find on the way of a question stood; see `PLACES`."""
        world, chain = self.world, self.world.chains[id]
        hard = {name for name in to_resolve(world, chain) if name not in world.explained}
        if not hard:
            return "documents"
        on_the_way = [chain.start, *(world.mentions[key][0] for key in keys_of(world, chain))]
        needed = [key for key in zip(chain.nouns, on_the_way) if key[1] in hard]
        order = [name for name in PLACES if name not in ("documents", "nowhere")]
        where = [next((p for p in order if key in self.said[p]), "nowhere") for key in needed]
        return max(where, key=list(PLACES).index)


def evaluated(world: Measured) -> dict[str, Values]:
    return {run: result["questions"] for run, result in world.results.items()}


@dataclass(frozen=True)
class Pooled:
    """Values of several worlds as one, with the clusters of each."""

    questions: dict[str, Question]
    runs: dict[str, Values]

    @classmethod
    def of(
        cls,
        worlds: Mapping[str, Measured],
        answers: Callable[[Measured], Mapping[str, Values]] | None = None,
    ) -> "Pooled":
        """answers: of a world, by run; default: what the evaluator wrote."""
        found = {name: (answers or evaluated)(world) for name, world in worlds.items()}
        questions, runs = {}, {}
        names = set.intersection(*map(set, found.values()))
        for prefix, world in worlds.items():
            for id, question in world.questions.items():
                parts = tuple(f"{prefix} {part}" for part in question.subquestions)
                key = f"{prefix} {id}"
                questions[key] = replace(question, id=key, subquestions=parts)
            for name in sorted(names):
                mine = {f"{prefix} {id}": v for id, v in found[prefix][name].items()}
                runs.setdefault(name, {}).update(mine)
        return cls(questions, runs)

    @cached_property
    def ids(self) -> list[str]:
        """Those that every run has answered."""
        return sorted(set.intersection(*(set(run) for run in self.runs.values())))

    @cached_property
    def resampler(self) -> Resampler:
        return Resampler([self.questions[id] for id in self.ids], SEED)

    def values(self, run: str, what: str) -> np.ndarray:
        return np.array([float(self.runs[run][id][what]) for id in self.ids])

    def level(self, run: str, what: str, counted: np.ndarray | None = None) -> dict[str, Any]:
        scale = SHARE if what == "em" else None
        return asdict(self.resampler.estimate(self.values(run, what), scale, counted))

    def change(self, run: str, other: str, what: str = "em", counted=None) -> dict[str, Any]:
        """The paired difference of two runs."""
        scale = CHANGE if what == "em" else None
        values = self.values(run, what) - self.values(other, what)
        return asdict(self.resampler.estimate(values, scale, counted))

    def grouped(self, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
        """EM of each run, by group of questions, and how many each has."""
        found: dict[str, dict[str, Any]] = {}
        for label in sorted(set(labels)):
            mine = np.array([one == label for one in labels])
            em = {run: float(self.values(run, "em")[mine].mean()) for run in self.runs}
            found[label] = {"questions": int(mine.sum()), "em": em}
        return found


def places(pooled: Pooled, worlds: Mapping[str, Measured]) -> list[str]:
    """Where what is hardest to find stood, of each of the pooled questions."""
    parts = [id.split(" ", 1) for id in pooled.ids]
    return [worlds[name].place(id) for name, id in parts]


def pooled_rows(pooled: Pooled, worlds: Mapping[str, Measured]) -> dict[str, Any]:
    """Of each run: level, difference to base, and cost."""
    rows = {}
    for run in pooled.runs:
        costs = [world.results[run]["cost"] for world in worlds.values()]
        rows[run] = {
            "em": pooled.level(run, "em"),
            "em_to_base": pooled.change(run, LIMIT),
            "steps": pooled.level(run, "steps"),
            "steps_to_base": pooled.change(run, LIMIT, "steps"),
            **{
                name: float(np.mean([cost[name] for cost in costs]))
                for name in ("prefilled_tokens", "cached_tokens")
            },
            "seconds": float(np.mean([cost["seconds"]["all"] for cost in costs])),
            "by_world": {
                name: world.results[run]["comparison"] and {
                    what: world.results[run]["comparison"]["differences"][what]
                    for what in ("em", "steps")
                }
                for name, world in worlds.items()
            },
        }  # fmt: skip
    return rows


PAIRS = (
    (MORE, LIMIT),
    *((HARM, other) for other in ("base", "log_kv_wrong-context", "log_kv_last_as_context")),
    *((HARM, other) for other in ("log_text", TEXT_ONLY, "log_text_all")),
    *((control, "base") for control in CONTROLS),
)


# --- harm -----------------------------------------------------------------------------------------
def harmed(world: Measured, run: str = HARM) -> list[str]:
    """Questions that logs turned from right to wrong."""
    base, mine = (world.results[name]["questions"] for name in (LIMIT, run))
    return [id for id in mine if id in base and base[id]["em"] == 1 and mine[id]["em"] == 0]


def reason(world: Measured, trace: Trace, base: Trace) -> str:
    """Why an answer with logs is wrong: what its first false sentence repeats, or how it ended."""
    documents = {article.id: article for article in world.world.articles}
    logs = {log.id: log for log in world.logs}
    for step in trace.steps:
        false = [fact for fact in stated(step.reply) if not world.is_true(fact)]
        if not false:
            continue
        entered = [fact for used in step.logs for fact in stated(" ".join(logs[used.id].replies))]
        if false[0] in entered:
            return "a log said it, and was wrong"
        if any(false[0].object in documents[id].content for id in step.docs):
            return "misread a document"
        if any(fact.object == false[0].object for fact in entered):
            return "misread a log"
        return "nothing that entered says it"
    if trace.pred is None:
        return "no answer within the steps"
    if trace.pred == "unknown":
        return "gave up"
    return "answered something else, with no false sentence"


def reasons(world: Measured) -> Counter[str]:
    mine, base = world.traces(HARM), world.traces(LIMIT)
    return Counter(reason(world, mine[id], base[id]) for id in harmed(world))


def harm_by_bound(worlds: Mapping[str, Measured]) -> dict[str, Any]:
    """Of `log_kv` and each run of it with a `--min-similarity`: what it gains, and what it harms."""
    found = {}
    names = set.intersection(*(set(world.results) for world in worlds.values()))
    for run in sorted(name for name in names if name == HARM or name.startswith(f"{HARM}_min")):
        gained = harm = 0
        for world in worlds.values():
            base, mine = (world.results[name]["questions"] for name in (LIMIT, run))
            ids = [id for id in mine if id in base]
            gained += sum(mine[id]["em"] - base[id]["em"] for id in ids)
            harm += len(harmed(world, run))
        found[run] = {"net": gained, "harmed": harm}
    return found


# --- what is shown --------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence, what it asks for, and what was measured."""

    claim: str
    target: str
    measured: str
    reached: bool


def said(estimate: Mapping[str, Any], scale: float = 100) -> str:
    digits = 1 if scale == 100 else 2
    text = f"{scale * estimate['value']:+.{digits}f}"
    if not estimate["interval"]:
        return text
    low, high = (scale * estimate["interval"][end] for end in ("low", "high"))
    return f"{text} [{low:+.{digits}f}, {high:+.{digits}f}]"


def low(estimate: Mapping[str, Any]) -> float:
    return 100 * estimate["interval"]["low"] if estimate["interval"] else 0.0


def claims(pooled: Pooled, rows: Mapping[str, Any]) -> Iterator[Claim]:
    """The claims of the embedded worlds, one by one; a run that is missing has none."""
    base = 100 * rows[LIMIT]["em"]["value"]
    if MORE in rows:
        more = 100 * pooled.change(MORE, LIMIT)["value"]
        yield Claim("`base` is not capped by steps", "EM at 16 steps at most 2 above 8; EM 55 to 85",
                    f"{more:+.1f}; {base:.1f}", more <= 2 and 55 <= base <= 85)  # fmt: skip
    gain, by = pooled.change(HARM, LIMIT), rows[HARM]["by_world"].values()
    em, steps = ([one[what]["value"] for one in by] for what in ("em", "steps"))
    count = f"above on {sum(v > 0 for v in em)}, fewer steps on {sum(v < 0 for v in steps)} of {len(em)}"
    reached = 100 * gain["value"] >= 5 and low(gain) > 0 and min(em) > 0 and max(steps) < 0
    yield Claim("logs help", "`log_kv` - `base` at least +5, on all worlds, with fewer steps",
                f"{said(gain)}; {count}", reached)  # fmt: skip
    hidden = "log_kv_wrong-context"
    if hidden in rows:
        change, bare = pooled.change(HARM, hidden), pooled.change(HARM, "log_kv_last_as_context")
        reached = 100 * change["value"] >= 3 and low(change) > 0 and low(bare) > 0
        yield Claim("hidden text helps", "to wrong context at least +3; to no context above 0",
                    f"{said(change)}; {said(bare)}", reached)  # fmt: skip
    texts = [name for name in ("log_text", TEXT_ONLY) if name in rows]
    better = max(texts, key=lambda name: rows[name]["em"]["value"])
    text = pooled.change(HARM, better)
    tokens = [rows[name]["prefilled_tokens"] for name in (HARM, better)]
    yield Claim("KV beats the same words as text", "above 0, at no more prefilled tokens",
                f"{said(text)} to `{better}`; {tokens[0]:.0f} and {tokens[1]:.0f} tokens",
                low(text) > 0 and tokens[0] <= tokens[1])  # fmt: skip
    for name in ("log_kv_random", "log_kv_shuffled"):
        if name in rows:
            change = pooled.change(name, LIMIT)
            bounds = change["interval"] or {"low": 0, "high": 0}
            inside = max(abs(bounds["low"]), abs(bounds["high"])) <= 0.02
            yield Claim(f"wrong logs do not hurt: `{name}`", "within 1 of `base`, interval inside 2",
                        said(change), abs(change["value"]) <= 0.01 and inside)  # fmt: skip


# --- the figure -----------------------------------------------------------------------------------
def bytes_against_accuracy(
    worlds: Mapping[str, Measured], rows: Mapping[str, Any]
) -> dict[str, Any]:
    """Per mode the bytes of KV per log on disk, and EM on unseen questions, over all worlds."""
    points = {}
    for name, mode in MODES.items():
        if name in rows and mode.enters in ("", "kv"):
            results = [world.results[name] for world in worlds.values()]
            stored = [r["cost"]["kv_stored"] / max(1, num_logs(r)) for r in results]
            em = rows[name]["em"]["value"]
            points[name] = {"bytes_per_log": float(np.mean(stored)), "em": em}
    return points


def num_logs(result: dict[str, Any]) -> int:
    return (result["leakage"] or {}).get("logs", 0)


def draw(rows: Mapping[str, Any], places: Mapping[str, Any], path: Path) -> None:
    """Left: prefilled tokens against accuracy. Right: EM by where the needed fact stood."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, row in rows.items():
        if name in MODES:
            x, y = row["prefilled_tokens"], 100 * row["em"]["value"]
            kv = MODES[name].enters == "kv"
            left.plot(x, y, "o", color="#2458a6" if kv else "#c0562f")
            beside = (-6, -12) if kv else (4, 4)  # text and KV lie close together
            left.annotate(name, (x, y), fontsize=7, xytext=beside, textcoords="offset points")
    left.set(xlabel="prefilled tokens per question", ylabel="EM on unseen questions, %")
    left.margins(x=0.3, y=0.15)
    modes = [
        n
        for n in ("base", "log_text", "log_kv", "log_kv_wrong-context", "log_text_all")
        if n in rows
    ]
    kinds = [name for name in PLACES if name in places]
    width = 0.8 / len(modes)
    for n, mode in enumerate(modes):
        values = [100 * places[kind]["em"][mode] for kind in kinds]
        right.bar(np.arange(len(kinds)) + n * width, values, width, label=mode)
    labels = [f"{kind}\n({places[kind]['questions']})" for kind in kinds]
    right.set_xticks(np.arange(len(kinds)) + 0.4 - width / 2, labels, fontsize=7)
    right.set(ylabel="EM, %", title="by where what is hard to find stood")
    right.title.set_fontsize(9)
    right.legend(fontsize=6)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def gathered(worlds: Mapping[str, Measured]) -> dict[str, Any]:
    """Everything that the tables show."""
    pooled = Pooled.of(worlds)
    rows = pooled_rows(pooled, worlds)
    parts = [id.split(" ", 1) for id in pooled.ids]
    hops = [str(len(worlds[name].world.chains[id].nouns)) for name, id in parts]
    pairs = [pair for pair in PAIRS if set(pair) <= set(rows)]
    return {
        "worlds": {name: {"seed": w.world.seed} for name, w in worlds.items()},
        "questions": len(pooled.ids),
        "runs": rows,
        "pairs": {f"{a} - {b}": pooled.change(a, b) for a, b in pairs},
        "by_hops": pooled.grouped(hops),
        "by_place": pooled.grouped(places(pooled, worlds)),
        "reasons": dict(sum((reasons(world) for world in worlds.values()), Counter())),
        "min_similarity": harm_by_bound(worlds),
        "seen": seen(worlds),
        "claims": [asdict(claim) for claim in claims(pooled, rows)],
        "bytes": bytes_against_accuracy(worlds, rows),
    }


def seen(worlds: Mapping[str, Measured]) -> dict[str, Any]:
    """Differences to `base` on the train questions that every run has, own logs or not."""
    trained = {name: Measured(world.data, "train") for name, world in worlds.items()}
    pooled = Pooled.of(trained)
    return {
        run: {"em": pooled.level(run, "em"), "em_to_base": pooled.change(run, LIMIT),
              "steps_to_base": pooled.change(run, LIMIT, "steps"), "questions": len(pooled.ids)}
        for run in pooled.runs
    }  # fmt: skip


def main() -> None:
    args = measure.parse_worlds(__doc__, out="folder")
    found = [Measured(data) for data in args.data]
    worlds = {str(world.world.seed): world for world in found}
    result = gathered(worlds)
    for claim in result["claims"]:
        print(f"{claim['claim']}: {claim['measured']} ({claim['target']})")
    draw(result["runs"], result["by_place"], args.out / "worlds.png")
    write_json(args.out / "worlds.json", {**result, "made_by": measure.made_by()})


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
