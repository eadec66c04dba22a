"""What is left out of a prompt that is too long: the same as one by one, and asked for rarely."""

from dataclasses import replace
from functools import partial

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from sweeps import sweep
from test_react import make_agent
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lag.agent.context import Context, fit
from lag.model.chat import Chat
from lag.prompts import Note
from lag.records import Document, Question, Step
from lag.step_prompt import build

QUESTION = Question("q", "Who is it?")
WORDS = [
    "the",
    "ward",
    "of",
    "a",
    "lord",
    "who",
    "was",
    "toward",
    "the",
    "word",
    "12",
    "123",
    "1234.",
    "9\n\nthe",
    "",
    "a",
]


def pieces_tokenizer() -> PreTrainedTokenizerFast:
    """Tokens of several letters, which merge across the ends of words and paragraphs."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=sorted(alphabet))
    backend.train_from_iterator([" ".join(WORDS * 3), "\n\n".join(WORDS), "[1] [2] [12]"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>", pad_token="<p>")


class Counting:
    """Counts tokens, and how often it was asked to."""

    def __init__(self, tokenizer, layout, room=0):
        self.chat, self.room, self.asked = Chat(tokenizer, layout), room, 0
        self.window = 1 << 30

    def count(self, prompt):
        self.asked += 1
        return len(self.chat.encode(prompt))

    def can_be_encoded(self, note):
        return len(note.after + note.keep) <= self.window

    def num_tokens(self, text):
        return len(self.chat.content_ids(text))


TOKENIZERS = {"bytes": tiny.byte_tokenizer(), "pieces": pieces_tokenizer()}


def one_by_one(context, agent, make):
    """The slow way: make the prompt and count it again for each item that is left out."""
    llm = agent.llm

    def log_tokens():
        return sum(llm.num_tokens(note.keep) for note in context.notes)

    def steps_length():
        without = replace(context, steps=[])
        return llm.count(make(context)) - llm.count(make(without)) if context.steps else 0

    while agent.log_tokens and log_tokens() > agent.log_tokens:
        context = context.without(1)
    while agent.trace_tokens and steps_length() > agent.trace_tokens:
        context = context.without_steps(1)
    while llm.count(make(context)) > llm.room:
        if not len(context):
            raise ValueError("too long")
        context = context.without(1)
    return make(context), context


texts = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
contexts = st.builds(
    lambda docs, notes, steps: Context(
        [Document(f"d{n}", title, text) for n, (title, text) in enumerate(docs)],
        [
            Note(f"l{n}", text + "\n\n", "", n % 2 == 1, rank)
            for n, (rank, text) in enumerate(notes)
        ],
        [Step(query, "search", reply=reply) for query, reply in steps],
    ),
    st.lists(st.tuples(texts, texts), max_size=14),
    st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), texts), max_size=6),
    st.lists(st.tuples(texts, texts), max_size=4),
)


@sweep(150)
@given(
    contexts,
    st.sampled_from(sorted(TOKENIZERS)),
    st.sampled_from(["paper", "system-first", "user"]),
    st.floats(0, 1.1),
    st.sampled_from([0, 0, 5, 40]),
    st.sampled_from([0, 0, 9, 60]),
)
def test_the_same_items_are_left_out_as_one_by_one(
    context, tokenizer, layout, share, log_tokens, trace_tokens
):
    llm = Counting(TOKENIZERS[tokenizer], layout)
    agent = make_agent([], "log_kv" if layout != "user" else "log_text", layout=layout)
    agent.llm, agent.trace_steps = llm, 4
    agent.log_tokens, agent.trace_tokens = log_tokens, trace_tokens
    make = partial(build, QUESTION, (), agent)
    llm.room = int(share * llm.count(make(context)))
    try:
        expected = one_by_one(context, agent, make)
    except ValueError:
        with pytest.raises(ValueError, match=f"room for {llm.room}"):
            fit(context, agent, make)
        return
    prompt, left = found = fit(context, agent, make)
    assert found == expected
    assert llm.count(prompt) <= llm.room
    gone = [id for ids in left.dropped.values() for id in ids]
    assert len(gone) + len(left) == len(context)


@pytest.mark.parametrize("kept", [0, 1, 5, 480, 960, 963])
def test_a_thousand_documents_are_cut_after_few_prompts(kept):
    """It took more than 90 s: a prompt was made and tokenised for each document left out."""
    many = [Document(f"{n}", f"T {n}", "a word " * (5 + n % 60)) for n in range(964)]
    agent = make_agent([])
    agent.llm = llm = Counting(TOKENIZERS["bytes"], "paper", 1 << 30)
    make = partial(build, QUESTION, (), agent)
    llm.room = llm.count(make(Context(many[964 - kept :], [])))
    llm.asked = 0
    _, left = fit(Context(many, []), agent, make)
    assert [document.id for document in left.docs] == [d.id for d in many[964 - kept :]]
    assert llm.asked < 16


def test_what_is_left_out_is_recorded_once_and_in_order():
    context = Context.of(
        [Document("d", "", "")],
        [Note("a", "", similarity=0.2), Note("b", "", similarity=0.1), Note("c", "")],
        [Step(f"{n}", "search") for n in range(5)],
        at_most=3,
    )
    assert context.dropped == {"steps": [1, 2]}
    left = context.without(2).without(2).without(9)
    assert left.dropped == {"steps": [1, 2, 3, 4, 5], "logs": ["c", "b", "a"], "docs": ["d"]}
    assert len(context) == 7 and not len(left)


def test_a_log_that_cannot_be_encoded_pushes_out_no_other():
    """It failed every question that retrieved it; longer than the window, it left out good logs."""
    llm = Counting(tiny.byte_tokenizer(), "paper", room=100_000)
    llm.window = 50
    agent = make_agent([], mode="log_kv")
    agent.llm = llm
    notes = [
        Note("far", "f" * 20, "", True, 0.1),
        Note("endless", "e" * 20, "h" * 40, True, 0.9),
        Note("text", "t" * 90, "", False, 0.5),
    ]
    prompt, context = fit(Context([], notes), agent, partial(build, QUESTION, (), agent))
    assert [note.id for note in prompt.notes] == ["far", "text"]
    assert context.dropped == {"logs": ["endless"]}
