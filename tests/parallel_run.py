"""One tiny training run, for tests/parallel_on_eight.py and tests/parallel_process.py."""

from __future__ import annotations

from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig
from minimoe.data import ByteTokenizer, Document, training_data
from minimoe.training import Recipe, RunConfig

STEPS = 4


def tiny_run():
    """Run, training data, tokenizer: one sparse layer, with every way to keep its experts in work."""
    moe = MoEConfig(16, 8, 8, 2, num_shared_experts=1, score="sigmoid")
    attention = GroupedQueryConfig(num_heads=4, num_kv_heads=2, head_dim=4)
    config = ModelConfig(vocab_size=257, d_model=16, num_layers=1, context_length=16, attention=attention, moe=moe)
    recipe = Recipe(
        steps=STEPS,
        batch_size=8,
        warmup_steps=1,
        log_every=1,
        checkpoint_every=2,
        seed=3,
        router_bias_rate=0.02,
        balance_weight=0.01,
    )
    tokenizer = ByteTokenizer()
    data = training_data([Document("a", "train", "train", "to be or not to be, that is the question " * 20)], tokenizer)
    return RunConfig(config, recipe, {"name": "an example"}, "byte"), data, tokenizer
