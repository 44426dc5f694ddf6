"""Tiny DeepSeek-V4 models of Transformers with random weights, and what they compute.

    pip install 'minimoe[interop]'
    python tests/v4_transformers.py      writes tests/fixtures/deepseek_v4 anew, and which versions wrote it

The fixture is a folder as `save_pretrained` writes it and `expected.npz`, what that model computed. Tests without PyTorch
read it (`test_v4_oracle.py`, `test_hub_layout_v4.py`); those with PyTorch make fresh models of other sizes.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import numpy as np

FIXTURE = Path(__file__).parent / "fixtures" / "deepseek_v4"
SIZES = {  # no two alike, where the model allows it
    "vocab_size": 29, "hidden_size": 10, "moe_intermediate_size": 7, "num_attention_heads": 6, "head_dim": 12,
    "qk_rope_head_dim": 6, "q_lora_rank": 9, "o_groups": 3, "o_lora_rank": 5, "sliding_window": 4,
    "n_routed_experts": 5, "num_experts_per_tok": 2, "hc_mult": 3, "index_n_heads": 8, "index_head_dim": 14,
    "index_topk": 2, "compress_rate_csa": 3, "compress_rate_hca": 5, "num_hash_layers": 1, "num_hidden_layers": 3,
    "compress_ratios": [0, 128, 4], "compress_rope_theta": 500.0, "max_position_embeddings": 64,
    "routed_scaling_factor": 1.7, "swiglu_limit": 1.5, "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40, "beta_fast": 4.0, "beta_slow": 0.5,
}  # fmt: skip
PROMPT = 7


def random_sizes(seed):
    """Other odd dimensions."""
    rng = np.random.default_rng(seed)
    heads, groups = [(4, 2), (6, 3), (9, 3), (6, 2)][rng.integers(4)]
    rope = int(rng.choice([2, 4, 8]))
    changed = {
        "vocab_size": rng.integers(23, 40), "hidden_size": rng.integers(9, 14), "head_dim": 16, "qk_rope_head_dim": rope,
        "moe_intermediate_size": rng.integers(3, 9), "q_lora_rank": rng.integers(5, 12), "o_lora_rank": rng.integers(3, 8),
        "num_attention_heads": heads, "o_groups": groups, "sliding_window": rng.integers(2, 7),
        "n_routed_experts": rng.integers(4, 8), "num_experts_per_tok": rng.integers(2, 4), "hc_mult": rng.integers(2, 5),
        "index_head_dim": rng.integers(9, 16), "index_topk": rng.integers(1, 4), "compress_rate_csa": rng.integers(2, 5),
        "compress_rate_hca": rng.integers(3, 8), "num_hash_layers": rng.integers(0, 3),
        "compress_ratios": [[0, 4, 128], [128, 4, 0], [4, 128, 4]][rng.integers(3)],
    }  # fmt: skip
    return SIZES | {name: value if isinstance(value, list) else int(value) for name, value in changed.items()}


def random_model(sizes, seed):
    """In float32, each expert in a loop. Every weight is moved far off its start, so that each part matters."""
    import torch
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

    logging.getLogger("transformers").setLevel(logging.ERROR)
    config = DeepseekV4Config(**sizes, rope_parameters=dict(YARN))
    assert config.qk_rope_head_dim == sizes["qk_rope_head_dim"]  # a fraction of head_dim there, cut to a whole number
    model = DeepseekV4ForCausalLM(config).eval()
    model.set_experts_implementation("eager")
    draw = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, value in state.items():
        noise = torch.randn(value.shape, generator=draw)
        if name.endswith("tid2eid"):
            rows = [torch.randperm(config.n_routed_experts, generator=draw) for _ in range(len(value))]
            value.copy_(torch.stack(rows)[:, : value.shape[1]])
        elif "norm" in name:
            value.copy_(1 + 0.3 * noise)
        elif value.ndim == 1 or any(part in name for part in ("position_bias", "embed", "lm_head")):
            value.copy_(noise)
        else:
            value.copy_(1.2 * noise * value.shape[-1] ** -0.5)
    model.load_state_dict(state)
    return model


def computed(model, prompt, chunks, layer):
    """The greedy continuation of a prompt, its logits, those of cached decoding in chunks, and a gradient.

    The gradient is that of ``sum(cos(i) * logits_i)``, i counting all logits, for the weights of one layer.
    """
    import torch

    start = torch.as_tensor(prompt)[None]
    with torch.no_grad():
        real = {"attention_mask": torch.ones_like(start), "pad_token_id": 0}  # without it, id 0 would be padding
        ids = model.generate(start, max_new_tokens=sum(chunks) - len(prompt), do_sample=False, use_cache=True, **real)
        cache, pieces, first = None, [], 0
        for size in chunks:
            out = model(ids[:, first : first + size], past_key_values=cache, use_cache=True)
            cache, first = out.past_key_values, first + size
            pieces.append(out.logits[0])
    logits = model(ids).logits
    weights = torch.cos(torch.arange(logits.numel(), dtype=torch.float32)).reshape(logits.shape)
    (weights * logits).sum().backward()
    prefix = f"model.layers.{layer}."
    gradients = {
        f"gradient/{name}": parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if name.startswith(prefix) and parameter.grad is not None
    }
    return {
        "token_ids": ids[0].numpy(),
        "prompt": np.asarray(len(prompt)),
        "logits": logits[0].detach().numpy(),
        "chunks": np.asarray(chunks),
        "chunked": torch.cat(pieces).numpy(),
        "layer": np.asarray(layer),
    } | gradients


def random_prompt(sizes, seed):
    return np.random.default_rng(seed).integers(sizes["vocab_size"], size=PROMPT)


def saved(model, folder):
    """Writes the model; returns its settings and its tensors by the names of the published checkpoints."""
    import v4_oracle
    from safetensors.numpy import load_file

    model.save_pretrained(folder)
    settings = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return settings, v4_oracle.published(load_file(Path(folder) / "model.safetensors"))


def main():
    import torch
    import transformers

    model = random_model(SIZES, seed=3)
    saved(model, FIXTURE)
    (FIXTURE / "generation_config.json").unlink(missing_ok=True)
    found = computed(model, random_prompt(SIZES, 5), [5, 1, 5, 1, 5], layer=2)
    np.savez_compressed(FIXTURE / "expected.npz", **found)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__, "python": sys.version.split()[0]}
    versions |= {"numpy": np.__version__, "written_by": "python tests/v4_transformers.py"}
    (FIXTURE / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in FIXTURE.iterdir())
    print(f"{FIXTURE}: {size:,} bytes, {versions}")


if __name__ == "__main__":
    main()
