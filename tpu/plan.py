"""Does a model fit a TPU slice, and what do its programs move? Needs no TPU: omni-jax plan, as a script.

    python tpu/plan.py MODEL_OR_CONFIG --topology v6e-8 --batch 8 --context 32768 --speech --json plan.json

Exit code 0: it fits; 3: it does not; 2: a user error, such as a wrong option.
"""

import typer

from omni_jax.cli.plan import plan
from omni_jax.cli.terminal import run

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(plan)
    run(lambda: app(standalone_mode=False), "plan")
