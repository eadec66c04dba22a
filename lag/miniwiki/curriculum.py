"""How the embedded data set's models are trained: seeded, resumable, on other worlds only."""

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, takewhile
from pathlib import Path

import numpy as np
from transformers import LlamaForCausalLM

from lag import prompts
from lag.actions import tags
from lag.logs import playbook
from lag.miniwiki import recalls
from lag.miniwiki.drills import AS_KV, make_exams, make_lookups
from lag.miniwiki.embedder import mean_vector
from lag.miniwiki.gold_agent import FORMATS, make_examples
from lag.miniwiki.init_weights import draw_names, make_model
from lag.miniwiki.recipe import FIRST_SEED, VALIDATION_SEED, Recipe, make_world
from lag.miniwiki.tokenizer import make_tokenizer, word_pieces
from lag.miniwiki.world import World
from lag.model.llm import LLM
from lag.modes import MODES
from lag.train.batches import MaskedExample, batches, encode_examples
from lag.train.examples import Format, TrainingExample
from lag.train.trainer import Progress, Trainer

MOST = 4  # articles and logs of a look-up, at the most but one
# In the annealing: how much more weight a prompt in the layout and the loop of the paper has, by how
# its logs enter, if any do.
WEIGHTS = {"": 2, "text": 4, "kv": 3}
Counts = dict[str, float]  # shares of well-formed and exact replies, and how many there were
CURATED = re.compile(r"<cheatsheet>[^<>]+</cheatsheet>|<keep></keep>|(<add>[^<>]+</add>)+")


def well_formed(example: TrainingExample, reply: str) -> bool:
    """Whether a reply ends as it was told to: in one closed tag with something in it."""
    if example.prompt.user.startswith((prompts.CURATOR_RULES, playbook.EDITOR_RULES)):
        return bool(CURATED.fullmatch(reply))
    found = tags(reply)
    return len(found) == 1 and found[0].name != "subquestion" and found[0].end == len(reply)


def check_replies(
    model: LlamaForCausalLM, examples: Sequence[TrainingExample], folder: Path
) -> dict[str, Counts]:
    """Generate through the toolkit's own route, KV store included, and count by format.

    folder: where the KV of this check may lie.
    """
    counts = {}
    for format in dict.fromkeys(example.format for example in examples):
        own = [example for example in examples if example.format == format]
        llm = LLM(model, make_tokenizer(), layout=format.layout, max_new_tokens=128)
        if MODES[format.mode].enters == "kv":
            llm.open_store(folder, MODES[format.mode])
        replies = [reply.text for reply in llm.generate([example.prompt for example in own])]
        pairs = list(zip(own, replies))
        counts[format.name] = {
            "well_formed": sum(well_formed(*pair) for pair in pairs) / len(own),
            "exact": sum(example.reply == reply for example, reply in pairs) / len(own),
            "replies": len(own),
        }
    return counts


def validation_examples(
    recipe: Recipe, weights: np.ndarray, per_format: int
) -> list[TrainingExample]:
    """So many examples of each format, drawn from a world that is not trained on."""
    embed = mean_vector(weights, word_pieces())
    examples = list(make_examples(make_world(recipe, VALIDATION_SEED), embed))
    random.Random(recipe.seed).shuffle(examples)
    by_format: dict[str, list[TrainingExample]] = {}
    for example in examples:
        by_format.setdefault(example.format.name, []).append(example)
    return [example for name in sorted(by_format) for example in by_format[name][:per_format]]


def rate(recipe: Recipe, share: float) -> float:
    """Learning rate: a linear warm-up, then a cosine down to a fiftieth; the same in every part.

    share: of the training's first part that is done; from 1 on of its second, from 2 of its third.
    Source: warm restarts (SGDR, arXiv 1608.03983).
    """
    highest = recipe.rate if share < 1 else recipe.annealing_rate
    share -= min(int(share), 2)
    if share < recipe.warmup:
        return highest * (share + 1e-3) / recipe.warmup
    done = (share - recipe.warmup) / (1 - recipe.warmup)
    return highest * (0.02 + 0.98 * (1 + math.cos(math.pi * min(1, done))) / 2)


def annealing(formats: Sequence[Format]) -> list[Format]:
    """The formats with more weight on the layout and the loop of the paper, most on logs as text."""
    return [replace(f, share=f.share * weight_at_the_end(f)) for f in formats]


def weight_at_the_end(format: Format) -> int:
    usual = (format.layout, format.solver) != ("paper", "react")
    return 1 if usual else WEIGHTS.get(MODES[format.mode].enters, WEIGHTS["kv"])


class Curriculum:
    """The embedded model's training: groups of worlds, look-ups first, then the loop.

    weights: the embedder's, which the retrieval in the prompts needs.
    """

    def __init__(self, recipe: Recipe, weights: np.ndarray):
        self.recipe, self.weights = recipe, weights
        self.identity = recipe.identity
        self.formats = [f for f in FORMATS if taught(f, recipe.without)]

    def share(self, at: Progress) -> float:
        """How much of the first part is done; from 1 on of the annealing, from 2 of the last part."""
        ends = self.recipe.ends
        part = sum(at.tokens >= end for end in ends[:-1])
        begun = (0, *ends)[part]
        return part + (at.tokens - begun) / (ends[part] - begun)

    def rate(self, at: Progress) -> float:
        return rate(self.recipe, self.share(at))

    def batches(self, at: Progress) -> Iterator[list[MaskedExample]]:
        """The batches of the next world, until it or the part of the training that it is in ends."""
        recipe = self.recipe
        end = next((end for end in recipe.ends if at.tokens < end), 0)
        if not end:
            return
        order = random.Random(f"group {recipe.seed} {at.group}")
        for rows in batches(self.examples(at), recipe.batch_tokens, order):
            yield rows
            if at.tokens >= end:
                return

    def examples(self, at: Progress) -> list[MaskedExample]:
        """The examples of the next world: look-ups, exams, or what the loop asks."""
        recipe, world = self.recipe, make_world(self.recipe, FIRST_SEED + at.group)
        share = self.share(at)
        if share < recipe.lookups:
            most = 1 + math.ceil(MOST * share / recipe.lookups)
            found = self.drills(make_lookups, world, recipe.drills, most)
        elif share < recipe.exams:
            most = 1 + math.ceil(MOST * (share - recipe.lookups) / (recipe.exams - recipe.lookups))
            found = chain(
                self.drills(make_exams, world, recipe.exercises, most),
                self.drills(make_lookups, world, recipe.kept, MOST),
            )
        else:
            embed = mean_vector(self.weights, word_pieces())
            formats = annealing(self.formats) if share >= 1 else self.formats
            found = chain(
                make_examples(world, embed, formats),
                self.drills(make_lookups, world, recipe.kept, MOST),
                self.drills(make_exams, world, recipe.kept, MOST),
                self.about_hidden_text(world) if share >= 2 else (),
            )
        if recipe.without == "search":
            found = without_search(found)
        return encode_examples(found, make_tokenizer())

    def about_hidden_text(self, world: World) -> Iterator[TrainingExample]:
        recipe, seed = self.recipe, f"{self.recipe.seed}"
        as_kv = 0.0 if recipe.without == "kv" else recalls.AS_KV
        return chain(
            recalls.make_recalls(world, recipe.recalls, seed, as_kv),
            recalls.make_recitals(world, recipe.recitals, seed, as_kv),
        )

    def drills(
        self, make: Callable, world: World, count: int, most: int
    ) -> Iterator[TrainingExample]:
        as_kv = 0.0 if self.recipe.without == "kv" else AS_KV
        return make(world, count, f"{self.recipe.seed}", most, as_kv)


def taught(format: Format, without: str) -> bool:
    return without != "kv" or MODES[format.mode].enters != "kv"


def without_search(examples: Iterable[TrainingExample]) -> Iterator[TrainingExample]:
    """Each example up to its first reply that searches."""
    for example in examples:
        if "<keywords>" not in example.reply:
            then = takewhile(lambda turn: "<keywords>" not in turn[1], example.then)
            yield replace(example, then=tuple(then))


class NamelessTrainer(Trainer):
    """From some point on its model cannot know the names that it reads."""

    def step(self, rows: Sequence[MaskedExample]) -> int:
        curriculum = self.examples
        if curriculum.share(self.progress) >= curriculum.recipe.fresh_names:
            draw_names(self.model, self.progress.steps)
        return super().step(rows)


def trainer(recipe: Recipe, weights: np.ndarray, folder: Path) -> Trainer:
    """The fresh language model in the trainer that makes it; checkpoints lie in the folder."""
    shape = dict(width=recipe.width, heads=recipe.heads, layers=recipe.layers)
    return NamelessTrainer(make_model(recipe.seed, **shape), Curriculum(recipe, weights), folder)
