"""Programs compiled as for users give the reply of programs compiled as for tests."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from omni_jax import Omni
from omni_jax.processing.conversation import SPOKEN_SYSTEM
from omni_jax.testing import tiny_config, tiny_qwen2_5_config, write_tiny

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import numpy as np
from test_optimized import said
from omni_jax import Omni
np.savez(sys.argv[2], *said(Omni.load(sys.argv[1])))
"""


def said(omni):
    """Tokens, codes and samples of a reply to sound and a picture."""
    random = np.random.default_rng(0)
    content = [
        {"type": "audio", "audio": random.normal(size=16_000).astype(np.float32)},
        {"type": "image", "image": random.integers(0, 256, (64, 96, 3), np.uint8)},
        {"type": "text", "text": "What do you hear and see?"},
    ]
    conversation = [{"role": "system", "content": SPOKEN_SYSTEM}, {"role": "user", "content": content}]
    reply = omni.generate(conversation, seed=1, thinker_max_new_tokens=12, talker_max_new_tokens=12)
    return reply.tokens, reply.codes, reply.audio


@pytest.mark.parametrize("config", [tiny_config, tiny_qwen2_5_config])
def test_a_reply_is_the_same_when_compiled_for_users(config, tmp_path):
    model, found = write_tiny(tmp_path / "model", config=config()), tmp_path / "found.npz"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "parity")])
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": paths, "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    subprocess.run([sys.executable, "-c", SCRIPT, model, found], env=environment, check=True)
    tokens, codes, audio = said(Omni.load(model))
    with np.load(found) as optimized:
        np.testing.assert_array_equal(optimized["arr_0"], tokens)
        np.testing.assert_array_equal(optimized["arr_1"], codes)
        np.testing.assert_allclose(optimized["arr_2"], audio, atol=1e-5 * np.abs(audio).max())
