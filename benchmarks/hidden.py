"""What KV carries that the kept words do not say, on the embedded data set's own model.

Every question has two hops. A document states the first fact; the second stands in the hidden text
of one log. It keeps its answer tag alone (`--mode log_kv_last_action`), or its last response, which
begins with the name that the hidden fact has found (`--mode log_kv`); other logs keep names of their
own. The same words enter as KV, as KV behind another log's hidden text, as text, and with their
reasoning as text. Free: what the model replies; it may search on. Forced: which of the three kept
names it finds likeliest in the right reply. Untold: the same question with another last relation,
which nothing tells; who answers it has read what is not there.

python benchmarks/hidden.py --questions 500
python benchmarks/hidden.py --questions 500 --mode log_kv --out benchmarks/results/hidden_response.json
python benchmarks/hidden.py --questions 500 --forced 100 --provider vllm --out benchmarks/results/hidden_vllm.json

With `--provider vllm` a server replies, which reads the same spans (`make vllm-test` builds it).
"""

import argparse
import contextlib
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import measure  # first: it finds the toolkit
from engine_server import EngineServer
from measure import Measure

from lag import cli, prompts
from lag.actions import parse
from lag.engine.transfer_config import transfer_config
from lag.http import Client
from lag.kv_store import serving
from lag.kv_store.filling import Encoder
from lag.miniwiki.drills import log_of
from lag.miniwiki.gold_agent import Knowledge, follow
from lag.miniwiki.world import RELATIONS, Chain, World, generate, keys_of
from lag.model.chat import kv_pairs
from lag.model.decoder import Decoder
from lag.model.llm import LLM
from lag.model.vllm_endpoint import VllmEndpoint
from lag.modes import MODES, Mode, all_responses, last_action, last_response
from lag.prompts import Note, Prompt
from lag.records import Document, Log, Reply
from lag.tasks import TASKS

SEED = 2101  # a world that nothing else is measured on
NUM_LOGS = 3
NUM_DOCS = 2
MODE = MODES["log_kv_last_action"]
KEPT = (MODE.name, "log_kv")  # what logs keep: an answer tag, or a response


@dataclass(frozen=True, slots=True)
class Case:
    """A question, its answer, and the logs and documents of its prompt, in order.

    reply: the right last response. kept: the name that each log keeps.
    foreign: as many logs of other questions, whose hidden text can stand in for that of `logs`.
    untold: a question about the same thing, which neither documents nor logs answer.
    """

    question: str
    untold: str
    answer: str
    reply: str
    mode: Mode
    logs: tuple[Log, ...]
    kept: tuple[str, ...]
    foreign: tuple[Log, ...]
    documents: tuple[Document, ...]


def cases(world: World, count: int, mode: Mode = MODE) -> Iterator[Case]:
    """Questions of two hops: a document states the first fact, one log's hidden text the second."""
    rng = random.Random(f"hidden {world.seed}")
    tag_only = mode.keep is last_action
    pairs = list((shared_ends if tag_only else shared_beginnings)(world))
    articles = {key: a for a in world.articles for key in known(a)}
    for _ in range(count):
        asked, solved = rng.choice(pairs)
        others = [rng.choice(pairs)[1] for _ in range(NUM_LOGS - 1)]
        first, second = keys_of(world, asked)
        silent = [a for a in world.articles if second not in known(a)]
        documents = [articles[first], *rng.sample(silent, NUM_DOCS - 1)]
        chains = [solved, *others]
        rng.shuffle(documents)
        rng.shuffle(chains)
        logs = tuple(log_of(world, chain) for chain in chains)
        kept = tuple(world.facts[keys_of(world, chain)[-1 if tag_only else 0]] for chain in chains)
        texts = tuple(Document(a.id, a.title, a.content) for a in documents)
        foreign = [log_of(world, rng.choice(pairs)[1]) for _ in logs]
        answer = world.facts[second]
        reply, untold = told(world, asked), another(asked, chains)
        yield Case(asked.text, untold, answer, reply, mode, logs, kept, tuple(foreign), texts)


def another(asked: Chain, solved: Sequence[Chain]) -> str:
    """The question with another last relation, which no log has; its article is not there."""
    first, last = asked.nouns
    said = {last, *(noun for chain in solved for noun in chain.nouns)}
    kind = RELATIONS[last].subject
    others = [n for n, r in RELATIONS.items() if r.subject == kind and n != last]
    free = [noun for noun in others if noun not in said] or others
    return Chain(asked.start, (first, random.Random(asked.text).choice(free))).text


def told(world: World, chain: Chain) -> str:
    """The reply that tells a whole chain, second names apart."""
    known = Knowledge({key: world.facts[key] for key in keys_of(world, chain)})
    return " ".join(follow(known, chain.start, chain.nouns).lines)


def known(article: Any) -> set[tuple[str, str]]:
    return {(fact.noun, fact.subject) for fact in article.facts}


def plain_facts(world: World) -> dict[tuple[str, str], str]:
    """What the world's facts find, second names left out."""
    pairs = world.mentions.items()
    return {key: name for key, (name, first) in pairs if name not in world.aliases and not first}


def shared_ends(world: World) -> Iterator[tuple[Chain, Chain]]:
    """Two chains of two hops that differ in the first and share the second."""
    plain = plain_facts(world)
    for (noun, middle), answer in plain.items():
        ends = [k for k, n in plain.items() if n == middle and leads_to(k[0], noun)]
        chains = [Chain(name, (first, noun)) for first, name in ends if name != answer]
        pairs = itertools.permutations(chains, 2)
        yield from (pair for pair in pairs if pair[0].start != pair[1].start)


def shared_beginnings(world: World) -> Iterator[tuple[Chain, Chain]]:
    """Two chains of two hops: what the first one's second finds, the second one's first does."""
    plain = plain_facts(world)
    for (noun, middle), answer in plain.items():
        before = [k for k, n in plain.items() if n == middle and leads_to(k[0], noun)]
        after = [k[0] for k in plain if k[1] == answer and leads_to(noun, k[0])]
        for (first, name), then in itertools.product(before, after):
            if name != answer:
                yield Chain(name, (first, noun)), Chain(middle, (noun, then))


def leads_to(first: str, second: str) -> bool:
    return RELATIONS[first].object == RELATIONS[second].subject


def notes_of(case: Case, kind: str) -> tuple[Note, ...]:
    """The notes of a prompt, of a kind of `KINDS`."""
    if kind == "none":
        return ()
    if kind == "full":
        whole = last_response if case.mode.keep is last_action else all_responses
        return tuple(Note(log.id, whole(log)) for log in case.logs)
    if kind == "text":
        return tuple(Note(log.id, case.mode.keep(log)) for log in case.logs)
    contexts, mode = case.foreign if kind == "wrong" else case.logs, case.mode
    pairs = zip(case.logs, contexts)
    return tuple(Note(log.id, mode.keep(log), mode.after(other), True) for log, other in pairs)


KINDS = {
    "kv": "kept words as KV, encoded behind their reasoning",
    "wrong": "the same words as KV, encoded behind another log's reasoning",
    "text": "the same words as text",
    "full": "the words with their reasoning, as text",
    "none": "no logs",
}


def prompt_of(case: Case, kind: str, untold: bool = False) -> Prompt:
    asked = case.untold if untold else case.question
    return replace(prompts.qa_prompt(asked, case.documents), notes=notes_of(case, kind))


def likeliest(llm: LLM, prompt: Prompt, replies: Sequence[str]) -> int:
    """Which of several replies a model finds likeliest, by the sum of log-probabilities.

    The prompt is computed once; each reply goes on from it and is taken back.
    """
    import torch

    plans, _ = llm.kv.place([prompt], [llm.chat.encode(prompt)])
    decoder, scores = Decoder(llm.model, llm.kv.rotator), []
    before = decoder.prefill(plans)  # (1, V)
    for ids in map(llm.chat.content_ids, replies):
        logits = torch.cat([before, decoder.extend([ids])])[:-1]  # (T, V)
        told = logits.float().log_softmax(-1)[range(len(ids)), list(ids)]
        scores.append(float(told.sum()))
        decoder.take_back([len(ids)])
    return scores.index(max(scores))


def likeliest_served(served: VllmEndpoint, prompt: Prompt, replies: Sequence[str]) -> int:
    """The same on a server: of each token behind what the replies have in common, how likely it is."""
    told = [served.chat.content_ids(reply) for reply in replies]
    common = next(n for n, ids in enumerate(itertools.zip_longest(*told)) if len({*ids}) > 1)
    pieces = served.chat.encode(prompt)
    body = served.body_of(prompt, pieces, kv_pairs(prompt, pieces)) | {
        "max_tokens": 1,
        "logprobs": 0,
    }

    def score(row: int, place: int) -> float:
        wanted = {"prompt": [*body["prompt"], *told[row][:place]]}
        answer = served.completion(body | wanted | {"allowed_token_ids": [told[row][place]]})
        return answer["choices"][0]["logprobs"]["token_logprobs"][0]

    with ThreadPoolExecutor(16) as pool:
        each = [
            [pool.submit(score, row, place) for place in range(common, len(ids))]
            for row, ids in enumerate(told)
        ]
    scores = [sum(one.result() for one in row) for row in each]
    return scores.index(max(scores))


def share_chosen(
    llm: LLM | VllmEndpoint, asked: list[Case], make: Callable[[Case], Prompt]
) -> float:
    """Share of cases whose right reply is likelier than the same with another log's answer."""
    right = total = 0
    choose = likeliest if isinstance(llm, LLM) else likeliest_served
    for case in asked:
        kept = case.kept
        if len({*kept}) == len(kept):
            replies = [case.reply.replace(case.answer, other) for other in kept]
            right += kept[choose(llm, make(case), replies)] == case.answer
            total += 1
    return right / total


def replies_of(llm: LLM | VllmEndpoint, asked: Sequence[Prompt]) -> list[Reply]:
    """All at once."""
    batch, found = llm.in_flight(len(asked)), {}
    for number, prompt in enumerate(asked):
        batch.submit(number, prompt)
    while len(found) < len(asked):
        found |= batch.step()
    return [found[number] for number in range(len(asked))]


def share_right(
    llm: LLM | VllmEndpoint, asked: list[Case], make: Callable[[Case], Prompt]
) -> tuple[float, float]:
    """Shares of right answers, and of wrong ones; the rest searches on."""
    right = wrong = 0
    for start in range(0, len(asked), 32):
        batch = asked[start : start + 32]
        for case, reply in zip(batch, replies_of(llm, [make(case) for case in batch])):
            action = parse(reply.text, "keywords")
            right += action.name == "answer" and action.text == case.answer
            wrong += action.name == "answer" and action.text != case.answer
    return right / len(asked), wrong / len(asked)


@contextlib.contextmanager
def opened(args: argparse.Namespace, folder: Path) -> Iterator[LLM | VllmEndpoint]:
    """Who replies, with its store open: the model here, or a server that reads what it encodes."""
    llm = LLM.load(args.model, max_new_tokens=64)
    mode = MODES[args.mode]
    store = llm.open_store(folder, mode)
    if args.provider == "hf":
        yield llm
        return
    serving.save(store, llm.kv.rotator, llm.kv.max_log_tokens, Path(args.model))
    config = transfer_config(folder, store.fingerprint["digest"])
    with EngineServer(args.model, config, folder / "server.log") as server:
        encoder = Encoder(lambda dtype: llm, "store_log_kv.py", args.model)
        settings = dict(encoder=encoder, max_new_tokens=64, concurrency=32)
        served = VllmEndpoint(server.url, args.model, Client(), llm.tokenizer, **settings)
        served.open_store(folder, mode)
        yield served


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=500, help="how many (%(default)s)")
    parser.add_argument("--forced", type=int, help="of them, for the forced choice; default: all")
    parser.add_argument(
        "--provider", choices=("hf", "vllm"), default="hf", help="who replies (%(default)s)"
    )
    parser.add_argument(
        "--mode", choices=KEPT, default=KEPT[0], help="what logs keep (%(default)s)"
    )
    parser.add_argument("--model", default=TASKS["miniwiki"].model, help="folder (%(default)s)")
    parser.add_argument("--out", type=Path, help="result file; default: benchmarks/results/")
    args = parser.parse_args()
    asked = list(cases(generate(SEED), args.questions, MODES[args.mode]))
    args.repeats, rows, shares = 1, [], {}
    with tempfile.TemporaryDirectory() as folder, opened(args, Path(folder)) as llm:
        for kind, what in KINDS.items():
            make = partial(prompt_of, kind=kind)
            right, wrong = share_right(llm, asked, make)
            read, more = share_right(llm, asked, partial(prompt_of, kind=kind, untold=True))
            forced = share_chosen(llm, asked[: args.forced], make)
            tokens = sum(llm.num_tokens(n.keep) for n in notes_of(asked[0], kind)) / NUM_LOGS
            shares[kind] = {
                "right": right,
                "wrong": wrong,
                "forced": forced,
                "untold": read + more,
                "tokens_per_log": tokens,
            }
            rows.append(Measure("H1", f"right answers: {what}", round(right, 3)))
            rows.append(
                Measure("H3", f"answers to what nothing tells: {what}", round(read + more, 3))
            )
            rows.append(Measure("H2", f"forced choice of three: {what}", round(forced, 3)))
    told = {"questions": args.questions, "forced": args.forced or args.questions, "shares": shares}
    measure.report(args, rows, told | {"provider": args.provider})


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
