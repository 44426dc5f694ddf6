"""A few lines over `onnx.helper`: a graph that is written as one writes array code.

    g = Graph()
    y = g.Relu(g.MatMul(x, g.constant(weight)))

Every operator of the ONNX standard is a method. It takes names of tensors and attributes, adds one node, and returns the
name of what the node gives (or the names, if ``outputs=`` says that there are several).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

OPSET = 18  # old enough for the converters of other makers, new enough for ScatterND that adds


class Graph:
    """Nodes and constants, in the order in which they were added.

    Attributes:
      nodes: as `onnx.helper.make_node` gives them. constants: by name, NumPy arrays.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self._shared: dict[tuple[Any, ...], str] = {}

    def __getattr__(self, operator: str) -> Callable[..., Any]:
        if not operator[:1].isupper():
            raise AttributeError(operator)

        def add(*inputs: str, outputs: int = 1, **attributes: Any) -> Any:
            from onnx import helper

            name = f"{operator}_{len(self.nodes)}"
            names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
            self.nodes.append(helper.make_node(operator, list(inputs), names, name, **attributes))
            return names[0] if outputs == 1 else names

        return add

    def constant(self, value: Any, name: str, dtype: Any = None) -> str:
        """A constant with a name of its own, such as a weight."""
        assert name not in self.constants, name
        self.constants[name] = np.array(value, dtype, order="C")
        return name

    def ints(self, *values: int) -> str:
        """A vector of int64, as shapes and axes are given; equal ones are one constant."""
        return self._small(np.array(values, np.int64))

    def int(self, value: int) -> str:
        """A scalar of int64."""
        return self._small(np.array(value, np.int64))

    def float(self, value: float) -> str:
        """A scalar of float32."""
        return self._small(np.array(value, np.float32))

    def _small(self, value: np.ndarray) -> str:
        key = (str(value.dtype), value.shape, value.tobytes())
        if key not in self._shared:
            self._shared[key] = self.constant(value, f"small_{len(self._shared)}")
        return self._shared[key]

    def size(self, tensor: str, axis: int) -> str:
        """The length of one axis, as a vector of one int64."""
        return self.Shape(tensor, start=axis, end=axis + 1)
