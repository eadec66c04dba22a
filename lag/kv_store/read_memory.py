"""Memory that files are read into, and read into again once nobody holds what was read."""

import sys
import threading

import numpy as np

LARGE, MOST_IDLE = 1 << 20, 1 << 28  # bytes: of a block that is kept, and of all that are idle


class ReadMemory:
    """Memory that files are read into: taken again once nobody holds what was read into it.

    Fresh memory costs a page fault every 4 KiB, as much time as filling it twice.
    """

    def __init__(self, most_idle: int = MOST_IDLE):
        self.most_idle = most_idle
        self.blocks: list[np.ndarray] = []
        self.lock = threading.Lock()

    def take(self, num_bytes: int) -> np.ndarray:
        """(num_bytes,) uint8 that nobody else sees, of any content."""
        if num_bytes < LARGE:  # the heap has it
            return np.empty(num_bytes, dtype=np.uint8)
        with self.lock:
            return self._taken(num_bytes)

    def _taken(self, num_bytes: int) -> np.ndarray:
        idle = [at for at in range(len(self.blocks)) if holders(self.blocks, at) == ALONE]
        fits = [at for at in idle if num_bytes <= len(self.blocks[at]) <= 2 * num_bytes]
        if fits:
            return self.blocks[min(fits, key=lambda at: len(self.blocks[at]))][:num_bytes]
        self._let_go(idle)
        # numpy asks for large pages, which makes fresh memory four times as fast to fill
        self.blocks.append(np.empty(num_bytes, dtype=np.uint8))
        return self.blocks[-1][:]

    def _let_go(self, idle: list[int]) -> None:
        """Give up idle blocks, the oldest first, until few enough bytes are idle."""
        spare = sum(len(self.blocks[at]) for at in idle) - self.most_idle
        gone = set()
        for at in idle:
            if spare > 0:
                gone.add(at)
                spare -= len(self.blocks[at])
        self.blocks = [block for at, block in enumerate(self.blocks) if at not in gone]


def holders(blocks: list, at: int) -> int:
    """How many hold a block, this list and this call among them."""
    return sys.getrefcount(blocks[at])


ALONE = holders([object()], 0)
