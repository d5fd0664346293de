"""Options of XLA's CPU compiler for the tests: compilation is most of their time, because models are tiny.

A tiny model that speaks once compiles in 10 s of processor time instead of 35 with jaxlib 0.10, in 16 instead of 27 with
0.12. `parity/test_optimized.py` compares replies of programs compiled this way and as for users. To compile all
tests as for users: XLA_FLAGS=--xla_force_host_platform_device_count=8 pytest
"""

import importlib.metadata

FAST = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FAST.append("--xla_cpu_use_fusion_emitters=false")  # later versions die of the unknown flag


def flags(devices: int) -> str:
    """``XLA_FLAGS`` of a process with a number of CPU devices."""
    return " ".join([f"--xla_force_host_platform_device_count={devices}", *FAST])
