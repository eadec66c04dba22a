"""What several tests of the embedded world share."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from lag.miniwiki.embedder import mean_vector
from lag.miniwiki.tokenizer import word_pieces

EMBEDDER = Path(__file__).resolve().parents[2] / "data" / "miniwiki" / "embedder"


@pytest.fixture(scope="session")
def embed():
    """The shipped embedder, as the recipe's examples are made with it."""
    weights = load_file(EMBEDDER / "model.safetensors")["embedding.weight"]
    return mean_vector(weights, word_pieces())
