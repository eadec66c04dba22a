"""A few tokens per row through a Llama, without what the library's classes cost per layer.

On a CPU a small model waits for Python. Weights are asked through the model's own modules, so that
adapters and their switches hold, and the sums are the library's, term by term. Everything else (other
families, other devices and dtypes, models that somebody listens to, prompts) goes the library's way.

Shapes: B batch, Q tokens of a row, padded, N tokens, T tokens of the cache, H heads, D head dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from transformers import DynamicCache

from lag.kv.masks import FULL, Masks

FEW = 8  # tokens of a row, at most; more are a prompt
FAMILIES = ("transformers.models.llama.", "transformers.models.qwen2.")
LISTENERS = "_forward_hooks", "_forward_pre_hooks"
Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class LlamaStep:
    """One model as it takes its next tokens; see `of`."""

    model: nn.Module

    @classmethod
    def of(cls, model: nn.Module, masks: Masks | None) -> "LlamaStep | None":
        """None for a model of another kind, or that is not on a CPU in float32."""
        kind = type(model)
        known = kind.__module__.startswith(FAMILIES) and kind.__name__.endswith("ForCausalLM")
        if not known or masks is None or masks.kinds != (FULL,):
            return None
        there = {(tensor.device.type, tensor.dtype) for tensor in model.parameters()}
        plain = there == {("cpu", torch.float32)} and not hasattr(model, "hf_device_map")
        return cls(model) if plain and model.config._attn_implementation == "sdpa" else None

    def takes(self, width: int) -> bool:
        """Whether so many tokens of each row go this way: nobody listens to what is left out."""
        left_out = (self.model, self.model.model, *self.model.model.layers)
        heard = any(vars(one)[name] for one in left_out for name in LISTENERS)
        return width <= FEW and not heard and "forward" not in vars(self.model)

    def logits(
        self,
        ids: Tensor,
        cache: DynamicCache,
        mask: Tensor | None,
        positions: Tensor,
        real: Tensor | None = None,
    ) -> Tensor:
        """Logits (N, V) of the real tokens; what pads shorter rows is not computed.

        ids, positions: (B, Q). mask: (B, 1, Q, T) bool; None if a row's only token sees all.
        real: (N,) which are tokens, counted through all rows; None: all.
        """
        inner = self.model.model
        batch, width = ids.shape
        ids, positions = (part.flatten() for part in (ids, positions))
        if real is not None:
            ids, positions = ids[real], positions[real]
        rows = Rows(batch, width, real)
        states = inner.embed_tokens(ids)  # (N, E)
        rotation = signed(*inner.rotary_emb(states, positions[None]))
        mask = None if mask is None else additive(mask, inner.layers[0].self_attn)
        for layer, kept in zip(inner.layers, cache.layers, strict=True):
            given = normed(layer.input_layernorm, states)
            states = states + attended(layer.self_attn, given, rotation, kept, mask, rows)
            mlp, given = layer.mlp, normed(layer.post_attention_layernorm, states)
            states = states + mlp.down_proj(
                mlp.act_fn(mlp.gate_proj(given)).mul_(mlp.up_proj(given))
            )
        return self.model.lm_head(normed(inner.norm, states))


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """Which row each of N tokens is in: all of Q, or those that are real."""

    batch: int
    width: int
    real: Tensor | None

    def padded(self, parts: Tensor) -> Tensor:
        """What N tokens have (N, .., ..) as rows have it, (B, Q, .., ..); 0 where there is none."""
        if self.real is not None:
            whole = parts.new_zeros(self.batch * self.width, *parts.shape[1:])
            parts = whole.index_copy_(0, self.real, parts)
        return parts.view(self.batch, self.width, *parts.shape[1:])

    def packed(self, parts: Tensor) -> Tensor:
        """The other way round: (B, Q, .., ..) to (N, E)."""
        parts = parts.reshape(self.batch * self.width, -1)
        return parts if self.real is None else parts[self.real]


def normed(norm: nn.Module, states: Tensor) -> Tensor:
    return rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def signed(cos: Tensor, sin: Tensor) -> Rotation:
    """What a token's heads are multiplied by, and what their other halves are, (N, 1, D) each."""
    a, b = sin[0].chunk(2, -1)
    return cos[0, :, None], torch.cat([-a, b], -1)[:, None]


def additive(mask: Tensor, attention: nn.Module) -> Tensor:
    """A mask (B, 1, Q, T) as numbers to add, for all heads that share their keys, (B, 1, n Q, T)."""
    seen = torch.zeros(mask.shape).masked_fill_(~mask, float("-inf"))
    return seen.repeat(1, 1, attention.num_key_value_groups, 1)


def attended(
    attention: nn.Module,
    given: Tensor,
    rotation: Rotation,
    layer: object,
    mask: Tensor | None,
    rows: Rows,
) -> Tensor:
    """What a layer's attention adds to its tokens (N, E), whose keys and values it keeps."""
    own, others = rotation
    dim = attention.head_dim
    both = torch.cat([attention.q_proj(given), attention.k_proj(given)], -1)
    both = both.view(len(given), -1, dim)  # queries and keys are rotated alike
    both = rows.padded((both * own).add_(both.roll(dim // 2, -1).mul_(others)))
    values = rows.padded(attention.v_proj(given).view(len(given), -1, dim)).transpose(1, 2)
    shared = values.shape[1]
    queries, keys = both.split([both.shape[2] - shared, shared], 2)
    keys, values = layer.update(keys.transpose(1, 2), values)
    # a few queries of each of n heads that share keys are n times as many of one head
    queries = queries.transpose(1, 2).reshape(rows.batch, shared, -1, dim)
    found = scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, scale=attention.scaling
    )
    found = found.reshape(rows.batch, -1, rows.width, dim).transpose(1, 2)
    return attention.o_proj(rows.packed(found))
