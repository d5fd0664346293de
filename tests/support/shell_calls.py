"""omni-jax called in this process."""

import sys

import pytest

from omni_jax.cli import main


def call(monkeypatch, capture, *arguments):
    """Exit code, standard output and standard error as ``capture`` (capsys or capsysbinary) has them."""
    # The cache of compiled programs is a setting of the whole process; other tests must not see it.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setattr(sys, "argv", ["omni-jax", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    out, err = capture.readouterr()
    return ended.value.code or 0, out, err
