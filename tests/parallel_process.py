"""One of the two processes of tests/test_parallel.py: ``parallel_process.py FOLDER PORT INDEX``; prints what it measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
from parallel_run import tiny_run

from minimoe.training import train

if __name__ == "__main__":
    folder, port, index = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=index)
    run, data, tokenizer = tiny_run()
    seen = []
    result = train(
        run,
        data,
        [],
        tokenizer,
        out=folder,
        resume=True,
        mesh="expert=2",
        on_step=lambda step, m: seen.append(float(m.loss)),
    )
    print(json.dumps({"devices": [jax.local_device_count(), jax.device_count()], "losses": seen, "step": result.step}))
