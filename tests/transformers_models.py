"""Tiny models that Transformers writes, and what it computes. `python tests/transformers_models.py` makes the fixtures.

The committed ones were written by transformers 5.23.0 and torch 2.13.0; each config.json holds the first number too. With
another seed the sizes are other odd ones.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

FAMILIES = ("mixtral", "glm4_moe", "deepseek_v3")
FOLDER = Path(__file__).parent / "fixtures" / "transformers"
NEW_TOKENS = 6


def model_config(family: str, rng: np.random.Generator):
    import transformers

    def odd(low: int, high: int) -> int:
        return int(rng.integers(low, high)) * 2 + 1

    shared = {
        "vocab_size": odd(9, 15), "hidden_size": odd(5, 8), "intermediate_size": odd(3, 6), "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 1, "num_experts_per_tok": 2, "max_position_embeddings": 64,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    sigmoid = {"moe_intermediate_size": odd(2, 5), "first_k_dense_replace": 1, "routed_scaling_factor": 1.7}
    if family == "mixtral":
        return transformers.MixtralConfig(**shared, head_dim=2 * odd(1, 4), num_local_experts=odd(1, 4))
    if family == "glm4_moe":
        biases = {"attention_bias": True, "use_qk_norm": True, "head_dim": 4 * odd(0, 2), "n_shared_experts": 2}
        return transformers.Glm4MoeConfig(**shared, **sigmoid, **biases, n_routed_experts=odd(1, 4))
    yarn = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
    yarn |= {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
    latent = {"kv_lora_rank": odd(2, 5), "q_lora_rank": odd(2, 5), "qk_rope_head_dim": 2 * odd(1, 3)}
    latent |= {"v_head_dim": odd(1, 4), "qk_nope_head_dim": odd(1, 4), "rope_parameters": yarn}
    shared["num_key_value_heads"] = 3
    return transformers.DeepseekV3Config(
        **shared, **sigmoid, **latent, n_routed_experts=9, n_group=3, topk_group=2, n_shared_experts=1
    )


def write_model(family: str, folder: Path, seed: int) -> dict[str, np.ndarray]:
    """A model of random sizes and weights, in several files; returns tokens, logits, the greedy continuation, gradients."""
    import torch
    import transformers

    config = model_config(family, np.random.default_rng(seed))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval().float()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if "inv_freq" not in name:
                tensor.normal_(1.0 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(folder, max_shard_size="12KB")
    tokens = torch.from_numpy(np.random.default_rng(seed).integers(0, config.vocab_size, (2, 21)))
    logits = model(tokens).logits
    greedy = tokens[:1, :5]
    for _ in range(NEW_TOKENS):
        greedy = torch.cat([greedy, model(greedy).logits[:, -1:].argmax(-1)], dim=1)
    logits.pow(2).mean().backward()
    block = model.model.layers[1]
    gradients = {f"model.layers.1.{name}": p.grad.numpy() for name, p in block.named_parameters()}
    results = {"tokens": tokens, "logits": logits.detach(), "greedy": greedy}
    return {name: value.numpy() for name, value in results.items()} | gradients


if __name__ == "__main__":
    from safetensors.numpy import save_file

    for each in FAMILIES:
        shutil.rmtree(FOLDER / each, ignore_errors=True)
        (FOLDER / each).mkdir(parents=True)
        found = write_model(each, FOLDER / each, seed=5)
        (FOLDER / each / "generation_config.json").unlink(missing_ok=True)
        arrays = {name: np.ascontiguousarray(value) for name, value in found.items()}
        save_file(arrays, FOLDER / each / "expected.safetensors")
