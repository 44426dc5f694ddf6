"""The refusal of attentions whose matrices a method of this package does not know."""

from __future__ import annotations

from typing import Any

from minimoe.attention import GroupedQueryConfig
from minimoe.errors import UserError
from minimoe.model import MoETransformer


def check_grouped_query(model: MoETransformer, owner: str, *, biases: bool) -> None:
    """Every block, that of a head for multi-token prediction included, has grouped-query attention.

    Args:
      owner: who asks. biases: whether it knows what to do with those of queries, keys and values.

    Raises:
      UserError: naming the first block that has another attention, or biases.
    """
    for name, block in model.named_blocks().items():
        attention: Any = block.attention
        config = attention.config
        if not isinstance(config, GroupedQueryConfig):
            found = f"{owner} knows grouped-query attention, but {name} has {type(config).__name__}"
            raise UserError(f"{found}; use it on a model with GroupedQueryConfig")
        if config.bias and not biases:
            raise UserError(
                f"{owner} has no place for the biases of {name}.attention; use it on a model with bias=False"
            )
