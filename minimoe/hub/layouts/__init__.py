"""Models in the layout of Hugging Face Transformers, read and written.

In reading order: `settings` (a config.json), `layout` (what a table row is), `common` (what families share), one file a
family (`mixtral`, `glm4_moe`, `deepseek_v3`), `families` (all of them), `shards` (the tensor files), `read`, `write`.
"""

from minimoe.hub.layouts.families import LAYOUTS
from minimoe.hub.layouts.read import from_transformers, is_transformers_folder, load_transformers
from minimoe.hub.layouts.write import to_transformers

__all__ = ["LAYOUTS", "from_transformers", "is_transformers_folder", "load_transformers", "to_transformers"]
