"""What llama.cpp answers to files of `minimoe.export.export_gguf`: asks it, and keeps the answers for those who lack it.

    pip install llama-cpp-python
    python tests/llama_cpp_answers.py            # ask, compare with our own answers, print a table
    python tests/llama_cpp_answers.py --write    # also keep them in tests/fixtures/gguf

The models are of the two families that llama.cpp and we both know, with every option that they have: random weights, odd
sizes, and the package's ``nano``.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import tempfile
import time
from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minimoe import ModelConfig, MoETransformer
from minimoe.attention import GroupedQueryConfig
from minimoe.config import LayerConfig, MoEConfig
from minimoe.data import documents
from minimoe.export import export_gguf
from minimoe.hub import load_pretrained
from minimoe.inference import generate
from minimoe.model.paths import filled_state
from minimoe.quant import dequantize_model

FIXTURES = Path(__file__).parent / "fixtures" / "gguf"
NEW = 24


def random_model(config: ModelConfig) -> MoETransformer:
    """Random weights everywhere, in norms and biases too: what stands at 0 or 1 would hide a mistake."""
    model = MoETransformer(config, rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)

    def new(name: str, leaf):
        array = np.asarray(leaf[...])
        if "router.bias" in name and config.layers[-1].moe.score == "softmax":
            return leaf
        noise = random.normal(size=array.shape) * (0.3 if array.ndim == 1 else 2 / np.sqrt(array.shape[-2]))
        return leaf.replace(jnp.asarray(noise + (1 if name.endswith("scale") else 0), jnp.float32))

    nnx.update(model, filled_state(nnx.state(model), new))
    return model


@functools.cache
def odd() -> MoETransformer:
    """glm4_moe: a dense layer first, two shared experts, biases, norms of queries and keys, part of a head turned."""
    attention = GroupedQueryConfig(6, 3, 20, rope_theta=5000.0, rope_dim=12, qk_norm=True, bias=True, norm_eps=1e-5)
    moe = MoEConfig(52, 28, num_experts=7, top_k=3, num_shared_experts=2, score="sigmoid", routed_scaling_factor=1.7)
    return random_model(
        ModelConfig(
            vocab_size=101,
            d_model=52,
            num_layers=3,
            attention=attention,
            context_length=96,
            moe=moe,
            first_layers=(LayerConfig(d_ff=44),),
            tie_embeddings=False,
        )
    )


@functools.cache
def tied() -> MoETransformer:
    """glm4_moe: weights that are not normalised, one embedding for both ends, all of a head turned."""
    attention = GroupedQueryConfig(4, 1, 16)
    moe = MoEConfig(48, 36, 5, top_k=2, num_shared_experts=1, score="sigmoid", normalize_weights=False)
    return random_model(
        ModelConfig(vocab_size=67, d_model=48, num_layers=2, attention=attention, context_length=80, moe=moe)
    )


@functools.cache
def mixtral() -> MoETransformer:
    """mixtral: softmax experts in every layer."""
    attention = GroupedQueryConfig(6, 2, 16, rope_theta=20_000.0)
    moe = MoEConfig(60, 44, num_experts=6, top_k=2, score="softmax")
    config = ModelConfig(vocab_size=83, d_model=60, num_layers=2, attention=attention, context_length=64, moe=moe)
    return random_model(config.replace(tie_embeddings=False))


@functools.cache
def nano() -> MoETransformer:
    """The package's, with the values that its codes stand for."""
    return dequantize_model(load_pretrained("nano")[0])


MODELS = {"odd": odd, "tied": tied, "mixtral": mixtral, "nano": nano}
ARCHITECTURES = {"odd": "glm4moe", "tied": "glm4moe", "mixtral": "llama", "nano": "glm4moe"}


def tokens_of(model: MoETransformer) -> np.ndarray:
    return np.random.default_rng(1).integers(0, model.config.vocab_size, 33).astype(np.int32)


def our_logits(model: MoETransformer, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(nnx.jit(lambda model, tokens: model(tokens)[0])(model, jnp.asarray(tokens)[None])[0])


def our_text(model: MoETransformer, tokens: np.ndarray, new: int) -> list[int]:
    return generate(model, jnp.asarray(tokens)[None], new, temperature=0)[0, len(tokens) :].tolist()


def digest(folder: Path) -> str:
    """Of all that the file says but its name."""
    reader = gguf.GGUFReader(folder / "model.gguf")
    header = {name: field.contents() for name, field in reader.fields.items() if name != "general.name"}
    found = hashlib.sha256(repr(sorted(header.items())).encode())
    for tensor in sorted(reader.tensors, key=lambda tensor: tensor.name):
        found.update(f"{tensor.name} {tensor.shape.tolist()} {tensor.tensor_type}".encode() + tensor.data.tobytes())
    return found.hexdigest()


def recorded(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def ask(model: MoETransformer, folder: Path, dtype: str = "float32", tokenizer=None) -> dict[str, np.ndarray]:
    """llama.cpp's logits and greedy text, and seconds a token of that text."""
    import llama_cpp

    path = export_gguf(model, folder, tokenizer, dtype=dtype) / "model.gguf"
    engine = llama_cpp.Llama(
        str(path),
        n_ctx=model.config.context_length,
        n_batch=64,
        n_ubatch=64,
        logits_all=True,
        n_threads=1,
        verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32,  # its default, float16, would be the largest error of all
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
    )
    tokens = tokens_of(model)
    engine.eval(tokens.tolist())
    logits, greedy = np.array(engine.scores[: len(tokens)]), []
    start = time.perf_counter()
    for _ in range(NEW):
        greedy.append(int(engine.scores[engine.n_tokens - 1].argmax()))
        engine.eval(greedy[-1:])
    seconds = (time.perf_counter() - start) / NEW
    found = {"tokens": tokens, "logits": logits, "greedy": np.array(greedy), "seconds": np.array(seconds)}
    return found | {"digest": np.array(digest(folder)), "version": np.array(llama_cpp.__version__)}


def same_tokens(folder: Path, tokenizer) -> tuple[int, int]:
    """How many validation documents llama.cpp cuts into our tokens, of how many."""
    import llama_cpp

    engine = llama_cpp.Llama(str(folder / "model.gguf"), vocab_only=True, verbose=False)
    texts = [document.text for document in documents() if document.split == "val"]
    same = [engine.tokenize(text.encode(), add_bos=False) == tokenizer.encode(text) for text in texts]
    return sum(same), len(same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep the answers in tests/fixtures/gguf")
    keep = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        for name, make in MODELS.items():
            model = make()
            ours = our_logits(model, tokens_of(model))
            for dtype in ("float32", "bfloat16", "int8") if name == "nano" else ("float32",):
                found = ask(model, Path(folder) / f"{name}-{dtype}", dtype)
                error = np.abs(ours - found["logits"]).max() / found["logits"].std()
                text = our_text(model, found["tokens"], NEW) == found["greedy"].tolist()
                size = (Path(folder) / f"{name}-{dtype}" / "model.gguf").stat().st_size
                print(f"{name:8} {dtype:9} error {error:.1e} of the spread, greedy text equal: {text}, {size:,} bytes")
                if keep and dtype == "float32":
                    FIXTURES.mkdir(parents=True, exist_ok=True)
                    np.savez_compressed(FIXTURES / f"{name}.npz", **{k: v for k, v in found.items() if k != "seconds"})
        tokenizer = load_pretrained("nano")[1]
        out = export_gguf(nano(), Path(folder) / "words", tokenizer)
        print("validation documents with the same tokens: {} of {}".format(*same_tokens(out, tokenizer)))


if __name__ == "__main__":
    main()
