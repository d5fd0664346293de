"""Whole spoken replies of the reference, as it means them and as they are, with what its talker read and wrote."""

import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch

from tests.parity.parity_scenes import batch, theirs

GREEDY = {"thinker_do_sample": False, "talker_do_sample": False}
ASSISTANT = 9  # slots of the talker's prompt after the user's turns
# Inputs that the reference's talker should get and does not: n_window of sound, without which images beside sound
# raise; only the media of the user's turns; the flag that a video has sound; nothing for a prompt without a user's
# turn; all words of an answer begun in the prompt, of which it drops as many at the end (not fixed in batches).
MENDS = frozenset({"n_window", "media", "sound", "nothing", "words"})


@dataclass
class Spoken:
    """One row.

    Attributes:
        tokens: of the reply, the one that ended it included.
        codes: [Q, Y]. audio: [W], as the reference gives it. whole: [W], one pass of its vocoder over the codes.
        prompt, words: the talker's prompt [U, D], and what its frames are fed with, one after another, [n, D].
        positions: rotary coordinates of the prompt [3, U].
        logits: of the first code of each frame and, if it ended itself, of the code that ended it, [Y + 1, V].
    """

    tokens: list[int]
    codes: np.ndarray
    audio: np.ndarray
    whole: np.ndarray
    prompt: np.ndarray
    words: np.ndarray
    positions: np.ndarray
    logits: np.ndarray


def say(reference, scenes, *, speaker="Ethan", mends=MENDS, **options):
    """Greedy replies of the reference to rows: a list of ``Spoken``.

    Args:
        mends: which of its faults are fixed; a fault that is left out is shown.
        options: ``thinker_...`` and ``talker_...`` of its ``generate``.
    """
    inputs, count = theirs(scenes), len(scenes)
    options = {"thinker_eos_token_id": None, **GREEDY, "thinker_pad_token_id": 0, "talker_pad_token_id": 0, **options}
    with _spied(reference, scenes, mends) as seen, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # so that the penalty does not cover the prompt, as intended
        tokens, audio = reference.generate(**inputs, speaker=speaker, talker_output_logits=True, **options)
    audio = [audio[0, 0]] if count == 1 else audio
    tokens = tokens[:, inputs["input_ids"].shape[1] :].tolist()
    return [_spoken(reference, seen, row, tokens[row], audio[row].numpy(), options) for row in range(count)]


def answer(omni, scenes, **options):
    """Our replies to the same rows."""
    return omni.generate_batch(batch(scenes), **{"thinker_eos_token_id": (-1,), **GREEDY, **options})


def stops(reference, scenes, speakers=("Ethan",), *, words=(6, 20), frames=(9, 24)):
    """Options that end each row's reply and its speech at tokens that the model emits.

    In a random model neither end token is ever the most likely one. So other tokens end a reply and its speech, between
    the given numbers of words and frames. Speakers: one a row, or one for all.
    """
    rows = list(zip(scenes, cycle(speakers), strict=False))
    found = {"thinker_max_new_tokens": words[1] + 1, "talker_max_new_tokens": 2}
    ends = _ends([say(reference, [row], **found)[0].tokens for row, _ in rows], *words)
    found |= {"thinker_eos_token_id": ends, "talker_max_new_tokens": frames[1] + 2}
    ends = _ends([say(reference, [row], speaker=who, **found)[0].codes[0].tolist() for row, who in rows], *frames)
    return {**found, "talker_max_new_tokens": frames[1] + 8, "talker_eos_token_id": ends}


def _ends(rows, least, most):
    """For each row one item after the first ``least`` of all rows, because it may end the others too."""
    early = {item for row in rows for item in row[:least]}
    late = [[item for item in dict.fromkeys(row[least : most + 1]) if item not in early] for row in rows]
    assert all(late), f"nothing new from {least} to {most} in {rows}"
    return sorted({items[len(items) // 2] for items in late})


def _ended(row, ends):
    """A row up to and including the token that ended it."""
    at = next((number for number, item in enumerate(row) if item in (ends or ())), len(row) - 1)
    return row[: at + 1]


@contextmanager
def _spied(reference, scenes, mends):
    """The model with its faults fixed, recording inputs and outputs of its talker; all is restored afterwards."""
    talker, seen = reference.talker, SimpleNamespace(positions=[])
    generate, forward, parts = talker.generate, talker.model.forward, reference._get_talker_assistant_parts

    def spy_parts(*args):
        seen.parts = parts(*args)
        return seen.parts

    def spy_generate(**given):
        if "words" in mends and len(scenes) == 1:
            given["trailing_text_hidden"] = seen.parts[-1]
        seen.given = _mended(given, scenes, mends)
        seen.result = generate(**seen.given)
        return seen.result

    def spy_forward(*args, position_ids, **given):
        seen.positions.append(position_ids[-3:].numpy())
        return forward(*args, position_ids=position_ids, **given)

    with ExitStack() as stack:
        stack.enter_context(patch.object(reference, "_get_talker_assistant_parts", spy_parts))
        stack.enter_context(patch.object(talker, "generate", spy_generate))
        stack.enter_context(patch.object(talker.model, "forward", spy_forward))
        if "n_window" in mends:
            stack.enter_context(patch.object(talker.config, "audio_config", SimpleNamespace(n_window=50), create=True))
        yield seen


def _mended(given, scenes, mends):
    """The arguments that the talker's generate should have got."""
    given = dict(given)
    if "media" in mends:
        own = {kind: [item for row in scenes for item in row.of("user", kind)] for kind in ("mel", "images", "videos")}
        for name, values in {
            "image_grid_thw": [item.grid for item in own["images"]],
            "video_grid_thw": [item.grid for item in own["videos"]],
            "video_second_per_grid": [item.seconds for item in own["videos"]],
            "audio_feature_lengths": [clip.shape[1] for clip in own["mel"]],
        }.items():
            given.pop(name, None)
            if values:
                given[name] = torch.tensor(values)
    if "sound" in mends and any(row.sound for row in scenes):
        given["use_audio_in_video"] = True
    slots = given["attention_mask"].shape[1]
    if "nothing" in mends and slots == ASSISTANT:
        for name in ("inputs_embeds", "talker_input_ids"):
            given[name] = given[name][:, -slots:]
    return given


def _spoken(reference, seen, row, tokens, audio, options):
    given, made = seen.given, seen.result
    real = given["attention_mask"][row].bool()
    codes = torch.stack([hidden[-1] for hidden in made.hidden_states if hidden[-1] is not None], dim=2)[row]
    ends = options.get("talker_eos_token_id") or [reference.config.talker_config.codec_eos_token_id]
    length = min(len(_ended(made.sequences[row].tolist(), ends)) - 1, codes.shape[1])
    codes = codes[:, :length]
    with torch.no_grad():
        whole = reference.code2wav(codes[None])[0, 0].numpy()
    return Spoken(
        tokens=_ended(tokens, options["thinker_eos_token_id"]),
        codes=codes.numpy(), audio=audio, whole=whole,
        prompt=given["inputs_embeds"][row, real].numpy(),
        words=given["trailing_text_hidden"][row].numpy(),
        positions=seen.positions[0][:, row if seen.positions[0].shape[1] > 1 else 0, real.numpy()],
        logits=torch.stack(made.logits, dim=1)[row, : length + 1].numpy(),
    )  # fmt: skip
