"""The rows of Qwen2.5-Omni in vs_transformers.py: audio encoding, prefill, decoding, a code of speech, and the sound of
5 s of codes.

Thinker 12 x 1024, audio encoder 8 x 512, talker 8 x 512, DiT 8 x 512, BigVGAN of 512 channels: 0.5 B parameters. As in
speaking.py, torch runs on one thread and on all, and the better time counts.
"""

import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import rates
import torch
from clock import spent
from transformers import Qwen2_5OmniForConditionalGeneration

from omni_jax import Omni
from omni_jax.buckets import INITIAL_NEW_SLOTS, bucket
from omni_jax.config.speech import Speaker
from omni_jax.decoding.frames import FRAMES_PER_CALL, SpeechRows, generate_frames, prefill
from omni_jax.decoding.sampling import Sampling, SamplingRows
from omni_jax.models.qwen2_5_omni.dit import frame_noise
from omni_jax.processing.batch import Batch
from omni_jax.testing.qwen2_5_omni import tiny_qwen2_5_config, tiny_speakers
from omni_jax.weights.speakers import write_speakers

PROMPT, NEW, SECONDS, SPOKEN, HEARD = 512, 32, 30, 250, 40
WIDTH, LAYERS, VOCABULARY, PENALTY = 1024, 12, 32_000, 1.05
TALKER, TALKER_LAYERS, DIT, DIT_LAYERS, BIGVGAN, CODES = 512, 8, 512, 8, 512, 8192
SPEAKER, MEL = 192, 80


def qwen2_5_config() -> dict:
    """The tiny configuration at mid size; its vision encoder stays tiny."""
    config = tiny_qwen2_5_config()
    thinker, talker = config["thinker_config"], config["talker_config"]
    sections = {"rope_type": "default", "type": "default", "mrope_section": [8, 12, 12]}
    thinker["text_config"] |= {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 16,
        "num_key_value_heads": 4, "intermediate_size": 4 * WIDTH, "rope_scaling": sections,
    }  # fmt: skip
    thinker["audio_config"] |= {
        "encoder_layers": 8, "num_hidden_layers": 8, "d_model": 512, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048,
        "output_dim": WIDTH,
    }  # fmt: skip
    thinker["vision_config"]["out_hidden_size"] = WIDTH
    talker |= {
        "vocab_size": CODES + 256, "embedding_size": WIDTH, "hidden_size": TALKER, "num_hidden_layers": TALKER_LAYERS,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 4 * TALKER,
        "rope_scaling": sections, "tts_codec_mask_token_id": CODES + 104, "tts_codec_pad_token_id": CODES + 100,
        "tts_codec_start_token_id": CODES + 101, "tts_codec_end_token_id": CODES + 102,
    }  # fmt: skip
    dit = config["token2wav_config"]["dit_config"]
    dit |= {
        "depth": DIT_LAYERS, "num_hidden_layers": DIT_LAYERS, "dim": DIT, "hidden_size": DIT, "heads": 8,
        "num_attention_heads": 8, "head_dim": 64, "ff_mult": 2, "emb_dim": 512, "num_embeds": CODES, "mel_dim": MEL,
        "look_ahead_layers": [4], "look_backward_layers": [0, 7], "enc_emb_dim": SPEAKER, "enc_dim": 128,
        "enc_channels": [256, 256, 256, 256, 768], "enc_attention_channels": 64, "enc_se_channels": 64,
    }  # fmt: skip
    config["token2wav_config"]["bigvgan_config"] |= {"mel_dim": MEL, "upsample_initial_channel": BIGVGAN}
    return config


def write_voices(folder: Path) -> None:
    """Writes voices of the published sizes."""
    random, marks = np.random.default_rng(0), {name: voice.bos_token for name, voice in tiny_speakers().items()}
    voices = {
        name: Speaker(
            bos_token=mark,
            cond=random.standard_normal((1, SPEAKER), np.float32),
            ref_mel=random.standard_normal((1, 400, MEL), np.float32),
        )
        for name, mark in marks.items()
    }
    write_speakers(folder, voices)


def compare(folder: Path, repeat: int) -> dict:
    """Times both sides in turn. Returns the rows, whether tokens and codes match, and how far the rest differs."""
    omni = Omni.load(folder, dtype=jnp.float32)
    reference = Qwen2_5OmniForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    torch.set_grad_enabled(False)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, (1, PROMPT))
    batch, ids = Batch.from_tokens(tokens), torch.from_numpy(tokens)
    mel = rng.normal(size=(128, 100 * SECONDS)).astype(np.float32)
    features, mask = torch.from_numpy(mel[None]), torch.ones(1, 100 * SECONDS, dtype=torch.long)
    options = {"thinker_do_sample": False, "thinker_eos_token_id": (-1,), "return_audio": False}

    def write_ours(new):
        return omni.generate_batch(batch, thinker_max_new_tokens=new, **options)[0].tokens

    def write_theirs(new):
        made = reference.thinker.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        return made[0, PROMPT:].tolist()

    def hear_theirs():
        return reference.thinker.get_audio_features(features, feature_attention_mask=mask).pooler_output.numpy()

    speak_ours, speak_theirs = _talkers(omni, reference, rng)
    codes = rng.integers(0, CODES, (1, SPOKEN)).astype(np.int32)
    voice = omni.synthesizer.speakers["Ethan"]
    noise = np.asarray(frame_noise(jax.random.key(0), 2 * SPOKEN, MEL))[None]

    def sound_ours():
        return omni.decode_codes(codes, speaker="Ethan", noise=noise)

    def sound_theirs():
        drawn = torch.randn
        torch.randn = lambda *_, **__: torch.from_numpy(noise.copy())  # the same noise for both
        try:
            made = reference.token2wav(
                torch.from_numpy(codes).long(), conditioning=torch.from_numpy(voice.cond),
                reference_mel=torch.from_numpy(voice.ref_mel),
            )  # fmt: skip
        finally:
            torch.randn = drawn
        return made.numpy()

    tasks = {
        "prefill": (lambda: write_ours(1), lambda: write_theirs(1)),
        "prefill and decode": (lambda: write_ours(NEW + 1), lambda: write_theirs(NEW + 1)),
        "audio": (lambda: np.asarray(omni.encode_audio([mel])[0]), hear_theirs),
        "a code": (lambda: speak_ours(1), lambda: speak_theirs(1)),
        "codes": (lambda: speak_ours(FRAMES_PER_CALL), lambda: speak_theirs(FRAMES_PER_CALL)),
        "sound": (sound_ours, sound_theirs),
    }
    made = {name: (ours(), theirs()) for name, (ours, theirs) in tasks.items()}
    equal = [bool(np.array_equal(*made[name])) for name in ("prefill and decode", "codes")]
    errors = [float(np.abs(np.subtract(*made[name])).max()) for name in ("audio", "sound")]
    print(f"Qwen2.5-Omni: tokens equal: {equal[0]}; codes of {FRAMES_PER_CALL} steps equal: {equal[1]}", end="; ")
    print(f"largest difference of the audio features: {errors[0]:.1e}, of the samples: {errors[1]:.1e}")
    threads = sorted({1, torch.get_num_threads()})
    times: dict[tuple[str, int], list[float]] = {}
    measured = []
    for _ in range(repeat):
        measured.append(rates.measure("qwen2_5"))
        for name, (ours, theirs) in tasks.items():
            times.setdefault((name, 0), []).append(spent(ours))
            for count in threads:
                torch.set_num_threads(count)
                times.setdefault((name, count), []).append(spent(theirs))
    torch.set_num_threads(threads[-1])
    rows: dict[str, tuple[float, float]] = {}
    for label, task, less, steps in (
        (f"Qwen2.5: prefill of {PROMPT} tokens", "prefill", None, 1),
        ("Qwen2.5: decoding a token", "prefill and decode", "prefill", NEW),
        (f"Qwen2.5: encoding {SECONDS} s of audio", "audio", None, 1),
        ("Qwen2.5: a code of speech", "codes", "a code", FRAMES_PER_CALL - 1),
        (f"Qwen2.5: sound of {SPOKEN} codes", "sound", None, 1),
    ):

        def took(side: int, task=task, less=less, steps=steps) -> float:
            base = times[less, side] if less else [0.0] * repeat
            return statistics.median(
                (whole - part) / steps for whole, part in zip(times[task, side], base, strict=True)
            )

        their = {count: took(count) for count in threads}
        print(f"{label}: torch takes {', '.join(f'{t * 1e3:.1f} ms on {n}' for n, t in their.items())} threads")
        rows[label] = took(0), min(their.values())
    products, reading = rates.best(measured)
    rates.show("qwen2_5", products, reading)
    return {
        "qwen2_5_tokens_equal": equal[0], "qwen2_5_codes_equal": equal[1], "qwen2_5_audio_error": errors[0],
        "qwen2_5_sound_error": errors[1], "rows": rows, "rates": {"qwen2_5": products},
    }  # fmt: skip


def _talkers(omni: Omni, reference, rng: np.random.Generator):
    """Our and their function for the codes of a prompt of random numbers and random words."""
    talker, config = omni.parts.talker, omni.parts.talker.config
    prompt = rng.normal(size=(1, HEARD, WIDTH)).astype(np.float32)
    slots = bucket(HEARD + INITIAL_NEW_SLOTS)  # the first size of a reply's cache
    words = rng.normal(size=(1, FRAMES_PER_CALL, WIDTH)).astype(np.float32)
    positions = np.broadcast_to(np.arange(HEARD), (3, 1, HEARD)).astype(np.float32)
    rows = SpeechRows(SamplingRows.of([Sampling(repetition_penalty=PENALTY)], [0], [slots]), None)
    said = (config.codec_mask, config.codec_pad, config.codec_bos)

    def ours(count):
        cache = talker.empty_cache(1, slots)
        state = prefill(talker, prompt, positions, np.array([HEARD]), cache, bos=config.codec_bos, said=said)
        return np.asarray(generate_frames(talker, None, state, words, rows, np.int32(count), candidates=(0, 0))[1])[
            0, 0, :count
        ]

    first = np.asarray(talker.embedding(jnp.array([[config.codec_bos]]))) + words[:, :1]
    fed = torch.from_numpy(np.concatenate([prompt, first], axis=1))
    ids = torch.full((1, HEARD + 1), config.codec_mask)
    ids[:, -2], ids[:, -1] = config.codec_pad, config.codec_bos
    marks = list(range(config.codes, config.vocabulary))

    def theirs(count):
        made = reference.talker.generate(
            input_ids=ids, inputs_embeds=fed, thinker_reply_part=torch.from_numpy(words[:, 1:]),
            max_new_tokens=count, do_sample=False, repetition_penalty=PENALTY, suppress_tokens=marks, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        return made[0, HEARD + 1 :].numpy()

    return ours, theirs
