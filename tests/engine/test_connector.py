"""The connector between a store and an engine: what lies in the blocks is what was encoded, or the
request fails alone, with a reason that its client can read."""

import json
import re
import shutil
from pathlib import Path

import fake_engine
import pytest
import tiny
import torch

from lag.engine.transfer_config import transfer_config
from lag.kv_store import serving
from lag.kv_store.budgets import KVBudget
from lag.model.llm import LLM
from lag.modes import MODES

MODE = MODES["log_kv"]
PAIRS = [((20, 21, 22), (30, 31, 32, 33, 34)), ((), (40,)), ((50,), (60, 61, 62, 63, 64, 65, 66))]
TAIL = [9, 8, 7]


@pytest.fixture(scope="module")
def module():
    return fake_engine.load_connector()


@pytest.fixture(scope="module")
def llms(tiny_folder):
    return {
        kind: LLM.load(str(tiny_folder), kv_dtype=kind, keeping=KVBudget(memory=0))
        for kind in ("auto", "bf16", "int8", "int4")
    }


@pytest.fixture(scope="module")
def filled(tmp_path_factory, tiny_folder, llms):
    """A store with these pairs in every kind of numbers, and what an engine needs."""
    folder = tmp_path_factory.mktemp("kv")
    for llm in llms.values():
        store = llm.open_store(folder, MODE)
        store.fetch(PAIRS)
    serving.save(store, llm.kv.rotator, llm.kv.max_log_tokens, Path(tiny_folder))
    return folder


@pytest.fixture
def kv(filled, tmp_path):
    return Path(shutil.copytree(filled, tmp_path / "kv"))


@pytest.fixture
def engine(module, kv, llms, tiny_folder):
    settings = transfer_config(kv, llms["auto"].fingerprint(kv)["digest"])
    return fake_engine.Engine(module, fake_engine.config_of(settings, str(tiny_folder)))


def store_of(llms, kv, kind="auto"):
    return llms[kind].open_store(kv, MODE)


def asked(store, pairs=PAIRS, **more):
    spans = [{"key": store.key(*pair), "length": len(pair[1])} for pair in pairs]
    return {"lag": {"strategy": store.identity["strategy"], "spans": spans, "ticket": "t", **more}}


def prompt(pairs=PAIRS):
    return [*(id for _, keep in pairs for id in keep), *TAIL]


def expected(llms, kv, kind="auto", pairs=PAIRS):
    """Keys at their positions and values, (T, H, D) per layer, as this process places them."""
    spans = [fetched.span for fetched in store_of(llms, kv, kind).fetch(pairs)]
    rotator = llms[kind].kv.rotator
    layers = [torch.cat([span.keys[n] for span in spans], 1)[None] for n in range(3)]
    positions = torch.arange(layers[0].shape[-2])[None]
    keys = [one[0].transpose(0, 1) for one in rotator.rotate_to(layers, positions)]
    values = [torch.cat([span.values[n] for span in spans], 1).transpose(0, 1) for n in range(3)]
    return keys, values


def why(engine, ticket="t"):
    return engine.ask([1], {"lag": {"why": ticket}}).told["lag"]["reason"]


@pytest.mark.parametrize("kind", ["auto", "bf16", "int8", "int4"])
def test_the_blocks_hold_the_placed_spans_of_every_kind_of_numbers(engine, llms, kv, kind):
    found = engine.ask(prompt(), asked(store_of(llms, kv, kind)))
    assert found.told == {"lag": {"kv_tokens": 13, "loaded": 13, "cached": 0}}
    for have, want in zip((found.keys, found.values), expected(llms, kv, kind)):
        for one, other in zip(have, want):
            assert torch.equal(one[:13], other) and one[13:].isnan().all()


@pytest.mark.parametrize("count", range(1, 14))
def test_spans_that_end_anywhere_in_a_block(engine, llms, kv, count):
    keep = tuple(range(100, 100 + count))
    pair = ((5,), keep)
    store = store_of(llms, kv)
    store.fetch([pair])
    found = engine.ask(prompt([pair]), asked(store, [pair]))
    keys, values = expected(llms, kv, pairs=[pair])
    assert torch.equal(found.keys[2][:count], keys[2]) and torch.equal(
        found.values[2][:count], values[2]
    )


def test_asked_again_only_what_the_engine_lacks_is_loaded(engine, llms, kv):
    """Whole blocks are the engine's already; the rest starts in the middle of a span."""
    params = asked(store_of(llms, kv))
    first, second = engine.ask(prompt(), params), engine.ask([*prompt()[:13], 5, 6], params)
    assert second.told["lag"] == {"kv_tokens": 13, "loaded": 1, "cached": 12}
    for one, other in zip(first.keys + first.values, second.keys + second.values):
        assert torch.equal(one[:13], other[:13])


def test_two_hidden_contexts_behind_the_same_words_share_nothing(engine, llms, kv):
    """Without a salt of ours every later asker of these tokens got the first one's blocks."""
    store, keep = store_of(llms, kv), tuple(range(70, 82))
    twins = [((21,), keep), ((22, 23), keep)]
    store.fetch(twins)
    for _ in range(2):
        for pair in twins:
            found = engine.ask(prompt([pair]), asked(store, [pair]))
            keys, _ = expected(llms, kv, pairs=[pair])
            assert torch.equal(found.keys[2][:12], keys[2])
        plain = engine.ask(prompt(twins[:1]))
        assert plain.told is None and plain.keys[2].isnan().all()


def test_no_client_can_name_a_salt_of_ours(engine, llms, kv):
    store = store_of(llms, kv)
    request = fake_engine.Request("x", prompt(), asked(store))
    engine.scheduler.on_new_request(request)
    other = fake_engine.Request("y", prompt(), asked(store), cache_salt="own")
    engine.scheduler.on_new_request(other)
    assert request.cache_salt != other.cache_salt  # what a client asks for is kept
    secret = engine.scheduler.planner.secret
    assert len(secret) == 32 and secret not in request.cache_salt


def damaged(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path):
    other = next(p for p in path.parent.iterdir() if p.name != path.name)
    shutil.copy(other, path)


def of_another_model(path):
    path.write_bytes(path.read_bytes().replace(b"llama", b"mamba"))


BROKEN = {
    Path.unlink: "is not in the store; run store_log_kv.py",
    damaged: "is damaged: the checksum of keep does not match",
    truncated: "is damaged: it holds",
    foreign: "is another log's file under this name",
    of_another_model: "is damaged: ",
    lambda path: (path.unlink(), path.mkdir()): "damaged|cannot be read",
}


@pytest.mark.parametrize("breaks, reason", BROKEN.items(), ids=range(len(BROKEN)))
def test_a_broken_file_ends_its_request_with_a_reason_and_no_other(
    engine, llms, kv, breaks, reason
):
    store = store_of(llms, kv)
    breaks(store.path(*PAIRS[2]))
    assert engine.ask(prompt(), asked(store)).failed
    assert re.search(f"span 2 .*({reason})", why(engine))
    assert str(kv) not in why(engine)
    assert not engine.ask(prompt(PAIRS[:2]), asked(store, PAIRS[:2])).failed
    store.path(*PAIRS[2]).rmdir() if store.path(*PAIRS[2]).is_dir() else None
    store_of(llms, kv).fetch(PAIRS)
    again = engine.ask(prompt(), asked(store))
    assert torch.equal(again.keys[2][:13], expected(llms, kv)[0][2])


KEY = "a" * 64
NONSENSE = {
    "no object 'lag'": {"other": 1},
    "unknown parameters path": {"lag": {"path": "/etc/passwd"}},
    "expected a list": {"lag": {"spans": "all"}},
    "span 0: expected": {"lag": {"strategy": "log_kv", "spans": [KEY]}},
    "span 0: expected ": {
        "lag": {"strategy": "log_kv", "spans": [{"key": "../" * 20, "length": 1}]}
    },
    "not {'key': .*'length': True": {
        "lag": {"strategy": "log_kv", "spans": [{"key": KEY, "length": True}]}
    },
    "not {'key'": {"lag": {"strategy": "log_kv", "spans": [{"key": KEY, "length": -4}]}},
    "at least one token of the prompt": {
        "lag": {"strategy": "log_kv", "spans": [{"key": KEY, "length": 16}]}
    },
    "strategy: expected a name": {"lag": {"strategy": 4, "spans": [{"key": KEY, "length": 1}]}},
    "names no KV folder": {"lag": {"strategy": "../x", "spans": [{"key": KEY, "length": 1}]}},
    "KV behind a sink": {"lag": {"strategy": "log_kv.sink4", "spans": [{"key": KEY, "length": 1}]}},
    "KV of another model": {"lag": {"fingerprint": "f00", "spans": []}},
    "is not in the store": {"lag": {"strategy": "log_kv", "spans": [{"key": KEY, "length": 1}]}},
    "about: expected true": {"lag": {"about": "yes"}},
}


@pytest.mark.parametrize("reason", NONSENSE)
def test_nonsense_ends_its_request_only(engine, llms, kv, reason):
    params = NONSENSE[reason]
    params.get("lag", {}).setdefault("ticket", "n")
    assert engine.ask(prompt(), params).failed
    if "lag" in params:
        assert re.search(reason, why(engine, "n"))
    assert not engine.ask(prompt(), asked(store_of(llms, kv))).failed


@pytest.mark.parametrize(
    "params", ["text", 7, [], [{"lag": 1}], {"lag": None}, {"lag": {"spans": [None]}}]
)
def test_nothing_that_a_client_sends_raises_beside_the_scheduler(engine, params):
    assert engine.ask(prompt(), params).failed


def test_other_tokens_than_the_spans_were_made_of_fail(engine, llms, kv):
    store, ids = store_of(llms, kv), prompt()
    ids[3] += 1
    assert engine.ask(ids, asked(store)).failed
    assert "span 0" in why(engine) and "other tokens than the prompt's" in why(engine)
    short = asked(store)
    short["lag"]["spans"][2]["length"] = 6
    assert engine.ask(prompt(), short).failed and "has 7 tokens, not 6" in why(engine)


@pytest.mark.parametrize(
    "more, reason",
    [
        ({"skip_reading_prefix_cache": True}, "prompt log-probabilities"),
        ({"lora_request": "adapter"}, "LoRA"),
        ({"mm_features": ["image"]}, "images"),
        ({"resumable": True}, "streams its input"),
    ],
)
def test_what_would_silently_turn_spans_into_text_is_refused(engine, llms, kv, more, reason):
    """vLLM loads nothing for a request that skips the prefix cache: logs were computed as text,
    and lay under the log's salt for all who came later."""
    store = store_of(llms, kv)
    assert engine.ask(prompt(), asked(store), **more).failed
    assert reason in why(engine)
    found = engine.ask(prompt(), asked(store))
    assert torch.equal(found.keys[2][:13], expected(llms, kv)[0][2])


def test_a_plain_request_is_left_alone(engine):
    request = fake_engine.Request("p", prompt(), None, skip_reading_prefix_cache=True)
    engine.scheduler.on_new_request(request)
    assert request.cache_salt is None and request.skip_reading_prefix_cache
    assert engine.scheduler.get_num_new_matched_tokens(request, 0) == (0, False)


def test_a_load_beyond_the_budget_is_refused_and_others_wait_for_room(
    module, kv, llms, tiny_folder
):
    digest = llms["auto"].fingerprint(kv)["digest"]
    size = 13 * 2 * 4 * 3 * 2 * 8  # bytes of the three spans
    for waiting, failed in ((size - 1, True), (size, False)):
        settings = transfer_config(kv, digest, 0, waiting)
        engine = fake_engine.Engine(module, fake_engine.config_of(settings, str(tiny_folder)))
        for _ in range(3):  # given back each time
            assert engine.ask(prompt(), asked(store_of(llms, kv))).failed is failed
            engine.cached.clear()
        assert engine.worker.loader.in_memory == 0
        assert not failed or "more than the" in why(engine)


def test_spans_are_held_in_memory_and_only_the_budget_bounds_that(engine, llms, kv):
    store = store_of(llms, kv)
    engine.ask(prompt(), asked(store))
    for pair in PAIRS:
        store.path(*pair).unlink()
    engine.cached.clear()
    assert not engine.ask(prompt(), asked(store)).failed


def test_a_request_that_ends_before_its_load_leaves_no_order_behind(engine, llms, kv):
    request = fake_engine.Request("gone", prompt(), asked(store_of(llms, kv)))
    engine.scheduler.on_new_request(request)
    engine.scheduler.get_num_new_matched_tokens(request, 0)
    engine.scheduler.planner.plan(request, [0, 1, 2, 3], 13)
    engine.scheduler.request_finished(request, [])
    assert engine.scheduler.planner.taken() == ((), ()) and not engine.scheduler.planner.requests


def test_about_says_whose_spans_these_are_and_not_where(engine, llms, kv):
    about = engine.ask([1], {"lag": {"about": True}}).told["lag"]["about"]
    assert about["fingerprint"] == llms["auto"].fingerprint(kv)
    assert about["max_log_tokens"] == 16384 and about["bytes_per_token"] == 2 * 3 * 2 * 8 * 4
    assert str(kv) not in json.dumps(about)


UNTESTED = {
    "kv_role kv_both": {"kv_transfer_config__kv_role": "kv_both"},
    "kv_load_failure_policy recompute": {"kv_transfer_config__kv_load_failure_policy": "recompute"},
    "several GPUs": {"parallel_config__tensor_parallel_size": 2},
    "several GPUs for": {"parallel_config__pipeline_parallel_size": 2},
    "latent attention": {"model_config__use_mla": True},
    "sliding window": {"model_config__hf_text_config__sliding_window": 128},
    "layers with a sliding": {"model_config__hf_text_config__layer_types": ["linear_attention"]},
    "LoRA": {"lora_config": "some"},
    "speculative": {"speculative_config": "some"},
    "quantized weights": {"model_config__quantization": "gptq"},
    "a KV cache in fp8": {"cache_config__cache_dtype": "fp8"},
    "--hf-overrides": {"model_config__hf_overrides": {"rope_scaling": {}}},
    "served in bfloat16, the KV was made in float32; .* --dtype float32": {
        "model_config__dtype": "torch.bfloat16"
    },
}


@pytest.mark.parametrize("reason", UNTESTED)
def test_an_engine_that_is_untested_is_refused_at_its_start(module, kv, llms, tiny_folder, reason):
    settings = transfer_config(kv, llms["auto"].fingerprint(kv)["digest"])
    config = fake_engine.config_of(settings, str(tiny_folder), **UNTESTED[reason])
    with pytest.raises(ValueError, match=reason) as caught:
        fake_engine.Engine(module, config)
    assert "\n" not in str(caught.value)


def test_another_version_or_several_groups_are_refused(kv, llms, tiny_folder, module):
    settings = transfer_config(kv, llms["auto"].fingerprint(kv)["digest"])
    config = fake_engine.config_of(settings, str(tiny_folder))
    newer = fake_engine.load_connector("0.33.1")
    with pytest.raises(ValueError, match=r"tested with vLLM 0[.]32[.]x, this is 0[.]33[.]1"):
        newer.LagConnector(config, fake_engine.Role.WORKER, None)
    groups = fake_engine.SimpleNamespace(kv_cache_groups=[1, 2])
    with pytest.raises(ValueError, match="2 KV cache groups"):
        module.LagConnector(config, fake_engine.Role.WORKER, groups)


def test_a_model_whose_weights_config_or_tokenizer_differ_is_refused(
    module, kv, llms, tmp_path, tiny_folder
):
    settings = transfer_config(kv, llms["auto"].fingerprint(kv)["digest"])
    other = tiny.save_tiny(tmp_path / "other")
    fake_engine.Engine(module, fake_engine.config_of(settings, str(other)))  # the same content
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        changed = Path(shutil.copytree(tiny_folder, tmp_path / name))
        content = bytearray((changed / name).read_bytes())
        content[-20] ^= 1
        (changed / name).write_bytes(content)
        with pytest.raises(ValueError, match="is not the model that made the KV"):
            fake_engine.Engine(module, fake_engine.config_of(settings, str(changed)))


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"root": "/nowhere"}, "not found; run: python serve.py --vllm-config"),
        ({"fingerprint": ""}, "root or fingerprint is missing"),
        ({"fingerprint": "../../x"}, "not found"),
        ({"path": "x"}, "unknown: path"),
        ({"memory": "much"}, "memory: expected a number of bytes"),
    ],
)
def test_settings_that_name_nothing_are_one_line(module, kv, llms, tiny_folder, change, reason):
    settings = transfer_config(kv, llms["auto"].fingerprint(kv)["digest"])
    settings["kv_connector_extra_config"] |= change
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        fake_engine.Engine(module, fake_engine.config_of(settings, str(tiny_folder)))


def test_a_damaged_serving_file_is_refused(module, kv, llms, tiny_folder):
    digest = llms["auto"].fingerprint(kv)["digest"]
    path = kv / digest / serving.FILE
    path.write_text(path.read_text().replace("false", "true"))
    with pytest.raises(ValueError, match=r"serving.json is damaged .*checksum"):
        serving.load(kv / digest)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 4096,
        },
    ],
    ids=["default", "yarn"],
)
def test_saved_rotations_are_the_live_ones_to_the_bit(tmp_path, scaling):
    folder = tiny.save_tiny(tmp_path / "model", rope_parameters=scaling)
    llm = LLM.load(str(folder))
    store = llm.open_store(tmp_path / "kv", MODE)
    serving.save(store, llm.kv.rotator, llm.kv.max_log_tokens, folder)
    read = serving.load(store.root)
    keys = [torch.randn(1, 2, 9, 8) for _ in range(3)]
    positions = torch.arange(1000, 1009)[None]
    both = (one.rotate_to(keys, positions) for one in (llm.kv.rotator, read.rotator))
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))
    assert read.rotator.max_length == llm.kv.rotator.max_length
