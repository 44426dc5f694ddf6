"""The tour's caches: what a model keeps of the text it has read, weighed on our models and computed for published ones.

A model with DeepSeek-V4's attention then writes from its compressed cache. Nothing is trained. A cache is as large before
training as after it, and right or wrong before training as after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minimoe.claims.caches import LONG, NEW, OLD, SHORT, published_ratio
from minimoe.console import messages

if TYPE_CHECKING:
    from minimoe.config import ModelConfig
    from minimoe.data import Tokenizer

OURS = ("nano", "v4-nano", "small", "v4-small")
CONTEXTS = (64, 256, 1024)
WRITER, PLAIN = "v4-nano", "nano"
PROMPT = "The cache keeps entries of four or sixteen tokens, and a window of the last ones. "
NEW_TOKENS = 40
DRAWN = tuple(2**power for power in range(6, 21))


def cache_rung(tokenizer: Tokenizer) -> dict[str, Any]:
    """Bytes of one sequence's cache: our presets as arrays, V4-Pro against V3.2 by the same formula; and text out of one.

    Returns:
      ``contexts`` and ``ours``: for each preset the bytes of its arrays at these contexts, and what one more token adds;
      ``published``: names, ``ratios`` of the older model's bytes to the newer one's at two contexts (everything counted),
      ``reported`` (at the longer one, as the report counts), ``crossing`` (the first context at which the newer model
      keeps less) with its ``crossing_bytes``, and the bytes of both at the contexts of the figure; ``written``: what
      `write_from_cache` says.
    """
    from minimoe.config import ModelConfig
    from minimoe.cost import kv_bytes_per_token, published_model

    ours = []
    for name in OURS:
        config = ModelConfig.preset(name)
        weighed = [held_bytes(config, context) for context in CONTEXTS]
        ours.append({"name": name, "bytes_per_token": kv_bytes_per_token(config), "bytes": weighed})
    new, old = (published_model(name) for name in (NEW, OLD))
    drawn = {model.name: [sum(model.cache_bytes(context).values()) for context in DRAWN] for model in (old, new)}
    shared = published_ratio()
    ratios, crossing = shared["everything"], shared["crossing"]
    published = {
        "names": [old.name, new.name],
        "ratios": {str(context): ratio for context, ratio in ratios.items()},
        "reported": shared["reported"],
        "crossing": crossing,
        "crossing_bytes": sum(new.cache_bytes(crossing).values()),
        "contexts": list(DRAWN),
        "bytes": drawn,
    }
    messages.print(
        "caches, bytes a token: "
        + ", ".join(f"{one['name']} {one['bytes_per_token']:,.0f}" for one in ours)
        + f"; V4-Pro keeps {ratios[LONG]:.1f} times less than V3.2 at {LONG:,} tokens, {ratios[SHORT]:.1f} at {SHORT:,}, "
        f"more than V3.2 below {crossing:,}"
    )
    return {"contexts": list(CONTEXTS), "ours": ours, "published": published, "written": write_from_cache(tokenizer)}


def write_from_cache(tokenizer: Tokenizer) -> dict[str, Any]:
    """`WRITER` writes `NEW_TOKENS` greedily from its cache; then one pass over the whole text, without a cache, checks them.

    Returns:
      ``model``, whether it is ``trained``, ``new_tokens``, ``agreeing``: how many of them the pass without a cache would
      write too, ``tokens`` in the cache at the end, its ``bytes``, ``plain_bytes``: those of `PLAIN`, which has the same
      width, at the same length, and ``text``, what a trained model wrote.
    """
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from minimoe.config import ModelConfig
    from minimoe.hub import load_pretrained, shipped
    from minimoe.inference import generate
    from minimoe.model import MoETransformer
    from minimoe.quant import dequantize_model

    trained = WRITER in shipped()
    if trained:
        model = dequantize_model(load_pretrained(WRITER)[0])
    else:
        model = MoETransformer(ModelConfig.preset(WRITER), rngs=nnx.Rngs(0))
    prompt = jnp.asarray([[tokenizer.eot_id, *tokenizer.encode(PROMPT)]], jnp.int32)
    text = generate(model, prompt, NEW_TOKENS, temperature=0.0)
    first = prompt.shape[1]
    again = nnx.jit(lambda model, text: model(text)[0])(model, text)[0, first - 1 : -1].argmax(axis=-1)
    agreeing = int((np.asarray(again) == np.asarray(text[0, first:])).sum())
    tokens = text.shape[1]
    held, plain = held_bytes(model.config, tokens), held_bytes(ModelConfig.preset(PLAIN), tokens)
    messages.print(
        f"{WRITER}{'' if trained else ', untrained,'} wrote {NEW_TOKENS} tokens from a cache of {held:,} bytes "
        f"({PLAIN}: {plain:,}); without a cache {agreeing} of them are the same"
    )
    found = {"model": WRITER, "trained": trained, "new_tokens": NEW_TOKENS, "agreeing": agreeing, "tokens": tokens}
    found |= {"bytes": held, "plain": PLAIN, "plain_bytes": plain}
    return found | {"text": tokenizer.decode(text[0, first:].tolist()) if trained else None}


def held_bytes(config: ModelConfig, context: int) -> int:
    """Bytes of the arrays of one sequence's cache in all layers, its counters of tokens left aside.

    Example:
      >>> from minimoe import ModelConfig
      >>> held_bytes(ModelConfig.preset("nano"), 64)
      131072
    """
    import jax

    from minimoe.attention import KVCache

    kinds = [layer.attention for layer in config.layers if layer.attention is not None]
    states = [kind.init_cache(1, context, KVCache.zeros, config.dtype) for kind in kinds]
    return sum(array.nbytes for array in jax.tree.leaves(states) if array.ndim)
