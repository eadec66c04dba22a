"""What several tests of the embedded world share."""

import pytest

from lag.miniwiki.embedder import mean_vector, untrained
from lag.miniwiki.recipe import Recipe
from lag.miniwiki.tokenizer import word_pieces


@pytest.fixture(scope="session")
def embed():
    """As an embedder begins: twenty steps of its training change no answer of the scripted agent."""
    return mean_vector(untrained(Recipe()).weight.detach().numpy(), word_pieces())
