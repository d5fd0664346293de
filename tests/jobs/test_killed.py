"""A batch job killed at any moment: answers are kept, no line is answered twice, and in the end all are there."""

import json
import multiprocessing
import random
import time

import numpy as np
import soundfile

from tests.support import job_lives

KILLS = 50
AHEAD = 8  # lines that a process finishes before its kill, at most


def count(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def end(life, begun, path, draw):
    """Kills a process at a random moment: after some lines, during the next one. True if it was still running."""
    begun.wait(60)
    further = count(path) + draw.randrange(AHEAD)
    while life.is_alive() and count(path) < further:
        time.sleep(0.001)
    life.join(draw.uniform(0, 0.03))
    killed = life.is_alive()
    life.kill()
    life.join()
    return killed


def read(path):
    """Complete lines by their numbers. A number that comes twice is a repeated line."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    found = {json.loads(line)["line"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def check_sound(path, line):
    """Asserts that the sound file of a line is complete."""
    content = json.loads(line)
    if "speech" in content:
        samples, rate = soundfile.read(path.parent / content["speech"]["file"], dtype="int16")
        assert rate == 24_000
        np.testing.assert_array_equal(samples, np.rint(job_lives.said(str(content["line"])).audio * 32_767))


def test_fifty_kills_lose_and_repeat_no_line(tmp_path):
    """Real processes get SIGKILL at random moments, from before they open the output until they have sorted it."""
    source, draw, kills, ended, torn = tmp_path / "in.jsonl", random.Random(5), 0, 0, 0
    source.write_bytes(b"\n".join(job_lives.questions()) + b"\n")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["omni_jax.jobs"])
    while kills < KILLS:
        path, known, killed = tmp_path / f"out{ended}.jsonl", {}, True
        while killed:
            begun = processes.Event()
            life = processes.Process(target=job_lives.live, args=(str(source), str(path), begun))
            life.start()
            if kills < KILLS:
                killed = end(life, begun, path, draw)
                kills += killed
            else:
                life.join(60)
                killed = False
            torn += bool(path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"))
            found = read(path)
            assert known.items() <= found.items()  # no line is lost: each is as it was written
            for number in found.keys() - known.keys():
                check_sound(path, found[number])
            known = found
        assert life.exitcode == 0
        assert list(known) == list(range(1, job_lives.LINES + 1))
        for number, line in known.items():
            content = json.loads(line)
            if number in job_lives.BAD:
                assert content["error"].startswith("expected JSON")
            else:
                assert content["text"] == f"You said {number}."
        sounds = sorted(item.name for item in (tmp_path / f"out{ended}.sound").iterdir())
        assert sounds == [f"{n:08d}.wav" for n in range(1, job_lives.LINES + 1) if n not in job_lives.BAD]
        ended += 1
    print(f"{kills} kills, {ended} jobs came to their end, {torn} lines were torn")
