"""Models in the layout of Hugging Face Transformers, read and written.

In reading order: `settings` (a config.json), `layout` (what a table row is), `codes` (FP8 and FP4), `common` (what families
share), one file a family (`mixtral`, `glm4_moe`, `deepseek_v3`, `deepseek_v4`), `families` (all of them); `shards` (the
tensor files), `coded_read` (codes as floats), `kept_codes` (codes as they are), `source` (checksums), `tokens` (which token
ends a text), `read`; `coded_write` (floats as codes), `card`, `write`.
"""

from minimoe.hub.layouts.families import LAYOUTS
from minimoe.hub.layouts.read import from_transformers, is_transformers_folder, load_transformers
from minimoe.hub.layouts.source import source_of
from minimoe.hub.layouts.write import to_transformers

__all__ = [
    "LAYOUTS",
    "from_transformers",
    "is_transformers_folder",
    "load_transformers",
    "source_of",
    "to_transformers",
]
