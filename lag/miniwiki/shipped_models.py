"""Make the embedded data set's models: train, validate, write with their cards."""

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm import tqdm
from transformers import LlamaForCausalLM

from lag.files import file_digest
from lag.miniwiki.curriculum import Counts, check_replies, trainer, validation_examples
from lag.miniwiki.embedder import save_embedder, train_embedder
from lag.miniwiki.recipe import FIRST_SEED, VALIDATION_SEED, Recipe
from lag.miniwiki.tokenizer import make_tokenizer
from lag.train.batches import encode_examples
from lag.train.trainer import Trainer
from lag.train.validation import exact_replies

logger = logging.getLogger(__name__)
LM_CARD = """\
---
license: mit
library_name: transformers
pipeline_tag: text-generation
---
# The agent of the embedded data set

A Llama of {parameters:,} parameters that reads this toolkit's prompts and answers in its tags. It knows
nothing of the world it is asked about: what it says of one comes from the documents and logs in its prompt.
Its tokenizer has one token per name and per fixed phrase; other words are spelled in letters.

Made by `python train.py miniwiki` from generated worlds with seeds from {first_seed} up; no other data.
It reads only questions of this kind and is of no use for anything else.

Recipe: `{recipe}`. Tokens read: {tokens:,}, in {steps:,} updates.

| format | well-formed replies | exact replies | of |
| --- | --- | --- | --- |
{rows}

Exact means equal to the scripted agent's reply, on the world with seed {validation_seed}, which is not trained on.
"""
EMBEDDER_CARD = """\
---
license: mit
library_name: sentence-transformers
pipeline_tag: sentence-similarity
---
# The embedder of the embedded data set

Static word vectors of {dimensions} dimensions whose mean finds the article or log that helps with a question.
Made by `python train.py miniwiki` from generated worlds with seeds below {first_seed}; no other data.
"""


def make_models(
    recipe: Recipe, out: Path, work: Path, per_format: int, start: Path | None = None
) -> dict[str, Any]:
    """Train both models, from where an earlier start stopped, and write them.

    work: folder of the checkpoints. per_format: replies of each format that are checked.
    start: folder of two models that were made so. The training goes on from the language model of
        it with what the recipe has behind its first tokens; the embedder stays as it is.

    Returns:
        Tokens, updates and the shares of good replies by format.

    Raises:
        ValueError: a start that cannot be read.
    """
    if start:
        made, weights = read(start, "model"), read(start, "embedder").get("embedding.weight")
        if weights is None:
            raise ValueError(f"--start {start}: its embedder is none that train.py miniwiki made")
        recipe = replace(recipe, tokens=0, start=file_digest(weights_file(start, "model"), 16))
    else:
        made, weights = {}, embedder_weights(recipe, work)
    training = train_language_model(recipe, weights, work, made)
    results = validate(training, weights, work, per_format)
    publish(training, weights, out, results)
    done = training.progress
    return {"tokens": done.tokens, "steps": done.steps, "formats": results}


def weights_file(start: Path, name: str) -> Path:
    return start / name / "model.safetensors"


def read(start: Path, name: str) -> dict[str, np.ndarray]:
    """The weights of a model that was made before.

    Raises:
        ValueError: there is none that can be read.
    """
    path = weights_file(start, name)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"--start {start}: {path} cannot be read ({error}); expected a folder as `train.py "
            "miniwiki --out` makes it"
        ) from error


def put_into(model: LlamaForCausalLM, weights: dict[str, np.ndarray]) -> None:
    """
    Raises:
        ValueError: weights of a model of another shape.
    """
    own = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in own.items()}
    if {name: weight.shape for name, weight in weights.items()} != shapes:
        raise ValueError("--start holds a model of another shape; repeat its --width")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(torch.from_numpy(weights[name]))


def embedder_weights(recipe: Recipe, work: Path) -> np.ndarray:
    """Train the embedder, or take the weights of an earlier start."""
    path = work / "embedder.safetensors"
    if path.exists():
        return load_file(path)["weights"]
    with tqdm(total=recipe.embedder_steps, desc="embedder") as bar:
        weights = train_embedder(recipe, bar.update)
    work.mkdir(parents=True, exist_ok=True)
    save_file({"weights": weights}, path)
    return weights


def train_language_model(
    recipe: Recipe, weights: np.ndarray, work: Path, made: dict[str, np.ndarray]
) -> Trainer:
    """Train to the end, from the last checkpoint if there is one, else from the weights made before."""
    training = trainer(recipe, weights, work)
    if made:
        put_into(training.model, made)
    training.resume()
    held_out = encode_examples(validation_examples(recipe, weights, 10), make_tokenizer())
    group = training.progress.group
    with tqdm(
        total=recipe.ends[-1], initial=training.progress.tokens, unit="tok", unit_scale=True
    ) as bar:
        for tokens in training.run():
            bar.update(tokens)
            bar.set_postfix_str(f"loss {training.loss:.3f}", refresh=False)
            if training.progress.group > group:  # the loop's own prompts: 0 until the drills
                group = training.progress.group
                exact = exact_replies(training.model, held_out)["all"]
                logger.info("group %d: %.3f of the held-out replies are exact", group, exact)
    return training


def validate(
    training: Trainer, weights: np.ndarray, work: Path, per_format: int
) -> dict[str, Counts]:
    """Count well-formed and exact replies of every format, and print them."""
    examples = validation_examples(training.examples.recipe, weights, per_format)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        results = check_replies(training.model.eval(), examples, Path(folder))
    print(f"{'format':38} {'well-formed':>11} {'exact':>6} {'of':>4}")
    for name, counts in results.items():
        shares = f"{counts['well_formed']:11.3f} {counts['exact']:6.3f}"
        print(f"{name:38} {shares} {counts['replies']:4}")
    return results


def publish(training: Trainer, weights: np.ndarray, out: Path, results: dict[str, Counts]) -> None:
    """Write both models with their cards."""
    training.model.eval().save_pretrained(out / "model")
    make_tokenizer().save_pretrained(out / "model")
    save_embedder(weights, out / "embedder")
    for name, card in cards(training, results).items():
        (out / name / "README.md").write_text(card, encoding="utf-8")
    logger.info("wrote %s and %s", out / "model", out / "embedder")


def cards(training: Trainer, results: dict[str, Counts]) -> dict[str, str]:
    """The model cards, by folder."""
    recipe = training.examples.recipe
    rows = "\n".join(
        f"| {name} | {c['well_formed']:.3f} | {c['exact']:.3f} | {c['replies']} |"
        for name, c in results.items()
    )
    model = LM_CARD.format(
        parameters=sum(p.numel() for p in training.model.parameters()),
        first_seed=FIRST_SEED,
        validation_seed=VALIDATION_SEED,
        recipe=recipe,
        tokens=training.progress.tokens,
        steps=training.progress.steps,
        rows=rows,
    )
    embedder = EMBEDDER_CARD.format(dimensions=recipe.dimensions, first_seed=FIRST_SEED)
    return {"model": model, "embedder": embedder}
