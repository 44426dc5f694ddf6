"""The model in the formats of other programs: ONNX for other runtimes, StableHLO for other back ends, GGUF for llama.cpp."""

from minimoe.export.gguf_file import export_gguf
from minimoe.export.onnx_file import OnnxModel, export_onnx, onnx_bytes
from minimoe.export.programs import Program, decode_program, forward_program, train_program
from minimoe.export.stablehlo import PLATFORMS, StableHLOModel, export_stablehlo

__all__ = [
    "PLATFORMS",
    "OnnxModel",
    "Program",
    "StableHLOModel",
    "decode_program",
    "export_gguf",
    "export_onnx",
    "export_stablehlo",
    "forward_program",
    "onnx_bytes",
    "train_program",
]
