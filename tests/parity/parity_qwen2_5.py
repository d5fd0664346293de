"""Qwen2.5-Omni of the reference: its model of a folder, its spoken replies as intended and as they are, and our modules
with its weights."""

from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from itertools import cycle
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import Qwen2_5OmniForConditionalGeneration

from omni_jax.config import from_hf
from omni_jax.models.qwen2_5_omni.dit import frame_noise
from omni_jax.nn.layers import Init
from omni_jax.testing.qwen2_5_omni import three_b, tiny_qwen2_5_config
from omni_jax.weights.layerwise import leaves
from omni_jax.weights.safetensors_reader import Safetensors
from omni_jax.weights.table import bind
from omni_jax.weights.tables import common, qwen2_5_omni

TABLE = qwen2_5_omni.rows(from_hf(tiny_qwen2_5_config()))  # the same for any sizes
GREEDY = {"thinker_do_sample": False, "talker_do_sample": False}
# The reference passes keywords of pictures to its talker too, which refuses them unless it gets its own.
NO_PIXELS = {"talker_pixel_values": None, "talker_pixel_values_videos": None}
DRAWN = 128  # mel frames of noise drawn at once: noise depends on the frame alone, and each size is a program


def with_published_heads(whole, *, thinker, talker):
    """The tiny model with the published head widths and heads a key: (heads, width, sections) of thinker and talker."""
    heads, head_width, section = thinker
    width = heads * head_width
    text = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": 2, **_one_key(section)}
    parts = {"text_config": text, "audio_config": {"output_dim": width}, "vision_config": {"out_hidden_size": width}}
    thinker = whole["thinker_config"]
    thinker = thinker | {name: thinker[name] | values for name, values in parts.items()}
    heads, head_width, section = talker
    sizes = {"embedding_size": width, "hidden_size": 448, "num_attention_heads": heads, "head_dim": head_width}
    return whole | {"thinker_config": thinker, "talker_config": whole["talker_config"] | sizes | _one_key(section)}


def _one_key(section):
    scaling = {"mrope_section": section, "rope_type": "default", "type": "default"}
    return {"num_key_value_heads": 1, "rope_scaling": scaling}


# Tiny models with each size's irregularities and heads: the heads of the 7B's talker are wider together than its width.
CONFIGS = {
    "7B": tiny_qwen2_5_config,
    "3B": lambda: three_b(tiny_qwen2_5_config()),
    "7B's heads": lambda: with_published_heads(
        tiny_qwen2_5_config(), thinker=(7, 128, [16, 24, 24]), talker=(6, 128, [16, 24, 24])
    ),
    "3B's heads": lambda: with_published_heads(
        tiny_qwen2_5_config(), thinker=(8, 128, [16, 24, 24]), talker=(7, 64, [16, 16, 0])
    ),
}


def load_reference(folder, dtype=torch.float32):
    """The reference's model of a folder, with the voices of spk_dict.pt; no tensor is missing and none is unused."""
    model = Qwen2_5OmniForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    stored, expected = set(Safetensors(folder).tensors), {_published(name) for name in model.state_dict()}
    assert stored == expected, stored ^ expected
    return model


def _published(name):
    """The published name of one of its in-memory tensors."""
    return next((new + name.removeprefix(old) for old, new in common.ALIASES if name.startswith(old)), name)


def filled(path, build, name, module):
    """Our module with their weights by the table of the published checkpoint: each leaf filled once, each tensor used.

    Args:
        path, name: the names of the two in the table, such as ``dit.speaker_encoder``.
        build: builds ours from an ``Init``.
    """
    made = jax.eval_shape(lambda: build(Init(jax.random.key(0), jnp.float32)))
    shapes = {leaf_path: leaf.shape for leaf_path, leaf in leaves({path: made}).items()}
    tensors = {f"{name}.{own}": tensor.numpy() for own, tensor in module.state_dict().items()}
    bindings, faults = bind(TABLE, shapes)
    assert not faults
    assert {tensor for binding in bindings.values() for tensor in binding.names()} == set(tensors)
    arrays = {}
    for leaf_path, binding in bindings.items():
        pieces = np.empty((binding.layers, *shapes[leaf_path][binding.stacked :]), np.float32)
        for layer, piece in enumerate(pieces):
            for tensor, index in binding.tensors(layer):
                assert tensors[tensor].shape == binding.shape
                binding.put(piece, index, tensors[tensor])
        arrays[leaf_path] = jnp.asarray(pieces.reshape(shapes[leaf_path]))
    return jax.tree.unflatten(jax.tree.structure(made), [arrays[leaf_path] for leaf_path in shapes])


@contextmanager
def intended(reference):
    """The talker as intended. Without padding ``generate`` drops the talker's attention mask, and with it the
    embeddings of codec_pad and codec_bos at the end of its prompt and the rotary coordinates of media."""
    forward = reference.talker.forward

    @wraps(forward)  # generate reads the names of its arguments
    def masked(*args, attention_mask=None, **given):
        if attention_mask is None:
            x, cache = given.get("inputs_embeds"), given.get("cache", given.get("past_key_values"))  # renamed in 5.24
            x = given["input_ids"] if x is None else x
            seen = 0 if cache is None else cache.get_seq_length()
            attention_mask = torch.ones(x.shape[0], seen + x.shape[1], dtype=torch.long)
        return forward(*args, attention_mask=attention_mask, **given)

    with patch.object(reference.talker, "forward", masked):
        yield


@contextmanager
def given_noise(*rows):
    """Replaces torch's noise by the given initial noise of each row's flow, one row after another.

    Args:
        rows: [mel frames, bins] each, or a function of these two sizes.
    """
    left = list(rows)

    def randn(shape, *, dtype, device):
        row = left.pop(0)
        noise = torch.tensor(np.asarray(row(*shape[1:]) if callable(row) else row))
        assert noise.dtype == dtype
        assert [1, *noise.shape] == list(shape)
        return noise[None].to(device)

    with patch.object(torch, "randn", randn):
        yield
    assert not left


def seeded_noise(seed, frames, bins):
    """The initial noise of a seed: the noise of each frame by its number."""
    return np.asarray(frame_noise(jax.random.key(seed), -(-frames // DRAWN) * DRAWN, bins))[:frames]


@dataclass
class Spoken:
    """One row. n is Y for speech cut by its length, and Y + 1 for speech that ended itself.

    Attributes:
        tokens: of the reply, the one that ended it included.
        codes: [Y]. audio: [W].
        prompt: how much of ``fed`` the talker's prompt is, U.
        words: the track of text that codes are added to, one after another, the last entry for ever.
        fed: what the talker read, the sums of both tracks: its prompt and code after code, [U + n - 1, E].
        positions: rotary coordinates of the same, [3, U + n - 1].
        states, logits: final-normed states at the prompt's end and at each code, [n, D], and scores without any penalty, [n, V].
    """

    tokens: list[int]
    codes: np.ndarray
    audio: np.ndarray
    prompt: int
    words: np.ndarray
    fed: np.ndarray
    positions: np.ndarray
    states: np.ndarray
    logits: np.ndarray


def generate(reference, inputs, *, speaker="Ethan", mend=True, seed=0, **options):
    """Greedy replies of the reference to rows: a list of ``Spoken``.

    Args:
        inputs: keywords of its ``generate``, as ``parity_scenes.theirs`` gives them.
        mend: whether its talker is ``intended``, or unchanged.
        seed: of the noise, one for all rows or one a row.
        options: ``thinker_...`` and ``talker_...`` of its ``generate``.
    """
    talker = reference.config.talker_config
    ends = [talker.tts_codec_pad_token_id, talker.tts_codec_end_token_id]
    options = {**GREEDY, **NO_PIXELS, "talker_eos_token_id": ends, **options}
    count, length = inputs["input_ids"].shape
    seeds = [seed] * count if isinstance(seed, int) else seed
    with ExitStack() as stack:
        seen = stack.enter_context(_spied(reference))
        stack.enter_context(given_noise(*(partial(seeded_noise, seed) for seed in seeds)))
        if mend:
            stack.enter_context(intended(reference))
        tokens, audio = reference.generate(**inputs, speaker=speaker, **options)
    audio = [audio] if count == 1 else audio
    enders = options.get("thinker_eos_token_id", reference.thinker.generation_config.eos_token_id)
    enders = {enders} if isinstance(enders, int) else set(enders)
    steps = {name: np.concatenate(seen[name], axis=1) for name in ("fed", "states", "logits")}
    positions, rows = np.concatenate(seen["positions"], axis=2), []
    for row, mask in enumerate(inputs["attention_mask"]):
        codes, padding = seen["codes"][row], length - int(mask.sum())
        read, wrote = slice(padding, length + 2 + len(codes)), slice(len(codes) + 1)
        rows.append(
            Spoken(
                tokens=_ended(tokens[row, length:].tolist(), enders), codes=codes, audio=audio[row].numpy(),
                prompt=length + 2 - padding, words=seen["words"][0][row], fed=steps["fed"][row, read],
                positions=positions[:, row, read], states=steps["states"][row, wrote], logits=steps["logits"][row, wrote],
            )
        )  # fmt: skip
    return rows


def stops(reference, inputs, speakers=("Ethan",), *, words=(4, 14), frames=(8, 24), **options):
    """Options that end each row's reply and its speech at tokens that the model emits.

    In a random model neither end token is ever the most likely one. So other tokens end a reply and its speech, between
    the given numbers of words and codes.

    Args:
        inputs: of each row by itself. speakers: one a row, or one for all.
    """
    rows = list(zip(inputs, cycle(speakers), strict=False))
    found = {**options, "thinker_max_new_tokens": words[1] + 1, "talker_max_new_tokens": 1}
    ends = _ends([generate(reference, row, **found)[0].tokens for row, _ in rows], *words)
    found |= {"thinker_eos_token_id": ends, "talker_max_new_tokens": frames[1] + 1}
    ends = _ends([generate(reference, row, speaker=who, **found)[0].codes.tolist() for row, who in rows], *frames)
    return {**found, "talker_max_new_tokens": frames[1] + 8, "talker_eos_token_id": ends}


def _ends(rows, least, most):
    """For each row one item after the first ``least`` of all rows, because it may end the others too."""
    early = {item for row in rows for item in row[:least]}
    late = [[item for item in dict.fromkeys(row[least : most + 1]) if item not in early] for row in rows]
    assert all(late), f"nothing new from {least} to {most} in {rows}"
    return sorted({items[len(items) // 2] for items in late})


def _ended(row, ends):
    """A row up to and including the token that ended it."""
    at = next((number for number, item in enumerate(row) if item in ends), len(row) - 1)
    return row[: at + 1]


@contextmanager
def _spied(reference):
    """Records what the talker reads and writes at each step; all is restored afterwards."""
    talker, seen = reference.talker, defaultdict(list)

    def write(name, tensor):
        seen[name].append(tensor.numpy().copy())

    def scored(_, given, made):
        write("states", given[0][:, -1:])
        write("logits", made[:, -1:])

    hooks = [
        talker.register_forward_pre_hook(
            lambda _, args, given: write("words", given["thinker_reply_part"]), with_kwargs=True
        ),
        talker.thinker_to_talker_proj.register_forward_pre_hook(lambda _, args: write("fed", args[0])),
        talker.model.rotary_emb.register_forward_pre_hook(
            lambda _, args: write("positions", args[1].expand(3, len(args[0]), -1))
        ),
        talker.codec_head.register_forward_hook(scored),
        reference.token2wav.register_forward_pre_hook(lambda _, args: write("codes", args[0][0])),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
