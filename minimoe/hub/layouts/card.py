"""The README.md of a folder for Transformers: front matter for machines, the card for people, and what the files measure.

Front matter and sizes are made from the files and from what is known of the model, never typed. A licence is named only
where it is known: that of the models that come with this package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minimoe.config import ModelConfig
from minimoe.hub.layouts.layout import Layout
from minimoe.hub.tensorfile import FileRecord, TensorFile

README = "README.md"
CORPUS = "minimoe-corpus"  # the text that comes with the package, in English, Spanish and Python
UNKNOWN = "unknown"


def readme(
    folder: Path,
    names: Sequence[str],
    name: str,
    layout: Layout,
    config: ModelConfig,
    dtype: str,
    body: str,
    provenance: Mapping[str, Any],
) -> str:
    """The whole text.

    Args:
      folder, names: the files that the card is about, written already.
      name: of the model. body: its card; a few lines are made if it is empty.
      provenance: as in `minimoe.hub.save`.
    """
    body = body or _body(name, layout, config)
    return "\n".join([_front_matter(layout, dtype, provenance), body.rstrip(), "", _use(dtype), _files(folder, names)])


def data_of(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name and hash of the training text; empty if they are not known."""
    source = provenance.get("source", provenance)
    data = source.get("data") if isinstance(source, Mapping) else None
    return data if isinstance(data, Mapping) else {}


def _front_matter(layout: Layout, dtype: str, provenance: Mapping[str, Any]) -> str:
    data = data_of(provenance).get("name")
    lines = ["---", f"license: {'mit' if 'shipped' in provenance else UNKNOWN}", "library_name: transformers"]
    lines += ["pipeline_tag: text-generation"]
    lines += ["language:", "- en", "- es"] if data == CORPUS else []
    lines += ["tags:", *(f"- {tag}" for tag in ("mixture-of-experts", layout.model_type, dtype, "minimoe"))]
    lines += ["datasets:", f"- {json.dumps(data)}"] if isinstance(data, str) else []
    return "\n".join([*lines, "---"])


def _body(name: str, layout: Layout, config: ModelConfig) -> str:
    from minimoe import __version__
    from minimoe.cost import count_params

    count = count_params(config)
    return f"""# {name}

A Mixture-of-Experts language model of {count.total / 1e6:.2f} million parameters, {count.active / 1e6:.2f} million of
them active on a token, written by minimoe {__version__} in the layout of `{layout.model_type}`.

What it was trained on, under which licence, and what it scores was not said when it was exported: whoever passes it on should
add it here.
"""


_CODES = """
Its matrices are codes with scales (`quantization_config` in `config.json`). Transformers needs `accelerate` for them. Without
a GPU it multiplies codes by scales while it loads, into bfloat16; leave `dtype` alone there, because Transformers 5.23 would
widen the codes only, and cannot mix the two. How Transformers multiplies with the codes on a GPU was not tried.
"""


def _use(dtype: str) -> str:
    return f"""## Use

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")

`generate()` draws each token (`do_sample` in `generation_config.json`), since the most likely text of a small model repeats
itself; `generate(do_sample=False)` gives the most likely text.
{_CODES if dtype in ("fp8", "fp4") else ""}"""


def _files(folder: Path, names: Sequence[str]) -> str:
    """Bytes and checksum of each file, and of the tensors by their dtype, as they are on the disk."""
    rows, dtypes = [], dict[str, list[int]]()
    for name in sorted(names):
        record = FileRecord.of(folder / name)
        rows.append(f"| {name} | {record.bytes:,} | `{record.sha256[:16]}` |")
        if name.endswith(".safetensors"):
            with TensorFile(folder / name) as file:
                for tensor, entry in file.header.items():
                    start, end = entry["data_offsets"]
                    counts = dtypes.setdefault(file.dtype(tensor), [0, 0])
                    counts[0] += 1
                    counts[1] += end - start
    tensors = [f"| {dtype} | {count:,} | {size:,} |" for dtype, (count, size) in sorted(dtypes.items())]
    head = ["## Files", "", "| file | bytes | sha256, first 16 digits |", "| --- | --- | --- |", *rows, ""]
    return "\n".join([*head, "| tensors stored as | number | bytes |", "| --- | --- | --- |", *tensors, ""])
