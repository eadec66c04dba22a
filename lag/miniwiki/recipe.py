"""What decides the weights of the embedded data set's models, and which worlds they are made on."""

from dataclasses import asdict, dataclass
from typing import Any

from lag.miniwiki.world import World, generate

FIRST_SEED = 10_000  # training worlds; the shipped and the reported ones have smaller seeds
VALIDATION_SEED = 9_000  # the world that progress is measured on
WITHOUT = ("kv", "search")  # logs as KV; replies that search
NUM_WORLDS = 31  # that the shipped model has read, from FIRST_SEED up
NUM_PAIR_WORLDS = 24  # that the shipped embedder has read, from below FIRST_SEED down


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights.

    tokens: how many the model reads, prompts included. batch_tokens: per step.
    annealing: as many more, at annealing_rate, of which most show how logs are used.
    articles, questions: size of each training world.
    lookups: share of the training until which it is look-ups and nothing else; exams: until which
        it is exams. drills, exercises: how many of each a group has then. kept: how many of each
        stand among the loop's prompts of a group, so that they stay known.
    fresh_names: share from which on names have other vectors at every update: a model that knows
        those of its training reads others worse, and one that never knew any learns more slowly.
    start: digest of the weights that the training goes on from; none of a fresh model.
    """

    seed: int = 1
    tokens: int = 20_000_000
    annealing: int = 7_000_000
    batch_tokens: int = 1024
    articles: int = 800
    questions: int = 600
    width: int = 128
    heads: int = 4
    layers: int = 4
    rate: float = 1.5e-3
    annealing_rate: float = 8e-4
    warmup: float = 0.02
    lookups: float = 0.09
    exams: float = 0.3
    drills: int = 2000
    exercises: int = 1200
    kept: int = 150
    fresh_names: float = 0.78
    dimensions: int = 128
    embedder_steps: int = 400
    without: str = ""
    start: str = ""

    @property
    def ends(self) -> tuple[int, int]:
        """Tokens at which a part of the training ends, and its rate starts anew."""
        return self.tokens, self.tokens + self.annealing

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint is told by."""
        return {name: value for name, value in asdict(self).items() if value != ""}


def met_in_training(seed: int) -> str:
    """How the shipped models know the world of a seed; "" if it is new to them."""
    if seed == VALIDATION_SEED:
        return "the shipped model's training was watched on it"
    if FIRST_SEED <= seed < FIRST_SEED + NUM_WORLDS:
        return "the shipped model was trained on it"
    if FIRST_SEED - NUM_PAIR_WORLDS <= seed < FIRST_SEED:
        return "the shipped embedder was trained on it"
    return ""


def make_world(recipe: Recipe, seed: int) -> World:
    return generate(seed, recipe.articles, recipe.questions)
