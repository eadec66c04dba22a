"""Fixtures that every test may use: everything offline, on a CPU, built in process."""

import gc
import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest
from hypothesis import settings

# Without a deadline: a slow machine is no defect. `sweeps.py` has more examples for `stress`.
settings.register_profile("busy", deadline=None, max_examples=20)
settings.register_profile("stress", deadline=None, max_examples=100)
settings.load_profile("busy")
# A power cut is no part of any test, and a disk takes milliseconds for each of some thousand calls.
os.fsync = lambda handle: None
# A shell's background jobs ignore Ctrl-C, and so would every process that a test starts from there.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_finish() -> None:
    """What is imported stays: the collector need not look at it again and again."""
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real samples; tests that want it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("real samples are not here")
    return SHARED


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A saved tiny model, as `--model` takes it."""
    import tiny

    return tiny.save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def embedder_folder(tmp_path_factory) -> Path:
    """A saved tiny sentence-transformers model, as `--embedder` takes it."""
    import tiny

    return tiny.save_embedder(tmp_path_factory.mktemp("embedder"))


@pytest.fixture(scope="session")
def small_root(tmp_path_factory, embedder_folder) -> Path:
    """A data folder with two small data sets; do not write to it."""
    import small

    return small.make_data(tmp_path_factory.mktemp("small") / "data", embedder_folder)


@pytest.fixture
def small_data(small_root, tmp_path) -> Path:
    """A copy of the small data folder, to write to."""
    import shutil

    return Path(shutil.copytree(small_root, tmp_path / "data"))
