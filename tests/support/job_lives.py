"""Lives of a batch job for jobs/test_killed.py, each a process of its own. The model is played: it says at once what it was
asked, with a sound of it, so that a kill finds the job where it reads, writes sound and lines, or joins them."""

import json
import random
import time
from types import SimpleNamespace

import numpy as np

from omni_jax import jobs
from omni_jax.engine.reply import Reply

LINES, BAD = 100, (7, 50)


def questions():
    return [
        b"broken" if n in BAD else json.dumps([{"role": "user", "content": f"{n}"}]).encode()
        for n in range(1, LINES + 1)
    ]


def said(words):
    """The reply to a line, and its samples."""
    samples = np.random.default_rng(int(words)).uniform(-1, 1, 400 + int(words)).astype(np.float32)
    return Reply(text=f"You said {words}.", tokens=[int(words)], codes=np.zeros((1, 3), np.int32), audio=samples)


class Played:
    """Stands for the model: its requests are the words of the user."""

    synthesizer, parts = SimpleNamespace(system=None), {}

    def request_of(self, conversations, options):
        return SimpleNamespace(words=conversations[0][-1]["content"])


def play(omni, items, *, slots, window, hosts):
    """Answers in a disorder, some at a time."""
    draw, held = random.Random(), []
    for item in items:
        held.append((item.key, said(item.request.words) if item.request else item.fault))
        if len(held) >= draw.choice((1, 2, 5)):
            draw.shuffle(held)
            time.sleep(draw.uniform(0, 0.004))
            yield held
            held = []
    yield held


def live(source, target, begun):
    """One life of a job, to its end if nobody kills it."""
    jobs.answers, jobs._how = play, lambda *_: {"model": "played"}
    begun.set()
    jobs.run(Played(), source, target, slots=4)
