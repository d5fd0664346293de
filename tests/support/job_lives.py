"""Processes of a batch job for jobs/test_killed.py. A stand-in for the model answers at once with the words of the
request and a sound, so that kills hit the job while it reads, writes sound and lines, or joins them."""

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
    """The text of the reply to a line, and its samples."""
    samples = np.random.default_rng(int(words)).uniform(-1, 1, 400 + int(words)).astype(np.float32)
    return Reply(text=f"You said {words}.", tokens=[int(words)], codes=np.zeros((1, 3), np.int32), audio=samples)


class Played:
    """A stand-in for the model; its requests are the user's words."""

    synthesizer, parts = SimpleNamespace(system=None), {}

    def request_of(self, conversations, options):
        return SimpleNamespace(words=conversations[0][-1]["content"])


def play(omni, items, *, slots, window, hosts):
    """Answers in random order, a few at a time."""
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
    """One process of a job, which runs to its end unless it is killed."""
    jobs.answers, jobs._how = play, lambda *_: {"model": "played"}
    begun.set()
    jobs.run(Played(), source, target, slots=4)
