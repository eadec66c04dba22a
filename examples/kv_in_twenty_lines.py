"""KV of earlier texts in front of a prompt: any model, any texts, without the toolkit's loop.

python -m examples.kv_in_twenty_lines      # in the toolkit's folder
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lag.kv.cache import placed_alone
from lag.kv.encode import encode
from lag.kv.support import check_movable
from lag.kv_store.fingerprint import fingerprint
from lag.kv_store.store import KVStore
from lag.paths import Strategy
from lag.prompts import SYSTEM, qa_prompt
from lag.records import Document


def reply(
    name: str,
    folder: Path,
    logs: Sequence[tuple[str, str]],
    messages: list[dict[str, str]],
    begun: str = "",
) -> str:
    """The likeliest reply of a model to a chat that stands behind logs.

    folder: where KV is kept. logs: of each the hidden text that it is encoded behind, and the text
        that stays, in the order in which they stand. begun: what the reply begins with.
    """
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto").eval()

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    rotator = check_movable(model)  # raises ValueError: why the keys of this model cannot be moved
    made_by, kind = fingerprint(model, tokenizer), Strategy("log_kv")
    store = KVStore(folder, made_by, kind, partial(encode, model, rotator))
    fetched = store.fetch([(ids(hidden), ids(kept)) for hidden, kept in logs])  # read, or encoded
    spans = [found.span for found in fetched]  # free of positions: for any order and any prompt
    cache = placed_alone(spans, rotator) if spans else None
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    seen = [id for span in spans for id in span.ids] + [*ids(chat + begun)]
    options = {"past_key_values": cache, "do_sample": False, "max_new_tokens": 256}
    written = model.generate(torch.tensor([seen]), **options)
    return tokenizer.decode(written[0, len(seen) :], skip_special_tokens=True)


def main() -> None:
    """Ask the embedded model, without and with a log that has met the same people."""
    first, left = "Alrik's founder's teacher: Alrik's founder is Lorlim.", "Lorlim's teacher"
    step = f"{first} {left}: {left} is unknown. <keywords>{left}</keywords>\n\n"
    log = (step, f"{left}: {left} is Crea. <ans>Crea</ans>\n\n")
    asked = qa_prompt(
        "Who is Alrik's founder's teacher?",
        [Document("d", "Alrik", "Alrik's founder is Lorlim.")],
    )
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked.user}]
    with tempfile.TemporaryDirectory() as folder:
        for logs in ((), (log,)):
            said = reply("data/miniwiki/model", Path(folder), logs, chat, asked.prefill)
            print(f"{len(logs)} logs:{said}")


if __name__ == "__main__":
    main()
