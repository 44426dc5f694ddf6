"""Models on disk: saved with `save`, read with `load`; `resolve` takes anything that is called a checkpoint.

In reading order: `folder` (what a saved folder holds), `quantized` (how quantized arrays are described), `names` (a
model as names and arrays), `tensorfile` (one safetensors file), `layouts` (folders of Transformers), `pretrained`
(models that come with the package), `checkpoints`.
"""

from minimoe.hub.checkpoints import provenance_of, resolve, resolve_with_tokenizer
from minimoe.hub.folder import check_destination, is_saved_folder, load, save
from minimoe.hub.layouts import from_transformers, to_transformers
from minimoe.hub.pretrained import card, load_pretrained, recorded_quality, shipped
from minimoe.hub.quantized import Quantization

__all__ = [
    "Quantization",
    "card",
    "check_destination",
    "from_transformers",
    "is_saved_folder",
    "load",
    "load_pretrained",
    "provenance_of",
    "recorded_quality",
    "resolve",
    "resolve_with_tokenizer",
    "save",
    "shipped",
    "to_transformers",
]
