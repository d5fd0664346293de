"""This machine's rates in each library: of matrix products with the models' sizes, and of reading memory.

They bound a row. Where one library multiplies faster at the same size, that part of a row's ratio is due to the library
and not to the model.
"""

import platform
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from clock import spent

# Rows x contracted x columns: one size for each place where a model spends most of its time.
LARGE = "a large square"
PRODUCTS = {
    "thinker": {
        LARGE: (2048, 2048, 2048),
        "a projection of the prompt": (512, 1024, 1024),
        "an expert, up": (64, 1024, 768),
        "an expert, down": (64, 384, 1024),
        "audio encoder, up": (390, 512, 2048),
        "audio encoder, down": (390, 2048, 512),
        "vision encoder, up": (1024, 1152, 4304),
        "vision encoder, down": (1024, 4304, 1152),
        "a token's output head": (1, 1024, 32000),
    },
    "speech": {
        LARGE: (2048, 2048, 2048),
        "code predictor, up, of one row": (1, 512, 3072),
        "vocoder, a convolution's product": (2000, 384, 768),
    },
    "qwen2_5": {
        LARGE: (2048, 2048, 2048),
        "a projection of the prompt": (512, 1024, 1024),
        "dense network, up": (512, 1024, 4096),
        "dense network, down": (512, 4096, 1024),
        "audio encoder, up": (1500, 512, 2048),
        "audio encoder, down": (1500, 2048, 512),
        "DiT, up": (1000, 512, 1024),
        "talker, up, of one row": (1, 512, 4096),
    },
}
STREAM = 1 << 27

Rates = dict[str, tuple[float, float]]


def measure(model: str, tries: int = 3) -> tuple[Rates, tuple[float, float]]:
    """FLOP/s of each product, and bytes/s of reading 512 MiB once: (jax, torch), each the best of several tries."""
    found = {}
    for name, (rows, inner, columns) in PRODUCTS[model].items():
        mine, their = _times(rows, inner, columns, tries)
        found[name] = 2 * rows * inner * columns / mine, 2 * rows * inner * columns / their
    mine, their = _times(1, 4096, STREAM // 4096, tries)
    return found, (4 * STREAM / mine, 4 * STREAM / their)


def best(runs: list[tuple[Rates, tuple[float, float]]]) -> tuple[Rates, tuple[float, float]]:
    """The best rate of each library in any of the runs."""

    def most(pairs: list[tuple[float, float]]) -> tuple[float, float]:
        mine, their = zip(*pairs, strict=True)
        return max(mine), max(their)

    products = {name: most([run[name] for run, _ in runs]) for name in runs[0][0]}
    return products, most([reading for _, reading in runs])


def show(model: str, rates: Rates, bandwidth: tuple[float, float]) -> None:
    print(f"{'rates in this run, GFLOP/s':44}{'jax':>8}{'torch':>8}")
    for name, (mine, their) in rates.items():
        size = " x ".join(map(str, PRODUCTS[model][name]))
        print(f"{name + ', ' + size:44}{mine / 1e9:8.1f}{their / 1e9:8.1f}")
    print(f"{'reading memory, GB/s':44}{bandwidth[0] / 1e9:8.1f}{bandwidth[1] / 1e9:8.1f}")


def processor() -> str:
    """The processor's name, if the system states it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in lines if ":" in line}
    said = names.get("model name") or platform.processor() or platform.machine()
    return said + (f", model {names['model']}" if "model" in names else "")


def _times(rows: int, inner: int, columns: int, tries: int) -> tuple[float, float]:
    """Seconds of x @ w in jax and of the same in torch, which holds w transposed, as its Linear does."""
    x, w = np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)
    multiply, held = jax.jit(jnp.matmul), (jnp.asarray(x), jnp.asarray(w))
    theirs = torch.from_numpy(x), torch.from_numpy(w.T.copy())
    actions = (
        lambda: jax.block_until_ready(multiply(*held)),
        lambda: torch.nn.functional.linear(*theirs),
    )
    times: list[list[float]] = [[], []]
    for _ in range(tries + 1):
        for side, action in enumerate(actions):
            # A product of microseconds is repeated, to be longer than the clock's resolution.
            count = max(1, int(5e7 / (rows * inner * columns)))
            times[side].append(spent(lambda action=action, count=count: [action() for _ in range(count)]) / count)
    mine, their = (min(side[1:]) for side in times)
    return mine, their
