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

LONGEST = 4  # tokens of a reply's end that are looked for, and fewer
MOST = 8  # tokens of a draft
EARLIER = 64  # replies of the run that are looked through
# Of a forward, in tokens: what it costs besides its tokens, and what each row of it does.
ON_CPU, ON_GPU, ROW = 16, 256, 1
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


@dataclass(slots=True)
class Chances:
    """How often drafts were right, and so how long the next ones are to be.

    fixed: what a forward costs besides its tokens, in tokens.
    """

    fixed: int
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
        tokens, best, found = float(rows), rows / (self.fixed + rows * (1 + ROW)), 0
        for count in range(1, max(map(len, gains), default=0) + 1):
            tokens += sum(gain[count - 1] for gain in gains if len(gain) >= count)
            rate = tokens / (self.fixed + rows * (1 + ROW + count))
            if rate > best:
                best, found = rate, count
        return found


class Drafter:
    """Drafts for the replies of one model.

    kind: `logs`, `prompt` or `off`, as `LLM` has it.
    end_ids: are never drafted: behind all that comes before, an end is the token that comes anyway.
    """

    def __init__(self, kind: str, device: str, end_ids: frozenset[int] = frozenset()):
        self.kind, self.end_ids = kind, end_ids
        self.chances = Chances(ON_CPU if device == "cpu" else ON_GPU)
        self.earlier: deque[str] = deque(maxlen=EARLIER)

    def begin(self, prompt: str, texts: Iterable[str]) -> Draft:
        """For a reply to a prompt, which may repeat these texts too."""
        return Draft(prompt if self.kind == "prompt" else joined([*self.earlier, *texts, prompt]))

    def propose(self, drafts: Sequence[Draft], room: Sequence[int]) -> list[list[int]]:
        """Tokens that rows probably go on with, at most so many, and none that do not pay."""
        for draft, most in zip(drafts, room, strict=True):
            draft.look(min(most, MOST))
        length = self.chances.length(drafts)
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
