"""What a reply probably goes on with: words that stand in its prompt, in its logs, in other replies.

A draft is checked in the forward that writes the next token anyway, and what the model would not
have written is refused: drafts change no reply, only how many forwards it takes.

Source: prompt lookup decoding; REST (arXiv 2311.08252); SuffixDecoding (arXiv 2411.04975).
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, repeat, takewhile
from operator import mul
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LONGEST = 8  # tokens of a reply's end that are looked for, and fewer
MOST = 7  # tokens of a draft: with the one before them as many as a product of few tokens takes
EARLIER = 64  # replies of the run that are looked through
PATIENCE, SELDOM = 16, 8  # after so many steps without a draft, one of so many looks for one
# Measured on an AMD EPYC, one thread: seconds of a layer's calls and of reading a number; and what
# products of 1, 2, .. tokens take, and of more tokens, in readings of the weights.
LAYER, NUMBER = 150e-6, 4 / 15e9
FEW, SEVERAL, MORE = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7), 1.2, 0.08
ROW, ATTENDED = (
    0.06,
    0.02,
)  # the same, of reading a prompt's keys, and of a token that looks at them
ON_GPU = 256  # tokens that cost as much as reading the weights: a guess
# How often a reply goes on as it did elsewhere, to begin with: as it did in less than half of those
# places, in more, in all of them; and for another token once one was right.
FIRST_GUESS = {"few": 0.3, "most": 0.5, "all": 0.8, "on": 0.8}
UNSURE = 1  # drafts that a first guess counts for
MEMORY = 0.95  # what is known counts for, when another draft is

START = chr(0x10FFFF)  # of every reply; no token's number


def written(ids: Iterable[int]) -> str:
    """Token ids as text, one character each: a search in it is one of the language's own."""
    return "".join(map(chr, ids))


def joined(replies: Iterable[str]) -> str:
    return "".join(START + reply for reply in replies)


def behind(text: str, words: str) -> Iterator[str]:
    """What stands behind each place of these words, the last first; empty at the text's end."""
    *inner, last = text.split(words)[1:] or [""]
    yield last[:1]
    for part in reversed(inner):
        yield (part or words)[:1]  # at once the same words again


@dataclass(slots=True)
class Draft:
    """Where one reply looks for what comes next.

    sources: texts of tokens, the most likely last. reply: its own so far, its start in front.
    sure: how many of the places that the draft at hand goes by agree on its first token: one of
        `FIRST_GUESS`; empty if there is none.
    """

    sources: str
    reply: str = START
    sure: str = ""
    next: str = ""

    def look(self, most: int) -> None:
        """Find a draft of at most so many tokens, behind the longest end of the reply elsewhere.

        It goes on as most such places do, and as the last of these does.
        """
        self.sure, self.next = "", ""
        for count in range(self._longest() if most > 0 else 0, 0, -1):
            end = self.reply[-count:]
            ways = self._ways(end)
            if ways:
                way = max(ways, key=ways.get)
                share = ways[way] / ways.total()
                self.sure = "all" if share == 1 else "most" if share > 0.5 else "few"
                text = self.reply if end + way in self.reply else self.sources
                at = text.rfind(end + way) + count
                self.next = text[at : at + most].partition(START)[0]
                return

    def _longest(self) -> int:
        """How many tokens of the reply's end stand elsewhere too."""
        count = 0
        while count < min(LONGEST, len(self.reply)):
            end = self.reply[-count - 1 :]
            if end not in self.sources and self.reply.find(end, 0, -1) < 0:
                break
            count += 1
        return count

    def _ways(self, end: str) -> Counter[str]:
        """How often which token stands behind these, the last place's first."""
        ways = Counter(chain(*(behind(text, end) for text in (self.reply, self.sources))))
        ways.pop("", None)
        ways.pop(START, None)
        return ways

    def add(self, ids: Sequence[int]) -> None:
        self.reply += written(ids)


@dataclass(frozen=True, slots=True)
class Costs:
    """What a forward costs, in readings of the model's weights; no clock, so that a run repeats.

    fixed: of any forward, besides its products. row, token: of each of these besides. few: of
    products of 1, 2, .. tokens; several, more: of one of more tokens, and per token. padded: whether
    all rows take as many tokens as the longest.
    """

    fixed: float = 0.0
    row: float = ROW
    token: float = ATTENDED
    few: tuple[float, ...] = FEW
    several: float = SEVERAL
    more: float = MORE
    padded: bool = False

    @classmethod
    def of(cls, model: "PreTrainedModel", padded: bool) -> "Costs":
        if model.device.type != "cpu":
            return cls(0.0, 0.0, 1 / ON_GPU, (), 1.0, 0.0, padded)
        layers = model.config.get_text_config(decoder=True).num_hidden_layers
        return cls(layers * LAYER / (model.num_parameters() * NUMBER), padded=padded)

    def forward(self, rows: int, tokens: int, longest: int) -> float:
        """Of so many tokens in all rows, and in the longest of them."""
        tokens = rows * longest if self.padded else tokens
        many = tokens > len(self.few)
        products = self.several + self.more * tokens if many else self.few[tokens - 1]
        return self.fixed + self.row * rows + self.token * tokens + products


@dataclass(slots=True)
class Chances:
    """How often drafts were right, and so how long the next ones are to be."""

    costs: Costs
    right: dict[str, float] = field(default_factory=FIRST_GUESS.copy)
    known: Counter[str] = field(default_factory=Counter)

    def learn(self, draft: Draft, ids: Sequence[int]) -> None:
        """What a reply went on with, whether or not anybody asked for the draft."""
        names = chain([draft.sure], repeat("on"))
        for name, guess, found in zip(names, draft.next, written(ids)):
            self.known[name] += 1
            weight = max(1 - MEMORY, 1 / (UNSURE + self.known[name]))
            self.right[name] += weight * ((guess == found) - self.right[name])
            if guess != found:
                break

    def reach(self, draft: Draft) -> list[float]:
        """For each token of a draft how probably it is right, and all before it."""
        names = chain([draft.sure], repeat("on", len(draft.next) - 1))
        return list(accumulate((self.right[name] for name in names), mul))

    def lengths(self, drafts: Sequence[Draft]) -> list[int]:
        """How many tokens of each draft are worth asking for: the likeliest of all rows first."""
        reached = [self.reach(draft) if draft.sure else [] for draft in drafts]
        likeliest = sorted((-p, row) for row, chances in enumerate(reached) for p in chances)
        rows, counts, longest = len(drafts), [0] * len(drafts), 0
        written, best = float(rows), 0
        highest = written / self.costs.forward(rows, rows, 1)
        for more, (chance, row) in enumerate(likeliest, 1):
            counts[row] += 1
            longest, written = max(longest, counts[row]), written - chance
            rate = written / self.costs.forward(rows, rows + more, 1 + longest)
            if rate > highest:
                best, highest = more, rate
        asked = Counter(row for _, row in likeliest[:best])
        return [asked[row] for row in range(rows)]


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
        lengths = [0] * len(drafts) if rests else self.chances.lengths(drafts)
        self.quiet = 0 if any(lengths) else self.quiet
        found = (map(ord, draft.next[:count]) for draft, count in zip(drafts, lengths))
        return [list(takewhile(self._goes_on, ids)) for ids in found]

    def _goes_on(self, id: int) -> bool:
        return id not in self.end_ids

    def follow(self, draft: Draft | None, ids: Sequence[int], ended: bool) -> None:
        """Note what a reply went on with, for its own drafts and for those of others."""
        if draft and ids:
            self.chances.learn(draft, ids)
            draft.add(ids)
            if ended:
                self.earlier.append(draft.reply[1:])
