"""The model in the formats of other programs: ONNX for other runtimes, StableHLO for other back ends."""

from minimoe.export.onnx_file import OnnxModel, export_onnx, onnx_bytes

__all__ = ["OnnxModel", "export_onnx", "onnx_bytes"]
