"""What is wrong with a set-up, and how to repair it, judged from the facts of `minimoe.doctor.facts`.

Three levels: "repair" is what stops minimoe from working, "slow" is what makes it slower than this machine could be,
"note" is what is good to know. Each rule is a function of the facts, so that it can be tried on facts of any machine.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Facts = Mapping[str, Any]
LEVELS = ("repair", "slow", "note")
LEAST_PYTHON = "3.11"
TESTED = {"jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8"}  # as in constraints.txt
USES = {"notebooks": "the lessons", "interop": "PyTorch and Transformers beside ours", "export": "ONNX and StableHLO"}
GB = 1e9


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something about the set-up: its level, one of `LEVELS`, what it is, and what to do."""

    level: str
    what: str
    repair: str

    def __str__(self) -> str:
        return f"{self.level}: {self.what}; {self.repair}"


def diagnose(facts: Facts) -> list[Finding]:
    """All findings, what must be repaired first.

    Args:
      facts: of `minimoe.doctor.gather`, with or without "machine", the record of a `minimoe.cost.Machine`.
    """
    found = [finding for rule in RULES for finding in rule(facts)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def numbers_of(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparing.

    Example:
      >>> numbers_of("0.10.2") > numbers_of("0.9.5rc1")
      True
    """
    numbers = []
    for part in version.split("."):
        if not part[:1].isdigit():
            break
        numbers.append(int(re.match(r"\d+", part)[0]))  # type: ignore[index]
    return tuple(numbers)


def python_is_new_enough(facts: Facts) -> Iterator[Finding]:
    has = facts["versions"]["python"]
    if numbers_of(has) < numbers_of(LEAST_PYTHON):
        yield Finding("repair", f"Python {has} is too old", f"use Python {LEAST_PYTHON} or newer")


def packages_are_there(facts: Facts) -> Iterator[Finding]:
    if not facts["requirements"]:
        yield Finding("note", "minimoe lies on the path but is not installed", "pip install . checks its packages")
    missing: dict[str, list[str]] = {}
    for need in facts["requirements"]:
        name, least, has = need["name"], need["least"], need["has"]
        if has is None and need["extra"]:
            missing.setdefault(need["extra"], []).append(name)
        elif has is None:
            yield Finding("repair", f"{name} is not installed", f'pip install "{name}>={least}"')
        elif numbers_of(has) < numbers_of(least):
            level = "note" if need["extra"] else "repair"
            yield Finding(level, f"{name} {has} is older than {least}", f'pip install "{name}>={least}"')
    for extra, names in missing.items():
        if extra in USES:
            what = f"{', '.join(names)} not installed, for {USES[extra]}"
            yield Finding("note", what, f'pip install "minimoe[{extra}]" if you want that')


def versions_are_tested(facts: Facts) -> Iterator[Finding]:
    for name, tested in TESTED.items():
        has = facts["versions"].get(name)
        if has is not None and numbers_of(has) > numbers_of(tested):
            repair = "pip install -c constraints.txt minimoe takes the tested ones if something fails"
            yield Finding("note", f"{name} {has} is newer than {tested}, which the tests ran with", repair)


def jax_works(facts: Facts) -> Iterator[Finding]:
    device = facts["devices"]
    if device["error"]:
        yield Finding("repair", f"JAX does not start ({device['error']})", 'pip install --upgrade "jax[cpu]"')
        return
    if facts["accelerators"] and device["platform"] == "cpu":
        asked = facts["environment"].get("JAX_PLATFORMS", "")
        repair = "unset JAX_PLATFORMS" if "cpu" in asked else 'pip install "jax[cuda12]", or the JAX of that maker'
        yield Finding("slow", f"an accelerator is here ({facts['accelerators'][0]}), and JAX uses the CPU", repair)
    if device["platform"] != "cpu":
        what = 'the default way to the experts, dispatch="dropless", is made for CPUs, and this is an accelerator'
        yield Finding("slow", what, 'set dispatch="ragged"; `minimoe bench dispatch` times all of them here')


def numbers_are_32_bits(facts: Facts) -> Iterator[Finding]:
    if facts["devices"]["x64"]:
        what = "JAX computes with 64 bits (JAX_ENABLE_X64): twice the memory, half the speed, and untested here"
        yield Finding("slow", what, "unset JAX_ENABLE_X64")


def programs_are_compiled(facts: Facts) -> Iterator[Finding]:
    costs = {
        "JAX_DISABLE_JIT": "no program is compiled, and everything takes a hundred times as long",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "programs are compiled without most optimisations",
        "JAX_DEBUG_NANS": "every result is looked at for NaN",
    }
    for name, cost in costs.items():
        if facts["environment"].get(name, "").lower() in ("1", "true", "on", "yes", "y", "t"):
            yield Finding("slow", f"{name} is on: {cost}", f"unset {name}")


def cores_are_enough(facts: Facts) -> Iterator[Finding]:
    usable, machine = facts["cores"]["usable"], facts["cores"]["machine"]
    if usable < min(machine, 4):
        what = f"this process may use {usable} of {machine} cores"
        yield Finding("slow", what, "start it without taskset, or give the container more")
    elif usable < 2:
        yield Finding("slow", "one core: the lessons' minutes are those of two", "expect twice the time")
    load = facts["cores"]["load"]
    if load is not None and load > 0.5 * machine + 0.5:
        what = f"other work keeps {load:g} of {machine} cores busy: what is measured now is too low"
        yield Finding("note", what, "let it end and call minimoe doctor again")


def threads_are_free(facts: Facts) -> Iterator[Finding]:
    usable, set_to = facts["cores"]["usable"], facts["environment"]
    for name in ("NPROC", "PJRT_NPROC"):
        if set_to.get(name, "").isdigit() and int(set_to[name]) < usable:
            yield Finding("slow", f"{name}={set_to[name]} keeps JAX from using {usable} cores", f"unset {name}")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if set_to.get(name, "").isdigit() and int(set_to[name]) < usable:
            what = f"{name}={set_to[name]} slows PyTorch, to which minimoe bench compares"
            yield Finding("note", what, f"unset {name} before you believe its ratios")
    flags = set_to.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen=false" in flags:
        yield Finding("slow", "XLA_FLAGS makes every matmul use one core", "unset XLA_FLAGS")
    split = re.search(r"xla_force_host_platform_device_count=(\d+)", flags)
    if split and int(split[1]) > 1:
        what = f"XLA_FLAGS makes {split[1]} devices of one processor, which share its cores"
        yield Finding("note", what, "good for trying meshes; unset XLA_FLAGS before you time anything")


def memory_is_enough(facts: Facts) -> Iterator[Finding]:
    left = facts["memory"]["available_bytes"]
    if left is not None and left < 1 * GB:
        yield Finding("repair", f"{left / GB:.1f} GB of memory are free", "close programs: nano trains in 1 GB")
    elif left is not None and left < 3 * GB:
        what = f"{left / GB:.1f} GB of memory are free: enough for nano, not for small"
        yield Finding("note", what, "close programs before training small")


def cache_is_writable(facts: Facts) -> Iterator[Finding]:
    cache = facts["cache"]
    if cache["folder"] is None:
        what = "there is no cache folder: every command compiles its programs anew"
        yield Finding("slow", what, "set MINIMOE_CACHE_DIR to a folder of yours")
    elif not cache["writable"]:
        what = f"the cache folder {cache['folder']} cannot be written: every command compiles its programs anew"
        yield Finding("slow", what, "make it writable, or set MINIMOE_CACHE_DIR to a folder of yours")
    free = cache["free_bytes"]
    if free is not None and free < 0.2 * GB:
        yield Finding("repair", f"{free / GB:.2f} GB of disk are free there", "make room: a run of small takes 0.2 GB")
    elif free is not None and free < 2 * GB:
        yield Finding("note", f"{free / GB:.1f} GB of disk are free there", "make room before longer runs")
    if cache["bytes"] > 5 * GB:
        what = f"the cache folder holds {cache['bytes'] / GB:.1f} GB"
        yield Finding("note", what, f"delete {cache['folder']} if you like: it is made anew")


def rates_are_usual(facts: Facts) -> Iterator[Finding]:
    """Far below what any core of the last ten years reaches: something else is running, or the processor is held back."""
    machine = facts.get("machine")
    if machine is None or facts["devices"]["platform"] != "cpu":
        return
    each = machine["peak_flops"]["float32"] / machine["cores"]
    if each < 1e10:
        what = f"a large matmul reaches {each / 1e9:.1f} GFLOP/s a core, and 30 to 100 is usual"
        yield Finding("slow", what, "end what else runs, and plug in a laptop")


RULES: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    python_is_new_enough,
    packages_are_there,
    versions_are_tested,
    jax_works,
    numbers_are_32_bits,
    programs_are_compiled,
    cores_are_enough,
    threads_are_free,
    memory_is_enough,
    cache_is_writable,
    rates_are_usual,
)
