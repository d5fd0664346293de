"""Full-size programs through the TPU's own compiler (on Linux for x86), in a process of its own: what they hold."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "compiled.py"
FRAME, CALL = 784, 4096  # patches


@pytest.fixture(scope="module")
def compiled_for_v6e(tmp_path_factory):
    target = tmp_path_factory.mktemp("compiled") / "found.json"
    # A TPU host's own settings must not reach a compiler that is to run without a TPU.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TPU", "XLA_FLAGS"))}
    command = [sys.executable, str(PROGRAM), "--topology", "v6e", "--json", str(target)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(target.read_text())


def test_the_vision_encoder_of_32_frames_holds_no_square_of_the_patches(compiled_for_v6e):
    (found,) = (program for name, program in compiled_for_v6e.items() if name.startswith("vision encoder"))
    assert found["temporaries"] < 100e6
    assert len(found["arrays"]) > 20
    for array in found["arrays"]:
        sides = [int(side) for side in re.findall(r"\d+", array.split("[")[1])]
        assert max(sides.count(FRAME), sides.count(CALL)) <= 1, array


# At batch 1 the compiler wants the talker's kernels in another order of axes than for more rows, and turns them, once a call.
@pytest.mark.parametrize(("batch", "temporaries"), [(1, 300e6), (8, 200e6)])
def test_a_frame_of_speech_is_one_program_that_moves_little_more_than_it_must(compiled_for_v6e, batch, temporaries):
    found = compiled_for_v6e[f"a frame of speech, batch {batch}"]
    assert found["host_transfers"] == 0
    assert found["least"] <= found["moved"] <= 1.3 * found["least"]
    assert found["temporaries"] < temporaries
