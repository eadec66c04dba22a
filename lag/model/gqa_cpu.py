"""What a CPU computes faster than the library has it: shared keys, and products of few tokens.

Where heads share their keys these are read once for all of them, and never copied. The library
computes such heads one by one when a token is generated alone, or copies the keys for each of them
behind a mask. On a GPU its kernels know better, and are left alone.

Shapes: B batch, Q queries, T tokens, H heads, G heads that share keys, D head dim.
"""

import copy
import inspect
import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor, is_grad_enabled, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

logger = logging.getLogger(__name__)
NAME = "lag_shared_keys"  # in the library's table, beside its own
FEW = 8  # tokens, at most, that are treated otherwise than a prompt
BLOCK = 192  # queries of a prompt that are computed together: fewer take a slower way in torch
UNKNOWN = ("position_bias", "softcap", "cache")  # arguments of the library's that are not for us


def share_keys(model: nn.Module) -> None:
    """Compute heads that share their keys together in this model; no other model is changed.

    A layer's attention finds its function by the name in its configuration: it gets a copy with
    another name. Masks are made by the model's own configuration, which stays as it is.
    """
    AttentionInterface.register(NAME, attend)
    renamed: dict[int, Any] = {}
    for module in filter(_goes_by_name, model.modules()):
        if id(module.config) not in renamed:
            renamed[id(module.config)] = own = copy.deepcopy(module.config)
            own._attn_implementation = NAME
        module.config = renamed[id(module.config)]


def _goes_by_name(module: nn.Module) -> bool:
    """Whether heads share keys, and the name says which function computes them, and nothing else."""
    config = getattr(module, "config", None)
    if getattr(module, "num_key_value_groups", 1) == 1:
        return False
    return getattr(config, "_attn_implementation", "") == "sdpa" and _never_asks(type(module))


@cache
def _never_asks(kind: type[nn.Module]) -> bool:
    """Whether its code compares no name with "sdpa"; to find that in a file takes milliseconds."""
    try:
        return '"sdpa"' not in inspect.getsource(kind)
    except (OSError, TypeError):  # code that was typed in
        return False


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """As `sdpa_attention_forward`: queries (B, H, Q, D), keys (B, H/G, T, D) to (B, Q, H, D)."""
    if not _ours(query, attention_mask, more):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **more
        )
    settings = dict(attn_mask=attention_mask, dropout_p=dropout, scale=scaling)
    count = query.shape[2]
    if count > BLOCK and 2 * count > key.shape[2]:
        return _in_blocks(query, key, value, **settings), None
    if count > FEW:  # too few for blocks, or behind so many keys that blocks leave out little
        found = scaled_dot_product_attention(query, key, value, enable_gqa=True, **settings)
        return found.transpose(1, 2).contiguous(), None
    # a few queries of each of G heads are G times as many of one head
    heads = query.shape[1] // key.shape[1]
    folded = query.reshape(len(query), key.shape[1], heads * count, query.shape[-1])
    if attention_mask is not None:
        settings["attn_mask"] = attention_mask.repeat(1, 1, heads, 1)
    found = scaled_dot_product_attention(folded, key, value, **settings)
    return found.reshape(query.shape).transpose(1, 2).contiguous(), None


def _in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor,
    **settings: Any,
) -> Tensor:
    """Attention (B, Q, H, D), for some queries at a time: keys that none of them sees are left out.

    The library computes these as well and then masks them: of a prompt half of all, of one whose
    beginning is in the cache already a share that does not pay for the blocks.
    """
    parts = []
    for begin in range(0, query.shape[2], BLOCK):
        rows = slice(begin, begin + BLOCK)
        own = attn_mask[:, :, rows]
        seen = own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min
        places = seen.any(2).any(0)[0].nonzero()
        keys = slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(None)
        parts.append(
            scaled_dot_product_attention(
                query[:, :, rows],
                key[:, :, keys],
                value[:, :, keys],
                attn_mask=own[..., keys],
                enable_gqa=True,
                **settings,
            ).transpose(1, 2)
        )
    return torch.cat(parts, 1)


def _ours(query: Tensor, mask: Tensor | None, more: dict[str, Any]) -> bool:
    if query.device.type != "cpu" or any(more.get(name) is not None for name in UNKNOWN):
        return False
    alike = mask is None or mask.shape[1] == 1  # for all heads
    return alike and (query.shape[2] == 1 or mask is not None)


# --- products of few tokens -----------------------------------------------------------------------
LEAST = 1 << 18  # numbers of a matrix: a smaller one gains nothing
MOST = 32  # tokens; more are multiplied as fast where the matrix lies
MOST_BYTES = 4 << 30  # of all copies


class FewTokens(nn.Linear):
    """A large matrix by few tokens: oneDNN reads a copy of it that lies as it likes it.

    Measured on an AMD EPYC: a vocabulary by 8 tokens takes half as long as MKL takes, a layer's
    matrices four fifths; 4 tokens take 1.2 to 1.4 times as long as one, and not twice.
    """

    packed: tuple[tuple[int, int], Tensor] | None = None  # of which weight, and the copy

    def forward(self, given: Tensor) -> Tensor:
        count = given.numel() // given.shape[-1]
        trained = given.requires_grad or (self.weight.requires_grad and is_grad_enabled())
        same = given.dtype == self.weight.dtype == torch.float32
        if not 0 < count <= MOST or trained or not same:
            return super().forward(given)
        tokens = given.reshape(count, -1)
        found = torch.ops.mkldnn._linear_pointwise(
            tokens, self._packed(), self.bias, "none", [], ""
        )
        return found.view(*given.shape[:-1], -1)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"packed": None}  # what is copied makes a copy of its own

    def _packed(self) -> Tensor:
        """The copy of the weight as it is now: made at the first use, and again when it changed."""
        now = self.weight.data_ptr(), self.weight._version
        if self.packed is None or self.packed[0] != now:
            copy = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), FEW)
            self.packed = now, copy
        return self.packed[1]


def speed_up_products(model: nn.Module, most_bytes: int = MOST_BYTES) -> None:
    """Let large matrices of a float32 model on a CPU be multiplied as few tokens like it.

    This takes their memory twice; a model for which that is much is left as it is.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        logger.info("this torch cannot pack weights: products of few tokens are the library's")
        return
    found = [module for module in model.modules() if _gains(module)]
    num_bytes = sum(module.weight.nbytes for module in found)
    if num_bytes > most_bytes:
        logger.info("%.1f GB of weights are not packed for products of few tokens", num_bytes / 1e9)
        return
    for module in found:
        module.__class__ = FewTokens


def _gains(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    if type(module) is not nn.Linear or weight.device.type != "cpu" or weight.is_inference():
        return False
    return weight.dtype == torch.float32 and weight.numel() >= LEAST
