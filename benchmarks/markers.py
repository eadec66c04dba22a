"""Whether markers of memory and reasoning help a model that has to recall two facts and then compare.

A small model is trained from nothing on questions about things whose numbers it has to remember: the
replies state both numbers, then which is larger. The same replies, updates and seeds, with markers
(`memory` before the facts, `reason` before the comparison), without, and with markers at random.

python benchmarks/markers.py --updates 1500
"""

import itertools
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure  # first: it finds the toolkit
from measure import Measure

from lag import cli
from lag.prompts import Prompt
from lag.train.annotate import joined
from lag.train.batches import MaskedExample, encode_examples
from lag.train.examples import Format, TrainingExample
from lag.train.markers import PARTS, all_words, marked
from lag.train.trainer import AdamW, Progress, Trainer

THINGS, NUMBERS, TEST, BATCH = 60, 30, 400, 64
FORMAT = Format("base", "paper")
ARMS = ("none", "markers", "random")
TEMPLATE = (
    "<bos> {% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
WORDS = ["which", "has", "more", ":", "<ans>", "</ans>", ">", "<", "."]
SPECIALS = ["<pad>", "<bos>", "<end>", "<system>", "<user>", "<assistant>", "[UNK]"]


def make_tokenizer() -> Any:
    """A token per word."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIALS, *WORDS, *(f"t{n}" for n in range(THINGS)), *map(str, range(NUMBERS))]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = dict(zip(("pad_token", "bos_token", "eos_token"), SPECIALS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        additional_special_tokens=SPECIALS[3:6],
        **named,
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_tokens([AddedToken(word, special=False) for word in all_words()])
    return tokenizer


def make_model(size: int, seed: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.08,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def example(pair: tuple[int, int], numbers: list[int], arm: str, seed: int) -> TrainingExample:
    """A question, and a reply that states both numbers, compares them and answers."""
    a, b = pair
    first, second = numbers[a], numbers[b]
    recalled = [f"t{a} has {first} .", f"t{b} has {second} ."]
    compared = f"{first} {'>' if first > second else '<'} {second} ."
    parts = [*recalled, compared]
    reply = " ".join([*parts, f"<ans> t{a if first > second else b} </ans>"])
    kinds = ["memory", "memory", "reason"]
    if arm == "random":
        kinds = random.Random(f"{seed} {pair}").choices(PARTS, k=3)
    starts = list(itertools.accumulate((len(part) + 1 for part in parts), initial=0))
    spans = joined([(starts[n], starts[n] + len(parts[n]), kind) for n, kind in enumerate(kinds)])
    if arm != "none":
        reply = marked(reply, spans)
        for word in all_words():
            reply = reply.replace(word, f"{word} ")
    return TrainingExample(Prompt(f"which has more : t{a} t{b}", system=""), reply, FORMAT)


@dataclass
class Batches:
    """So many updates over rows, in an order that the seed decides."""

    rows: list[MaskedExample]
    updates: int
    seed: int
    identity: dict = field(default_factory=dict)

    def batches(self, at: Progress):
        draw = random.Random(self.seed)
        for _ in range(self.updates if at.group == 0 else 0):
            yield draw.sample(self.rows, BATCH)

    def rate(self, at: Progress) -> float:
        return 3e-3 * min(1.0, (at.steps + 1) / 50) * (1 - at.steps / (self.updates + 1))


def answers(model: Any, tokenizer: Any, examples: list[TrainingExample]) -> list[str]:
    """What a model answers: its own reply, word by word, up to the word behind <ans>."""
    import torch

    rows = encode_examples(examples, tokenizer)
    ids = torch.tensor([row.ids[: row.trained.index(True)] for row in rows])
    start, opened = ids.shape[1], tokenizer.convert_tokens_to_ids("<ans>")
    with torch.inference_mode():
        for _ in range(24):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    found = []
    for row in ids[:, start:].tolist():
        place = row.index(opened) + 1 if opened in row[:-1] else None
        found.append(tokenizer.convert_ids_to_tokens(row[place]) if place else "")
    return found


def run(arm: str, seed: int, updates: int) -> list[bool]:
    """Train one arm; which of the held-out pairs it answers rightly."""
    draw = random.Random(f"world {seed}")
    numbers = [draw.randrange(NUMBERS) for _ in range(THINGS)]
    pairs = [
        pair
        for pair in itertools.permutations(range(THINGS), 2)
        if len({numbers[n] for n in pair}) > 1
    ]
    draw.shuffle(pairs)
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer), seed)
    rows = [example(pair, numbers, arm, seed) for pair in pairs[TEST : TEST + 1500]]
    supplier = Batches(encode_examples(rows, tokenizer), updates, seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, supplier, Path(folder), AdamW())
        for _ in trainer.run():
            pass
    model.eval()
    held = [example(pair, numbers, arm, seed) for pair in pairs[:TEST]]
    right = [f"t{a if numbers[a] > numbers[b] else b}" for a, b in pairs[:TEST]]
    return [a == b for a, b in zip(answers(model, tokenizer, held), right, strict=True)]


def interval(changes: list[list[int]]) -> tuple[float, float, float]:
    """Mean and 95 % bounds of paired differences: seeds are drawn again, and questions within."""
    import numpy as np

    draw, table = np.random.default_rng(1234), np.array(changes)  # (S, Q)
    means = []
    for _ in range(2000):
        seeds = draw.integers(0, len(table), len(table))
        means.append(np.mean([draw.choice(table[s], table.shape[1]).mean() for s in seeds]))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(table.mean()), float(low), float(high)


def main() -> None:
    parser = measure.make_parser(__doc__)
    parser.add_argument("--updates", type=int, default=600, help="of each arm (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (%(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="of them (%(default)s)")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    found = {arm: [] for arm in ARMS}
    for seed, arm in itertools.product(range(args.first_seed, args.first_seed + args.seeds), ARMS):
        found[arm].append(run(arm, seed, args.updates))
        print(f"seed {seed}, {arm}: {100 * sum(found[arm][-1]) / TEST:.1f} %", flush=True)
    measures = [
        Measure(
            f"a{n}", f"accuracy on unseen pairs, {arm}", sum(map(sum, rows)) / TEST / args.seeds
        )
        for n, (arm, rows) in enumerate(found.items())
    ]
    for n, other in enumerate(("none", "random")):
        changes = [
            [int(a) - int(b) for a, b in zip(mine, theirs, strict=True)]
            for mine, theirs in zip(found["markers"], found[other], strict=True)
        ]
        mean, low, high = interval(changes)
        measures += [
            Measure(f"d{n}", f"markers minus {other}", mean),
            Measure(f"l{n}", f"markers minus {other}, lower bound", low),
            Measure(f"h{n}", f"markers minus {other}, upper bound", high),
        ]
    by_seed = {arm: [sum(rows) / TEST for rows in runs] for arm, runs in found.items()}
    report = {"updates": args.updates, "batch": BATCH, "by_seed": by_seed}
    measure.report(args, measures, report)


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
