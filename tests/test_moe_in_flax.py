"""The page on the layer in somebody else's model: every block runs, on eight devices, and is right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TITLE = "# A MoE layer in your own Flax model"

# After the blocks, in their names: what the section claims.
CLAIMS = """
import numpy as np
from minimoe.moe import RouterBias

assert losses[-1] < losses[0], losses
assert model.moe.experts.down_proj.dtype == jnp.float32 and model.moe.router.kernel.dtype == jnp.float32
assert float(jnp.abs(model.moe.router.bias[...]).max()) > 0
assert not [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param)) if path[-1] == "bias"]
assert y.shape == x.shape and load.shape == (4, 8)
np.testing.assert_allclose(load.sum(axis=1), 2 * where.sum())

by_hand = x
for i in range(4):
    by_hand, _ = jax.tree.map(lambda a: a[i], layers)(by_hand, where)
np.testing.assert_allclose(y[where], by_hand[where], rtol=0.03, atol=0.03)
assert bool(jnp.isfinite(slopes).all()) and float(jnp.abs(slopes).min()) >= 0

assert routing.experts.shape == (8 * 16, 2)
np.testing.assert_allclose(by_row, whole, rtol=1e-4, atol=1e-6)
assert jax.device_count() == 8 and len(sharded.sharding.device_set) == 8
np.testing.assert_allclose(sharded, whole, rtol=1e-4, atol=1e-6)

assert annotated.experts.down_proj.get_metadata()["out_sharding"] == ("expert", None, None)
assert tangent.shape == x.shape
step = 1e-3
slope = (layer((1 + step) * x)[0] - layer((1 - step) * x)[0]) / (2 * step)
np.testing.assert_allclose(tangent, slope, rtol=0.05, atol=0.01)

np.testing.assert_allclose(same, losses, rtol=0.01)  # bfloat16
assert spread.moe.experts.down_proj.addressable_shards[0].data.shape == (2, 64, 64)
print("held")
"""


def blocks() -> list[str]:
    text = (ROOT / "notebooks" / "MOE_IN_FLAX.md").read_text(encoding="utf-8")
    after = text[text.index(TITLE) + len(TITLE) :]
    return re.findall(r"```python\n(.*?)```", after, flags=re.S)


def test_the_section_has_its_blocks():
    assert len(blocks()) == 5


def test_every_block_runs_and_holds_what_it_claims():
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
    }
    code = "\n".join([*blocks(), CLAIMS])
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "held"
