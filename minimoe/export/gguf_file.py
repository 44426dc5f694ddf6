"""A folder with the model as one GGUF file, which llama.cpp runs, and with it most programs for open weights at home.

out/model.gguf        weights, sizes and, if llama.cpp knows its rule, the vocabulary
    tokenizer.json    the tokenizer as it is
    config.json       format, config of the model, sizes and checksums
    README.md         how to run it

The ``gguf`` package writes the file; which array goes where is said in `minimoe.export.gguf_rows`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from minimoe.attention import GroupedQueryConfig
from minimoe.config import ModelConfig
from minimoe.data import Tokenizer, check_vocabulary
from minimoe.data.train_tokenizer import SPLIT_PATTERN
from minimoe.errors import UserError
from minimoe.export.folder import FolderWriter, needs
from minimoe.export.gguf_rows import architecture_of, rows
from minimoe.files import named_path
from minimoe.hub.layouts.write import choose_layout
from minimoe.model import MoETransformer
from minimoe.model.paths import named_leaves
from minimoe.quant import dequantize_model

FORMAT = "minimoe-gguf-1"
MODEL_FILE = "model.gguf"
# Our names, and those of the file's types. Q8_0 is int8 with a float16 scale for each 32 values along a row.
DTYPES = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0"}
FLOATS = ("ffn_gate_inp.weight", "bias", "norm.weight")  # llama.cpp computes with these in float32
# Where a text may be cut before byte pairs are merged is a rule that llama.cpp knows by name. Ours is that of "qwen2" but
# for the indent of a line, which ours keeps apart from the line break before it.
INDENT = r"(?: +(?= ))?"
PRE_TOKENIZERS = {
    SPLIT_PATTERN: "qwen2",
    SPLIT_PATTERN.replace(rf"(?:[\r\n]+{INDENT})?", r"[\r\n]*").replace(INDENT, ""): "qwen2",  # qwen2's own
}

README = """# {name} as GGUF

`{file}` is a Mixture-of-Experts language model for llama.cpp (architecture {architecture}, weights {dtype}).

    llama-cli -m {file} -p "In the beginning"

    from llama_cpp import Llama
    Llama("{file}").create_completion("In the beginning", max_tokens=20, temperature=0)["choices"][0]["text"]

{words}
"""
WORDS = """The file names its rule for cutting text `{rule}`. Words come out alike; where a text has indented lines, llama.cpp
may cut it into other tokens than `tokenizer.json` does. Give token ids where that matters."""
NO_WORDS = (
    "The file holds no vocabulary, because llama.cpp has no rule like this tokenizer's: give token ids, not text."
)


def export_gguf(
    model: MoETransformer,
    directory: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    dtype: str = "float32",
) -> Path:
    """Writes the model as GGUF; all or nothing, like `minimoe.hub.save`.

    Args:
      model: one that Transformers would call glm4_moe (as ``nano`` and ``small`` are) or mixtral. A quantized model is
        written with the values that its codes stand for. A head for multi-token prediction is left out.
      directory: new, empty, or holding an earlier export of this format.
      tokenizer: goes along; its vocabulary goes into the file if llama.cpp knows where it cuts text.
      dtype: "float32", "bfloat16", or "int8" (llama.cpp's Q8_0): of matrices. Routers, norms and biases stay float32, and
        so do matrices whose rows 32 does not divide, in "int8".

    Returns:
      The folder.

    Raises:
      UserError: if llama.cpp has no such model, the folder holds something else, or ``gguf`` is missing.

    References:
      `GGUF <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>`_.
    """
    needs("gguf")
    check_vocabulary(tokenizer, model.config.vocab_size)
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not written as GGUF; choose one of {', '.join(DTYPES)}")
    directory, model = named_path(directory), dequantize_model(model)
    layout, values = choose_layout(model.config)
    architecture = architecture_of(model.config, layout.model_type)
    rule = pre_tokenizer(tokenizer)
    with FolderWriter(directory, FORMAT, "an exported GGUF model") as out:
        with out.placing(MODEL_FILE) as path:
            _write(path, directory.name, model, architecture, values, dtype, tokenizer if rule else None, rule)
        out.add_tokenizer(tokenizer)
        words = WORDS.format(rule=rule) if rule else NO_WORDS
        about = {
            "name": directory.name,
            "file": MODEL_FILE,
            "architecture": architecture,
            "dtype": dtype,
            "words": words,
        }
        out.add("README.md", README.format(**about).encode())
        out.publish({"model": model.config.to_dict(), "dtype": dtype, "architecture": architecture, "vocabulary": rule})
    return directory


def pre_tokenizer(tokenizer: Tokenizer | None) -> str | None:
    """llama.cpp's name for the rule by which a tokenizer cuts text; None if it has none like it."""
    steps = json.loads(tokenizer.to_json()) if tokenizer is not None else {}
    if not steps or not steps["model"].get("merges") or steps.get("normalizer") is not None:
        return None
    if steps["model"].get("ignore_merges"):
        return None
    parts = steps.get("pre_tokenizer") or {}
    parts = parts.get("pretokenizers", [parts])
    if [part.get("type") for part in parts] == ["ByteLevel"]:
        return "gpt-2" if parts[0].get("use_regex", True) and not parts[0].get("add_prefix_space") else None
    if [part.get("type") for part in parts] != ["Split", "ByteLevel"]:
        return None
    cut, last = parts
    if (
        last.get("use_regex", True)
        or last.get("add_prefix_space")
        or cut.get("behavior") != "Isolated"
        or cut["invert"]
    ):
        return None
    return PRE_TOKENIZERS.get(cut.get("pattern", {}).get("Regex", ""))


def _write(
    path: Path,
    name: str,
    model: MoETransformer,
    architecture: str,
    values: dict[str, Any],
    dtype: str,
    tokenizer: Tokenizer | None,
    rule: str | None,
) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    writer.add_file_type(getattr(gguf.LlamaFileType, "ALL_F32" if dtype == "float32" else f"MOSTLY_{DTYPES[dtype]}"))
    _add_sizes(writer, model.config, values)
    _add_vocabulary(writer, model.config.vocab_size, tokenizer, rule)
    table = rows(model.config, architecture)
    for ours, leaf in named_leaves(model).items():
        if ours.startswith("mtp."):
            continue
        array = np.asarray(jax.device_get(leaf[...]), np.float32)
        if not table[ours].names and array.any():
            raise UserError(
                f"{architecture} of llama.cpp has no tensor for {ours}, which is not 0 here; not written as GGUF"
            )
        for theirs, part in table[ours].to_memory(array).items():
            kind = gguf.GGMLQuantizationType["F32" if theirs.endswith(FLOATS) else DTYPES[dtype]]
            if kind == gguf.GGMLQuantizationType.Q8_0 and part.shape[-1] % 32:
                kind = gguf.GGMLQuantizationType.F32
            stored = part if kind == gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(part, kind)
            writer.add_tensor(theirs, np.ascontiguousarray(stored), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: Any, config: ModelConfig, values: dict[str, Any]) -> None:
    """The sizes that both architectures have, then those of glm4moe; ``values`` is config.json of the family."""
    import gguf

    attention = config.layers[0].attention
    assert isinstance(attention, GroupedQueryConfig)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(values["intermediate_size"])
    writer.add_head_count(attention.num_heads)
    writer.add_head_count_kv(attention.num_kv_heads)
    writer.add_key_length(attention.head_dim)
    writer.add_value_length(attention.head_dim)
    writer.add_rope_dimension_count(attention.turned)
    writer.add_rope_freq_base(float(attention.rope_theta))
    writer.add_layer_norm_rms_eps(config.norm_eps)
    moe = next(layer.moe for layer in reversed(config.layers) if layer.moe is not None)
    writer.add_expert_count(moe.num_experts)
    writer.add_expert_used_count(moe.top_k)
    if values["model_type"] == "glm4_moe":
        writer.add_expert_feed_forward_length(moe.d_expert)
        writer.add_expert_shared_count(moe.num_shared_experts)
        writer.add_leading_dense_block_count(values["first_k_dense_replace"])
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_weights_scale(float(moe.routed_scaling_factor))
        writer.add_expert_weights_norm(moe.normalize_weights)


def _add_vocabulary(writer: Any, size: int, tokenizer: Tokenizer | None, rule: str | None) -> None:
    """The tokens by id, their merges, and the rule; ids that stand for nothing fill up to the model's vocabulary."""
    import gguf

    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(size)
        return
    content = json.loads(tokenizer.to_json())
    tokens = [f"[unused {i}]" for i in range(size)]
    kinds = [gguf.TokenType.UNUSED] * size
    for token, i in content["model"]["vocab"].items():
        tokens[i], kinds[i] = token, gguf.TokenType.NORMAL
    for added in content["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = content["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.eot_id)
    writer.add_eos_token_id(tokenizer.eot_id)
    writer.add_add_bos_token(True)  # as ours begin every text
