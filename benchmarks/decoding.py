"""Seconds per generated token behind a long prefix, against a cache that grows by concatenation.

python benchmarks/decoding.py

C12: the library's own cache over ours, at 8,192 tokens. S5: what a token of 16 rows of the embedded model
costs beside its products and its attention, on our route over the library's classes, to which the same
cache and the same choice of tokens belong. S7, S8: rows write while a long prompt enters; how long they
wait for a token at most, and how long all takes, its prompt in pieces over its prompt at once.
"""

import argparse
import random
import time
from typing import Any

import measure
from measure import Measure

from lag import cli

PREFIX, STEPS = 8192, 24  # tokens
ROWS, PROMPT = 16, 300  # of the embedded model; tokens
WRITING, REPLY, LONG = 3, 64, 6000  # rows; tokens of their replies, and of the prompt that enters


def routes(shape: str) -> dict[str, Any]:
    import torch
    from transformers import DynamicCache

    from lag.kv import sequence, support
    from lag.model.decoder import Decoder

    model = measure.build(shape)
    mover, plain = support.check_movable(model), measure.the_librarys(model)
    span = made_up(model, measure.tokens(PREFIX, 1))
    decoder = Decoder(model, mover)
    decoder.prefill([sequence.SequencePlan((), (span,), measure.tokens(4, 2))])
    cache, position = DynamicCache(), [PREFIX]
    for index, pair in enumerate(zip(span.keys, span.values, strict=True)):
        cache.update(pair[0][None].clone(), pair[1][None].clone(), index)

    def ours() -> None:
        for _ in range(STEPS):
            decoder.advance(torch.tensor([7]))

    @torch.no_grad()
    def grown() -> None:
        for _ in range(STEPS):
            plain(torch.tensor([[7]]), past_key_values=cache, position_ids=torch.tensor([position]))
            position[0] += 1

    return {"library's cache": grown, "ours": ours}


def made_up(model: Any, ids: tuple[int, ...]) -> Any:
    """A span of random numbers: decoding takes as long, and encoding it would take minutes."""
    import torch

    from lag.kv.span import KVSpan

    config = model.config
    dim = config.hidden_size // config.num_attention_heads
    shape = (config.num_hidden_layers, config.num_key_value_heads, len(ids), dim)
    keys, values = (torch.randn(shape).to(model.dtype).unbind() for _ in range(2))
    return KVSpan(ids, keys, values)


def bookkeeping(name: str) -> dict[str, Any]:
    """A token of every row: on our route, on the library's, and nothing but products and attention."""
    import torch
    from torch.nn.functional import linear, scaled_dot_product_attention

    from lag.kv.sequence import SequencePlan
    from lag.model.decoder import Decoder
    from lag.model.llm import LLM
    from lag.model.request import Request
    from lag.model.sampling import choose
    from lag.prompts import Prompt

    model = LLM.load(name).model
    ours, library = Decoder(model, slots=ROWS), Decoder(model, slots=ROWS)
    assert ours.llama, "this model has no route of its own"
    library.llama = None
    for decoder in (ours, library):
        decoder.prefill([SequencePlan(tail=measure.tokens(PROMPT, n, 1000)) for n in range(ROWS)])

    def written(decoder: Decoder) -> None:
        rows = [Request(n, Prompt(""), STEPS + 2, None, ids=[7]) for n in range(ROWS)]
        for _ in range(STEPS):
            choose(decoder.extend([row.ids[-1:] for row in rows]), rows, frozenset())
        decoder.take_back([STEPS] * ROWS)

    head = model.get_output_embeddings().weight
    layers = [
        [m.weight for m in layer.modules() if isinstance(m, torch.nn.Linear)]
        for layer in model.model.layers
    ]
    given = {width: torch.randn(ROWS, width) for width in (head.shape[1], layers[0][-1].shape[1])}
    held = [(layer.keys, layer.values) for layer in ours.cache.layers]
    queries = torch.randn(ROWS, held[0][0].shape[1], 1, held[0][0].shape[-1])

    @torch.inference_mode()
    def products() -> None:
        for _ in range(STEPS):
            for weights, (keys, values) in zip(layers, held, strict=True):
                for weight in weights:
                    linear(given.get(weight.shape[1], given[head.shape[1]]), weight)
                scaled_dot_product_attention(queries, keys, values)
            linear(given[head.shape[1]], head)

    return {"library": lambda: written(library), "ours": lambda: written(ours), "bare": products}


def beside(args: argparse.Namespace) -> tuple[Measure, dict[str, Any]]:
    """S5, of the least seconds of each route: what else the machine does only adds to them."""
    seconds = measure.take_turns(bookkeeping(args.model), 2 * args.repeats)
    least = {name: min(times) for name, times in seconds.items()}
    share = (least["ours"] - least["bare"]) / (least["library"] - least["bare"])
    what = f"per token beside products, our route / the library's; embedded model, {ROWS} rows"
    return Measure("S5", what, round(share, 3), most=0.333), measure.in_milliseconds(seconds)


def entering(llm: Any, whole: bool) -> dict[str, float]:
    """CPU seconds of all replies, and of the step that took longest, once a long prompt waits."""
    from lag.prompts import Prompt

    batch = llm.in_flight(WRITING + 1)
    if whole:
        batch.decoder.tokens_per_forward = 2 * LONG
    for ticket in range(WRITING):
        batch.submit(ticket, Prompt(words(llm, PROMPT, ticket)))
    for _ in range(REPLY // 8):
        batch.step()
    batch.submit("long", Prompt(words(llm, LONG, WRITING), max_new_tokens=8))
    steps = []
    while len(batch):
        start = time.process_time()
        batch.step()
        steps.append(time.process_time() - start)
    return {"longest": max(steps), "all": sum(steps)}


def words(llm: Any, count: int, seed: int) -> str:
    """Text of about so many tokens."""
    draw, known = random.Random(seed), [f" {n}" for n in range(1000)]
    per_word = llm.num_tokens("".join(known)) / len(known)
    return "".join(draw.choices(known, k=round(count / per_word)))


def pauses(args: argparse.Namespace) -> tuple[list[Measure], dict[str, Any]]:
    """S7 and S8."""
    from transformers import AutoTokenizer

    from lag.model.llm import LLM

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    llm = LLM(measure.build("135M float32"), tokenizer, max_new_tokens=REPLY, draft="off")
    llm.end_ids = frozenset()
    found: dict[str, list[dict[str, float]]] = {"in pieces": [], "at once": []}
    for _ in range(args.repeats):
        for name, each in found.items():
            each.append(entering(llm, whole=name == "at once"))
    times = {
        f"{part}, {name}": [one[part] for one in each]
        for part in ("longest", "all")
        for name, each in found.items()
    }
    about = (
        f"{WRITING} rows write, a prompt of {LONG} tokens enters in pieces / at once; 135M float32"
    )
    longest, whole = (
        round(measure.ratio(times, f"{part}, in pieces", f"{part}, at once"), 3)
        for part in ("longest", "all")
    )
    return [
        Measure("S7", f"longest pause; {about}", longest, most=0.25),
        Measure("S8", f"seconds of all; {about}", whole, most=1.03),
    ], measure.in_milliseconds(times)


def main() -> None:
    from lag.tasks import TASKS

    parser = measure.make_parser(__doc__, shapes=True)
    parser.add_argument("--model", default=TASKS["miniwiki"].model, help="of S5 (%(default)s)")
    args = parser.parse_args()
    row, times = beside(args)
    measures, timings = [row], {f"embedded model, {ROWS} rows, {STEPS} tokens": times}
    found, times = pauses(args)
    measures += found
    timings[f"135M float32, {WRITING} rows write, a prompt of {LONG} tokens enters"] = times
    for shape in args.shapes:
        seconds = measure.take_turns(routes(shape), args.repeats)
        timings[f"{shape}, {STEPS} tokens"] = measure.in_milliseconds(seconds)
        times = round(measure.ratio(seconds, "library's cache", "ours"), 3)
        what = f"library's cache / ours, per token behind {PREFIX}; {shape}"
        measures.append(Measure("C12", what, times, least=1.2))
    measure.report(args, measures, timings)


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
