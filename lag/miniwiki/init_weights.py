"""The embedded data set's language model before its training: a Llama that is wired to look things up.

A small model that starts at random spends most of its training on finding one circuit: gather the
words just before, find the place where the same words stood, copy what came after. Here some heads
begin as that circuit, in weights that training is free to change; the rest begin at random.

Source: the circuit is the induction head (arXiv 2209.11895); starting attention near a useful
pattern is mimetic initialisation (arXiv 2305.09828).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lag.miniwiki.tokenizer import MAX_LENGTH, vocabulary
from lag.miniwiki.world import NAMES, TRAINING_NAMES

HEAD_WIDTH = 64  # with 32, one head cannot tell a thousand names apart
THETA = 1e7  # so that most pairs of a head turn too slowly to blur a match far away
LOCAL_PAIRS = 11  # the fastest pairs, which tell near from far
SLOW_PAIRS = 14  # from here on, pairs that compare words at any distance
CONSTANT = 0.25  # the first dimension of every vector, for heads that look at places only
DISTANCE = 1.5  # tokens back: the middle of what is gathered
GATHER, COPY, MATCH, NOISE = 0.15, 0.1, 1.7, 0.01  # how strong each part is


def make_model(seed: int, width: int = 128, heads: int = 4, layers: int = 4) -> LlamaForCausalLM:
    """A fresh Llama over the vocabulary, float32, whose vectors of names never change.

    Trained ones drift into pairs that the model confuses (cosines of 0.8 were seen), and a vector
    that is only random can hold nothing about its name.
    """
    torch.manual_seed(seed)
    vocab = vocabulary()
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=HEAD_WIDTH,
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    vectors = model.model.embed_tokens.weight  # (V, E), tied to the output
    torch.nn.init.normal_(vectors, std=width**-0.5)
    with torch.no_grad():
        wire(model)
    learned = torch.ones(len(vocab), 1)
    learned[[vocab[name] for name in (*NAMES, *TRAINING_NAMES)]] = 0
    vectors.register_hook(lambda gradient: gradient * learned)
    return model


def draw_names(model: LlamaForCausalLM, seed: int) -> None:
    """Give the names of training worlds other vectors, of the kind that they began with."""
    vectors, vocab = model.model.embed_tokens.weight, vocabulary()
    ids, width = [vocab[name] for name in TRAINING_NAMES], vectors.shape[1]
    drawn = torch.randn(len(ids), width - 1, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        vectors[ids, 1:] = drawn * width**-0.5


def wire(model: LlamaForCausalLM) -> None:
    """Set some heads of every layer: those of the first gather, the others find and copy."""
    vectors = model.model.embed_tokens.weight
    vectors[:, 0] = CONSTANT
    width = vectors.shape[1]
    aside = orthogonal(width)  # gathered words go here, apart from the word of the place itself
    aside[:, 0] = 0
    first, *others = (layer.self_attn for layer in model.model.layers)
    for rows, read in head_parts(width):
        set_head(first, rows, *nearby(width), read, GATHER * aside @ read.T)
    for attention in others:
        for rows, read in head_parts(width):
            same = alike(aside)
            set_head(attention, rows, same, same, read, COPY * read.T)


def orthogonal(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size))[0]


def head_parts(width: int) -> Iterator[tuple[slice, Tensor]]:
    """The rows of as many heads as it takes to carry a whole vector, and what each reads of it."""
    whole = orthogonal(width)
    for start in range(0, width - HEAD_WIDTH + 1, HEAD_WIDTH):
        rows = slice(start, start + HEAD_WIDTH)
        yield rows, whole[rows]


def set_head(
    attention: nn.Module, rows: slice, query: Tensor, key: Tensor, value: Tensor, out: Tensor
) -> None:
    """Set one head; query, key, value (D, E), out (E, D)."""
    for projection, weight in ((attention.q_proj, query), (attention.k_proj, key)):
        projection.weight[rows] = weight + NOISE * torch.randn_like(weight)
    attention.v_proj.weight[rows] = value
    attention.o_proj.weight[:, rows] = out


def nearby(width: int) -> tuple[Tensor, Tensor]:
    """Query and key (D, E) that meet best `DISTANCE` tokens apart, whatever the words are."""
    half = HEAD_WIDTH // 2
    query, key = torch.zeros(HEAD_WIDTH, width), torch.zeros(HEAD_WIDTH, width)
    angles = (
        THETA ** (-torch.arange(LOCAL_PAIRS) / half) * DISTANCE
    )  # a pair turns so much per token
    query[:LOCAL_PAIRS, 0] = angles.cos()
    query[half : half + LOCAL_PAIRS, 0] = -angles.sin()
    key[:LOCAL_PAIRS, 0] = 1
    return query, key


def alike(aside: Tensor) -> Tensor:
    """Query and key (D, E) in one, which meet best where the same words were gathered."""
    half, width = HEAD_WIDTH // 2, len(aside)
    slow = [*range(SLOW_PAIRS, half), *range(half + SLOW_PAIRS, HEAD_WIDTH)]
    weight = torch.zeros(HEAD_WIDTH, width)
    weight[slow] = MATCH * orthogonal(width)[: len(slow)] @ aside.T
    return weight
