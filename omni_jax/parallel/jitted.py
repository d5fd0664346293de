"""``jax.jit`` for the models' programs, with a compiler option on a CPU.

XLA's CPU compiler passes products to YNNPACK. On an Intel core with AVX-512 its other library, Eigen, computes those of
a model's networks and experts in 13 to 24 % less processor time (docs/performance.md). Other platforms need no options.
"""

from collections.abc import Callable
from functools import cache, cached_property, partial
from typing import Any

import jax
from jax.core import Tracer

# Passes no kind of operation to YNNPACK.
EIGEN = {"xla_cpu_experimental_ynn_fusion_type": ""}


@cache
def _options() -> dict[str, Any] | None:
    """Compiler options for the default platform; None where it needs none or its compiler rejects them."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=EIGEN).lower(0).compile()
    except (jax.errors.JaxRuntimeError, ValueError):
        return None
    return EIGEN


class Jitted:
    """A jitted function. Inside another program, or lowered explicitly, it has no compiler options."""

    def __init__(self, function: Callable[..., Any], **how: Any):
        self.plain = jax.jit(function, **how)
        self._tune = partial(jax.jit, function, **how)

    @cached_property
    def tuned(self) -> Any:
        options = _options()
        return self._tune(compiler_options=options) if options else self.plain

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.tuned is self.plain:
            return self.plain(*arguments, **named)
        # JAX accepts compiler options only for outermost programs.
        inside = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((arguments, named)))
        return (self.plain if inside else self.tuned)(*arguments, **named)

    def lower(self, *arguments: Any, **named: Any) -> Any:
        return self.plain.lower(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        """Other attributes of a jitted function, such as its cache."""
        return getattr(self.tuned, name)


def jitted(function: Callable[..., Any], **how: Any) -> Any:
    """``jax.jit(function, **how)`` with the platform's compiler options."""
    return Jitted(function, **how)
