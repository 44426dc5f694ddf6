"""The families that can be read, by the ``model_type`` of their config.json. To add one, write its file and name it here."""

from __future__ import annotations

from minimoe.hub.layouts import deepseek_v3, deepseek_v4, glm4_moe, mixtral
from minimoe.hub.layouts.layout import Layout

LAYOUTS: dict[str, Layout] = {
    layout.model_type: layout for layout in (mixtral.LAYOUT, glm4_moe.LAYOUT, deepseek_v3.LAYOUT, deepseek_v4.LAYOUT)
}
