"""The embedded data set's embedder: one vector per word, a text is the mean of its words.

What is learned is how much a word counts: a name much, a verb little.
"""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from lag.miniwiki.gold_agent import UNANSWERED, UNKNOWN, Embed, Knowledge, follow
from lag.miniwiki.recipe import FIRST_SEED, Recipe, make_world
from lag.miniwiki.tokenizer import word_pieces
from lag.miniwiki.world import NAMES, RELATIONS, TRAINING_NAMES, World, told

logger = logging.getLogger(__name__)


def mean_vector(weights: np.ndarray, tokenizer: Tokenizer) -> Embed:
    """Text -> unit vector (E,): the mean of its words' vectors, as a static embedder has it."""

    @lru_cache(maxsize=50_000)
    def embed(text: str) -> np.ndarray:
        vector = weights[tokenizer.encode(text, add_special_tokens=False).ids].mean(axis=0)
        return vector / np.linalg.norm(vector)

    return embed


@dataclass(frozen=True, slots=True)
class Pair:
    """What is searched for, a document or log that helps, and perhaps one that seems to and does not."""

    query: str
    found: str
    misleading: str = ""


def search_pairs(world: World, rng: random.Random) -> list[Pair]:
    """Sub-questions and questions with the article of their subject, and with logs that know more.

    A log whose question names the same thing and that ended without an answer is misleading.
    """
    texts = {a.id: f"{a.title}\n{a.content}" for a in world.articles}
    pairs = []
    for (noun, subject), id in told(world).items():
        asked = rng.choice(list(RELATIONS)) if noun == "name" else noun
        pairs.append(Pair(f"{subject}'s {asked}", texts[id]))
    known = Knowledge()
    for article in world.articles:
        known.add(article.facts)
    by_sentence: dict[str, list[str]] = {}
    for row in world.train:
        chain, asked = world.chains[row["id"]], row["question"]
        path = follow(known, chain.start, chain.nouns)
        key = f"{asked}\n{' '.join(path.lines[-3:])}"
        first = row["question_decomposition"][0]["document_id"]
        pairs.append(Pair(asked, texts[first]))
        begun = f"{chain.start}'s {chain.nouns[0]}"
        nothing = follow(Knowledge(), chain.start, chain.nouns).lines[0]
        pairs.append(Pair(begun, key, f"{asked}\n{nothing} {UNANSWERED}"))
        for sentence in path.sentences[:-1] if path.query else path.sentences:
            pairs += [Pair(asked, other) for other in by_sentence.get(sentence, ())[-1:]]
            by_sentence.setdefault(sentence, []).append(key)
    return pairs


def untrained(recipe: Recipe) -> torch.nn.EmbeddingBag:
    """Random word vectors (V, E), some of which weigh more."""
    torch.manual_seed(recipe.seed)
    vocab = word_pieces().get_vocab()
    bag = torch.nn.EmbeddingBag(len(vocab), recipe.dimensions, mode="mean")
    is_name = torch.zeros(len(vocab), 1)
    is_name[[vocab[name] for name in (*NAMES, *TRAINING_NAMES)]] = 1
    bag.weight.data *= 0.1 + is_name  # names start heavier: they are what is asked about
    bag.weight.data[vocab[UNKNOWN]] *= 30  # and so does what tells a log that found nothing
    return bag


def train_embedder(recipe: Recipe, bar: Callable[[int], object] = lambda n: None) -> np.ndarray:
    """Word vectors (V, E) float32 whose means find what helps; contrastive, in-batch negatives."""
    tokenizer, bag = word_pieces(), untrained(recipe)
    optimizer = torch.optim.Adam(bag.parameters(), lr=3e-3)
    rng = random.Random(f"embedder {recipe.seed}")

    def encode(texts: Sequence[str]) -> torch.Tensor:
        ids = [torch.tensor(tokenizer.encode(t, add_special_tokens=False).ids) for t in texts]
        starts = torch.tensor([0, *map(len, ids)][:-1]).cumsum(0)
        return F.normalize(bag(torch.cat(ids), starts), dim=-1)  # (B, E)

    pairs: list[Pair] = []
    seeds = count(FIRST_SEED - 1, -1)
    for _ in range(recipe.embedder_steps):
        if len(pairs) < 256:
            pairs = search_pairs(make_world(recipe, next(seeds)), rng)
            rng.shuffle(pairs)
        batch, pairs = pairs[:256], pairs[256:]
        found = [pair.found for pair in batch]
        texts = [*found, *(pair.misleading for pair in batch if pair.misleading)]
        scores = encode([pair.query for pair in batch]) @ encode(texts).T / 0.05  # (B, texts)
        same = torch.tensor(
            [[text == mine and place != n for place, text in enumerate(texts)]
             for n, mine in enumerate(found)]
        )  # fmt: skip
        loss = F.cross_entropy(scores.masked_fill(same, -1e4), torch.arange(len(batch)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar(1)
    logger.info("embedder: loss %.3f", loss.item())
    return bag.weight.detach().numpy()


def save_embedder(weights: np.ndarray, folder: Path) -> None:
    """Write the static embedder, as `--embedder` takes it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding

    module = StaticEmbedding(word_pieces(), embedding_weights=weights)
    SentenceTransformer(modules=[module], device="cpu").save(str(folder), create_model_card=False)
