"""GGUF files load as the weights that their own library reads from them."""

import numpy as np
import pytest
import tiny
import torch
from transformers import LlamaConfig

from lag.model.llm import LLM
from lag.model.loaded import locate

gguf = pytest.importorskip("gguf")

KINDS = {
    "F32": None,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q4_1": gguf.GGMLQuantizationType.Q4_1,
}
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """The name that a tensor of a Llama has in a GGUF file."""
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    if name in fixed or name == "lm_head.weight":
        return fixed.get(name, "output.weight")
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys as GGUF orders them: the pairs of a rotation side by side."""
    halves = weight.reshape(heads, 2, -1, weight.shape[-1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def parted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The same back."""
    return weight.reshape(heads, -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def make_file(path, kind: str, architecture: str = "llama"):
    """Write a random Llama as GGUF; return the model that holds what the file holds."""
    config = LlamaConfig(
        vocab_size=264, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2048,
        bos_token_id=0, eos_token_id=1, pad_token_id=2, rms_norm_eps=1e-6,
    )  # fmt: skip
    model, tokenizer = tiny.tiny_model(config), tiny.byte_tokenizer()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(2048)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(264)
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    vocab.append(("ab", 263))
    special = [name in tiny.SPECIALS for name, _ in vocab]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([name for name, _ in vocab])
    writer.add_token_types([3 if is_special else 1 for is_special in special])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_chat_template(tiny.TEMPLATE)
    state = {}
    for name, parameter in model.state_dict().items():
        weight = parameter.numpy()
        turned = name.endswith(("q_proj.weight", "k_proj.weight"))
        stored = interleaved(weight, 2) if turned else weight
        quantised = KINDS[kind] if stored.ndim > 1 else None
        data = stored if quantised is None else gguf.quants.quantize(stored, quantised)
        writer.add_tensor(gguf_name(name), data, raw_dtype=quantised)
        kept = stored if quantised is None else gguf.quants.dequantize(data, quantised)
        state[name] = torch.from_numpy(np.ascontiguousarray(parted(kept, 2) if turned else kept))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_file_computes_what_its_dequantised_weights_compute(tmp_path, kind):
    """Catches rows of queries and keys left in GGUF's order, and a type read as another."""
    reference = make_file(tmp_path / "model.gguf", kind)
    llm = LLM.load(str(tmp_path / "model.gguf"), device="cpu", max_new_tokens=8)
    ids = torch.tensor([[0, 20, 35, 90, 12, 200]])
    with torch.no_grad():
        torch.testing.assert_close(llm.model(ids).logits, reference(ids).logits)


def test_no_advice_for_packed_weights_is_shown(tmp_path, caplog):
    """They are dequantised here, so that what transformers says of bfloat16 is not true."""
    from transformers.utils import logging as library

    library.enable_propagation()
    try:
        make_file(tmp_path / "model.gguf", "Q4_1")
        LLM.load(str(tmp_path / "model.gguf"), "bfloat16", "cpu", max_new_tokens=8)
    finally:
        library.disable_propagation()
    assert "weights packed" not in caplog.text


def test_the_tokenizer_and_template_of_the_file_are_used(tmp_path):
    make_file(tmp_path / "model.gguf", "F32")
    llm = LLM.load(str(tmp_path / "model.gguf"), device="cpu", max_new_tokens=8)
    assert llm.chat.content_ids("héllo 12") == tuple(tiny.byte_tokenizer()("héllo 12").input_ids)
    assert llm.tokenizer.chat_template == tiny.TEMPLATE


def test_a_folder_with_several_files_is_asked_by_name(tmp_path):
    make_file(tmp_path / "a.gguf", "F32")
    reference = make_file(tmp_path / "b.gguf", "Q8_0")
    llm = LLM.load(str(tmp_path), device="cpu", max_new_tokens=8, gguf="b.gguf")
    torch.testing.assert_close(
        llm.model.model.layers[0].mlp.up_proj.weight,
        reference.model.layers[0].mlp.up_proj.weight,
    )


def test_the_fingerprint_goes_by_the_dequantised_weights(tmp_path):
    """The same weights from a saved folder are the same model but for the tokenizer's own file."""
    make_file(tmp_path / "a.gguf", "Q8_0")
    make_file(tmp_path / "b.gguf", "Q4_1")
    loaded = {
        n: LLM.load(str(tmp_path / n), device="cpu", max_new_tokens=8) for n in ("a.gguf", "b.gguf")
    }
    first, second = (llm.fingerprint() for llm in loaded.values())
    assert first["weights"] != second["weights"]
    llm = loaded["a.gguf"]
    llm.model.save_pretrained(tmp_path / "saved")
    llm.tokenizer.save_pretrained(tmp_path / "saved")
    again = LLM.load(str(tmp_path / "saved"), device="cpu", max_new_tokens=8).fingerprint()
    assert again["weights"] == first["weights"]


def test_kv_of_a_gguf_model_moves(tmp_path):
    make_file(tmp_path / "model.gguf", "Q8_0")
    from lag.kv.support import check_movable

    llm = LLM.load(str(tmp_path / "model.gguf"), device="cpu", max_new_tokens=8)
    assert check_movable(llm.model)


def test_a_changed_file_is_hashed_again(tmp_path):
    """The digest of the weights is remembered by the file's stamp."""
    path = tmp_path / "model.gguf"
    make_file(path, "Q8_0")
    first = LLM.load(str(path), device="cpu", max_new_tokens=8).fingerprint(tmp_path / "kv")
    make_file(path, "Q4_1")
    second = LLM.load(str(path), device="cpu", max_new_tokens=8).fingerprint(tmp_path / "kv")
    assert first["weights"] != second["weights"]


@pytest.mark.parametrize(
    "name, file, said",
    [
        ("missing.gguf", "", "no such file"),
        ("there.gguf", "other.gguf", "names a GGUF file itself"),
        (".", "missing.gguf", "GGUF files there: there.gguf"),
    ],
)
def test_a_file_that_is_not_there_is_one_line(tmp_path, monkeypatch, name, file, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=said):
        locate(name, file)


def test_what_cannot_be_read_is_one_line(tmp_path):
    """A file of another kind, one cut short, and an architecture that transformers lacks."""
    whole = tmp_path / "model.gguf"
    make_file(whole, "F32")
    (tmp_path / "text.gguf").write_text("no model at all")
    (tmp_path / "short.gguf").write_bytes(whole.read_bytes()[:3000])
    make_file(tmp_path / "other.gguf", "F32", architecture="rwkv7")
    for name in ("text.gguf", "short.gguf", "other.gguf"):
        with pytest.raises(ValueError, match=f"{name}") as caught:
            LLM.load(str(tmp_path / name), device="cpu", max_new_tokens=8)
        assert "\n" not in str(caught.value)
