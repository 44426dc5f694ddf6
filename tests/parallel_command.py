"""`minimoe train` of a tiny model, for tests/test_parallel.py: ``parallel_command.py FOLDER NAME [OPTIONS]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
from parallel_run import tiny_run

from minimoe.cli import app
from minimoe.config import PRESETS

if __name__ == "__main__":
    folder, name, *options = Path(sys.argv[1]), *sys.argv[2:]
    PRESETS["nano"] = tiny_run()[0].model
    sizes = ["--tokenizer", "byte", "--text", str(folder / "text.txt"), "--steps", "3", "--batch-size", "4"]
    code = app.run(["train", "--out", str(folder / name), *sizes, *options])
    print(json.dumps({"code": code, "devices": [jax.local_device_count(), jax.device_count()]}))
