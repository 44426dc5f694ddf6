"""Strict switches for the whole suite, what keeps it fast and small, and the tiny models that several files share.

JAX promotes neither dtypes nor ranks here, warnings are errors (pyproject.toml), and every annotated function of the
package is checked against its shapes at run time (``--jaxtyping-packages``). The package is imported inside fixtures:
the checker must be in place before the first import.

Most of the suite's time goes into compiling thousands of tiny programs. They are compiled the quick way, and both workers
and every process that a test starts share the larger ones in one folder that lasts as long as the run. For a second run
that finds the programs of the first, name a folder yourself: ``JAX_COMPILATION_CACHE_DIR=~/.cache/minimoe-tests pytest``.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib.util
import math
import os
import shutil
import sys
import tempfile

import pytest
import type_checks

# In the environment, before JAX is imported: workers and processes that tests start inherit it. XLA's older way to
# generate code for fused operations compiles a tiny program in 60% of the time, and not splitting a program for several
# threads takes a quarter off what is left.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
).strip()
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # programs are tiny: compiling them is what costs
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.4"  # a small one is made as soon as read
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    MADE_FOLDER = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="minimoe-tests-")
else:  # the user's, or this is a worker
    MADE_FOLDER = None

import jax

type_checks.install()
gc.disable()  # until all tests are collected: what is imported stays

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# JAX makes a compiler context (MLIR's) for every program and keeps it: more time and memory than the tiny program itself.
# Here one serves them all. The function is private to JAX: where it is gone, the suite is slower and nothing else changes.
try:
    from jax._src.interpreters import mlir

    mlir.make_ir_context = functools.cache(mlir.make_ir_context)
except (ImportError, AttributeError):
    pass

# Files that take long, longest first: two workers end at the same time only if these begin early.
LONG_FILES = (
    "test_cli.py",
    "test_cli_distill.py",
    "test_hub_pretrained.py",
    "test_bench.py",
    "test_disk.py",
    "test_parallel.py",
    "test_training.py",
    "test_speculative.py",
    "test_docs.py",
    "test_moe_dispatch.py",
    "test_exercises_judging.py",
    "test_export_stablehlo.py",
    "test_token_ids.py",
    "test_distill_offline.py",
    "test_experiments.py",
    "test_claims.py",
    "test_cli_quantize.py",
    "test_quant_qat.py",
    "test_attention_shared_kv.py",
    "test_mtp.py",
    "test_exercises.py",
    "test_export_onnx.py",
    "test_moe_edges.py",
    "test_hub_layout_v4.py",
    "test_moe_routing.py",
    "test_mtp_commands.py",
    "test_moe_inputs.py",
    "test_hub_layouts.py",
    "test_moe_in_flax.py",
    "test_moe_layer.py",
    "test_v4_oracle.py",
    "test_generate.py",
    "test_quant_edges.py",
    "test_cli_settings.py",
    "test_hyper.py",
    "test_v4_parts.py",
    "test_distill_on_policy.py",
)
INTEROP = os.environ.get("MINIMOE_REQUIRE_INTEROP") == "1"  # run what is marked live, too
COMPILED_AT_ONCE = 2000  # a program in memory costs 0.25 to 1 MB
MEMORY_OF_A_WORKER = 1.5e9  # bytes below which dropping programs is not worth making some of them again
compiled = 0


def memory_in_use() -> float:
    """Bytes that this process holds in memory; unlimited where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return math.inf


def count_compiled(event: str, duration: float, **details: object) -> None:
    global compiled
    compiled += event.endswith("backend_compile_duration")


jax.monitoring.register_event_duration_secs_listener(count_compiled)


def pytest_configure() -> None:
    """A gate that asks for PyTorch and Transformers must not pass without them."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if INTEROP and missing:
        raise pytest.UsageError(f"MINIMOE_REQUIRE_INTEROP=1, and {' and '.join(missing)} cannot be imported")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        live = item.get_closest_marker("live")
        if live and not INTEROP and not live.kwargs.get("everywhere"):
            item.add_marker(pytest.mark.skip("set MINIMOE_REQUIRE_INTEROP=1 and install minimoe[interop]"))
    place = {name: i for i, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_collection_finish() -> None:
    """Whatever is in memory by now stays until the end: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 50)  # tracing makes many objects and few cycles


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """JAX never drops a compiled program by itself; without this each worker would end at 6 GB."""
    global compiled
    file_ends = nextitem is None or nextitem.path != item.path
    many = compiled > (COMPILED_AT_ONCE / 2 if file_ends else COMPILED_AT_ONCE)
    if many and memory_in_use() > MEMORY_OF_A_WORKER:
        compiled = 0
        jax.clear_caches()
        gc.collect()
        if sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc; others give memory back by themselves
            if trim is not None:
                trim(0)


def pytest_unconfigure() -> None:
    if MADE_FOLDER:
        shutil.rmtree(MADE_FOLDER, ignore_errors=True)


@pytest.fixture(scope="session")
def key() -> jax.Array:
    return jax.random.key(7)


@pytest.fixture(scope="session")
def moe_config():
    """E = 4 experts, K = 2 of them, and a shared one."""
    from minimoe import MoEConfig

    return MoEConfig(d_model=8, d_expert=6, num_experts=4, top_k=2, num_shared_experts=1, score="sigmoid")


@pytest.fixture(scope="session")
def tiny_config(moe_config):
    """Two sparse layers, few tokens in the vocabulary: for everything that does not read text."""
    from minimoe import GroupedQueryConfig, ModelConfig

    return ModelConfig(
        vocab_size=19, d_model=8, num_layers=2,
        attention=GroupedQueryConfig(num_heads=4, num_kv_heads=2, head_dim=4),
        context_length=24,
        moe=moe_config,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    """Read only. Its weights are scaled up, so that logits differ by more than rounding."""
    from flax import nnx

    from minimoe import MoETransformer

    model = MoETransformer(tiny_config, rngs=nnx.Rngs(3))
    nnx.update(model, jax.tree.map(lambda p: p * 3, nnx.state(model, nnx.Param)))
    return model
