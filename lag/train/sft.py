"""Train on logs: examples of a past run, an adapter or a whole model, curves, checkpoints."""

import csv
import io
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lag import cli
from lag.files import file_digest, files_digest, write_text
from lag.kv.forward import UNBOUNDED
from lag.model.adapter import FACTS
from lag.model.loaded import load_checkpoint, max_length
from lag.modes import MODES
from lag.paths import ADAPTER_FILES, Paths
from lag.train.adapters import AdapterRecipe, Tuned, read_facts
from lag.train.batches import MaskedExample, encode_examples
from lag.train.examples import TrainingExample
from lag.train.log_examples import ExampleMaker, PastRun, read_weights, split
from lag.train.markers import read_labels
from lag.train.trainer import AdamW, Progress, Trainer
from lag.train.validation import mean_loss

logger = logging.getLogger(__name__)
COLUMNS = ("steps", "tokens", "loss", "validation_loss", "seconds")


@dataclass(frozen=True, slots=True)
class TuningRecipe:
    """How examples become weights.

    batch_size: examples of an update. every: updates between checkpoints.
    """

    epochs: int = 2
    batch_size: int = 8
    rate: float = 2e-4
    warmup: float = 0.05
    every: int = 25
    seed: int = 1234


class Epochs:
    """Supplies a list of examples some times over, each time in another order."""

    def __init__(self, rows: Sequence[MaskedExample], recipe: TuningRecipe, facts: dict[str, Any]):
        self.rows, self.recipe = rows, recipe
        self.identity = {**asdict(recipe), **facts}
        self.per_epoch = math.ceil(len(rows) / recipe.batch_size)
        self.updates = recipe.epochs * self.per_epoch

    def batches(self, at: Progress) -> Iterator[list[MaskedExample]]:
        """The next updates, up to a checkpoint."""
        first, size = at.group * self.recipe.every, self.recipe.batch_size
        for update in range(first, min(first + self.recipe.every, self.updates)):
            epoch, place = divmod(update, self.per_epoch)
            order = random.Random(f"{self.recipe.seed} {epoch}").sample(self.rows, len(self.rows))
            yield order[place * size : (place + 1) * size]

    def rate(self, at: Progress) -> float:
        """A linear warm-up, then a cosine down to nothing."""
        done, warm = (at.steps + 1) / (self.updates + 1), self.recipe.warmup
        if done < warm:
            return self.recipe.rate * done / warm
        return self.recipe.rate * (1 + math.cos(math.pi * (done - warm) / (1 - warm))) / 2


@dataclass(frozen=True, slots=True)
class Source:
    """What is trained on, as the flags name it.

    more: further runs, each with the share of its questions that is drawn.
    one_form: each question stands in one of the forms, drawn, instead of in all.
    longest: tokens that an example may have; 0: what fits the model.
    gold: wrong answers are exchanged for gold ones.
    """

    dataset: str
    data: Path
    path: Path
    wanted: str = "correct"
    forms: tuple[str, ...] = ()
    layout: str = ""
    weights: Path | None = None
    log_store: Path | None = None
    validation: float = 0.1
    more: tuple[tuple[Path, float], ...] = ()
    one_form: bool = False
    longest: int = 0
    labels: Path | None = None
    tokens_per_marker: int = 1
    gold: bool = False

    def makers(self) -> list[ExampleMaker]:
        """One per run; beside others, a run without logs stands as it is."""
        paths, found = Paths(self.data, self.dataset), []
        labels = read_labels(self.labels) if self.labels else None
        for path in (self.path, *(path for path, _ in self.more)):
            run = PastRun.read(path)
            plain = self.more and not MODES[run.settings["mode"]].enters
            forms = () if plain else self.forms
            said = (self.layout, self.log_store, labels, self.tokens_per_marker, self.gold)
            found.append(ExampleMaker(run, paths, forms, *said))
        return found


def tune(
    model: str,
    source: Source,
    adapter: AdapterRecipe,
    recipe: TuningRecipe,
    out: Path,
    dtype: str = "auto",
    device: str = "auto",
    tokens_per_forward: int = 8192,
    save_dtype: str = "",
    start: Path | None = None,
) -> dict[str, Any]:
    """Train on a past run's rows and write an adapter, or a model; goes on where it stopped.

    start: an adapter whose training goes on in the new one.

    Raises:
        ValueError: rows or a model that cannot be used, or a folder that holds something else.
    """
    adapter.check()
    check_out(out)
    weights = read_weights(source.weights) if source.weights else None
    makers = source.makers()
    examples = drawn(makers, source, weights, recipe.seed)
    loaded, tokenizer = load_checkpoint(model, dtype, device, False)
    tuned = Tuned(loaded, tokenizer, adapter, recipe.seed, start)
    parts = split(examples, source.validation, recipe.seed)
    longest = min(max_length(loaded, tokenizer), source.longest or UNBOUNDED)
    counts = sum((maker.counts for maker in makers), Counter[str]())
    rows, held = (fitting(encode_examples(part, tokenizer), longest, counts) for part in parts)
    if not rows:
        raise ValueError(f"--from {source.path}: no example fits the model's {longest} tokens")
    counts = {"examples": len(rows), "validation": len(held), "left_out": dict(+counts)}
    logger.info("%d examples, %d for validation; left out: %s", *counts.values())
    facts = {"base": tuned.base, "adapter": asdict(adapter), "data": data_facts(source, makers)}
    begun = {"start": files_digest(start, ADAPTER_FILES, 16)} if start else {}
    supplier = Epochs(rows, recipe, facts | begun)
    trainer = Trainer(
        loaded, supplier, out / "training", AdamW(), tokens_per_forward, tuned.forward
    )
    curve = train(trainer, tuned, held, out)
    first, last = (row["validation_loss"] for row in (curve[0], curve[-1]))
    losses = {"loss_before": first, "loss": last} if held else {}
    done = {"updates": trainer.progress.steps, "tokens": trainer.progress.tokens}
    seconds = {"seconds": round(sum(row["seconds"] for row in curve), 1)}
    summary = {"out": str(out), **counts, **done, **losses, **seconds}
    taught = {*questions_of(makers), *(read_facts(start).get("questions", []) if start else ())}
    known = {"training": asdict(recipe) | begun, "data": facts["data"], "questions": sorted(taught)}
    tuned.save(out, {**known, "result": summary}, save_dtype)
    return summary


def drawn(
    makers: Sequence[ExampleMaker],
    source: Source,
    weights: Mapping[str, float] | None,
    seed: int,
) -> dict[str, list[TrainingExample]]:
    """The examples of all runs by the id of their question, as far as they are drawn."""
    found: dict[str, list[TrainingExample]] = {}
    for number, (maker, share) in enumerate(zip(makers, (1.0, *(s for _, s in source.more)))):
        for id, examples in maker.examples(source.wanted, weights).items():
            rng = random.Random(f"{seed} {number} {id}")
            names = sorted({example.format.name for example in examples})
            form = rng.choice(names) if source.one_form and names else ""
            if rng.random() < share:
                mine = [one for one in examples if not form or one.format.name == form]
                found.setdefault(id, []).extend(mine)
    return found


def questions_of(makers: Sequence[ExampleMaker]) -> set[str]:
    """Ids of the questions of all rows, whether examples were made of them or not."""
    return {row.get("question_id", id) for m in makers for id, row in m.run.rows.items()}


def check_out(out: Path) -> None:
    """
    Raises:
        ValueError: the folder holds a model or an adapter that was not made here.
    """
    foreign = [name for name in ("config.json", "adapter_config.json") if (out / name).exists()]
    if foreign and not (out / FACTS).exists():
        raise ValueError(f"--out {out} holds a {foreign[0]} of other making; give another folder")
    if foreign and "training" not in read_facts(out):
        raise ValueError(f"--out {out} holds an exported model; give another folder")


def data_facts(source: Source, makers: Sequence[ExampleMaker]) -> dict[str, Any]:
    """What identifies the examples."""
    known = asdict(source) | {"run": "+".join(maker.run.digest for maker in makers)}
    known["more"] = [share for _, share in source.more]
    for name in ("weights", "log_store", "labels"):
        path = known[name]
        known[name] = file_digest(path, 16) if path else ""
    return {name: value for name, value in known.items() if name not in ("data", "path")}


def fitting(
    rows: Sequence[MaskedExample], longest: int, counts: Counter[str]
) -> list[MaskedExample]:
    """Rows whose every token fits; a cut one would lose its target. The others are counted."""
    kept = [row for row in rows if sum(not h for h in row.hidden) <= longest and row.num_targets]
    counts["too long"] += len(rows) - len(kept)
    return kept


def train(trainer: Trainer, tuned: Tuned, held: Sequence[MaskedExample], out: Path) -> list[dict]:
    """Train to the end; after each checkpoint, write the curve. Returns its rows.

    The first row is the model as it was.
    """
    (out / "training").mkdir(parents=True, exist_ok=True)
    trainer.resume()
    curve = read_curve(out, trainer.progress.steps)
    if not curve:
        curve = [point(trainer, tuned, held, 0.0)]
    trainer.model.train()
    updates, every = trainer.examples.updates, trainer.examples.recipe.every
    progress, start = cli.Progress(updates, "sft", trainer.progress.steps), time.monotonic()
    for _ in trainer.run():
        progress.update(loss=f"{trainer.loss:.3g}")
        if trainer.progress.steps % every == 0 or trainer.progress.steps == updates:
            curve.append(point(trainer, tuned, held, time.monotonic() - start))
            write_curve(out, curve)
            start = time.monotonic()
    progress.close()
    draw_curve(out, curve)
    return curve


def point(trainer: Trainer, tuned: Tuned, held: Sequence[MaskedExample], seconds: float) -> dict:
    trainer.model.eval()
    loss = mean_loss(trainer.model, held, forward=tuned.forward)
    trainer.model.train()
    done = {"steps": trainer.progress.steps, "tokens": trainer.progress.tokens}
    return {**done, "loss": trainer.loss, "validation_loss": loss, "seconds": seconds}


def read_curve(out: Path, steps: int) -> list[dict[str, Any]]:
    """The points of an earlier start, up to its last checkpoint."""
    path = out / "curve.csv"
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [row for row in rows if row["steps"] <= steps]


def write_curve(out: Path, curve: Sequence[dict[str, Any]]) -> None:
    """The losses as a table."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(curve)
    write_text(out / "curve.csv", text.getvalue())


def draw_curve(out: Path, curve: Sequence[dict[str, Any]]) -> None:
    """The losses as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.1, 2.8), layout="constrained")
    axes = figure.subplots()
    for name, style in (("loss", "-"), ("validation_loss", "o--")):
        axes.plot([row["steps"] for row in curve], [row[name] for row in curve], style, label=name)
    axes.set(xlabel="updates", ylabel="loss per token of the reply")
    axes.legend(frameon=False)
    figure.savefig(out / "curve.png", dpi=150)
