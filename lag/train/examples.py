"""Training examples: a prompt as the loop built it, and the reply to it."""

from dataclasses import dataclass

from lag.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Format:
    """One way in which a question reaches the model.

    share: how often a curriculum draws it, relative to the others.
    carried: whether its sheet lives on from one question to the next (`--sheet carried`).
    """

    mode: str
    layout: str
    share: float = 1.0
    solver: str = "react"
    prefill: str = "turn"
    carried: bool = False

    @property
    def name(self) -> str:
        more = [self.solver] if self.solver != "react" else []
        more += [self.prefill] if self.prefill != "turn" else []
        more += ["carried"] if self.carried else []
        return "/".join([self.mode, self.layout, *more])


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A prompt, the reply to it, and the format that it belongs to.

    only_after: a word of one token; only what follows it in the reply is a target. Empty: the
        whole reply is.
    then: what follows the reply, in turn: text that is given and no target, and the reply to it.
    weight: what its loss is multiplied by. ended: whether a reply ends its turn, and was not cut.
    """

    prompt: Prompt
    reply: str
    format: Format
    only_after: str = ""
    then: tuple[tuple[str, str], ...] = ()
    weight: float = 1.0
    ended: bool = True
