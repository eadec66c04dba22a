"""What a reply probably goes on with: words that stand in its prompt, in its logs, in other replies.

A draft is checked in the forward that writes the next token anyway, and what the model would not
have written is refused: drafts change no reply, only how many forwards it takes.

Source: prompt lookup decoding; REST (arXiv 2311.08252); SuffixDecoding (arXiv 2411.04975).
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from operator import mul
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LONGEST = 4  # tokens of a reply's end that are looked for, and fewer
MOST = 7  # tokens of a draft: with the one before them as many as a product of few tokens takes
EARLIER = 64  # replies of the run that are looked through
PATIENCE, SELDOM = 16, 8  # after so many steps without a draft, one of so many looks for one
# Measured on an AMD EPYC, one thread: seconds of a layer's calls and of reading a number; and what
# products of 1, 2, .. tokens take, and of more tokens, in readings of the weights.
LAYER, NUMBER = 150e-6, 4 / 15e9
FEW, SEVERAL, MORE = (1.0, 1.0, 1.3, 1.3, 1.6, 2.1, 2.2, 2.3), 2.1, 0.08
ATTENDED = 0.02  # the same, of a token that looks at a prompt
ON_GPU = 256  # tokens that cost as much as reading the weights: a guess
# How often a word goes on as it did elsewhere, by how many words before it agree: to begin with.
FIRST_GUESS = {1: 0.3, 2: 0.5, 3: 0.7, 4: 0.8}
MEMORY = 0.98  # what the last guess counts for, when another is known

START = chr(0x10FFFF)  # of every reply; no token's number


def written(ids: Iterable[int]) -> str:
    """Token ids as text, one character each: a search in it is one of the language's own."""
    return "".join(map(chr, ids))


def joined(replies: Iterable[str]) -> str:
    return "".join(START + reply for reply in replies)


def behind(text: str, words: str) -> int:
    """Where the last place that goes on after these words goes on; 0 if there is none."""
    at = text.rfind(words, 0, -1)
    while at >= 0 and text[at + len(words)] == START:
        at = text.rfind(words, 0, at + len(words) - 1)
    return at + len(words) if at >= 0 else 0


@dataclass(slots=True)
class Draft:
    """Where one reply looks for what comes next.

    sources: texts of tokens, the most likely last. reply: its own so far, its start in front.
    agreed: of the draft at hand, how many tokens agreed before it; 0 if there is none.
    """

    sources: str
    reply: str = START
    agreed: int = 0
    next: str = ""

    def look(self, most: int) -> None:
        """Find a draft of at most so many tokens: behind the longest end of the reply, its last."""
        self.agreed, self.next = 0, ""
        if most <= 0:
            return
        for count in range(min(LONGEST, len(self.reply)), 0, -1):
            end = self.reply[-count:]
            for text in (self.reply, self.sources):
                at = behind(text, end)
                found = text[at : at + most].partition(START)[0] if at else ""
                if found:
                    self.agreed, self.next = count, found
                    return

    def add(self, ids: Sequence[int]) -> None:
        self.reply += written(ids)


@dataclass(frozen=True, slots=True)
class Costs:
    """What a forward costs, in readings of the model's weights; no clock, so that a run repeats.

    fixed: of any forward, besides its products. token: of each token besides. few: of products of
    1, 2, .. tokens; several, more: of one of more tokens, and per token.
    """

    fixed: float = 0.0
    token: float = ATTENDED
    few: tuple[float, ...] = FEW
    several: float = SEVERAL
    more: float = MORE

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "Costs":
        if model.device.type != "cpu":
            return cls(0.0, 1 / ON_GPU, (), 1.0, 0.0)
        layers = model.config.get_text_config(decoder=True).num_hidden_layers
        return cls(layers * LAYER / (model.num_parameters() * NUMBER))

    def forward(self, tokens: int) -> float:
        many = tokens > len(self.few)
        products = self.several + self.more * tokens if many else self.few[tokens - 1]
        return self.fixed + self.token * tokens + products


@dataclass(slots=True)
class Chances:
    """How often drafts were right, and so how long the next ones are to be."""

    costs: Costs
    right: dict[int, float] = field(default_factory=FIRST_GUESS.copy)

    def learn(self, draft: Draft, token: int) -> None:
        """A draft's first token was right or not, whether or not anybody asked for it."""
        if draft.agreed:
            hit = draft.next[0] == chr(token)
            before = self.right[draft.agreed]
            self.right[draft.agreed] = before * MEMORY + hit * (1 - MEMORY)

    def reach(self, draft: Draft) -> list[float]:
        """For each token of a draft how probably it is right, and all before it."""
        agree = range(draft.agreed, draft.agreed + len(draft.next))
        return list(accumulate((self.right[min(n, LONGEST)] for n in agree), mul))

    def length(self, drafts: Sequence[Draft]) -> int:
        """How many tokens of the drafts of all rows are worth asking for; 0 if none are.

        Rows are as long as the longest of them, so that all may have as many.
        """
        rows = len(drafts)
        gains = [self.reach(draft) for draft in drafts if draft.agreed]
        tokens, best, found = float(rows), rows / self.costs.forward(rows), 0
        for count in range(1, max(map(len, gains), default=0) + 1):
            tokens += sum(gain[count - 1] for gain in gains if len(gain) >= count)
            rate = tokens / self.costs.forward(rows * (1 + count))
            if rate > best:
                best, found = rate, count
        return found


class Drafter:
    """Drafts for the replies of one model.

    kind: `logs`, `prompt` or `off`, as `LLM` has it.
    end_ids: are never drafted: behind all that comes before, an end is the token that comes anyway.
    """

    def __init__(self, kind: str, costs: Costs, end_ids: frozenset[int] = frozenset()):
        self.kind, self.end_ids, self.chances = kind, end_ids, Chances(costs)
        self.quiet = 0  # steps since a draft was last worth asking for
        self.earlier: deque[str] = deque(maxlen=EARLIER)

    def begin(self, prompt: str, texts: Iterable[str]) -> Draft:
        """For a reply to a prompt, which may repeat these texts too."""
        return Draft(prompt if self.kind == "prompt" else joined([*self.earlier, *texts, prompt]))

    def propose(self, drafts: Sequence[Draft], room: Sequence[int]) -> list[list[int]]:
        """Tokens that rows probably go on with, at most so many, and none that do not pay."""
        self.quiet += 1
        rests = self.quiet > PATIENCE and self.quiet % SELDOM
        for draft, most in zip(drafts, room, strict=True):
            draft.look(0 if rests else min(most, MOST))
        length = 0 if rests else self.chances.length(drafts)
        self.quiet = 0 if length else self.quiet
        return [list(takewhile(self._goes_on, map(ord, draft.next[:length]))) for draft in drafts]

    def _goes_on(self, id: int) -> bool:
        return id not in self.end_ids

    def follow(self, draft: Draft | None, ids: Sequence[int], ended: bool) -> None:
        """Note what a reply went on with, for its own drafts and for those of others."""
        if draft and ids:
            self.chances.learn(draft, ids[0])
            draft.add(ids)
            if ended:
                self.earlier.append(draft.reply[1:])
