"""Random sweeps: a short one in every test run, the long one in `make stress`."""

from typing import Any

from hypothesis import settings

FEWEST = 15


def sweep(examples: int, **more: Any) -> settings:
    """So many examples in `make stress`; elsewhere a fifth of them."""
    share = settings.default.max_examples / 100
    return settings(max_examples=max(int(examples * share), min(examples, FEWEST)), **more)
