"""Quantization: number formats, arrays stored in them, and models that compute with those arrays.

In reading order: `formats`, `specs` (who shares a scale), `tensor` (arrays), `matmul`, `layers`, `recipes`, `models`
(a whole model) and `dequantize` (the way back), `report` (sizes, changed routes); then training under rounding (`qat`,
`fp8_training`, `methods`), the cache (`kv`, `shared_rows`), and what calibration text
buys (`calibrate`, `smooth`, `gptq`, `sensitivity`).
"""

from minimoe.quant.calibrate import Calibration, InputStatistics, collect
from minimoe.quant.comparison import compare_models
from minimoe.quant.dequantize import dequantize_model, is_quantized
from minimoe.quant.formats import (
    FORMATS,
    UE8M0,
    Format,
    e8m0_decode,
    e8m0_encode,
    get_format,
    pack_nibbles,
    ue8m0_scale,
    unpack_nibbles,
)
from minimoe.quant.fp8_training import Fp8Experts, Fp8Linear, fp8_matmul, with_fp8_training
from minimoe.quant.gptq import gptq, gptq_experts, gptq_model, output_error
from minimoe.quant.kv import CACHES, CacheFactory, QuantKVCache, cache_bytes_per_token, kv_cache, through_cache
from minimoe.quant.layers import QuantEmbed, QuantExperts, QuantLinear
from minimoe.quant.matmul import int8_matmul, multiply, qmatmul
from minimoe.quant.methods import Fp8Products, QuantizationAware
from minimoe.quant.models import quantize_model
from minimoe.quant.qat import QatTransform, fake_quantize, qat_transform, straight_through
from minimoe.quant.recipes import RECIPES, QuantRecipe, Rule, get_recipe
from minimoe.quant.report import SizeReport, SizeRow, routing_changes, size_report
from minimoe.quant.scales import choose_scale
from minimoe.quant.sensitivity import expert_calibration_experiment, layer_sensitivity
from minimoe.quant.shared_rows import V4_CACHE, QuantRows, V4CacheFactory
from minimoe.quant.smooth import smooth, smoothing_factors
from minimoe.quant.specs import (
    FP8_BLOCK,
    FP8_BLOCK_UE8M0,
    FP8_TILE,
    FP8_TILE_UE8M0,
    INT4_GROUP32,
    INT8_CHANNEL,
    INT8_TOKEN,
    MXFP4,
    MXFP4_OCP,
    MXFP8,
    MXFP8_OCP,
    NF4_GROUP64,
    NVFP4,
    SPECS,
    Block,
    Granularity,
    Group,
    PerChannel,
    PerTensor,
    PerToken,
    Spec,
    Tile,
)
from minimoe.quant.tensor import QTensor, quantize, requantize, sqnr_db, take_expert

__all__ = [
    "CACHES",
    "FORMATS",
    "FP8_BLOCK",
    "FP8_BLOCK_UE8M0",
    "FP8_TILE",
    "FP8_TILE_UE8M0",
    "INT4_GROUP32",
    "INT8_CHANNEL",
    "INT8_TOKEN",
    "MXFP4",
    "MXFP4_OCP",
    "MXFP8",
    "MXFP8_OCP",
    "NF4_GROUP64",
    "NVFP4",
    "RECIPES",
    "SPECS",
    "UE8M0",
    "V4_CACHE",
    "Block",
    "CacheFactory",
    "Calibration",
    "Format",
    "Fp8Experts",
    "Fp8Linear",
    "Fp8Products",
    "Granularity",
    "Group",
    "InputStatistics",
    "PerChannel",
    "PerTensor",
    "PerToken",
    "QTensor",
    "QatTransform",
    "QuantEmbed",
    "QuantExperts",
    "QuantKVCache",
    "QuantLinear",
    "QuantRecipe",
    "QuantRows",
    "QuantizationAware",
    "Rule",
    "SizeReport",
    "SizeRow",
    "Spec",
    "Tile",
    "V4CacheFactory",
    "cache_bytes_per_token",
    "choose_scale",
    "collect",
    "compare_models",
    "dequantize_model",
    "e8m0_decode",
    "e8m0_encode",
    "expert_calibration_experiment",
    "fake_quantize",
    "fp8_matmul",
    "get_format",
    "get_recipe",
    "gptq",
    "gptq_experts",
    "gptq_model",
    "int8_matmul",
    "is_quantized",
    "kv_cache",
    "layer_sensitivity",
    "multiply",
    "output_error",
    "pack_nibbles",
    "qat_transform",
    "qmatmul",
    "quantize",
    "quantize_model",
    "requantize",
    "routing_changes",
    "size_report",
    "smooth",
    "smoothing_factors",
    "sqnr_db",
    "straight_through",
    "take_expert",
    "through_cache",
    "ue8m0_scale",
    "unpack_nibbles",
    "with_fp8_training",
]
