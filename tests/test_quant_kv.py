"""Quantized caches: rows against NumPy, pieces against the whole, bytes against arrays, models through them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from minimoe import UserError, generate
from minimoe.attention import ATTENTIONS, Cache, KVCache
from minimoe.data import ByteTokenizer, Document
from minimoe.quant.kv import CACHES, FP8, CacheFactory, cache_bytes_per_token, kv_cache, through_cache
from minimoe.training import evaluate

B, L, M, H = 2, 5, 2, 130  # three groups of 64 dims, the last of two
RNG = np.random.default_rng(0)
K, V = (RNG.normal(size=(B, L, M, H)).astype(np.float32) * np.float32(3) for _ in range(2))
K[0, 0] = 0  # rows of zeros
K[0, 1, :, 7] = 1000  # one large number in a row
TOKENS = jnp.asarray(RNG.integers(19, size=(2, 9)), jnp.int32)

forward = nnx.jit(lambda model, tokens: model(tokens)[0])


def round_row(row: np.ndarray, name: str) -> np.ndarray:
    """One row of one head, a group at a time."""
    if name == "bf16":
        return row.astype(ml_dtypes.bfloat16).astype(np.float32)
    out = np.zeros_like(row)
    size = 64 if name == "fp8" else len(row)
    for start in range(0, len(row), size):
        group = row[start : start + size]
        largest = np.abs(group).max()
        if largest == 0:
            continue
        if name == "fp8":
            scale = np.float32(2.0 ** np.ceil(np.log2(largest / 448)))
            codes = (group / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        else:
            scale = np.float32(largest / {"int8": 127, "int4": 7}[name])
            codes = np.round(group / scale)
        out[start : start + size] = codes * scale
    return out


def rounded(x: np.ndarray, name: str) -> np.ndarray:
    return np.apply_along_axis(round_row, -1, x, name)


@pytest.fixture(scope="module")
def full():
    """Each kind of cache, filled at once to five of seven places."""
    return {name: make(B, L + 2, M, H).append(jnp.asarray(K), jnp.asarray(V)) for name, make in CACHES.items()}


@pytest.mark.parametrize("name", ["bf16", "fp8", "int8", "int4"])
def test_rows_read_back_as_the_loop_rounds_them(name, full):
    k, v = full[name].read()
    np.testing.assert_allclose(k[:, :L], rounded(K, name), rtol=1e-6)
    np.testing.assert_allclose(v[:, :L], rounded(V, name), rtol=1e-6)
    assert not np.asarray(k[:, L:]).any()
    assert not np.asarray(v[:, L:]).any()
    assert k.dtype == v.dtype == (jnp.bfloat16 if name == "bf16" else jnp.float32)


@pytest.mark.parametrize("name", CACHES)
def test_pieces_and_the_whole_give_the_same_bits(name, full):
    cache = CACHES[name](B, L + 2, M, H)
    assert isinstance(cache, Cache)
    for start, end in ((0, 1), (1, 4), (4, 5)):
        cache = cache.append(jnp.asarray(K[:, start:end]), jnp.asarray(V[:, start:end]))
    assert jax.tree.structure(cache) == jax.tree.structure(full[name])
    for piece, whole in zip(jax.tree.leaves(cache), jax.tree.leaves(full[name]), strict=True):
        assert np.asarray(piece).tobytes() == np.asarray(whole).tobytes()
    assert int(cache.length) == L


@pytest.mark.parametrize("kept", [0, 2, 64, 130])
def test_leading_dims_of_keys_stay_in_bfloat16(kept, full):
    """The other dims are quantized in groups that start after them; values are as ever."""
    cache = CacheFactory("some", FP8, rope_dims=kept)(B, L, M, H).append(jnp.asarray(K), jnp.asarray(V))
    k, v = cache.read()
    np.testing.assert_array_equal(k[..., :kept], rounded(K[..., :kept], "bf16"))
    np.testing.assert_allclose(k[..., kept:], rounded(K[..., kept:], "fp8"), rtol=1e-6)
    np.testing.assert_array_equal(v, full["fp8"].read()[1][:, :L])
    if kept == H:
        np.testing.assert_array_equal(k, full["fp8-rope"].read()[0][:, :L])


@pytest.mark.parametrize("name", CACHES)
def test_bytes_per_token_are_those_of_the_arrays(name, full, tiny_config):
    def held(cache) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) - cache.length.nbytes

    assert CACHES[name].bytes_per_token(M, H) * B * (L + 2) == held(full[name])
    caches = [
        CACHES[name](3, 4, tiny_config.attention.num_kv_heads, tiny_config.attention.head_dim)
    ] * tiny_config.num_layers
    assert cache_bytes_per_token(tiny_config, name) * 3 * 4 == sum(map(held, caches))


OTHER_KINDS = sorted(ATTENTIONS.keys() - {"grouped_query"})


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_attention_that_keeps_no_heads_is_named(kind, tiny_config):
    """Latents, windows and entries are no keys and values of heads: an error with the kind, not a wrong number."""
    sizes = {"latent": {"kv_rank": 4, "nope_dim": 2, "rope_dim": 2, "v_dim": 3}}
    shared = {"head_dim": 4, "rope_dim": 2, "q_rank": 3, "window": 3, "out_groups": 2, "out_rank": 3}
    more = {"heavily_compressed": {"ratio": 4}}
    more["compressed_sparse"] = {"ratio": 3, "index_heads": 2, "index_dim": 4, "index_top_k": 2}
    attention = ATTENTIONS[kind](num_heads=4, **sizes.get(kind, shared | more.get(kind, {})))
    with pytest.raises(UserError, match=f"cache 'int8' holds keys and values of heads, but attention of kind '{kind}'"):
        cache_bytes_per_token(tiny_config.replace(attention=attention), "int8")


def test_a_cache_that_rounds_nothing_changes_nothing(tiny_model):
    want = forward(tiny_model, TOKENS)
    np.testing.assert_allclose(forward(through_cache(tiny_model, KVCache.zeros), TOKENS), want, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def int4_model(tiny_model):
    return through_cache(tiny_model, kv_cache("int4"))


def test_generation_reads_the_cache_it_is_given(tiny_model, int4_model):
    """Greedy decoding is the argmax of the model through that cache; four bits change the logits at all."""
    out = generate(tiny_model, TOKENS[:, :4], 5, temperature=0.0, cache=kv_cache("int4"))
    logits = forward(int4_model, out)
    np.testing.assert_array_equal(logits[:, 3:-1].argmax(axis=-1), out[:, 4:])
    assert np.abs(logits - forward(tiny_model, out)).max() > 1e-3


def test_evaluation_scores_a_model_through_a_cache(tiny_config):
    """Full precision gives the model's own bits, int4 others."""
    from minimoe import MoETransformer

    model = MoETransformer(tiny_config.replace(vocab_size=257, context_length=8), rngs=nnx.Rngs(0))
    model.embed.embedding[...] = 20 * model.embed.embedding[...]
    text, tokenizer = [Document("abc", "val", "1", "abcdefghabcdefghi")], ByteTokenizer()
    want = evaluate(model, text, tokenizer)
    same = evaluate(through_cache(model, KVCache.zeros), text, tokenizer)
    assert same.bits_per_byte == pytest.approx(want.bits_per_byte, rel=1e-5)
    np.testing.assert_array_equal(same.load, want.load)
    other = evaluate(through_cache(model, kv_cache("int4")), text, tokenizer)
    assert other.bits_per_byte != pytest.approx(want.bits_per_byte, rel=1e-5)


def test_unknown_names_and_widths_are_refused(tiny_config):
    with pytest.raises(UserError, match="cache 'fp9' is not known; choose one of bf16, fp8, fp8-rope, int8, int4"):
        kv_cache("fp9")
    with pytest.raises(UserError, match=r"cache 'wide': rope_dims=9 must be in 0\.\.head_dim=4"):
        CacheFactory("wide", FP8, rope_dims=9)(1, 4, 2, 4)
