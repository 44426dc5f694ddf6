"""Recipes: which parts of a model are stored in which format, as a list of rules.

A rule is a pattern on the path of a module and a `minimoe.quant.Spec`. Paths are those of the model's attributes:

    embed                              nnx.Embed
    layers.0.attention.q_proj          nnx.Linear; k_proj, v_proj, o_proj
    layers.0.ffn.experts               Experts, both stacks
    layers.0.ffn.shared.gate_up_proj   nnx.Linear; down_proj. In a dense model layers.0.ffn.gate_up_proj
    layers.0.ffn.router                Router
    head                               nnx.Linear, if the embedding is not tied
    mtp.join_proj, mtp.block. ...      a head for multi-token prediction; its block has the names of a layer's

The first rule that matches a module decides, and a module without one is kept as it is.
"""

from __future__ import annotations

import dataclasses
import re

from minimoe.errors import UserError
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
    NVFP4,
    Spec,
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What becomes of the modules whose path a pattern matches.

    Attributes:
      pattern: a regular expression, looked for anywhere in the path (`re.search`); ``^`` and ``$`` pin it down.
      weight: the format of the weights; None keeps them.
      activations: how the inputs of these weights are rounded; None for not at all.
      optional: a rule that decides about no module is usually a misspelt pattern, and an error. True says that it may,
        because the part is one that not every model has.

    Raises:
      UserError: for a pattern that is no regular expression, and for activations without a weight.
    """

    pattern: str
    weight: Spec | None = None
    activations: Spec | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            message = f"Rule: pattern {self.pattern!r} is no regular expression ({error}); escape special characters"
            raise UserError(message) from error
        if self.weight is None and self.activations is not None:
            raise UserError(
                f"Rule({self.pattern!r}): activations without a weight; a kept layer multiplies floats, so name the "
                "format of the weight too or leave activations out"
            )

    def matches(self, path: str) -> bool:
        """Whether the pattern is found in the path."""
        return re.search(self.pattern, path) is not None


@dataclasses.dataclass(frozen=True)
class QuantRecipe:
    """Rules in order, the first match deciding.

    Attributes:
      name: for messages and records.
      rules: see `Rule`.
      doc: one line for people.
      rest: "bfloat16" rounds every weight that the rules leave alone to that format; None keeps it as it is.

    Raises:
      UserError: for another ``rest``.

    Example:
      >>> recipe = QuantRecipe("mine", (Rule("experts$", MXFP4), Rule("_proj$", INT8_CHANNEL)))
      >>> recipe.rule_for("layers.0.ffn.experts").weight.format, recipe.rule_for("embed")
      ('fp4_e2m1', None)
    """

    name: str
    rules: tuple[Rule, ...]
    doc: str = ""
    rest: str | None = None

    def __post_init__(self) -> None:
        if self.rest not in (None, "bfloat16"):
            raise UserError(f'QuantRecipe({self.name!r}): rest={self.rest!r} is not known; use "bfloat16" or None')

    def rule_for(self, path: str) -> Rule | None:
        """The rule that decides about a module, None if there is none."""
        return next((rule for rule in self.rules if rule.matches(path)), None)


_MATRICES = "(^embed|^head|experts|_proj)$"
_INNER = "(experts|_proj)$"  # of attention and feed-forward: all but embedding, head, router and norms
_EXPERTS = r"ffn\.(experts|gate_up_proj|down_proj)$"  # not the shared one; in a dense model its one feed-forward

RECIPES: dict[str, QuantRecipe] = {
    recipe.name: recipe
    for recipe in (
        QuantRecipe("int8", (Rule(_MATRICES, INT8_CHANNEL),), "int8 weights, a scale an output channel; for memory"),
        QuantRecipe(
            "int8-w8a8",
            (Rule(_MATRICES, INT8_CHANNEL, INT8_TOKEN),),
            "int8 weights and activations, multiplied as integers; for memory and speed",
        ),
        QuantRecipe(
            "int4",
            (Rule(_EXPERTS, INT4_GROUP32), Rule(_MATRICES, INT8_CHANNEL)),
            "experts in int4, a scale for 32 weights; the rest as int8",
        ),
        QuantRecipe(
            "fp8",
            (Rule(_INNER, FP8_BLOCK, FP8_TILE),),
            "DeepSeek-V3: e4m3, float32 scales for 128x128 weights and 1x128 activations",
        ),
        QuantRecipe(
            "mxfp8", (Rule(_INNER, MXFP8, MXFP8),), "e4m3 weights and activations, a power of two for 32 values"
        ),
        QuantRecipe("mxfp4", (Rule(_EXPERTS, MXFP4),), "experts in e2m1, a power of two for 32 weights; the rest kept"),
        QuantRecipe("mxfp4-ocp", (Rule(_EXPERTS, MXFP4_OCP),), "mxfp4 with the scales of the MX specification"),
        QuantRecipe("nvfp4", (Rule(_EXPERTS, NVFP4),), "experts in e2m1, an e4m3 scale for 16 weights; the rest kept"),
        QuantRecipe(
            "v4",
            (
                Rule("experts$", MXFP4, FP8_TILE_UE8M0, optional=True),
                Rule("_proj$", FP8_BLOCK_UE8M0, FP8_TILE_UE8M0),
            ),
            "DeepSeek-V4: routed experts in MXFP4, attention and shared expert in e4m3, the rest in bfloat16",
            rest="bfloat16",
        ),
    )
}


def get_recipe(name: str) -> QuantRecipe:
    """A recipe of `RECIPES`.

    Raises:
      UserError: for an unknown name, listing the known ones.

    Example:
      >>> [rule.weight.format for rule in get_recipe("int4").rules]
      ['int4', 'int8']
    """
    if name not in RECIPES:
        raise UserError(f"recipe {name!r} is unknown; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
