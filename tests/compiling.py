"""How the tests have XLA's CPU compiler work: fast, for most of their time is compiling, and what they run is tiny.

A tiny model that speaks once compiles in 10 s of processor time instead of 35 with jaxlib 0.10, in 16 instead of 27 with
0.12. `parity/test_optimized.py` compares what it says with what it says when compiled as for users; `XLA_FLAGS=
--xla_force_host_platform_device_count=8 pytest` compiles everything so.
"""

import importlib.metadata

FAST = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FAST.append("--xla_cpu_use_fusion_emitters=false")  # later ones have no other


def flags(devices: int) -> str:
    """``XLA_FLAGS`` of a process with a number of CPU devices."""
    return " ".join([f"--xla_force_host_platform_device_count={devices}", *FAST])
