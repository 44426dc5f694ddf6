"""A folder with the model as one ONNX file, and a reader that runs it with onnxruntime.

out/model.onnx        the graph and its weights; what goes in and comes out is said in `minimoe.export.onnx_model`
    tokenizer.json    the tokenizer, if it needs a file
    config.json       format, config of the model, sizes and checksums
    README.md         how to run it

The file has no part of our code in it: onnxruntime, or any converter from ONNX, reads it without JAX.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minimoe import checks
from minimoe.data import Tokenizer, check_vocabulary
from minimoe.errors import UserError
from minimoe.export.folder import FolderWriter, needs
from minimoe.export.graph import OPSET, Graph
from minimoe.export.onnx_model import Writer
from minimoe.files import named_path
from minimoe.layers.token_ids import as_token_ids
from minimoe.model import MoETransformer
from minimoe.quant import dequantize_model

FORMAT = "minimoe-onnx-1"
MODEL_FILE = "model.onnx"
DTYPES = ("float32", "int8")
LARGEST = 2**31 - 2**20  # a protobuf message ends at 2 GB
IR_VERSION = 9  # of the file: what readers of opset 18 know

README = """# {name} as ONNX

`{file}` is a Mixture-of-Experts language model (opset {opset}, weights {dtype}). Inputs: `tokens` int64 `[batch, length]`,
and for each of {layers} layers `past.N.key` and `past.N.value` float32 `[batch, {heads}, cached, {width}]`; give
`cached = 0` for a text from its beginning. Outputs: `logits` `[batch, length, {vocab}]`, and `present.N.key` and
`present.N.value`, which are the next call's `past`.

    import numpy as np, onnxruntime
    session = onnxruntime.InferenceSession("{file}")
    feed = {{i.name: np.zeros((1, {heads}, 0, {width}), np.float32) for i in session.get_inputs()[1:]}}
    logits, *present = session.run(None, {{"tokens": np.array([[1, 2, 3]]), **feed}})

With minimoe installed: `minimoe.export.OnnxModel("{folder}").generate([1, 2, 3], 20)`.
"""


def export_onnx(
    model: MoETransformer,
    directory: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    dtype: str = "float32",
) -> Path:
    """Writes the model as ONNX; all or nothing, like `minimoe.hub.save`.

    Args:
      model: with grouped-query attention and the plain residual. A quantized model is written with the values that its
        codes stand for.
      directory: new, empty, or holding an earlier export of this format.
      tokenizer: goes along.
      dtype: "float32", or "int8": matrices as int8 codes with one scale a column. Embedding, router, norms and biases
        stay float32.

    Returns:
      The folder.

    Raises:
      UserError: if the model has a part that is not written, the folder holds something else, or ``onnx`` is missing.

    References:
      The `ONNX operators <https://onnx.ai/onnx/operators/>`_, opset 18.
    """
    needs("onnx")
    check_vocabulary(tokenizer, model.config.vocab_size)
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not written as ONNX; choose one of {', '.join(DTYPES)}")
    content = onnx_bytes(dequantize_model(model), dtype)
    with FolderWriter(named_path(directory), FORMAT, "an exported ONNX model") as out:
        out.add(MODEL_FILE, content)
        out.add_tokenizer(tokenizer)
        attention = model.config.layers[0].attention
        facts = {"heads": attention.num_kv_heads, "width": attention.head_dim, "vocab": model.config.vocab_size}  # type: ignore[union-attr]
        facts |= {"layers": model.config.num_layers, "dtype": dtype, "opset": OPSET, "file": MODEL_FILE}
        out.add("README.md", README.format(name=Path(directory).name, folder=Path(directory).name, **facts).encode())
        out.publish({"model": model.config.to_dict(), "dtype": dtype, "opset": OPSET})
    return Path(directory)


def onnx_bytes(model: MoETransformer, dtype: str = "float32") -> bytes:
    """The content of the file.

    Raises:
      UserError: for a part that is not written, or above 2 GB, where the format ends.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = Graph()
    logits, present = Writer(graph, int8=dtype == "int8").model(model)
    graph.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "length"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", model.config.vocab_size])]
    for i, (layer, names) in enumerate(zip(model.config.layers, present, strict=True)):
        sizes: Any = layer.attention
        for kind, name in zip(("key", "value"), names, strict=True):
            graph.nodes.append(helper.make_node("Identity", [name], [f"present.{i}.{kind}"]))
            shape = ["batch", sizes.num_kv_heads, "cached", sizes.head_dim]
            inputs.append(helper.make_tensor_value_info(f"past.{i}.{kind}", TensorProto.FLOAT, shape))
            longer = ["batch", sizes.num_kv_heads, "cached_and_new", sizes.head_dim]
            outputs.append(helper.make_tensor_value_info(f"present.{i}.{kind}", TensorProto.FLOAT, longer))
    total = sum(array.nbytes for array in graph.constants.values())
    if total > LARGEST:
        raise UserError(f"the model has {total / 1e9:.1f} GB, and one ONNX file ends at 2 GB; export with dtype int8")
    constants = [numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    made = helper.make_graph(graph.nodes, "minimoe", inputs, outputs, constants)
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


@dataclasses.dataclass
class OnnxModel:
    """An exported model, run by onnxruntime on the CPU.

    Args:
      directory: from `export_onnx`.

    Raises:
      UserError: if it is no such folder or was damaged, or onnxruntime is missing.

    Example:
      model = OnnxModel("runs/nano-onnx"); model.generate([1, 2, 3], 20)
    """

    directory: str | os.PathLike[str]

    def __post_init__(self) -> None:
        from minimoe.export.folder import read_folder

        needs("onnxruntime")
        import onnxruntime

        self.config, self.tokenizer, files, _ = read_folder(named_path(self.directory), FORMAT)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # int8 codes are widened; by default onnxruntime would round what they multiply to int8 as well
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.session = onnxruntime.InferenceSession(files[MODEL_FILE].read_bytes(), options)

    def empty_cache(self, batch: int) -> dict[str, np.ndarray]:
        """Keys and values of no token, by the names of the graph's inputs."""
        shapes = {i.name: i.shape for i in self.session.get_inputs() if i.name != "tokens"}
        return {name: np.zeros((batch, shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()}

    def extend(
        self, tokens: Sequence[Sequence[int]] | np.ndarray, cache: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """``(logits [B, L, V], cache)``, as `minimoe.MoETransformer.extend` gives them.

        Raises:
          UserError: for ids that are no ``[B, L]`` or outside the vocabulary, and beyond the model's context length.
        """
        ids = np.asarray(as_token_ids(tokens, self.config.vocab_size))
        if ids.ndim != 2 or not ids.size:
            raise UserError(f"tokens has shape {ids.shape}; give token ids [B, L] with at least one token each")
        held = next(iter(cache.values())).shape[2]
        self._check_room(f"{held} tokens in the cache + {ids.shape[1]}", held + ids.shape[1])
        return self._run(ids, cache)

    def logits(self, tokens: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        """``[B, L, V]`` of texts from their beginning; raises what `extend` raises."""
        return self.extend(tokens, self.empty_cache(len(tokens)))[0]

    def generate(self, prompt: Sequence[int] | np.ndarray, max_new_tokens: Any) -> list[int]:
        """Prompt and greedy continuation.

        Raises:
          UserError: for a prompt that is not one row of ids of the vocabulary, or too long.
        """
        new_tokens = checks.whole("max_new_tokens", max_new_tokens)
        found = np.asarray(as_token_ids(prompt, self.config.vocab_size, name="prompt"))
        if found.ndim != 1 or not found.size:
            raise UserError(f"prompt has shape {found.shape}; give the ids of one text [L], at least one")
        self._check_room(f"prompt of {found.size} tokens + max_new_tokens={new_tokens}", found.size + new_tokens)
        ids, new, cache = found.tolist(), found, self.empty_cache(1)
        for _ in range(new_tokens):
            logits, cache = self._run(new[None], cache)
            new = logits[0, -1:].argmax(axis=-1)
            ids += new.tolist()
        return ids

    def _check_room(self, what: str, length: int) -> None:
        if length > (limit := self.config.context_length):
            raise UserError(f"{what} is above context_length={limit}; shorten the text")

    def _run(self, ids: np.ndarray, cache: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        logits, *present = self.session.run(None, {"tokens": ids.astype(np.int64), **cache})
        names = [i.name for i in self.session.get_outputs()[1:]]
        return logits, {n.replace("present", "past", 1): a for n, a in zip(names, present, strict=True)}
