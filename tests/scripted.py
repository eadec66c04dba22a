"""A model that says what a test wants; everything else of a run is real."""

from collections.abc import Callable

from lag.prompts import Prompt
from lag.records import Reply


class ScriptedLLM:
    """Plays the model's side of the loop.

    reply: from a prompt to what is said to it; an exception that it raises is a model's failure.
    """

    name, device = "scripted", "none"
    concurrency, continues, new_tokens = 0, True, 0

    def __init__(self, reply: Callable[[Prompt], str], room: int = 1 << 30):
        self.reply, self.room = reply, room
        self.seen: list[Prompt] = []

    def open_store(self, folder, mode):
        """Notes that would enter as KV enter as they are."""

    def can_be_encoded(self, note):
        return True

    def make_kv(self, notes):
        return 0

    def fingerprint(self, cache=None):
        return {"digest": "scripted"}

    def num_tokens(self, text: str) -> int:
        return len(text.split())

    def count(self, prompt: Prompt) -> int:
        texts = [prompt.system, prompt.user, prompt.prefill, *(n.keep for n in prompt.notes)]
        return sum(map(self.num_tokens, texts))

    def generate(self, prompts):
        replies = [self.reply(prompt) for prompt in prompts]
        self.seen += prompts
        return [
            Reply(text, self.count(prompt), 0, self.num_tokens(text), seconds={"decode": 0.5})
            for prompt, text in zip(prompts, replies, strict=True)
        ]

    def in_flight(self, slots):
        return Waiting(self)

    def stats(self):
        return {"kv": {}}


class Waiting:
    """Prompts that a scripted model replies to at the next step, one after the other."""

    def __init__(self, llm):
        self.llm, self.asked = llm, []

    def submit(self, ticket, prompt):
        self.asked.append((ticket, prompt))

    def step(self):
        asked, self.asked = self.asked, []
        return [(ticket, self.reply(prompt)) for ticket, prompt in asked]

    def close(self):
        self.asked = []

    def reply(self, prompt):
        try:
            return self.llm.generate([prompt])[0]
        except (RuntimeError, ValueError) as error:
            return error
