"""The router microscope: one web page that holds a model, its tokenizer and the code that runs it, and needs nothing else.

In reading order: `pack` (weights and tokenizer as bytes and a table), ``tokenizer.js`` and ``model.js`` (the same model once
more, in plain JavaScript), ``view.js`` (what is drawn), `page` (all of it in one file).
"""

from minimoe.microscope.page import build_page, write_page

__all__ = ["build_page", "write_page"]
