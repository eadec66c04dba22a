"""The tokenizer of the embedded data set's language model.

A phrase that never varies (the rules of a prompt, the verb of a sentence) is one token, and so is
every name. What the tokenizer does not know it spells out in letters.
"""

import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lag import prompts
from lag.logs import playbook
from lag.miniwiki.gold_agent import UNKNOWN
from lag.miniwiki.world import KINDS, NAMES, RELATIONS, SECOND_NAMES, TRAINING_NAMES

MAX_LENGTH = 4096
SPECIALS = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "[UNK]"]

TEMPLATE = (
    "<|bos|>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

TAGS = [
    f"<{slash}{tag}>" for tag in ("ans", "keywords", "cheatsheet", "add") for slash in ("", "/")
]
LABELS = ["Documents:", "Question:", "New question:", "Query:", "Reply:", "Facts:", "The entries:"]
PLAYBOOK = [
    *("<keep></keep>", "No entries yet.", "[p", playbook.EDITOR_RULES),
    *playbook.HEADING.split("[p{last}]"),
]
ASKED = ["Who is", "What is"]
SHEET_LABEL = "The cheatsheet so far:"
MOST_NUMBERED = 40  # documents whose number in a prompt is one token


def phrases() -> list[str]:
    """Text that is one token although it has several words."""
    rules = [prompts.SYSTEM, prompts.QA_RULES, prompts.DIRECT_RULES, prompts.CURATOR_RULES]
    headers = [prompts.LOGS_HEADER, prompts.SHEET_HEADER, prompts.STEPS_HEADER, SHEET_LABEL]
    nouns = [f"'s {noun}" for noun in RELATIONS]
    verbs = [between(w) for relation in RELATIONS.values() for w in relation.wordings]
    kinds = [text for kind in KINDS for text in (f"is a {kind}.", f"({kind})", f"the {kind}")]
    seconds = [*(between(wording) for wording in SECOND_NAMES), "alias"]
    formers = ["and is now", ", no longer"]
    numbers = [f"[{n}]" for n in range(1, MOST_NUMBERED + 1)]
    fixed = [*rules, *headers, *LABELS, *ASKED, *TAGS, *map(str.strip, PLAYBOOK)]
    return [*fixed, *nouns, *verbs, *kinds, *seconds, *formers, *numbers]


def between(wording: str) -> str:
    """What a wording says between its subject and its object."""
    return wording.split("{s}")[1].split("{o}")[0].strip()


def pattern() -> str:
    """Cut a text at phrases first, the longest first, then at words, then at every other sign."""
    known = sorted(phrases(), key=len, reverse=True)
    guarded = [re.escape(p) + (r"(?!\w)" if p[-1].isalnum() else "") for p in known]
    return "|".join([*guarded, r"\n\n", r"\n", r"[\p{L}\p{N}]+", r"[^\s\p{L}\p{N}]"])


def vocabulary() -> dict[str, int]:
    """Special tokens, phrases, names, the few single words, and letters for the rest."""
    words = ["is", "was", UNKNOWN, "Nothing", "\n\n", "\n", *KINDS, *RELATIONS]
    letters = [chr(code) for code in range(33, 127)]
    spelled = [*letters, *(f"##{letter}" for letter in letters)]
    tokens = [*SPECIALS, *phrases(), *words, *NAMES, *TRAINING_NAMES, *spelled]
    return {token: id for id, token in enumerate(dict.fromkeys(tokens))}


def word_pieces() -> Tokenizer:
    """The bare tokenizer, which both models use."""
    longest = max(map(len, phrases()))
    model = models.WordPiece(vocabulary(), unk_token="[UNK]", max_input_chars_per_word=longest)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern()), "removed", invert=True)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(r" (?=[.,:;?!)\n]|'s |</)"), ""),
            decoders.Replace(Regex(r"(?<=[>(\n]) "), ""),
        ]
    )
    return tokenizer


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The language model's tokenizer, with its chat template."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_pieces(),
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|end|>",
        unk_token="[UNK]",
        additional_special_tokens=SPECIALS[3:6],
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
