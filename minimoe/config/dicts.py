"""Configs as plain dictionaries, both ways, those that older versions wrote included."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from minimoe.attention import ATTENTIONS, GroupedQueryConfig, YarnConfig
from minimoe.config.layer import LayerConfig
from minimoe.config.moe import MoEConfig
from minimoe.config.mtp import MTPConfig
from minimoe.errors import UserError
from minimoe.layers import RESIDUALS


def from_fields(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """Builds the dataclass ``cls`` from a mapping and reports every unknown and missing key at once."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    missing = sorted(required - set(values))
    if unknown or missing:
        raise UserError(
            f"{cls.__name__}: unknown keys {unknown}, missing keys {missing}; the file is from another version"
        )
    return cls(**values)


def plain(value: Any) -> Any:
    """Dataclasses as dictionaries, tuples as lists; a kind is named first."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    kind = {"kind": value.kind} if hasattr(value, "kind") else {}
    return kind | {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}


def model_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a model, its sub-configs made, from what `plain` gave; dictionaries of version 0.1 are read as well."""
    values = from_flat(values)
    for name in ("first_layers", "pattern"):
        if isinstance(values.get(name), list | tuple):
            values[name] = tuple(from_fields(LayerConfig, read_parts(layer)) for layer in values[name])
    if isinstance(values.get("mtp"), Mapping):
        values["mtp"] = from_fields(MTPConfig, _read_mtp(values["mtp"]))
    return read_parts(values)


def _read_mtp(values: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(values)
    if isinstance(values.get("layer"), Mapping):
        values["layer"] = from_fields(LayerConfig, read_parts(values["layer"]))
    return values


def read_parts(values: Any) -> dict[str, Any]:
    """The sub-configs of a model or of a block, made from plain values."""
    if not isinstance(values, Mapping):
        raise UserError(f"{values!r} must be a table of keys and values; the file is from another version")
    values = dict(values)
    for name, kinds in (("attention", ATTENTIONS), ("residual", RESIDUALS)):
        if isinstance(values.get(name), Mapping):
            values[name] = _read_kind(name, kinds, values[name])
    if isinstance(values.get("moe"), Mapping):
        values["moe"] = from_fields(MoEConfig, values["moe"])
    return values


def _read_kind(name: str, kinds: Mapping[str, type[Any]], values: Mapping[str, Any]) -> Any:
    rest = dict(values)
    kind = rest.pop("kind", None)
    if kind not in kinds:
        raise UserError(f"{name}: kind={kind!r} is not known; choose one of {', '.join(kinds)}")
    if isinstance(rest.get("yarn"), Mapping):
        rest["yarn"] = from_fields(YarnConfig, rest["yarn"])
    return from_fields(kinds[kind], rest)


def from_flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Files of version 0.1 hold the sizes of grouped-query attention among those of the model."""
    values = dict(values)
    old = ("num_heads", "num_kv_heads", "head_dim", "rope_theta")
    if "attention" not in values and any(name in values for name in old):
        found = {name: values.pop(name) for name in old if name in values}
        values["attention"] = {"kind": GroupedQueryConfig.kind} | found
    return values
