"""Strict switches for the whole suite, and the tiny models that several files share.

JAX promotes neither dtypes nor ranks here, warnings are errors (pyproject.toml), and every annotated function of the
package is checked against its shapes at run time (``--jaxtyping-packages``). The package is imported inside fixtures:
the checker must be in place before the first import.
"""

from __future__ import annotations

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_disable_most_optimizations", True)  # programs are tiny: compiling them is what costs
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def key() -> jax.Array:
    return jax.random.key(7)


@pytest.fixture(scope="session")
def moe_config():
    """E = 4 experts, K = 2 of them, and a shared one."""
    from minimoe import MoEConfig

    return MoEConfig(d_model=8, d_expert=6, num_experts=4, top_k=2, num_shared_experts=1, score="sigmoid")


@pytest.fixture(scope="session")
def tiny_config(moe_config):
    """Two sparse layers, few tokens in the vocabulary: for everything that does not read text."""
    from minimoe import ModelConfig

    return ModelConfig(
        vocab_size=19, d_model=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, context_length=24,
        moe=moe_config,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    """Read only. Its weights are scaled up, so that logits differ by more than rounding."""
    from flax import nnx

    from minimoe import MoETransformer

    model = MoETransformer(tiny_config, rngs=nnx.Rngs(3))
    nnx.update(model, jax.tree.map(lambda p: p * 3, nnx.state(model, nnx.Param)))
    return model
