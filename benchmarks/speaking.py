"""The speech rows of vs_transformers.py: a frame of codes, and the sound of a hundred of them.

They use a model of their own, with a tiny thinker. Torch runs both on one thread and on all: its products here are so
small that threads wait for each other longer than they work, and on a shared machine for seconds. The better time
counts.
"""

import statistics
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import rates
import torch
from clock import PINNED, spent_both
from transformers import Qwen3OmniMoeForConditionalGeneration

from omni_jax import Omni
from omni_jax.decoding.frames import FRAMES_PER_CALL, SpeechRows, generate_frames, prefill
from omni_jax.decoding.sampling import Sampling, SamplingRows
from omni_jax.testing import tiny_config

PROMPT, SLOTS, SOUND = 40, 1024, 100
WIDTH, CODEBOOK, CODEBOOKS, PENALTY = 512, 2048, 16, 1.05
IDS = {"pad": 100, "bos": 101, "eos_token": 102, "nothink": 107, "think_bos": 108, "think_eos": 109}


def speech_config() -> dict:
    """Talker 8 x 512 of 32 experts, predictor 5 x 512 of 16 codebooks, vocoder 8 x 256; the rest is tiny."""
    config = tiny_config()
    config["talker_config"]["text_config"] |= {
        "vocab_size": CODEBOOK + 1024, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "num_experts": 32, "num_experts_per_tok": 6,
        "moe_intermediate_size": 192, "shared_expert_intermediate_size": 384,
    }  # fmt: skip
    rope = config["talker_config"]["text_config"]["rope_scaling"]
    config["talker_config"]["text_config"]["rope_scaling"] = {**rope, "mrope_section": [12, 10, 10]}
    config["talker_config"]["code_predictor_config"] |= {
        "vocab_size": CODEBOOK, "hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": 5,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "num_code_groups": CODEBOOKS,
    }  # fmt: skip
    config["talker_config"] |= {"num_code_groups": CODEBOOKS, "speaker_id": {"ethan": CODEBOOK + 254}}
    config["talker_config"] |= {f"codec_{name}_id": CODEBOOK + place for name, place in IDS.items()}
    config["code2wav_config"] |= {
        "codebook_size": CODEBOOK, "num_quantizers": CODEBOOKS, "hidden_size": 256, "intermediate_size": 768,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8, "decoder_dim": 384, "sliding_window": 72,
    }  # fmt: skip
    return config


def compare(folder: Path, repeat: int) -> dict:
    """Times both sides in turn. Returns the rows, whether the codes are equal, and how much the samples differ."""
    omni = Omni.load(folder, dtype=jnp.float32)
    reference = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    torch.set_grad_enabled(False)
    talker, rng = omni.parts.talker, np.random.default_rng(0)
    prompt = rng.normal(size=(1, PROMPT, WIDTH)).astype(np.float32)
    words = rng.normal(size=(1, FRAMES_PER_CALL, WIDTH)).astype(np.float32)
    greedy = SamplingRows.of([Sampling(repetition_penalty=PENALTY)], [0], [SLOTS])
    positions = np.broadcast_to(np.arange(PROMPT), (3, 1, PROMPT)).astype(np.float32)
    bos = CODEBOOK + IDS["bos"]

    def ours(frames):
        state = prefill(talker, prompt, positions, np.array([PROMPT]), talker.empty_cache(1, SLOTS), bos=bos)
        rows = SpeechRows(greedy, greedy)
        _, codes = generate_frames(
            talker, omni.parts.code_predictor, state, words, rows, np.int32(frames), candidates=(0, 0)
        )
        return np.asarray(codes)[:, :, :frames]

    # The reference reads its first word in the prompt, and needs one token more than it returns frames.
    first = talker.embedding(jnp.array([[bos]])) + words[:, :1]
    fed = torch.from_numpy(np.concatenate([prompt, np.asarray(first)], axis=1))
    special = [item for item in range(CODEBOOK, CODEBOOK + 1024) if item != CODEBOOK + IDS["eos_token"]]

    def theirs(frames):
        made = reference.talker.generate(
            inputs_embeds=fed, attention_mask=torch.ones(fed.shape[:2], dtype=torch.long),
            talker_input_ids=torch.zeros(fed.shape[:2], dtype=torch.long),
            trailing_text_hidden=torch.from_numpy(words[:, 1:]), tts_pad_embed=torch.zeros(1, 1, WIDTH),
            max_new_tokens=frames + 1, do_sample=False, repetition_penalty=PENALTY, suppress_tokens=special,
            eos_token_id=None, pad_token_id=0, output_hidden_states=True, return_dict_in_generate=True,
        )  # fmt: skip
        return torch.stack([held[-1] for held in made.hidden_states if held[-1] is not None], dim=2).numpy()

    codes = rng.integers(0, CODEBOOK, (1, CODEBOOKS, SOUND)).astype(np.int32)

    def sound_theirs():
        return reference.code2wav(torch.from_numpy(codes).long())[0].numpy()

    tasks = {
        "few": (lambda: ours(1), lambda: theirs(1)),
        "many": (lambda: ours(FRAMES_PER_CALL), lambda: theirs(FRAMES_PER_CALL)),
    }
    tasks["sound"] = (lambda: omni.decode_codes(codes), sound_theirs)
    equal = bool(np.array_equal(tasks["many"][0](), tasks["many"][1]()))
    error = float(np.abs(tasks["sound"][0]() - tasks["sound"][1]()).max())
    print(f"codes of {FRAMES_PER_CALL} frames equal: {equal}; largest difference of the samples: {error:.1e}")
    threads = sorted({1, torch.get_num_threads()})
    times: dict[tuple[str, int], list[np.ndarray]] = {}
    measured = []
    for _ in range(repeat):
        measured.append(rates.measure("speech"))
        for name, (mine, their) in tasks.items():
            times.setdefault((name, 0), []).append(spent_both(mine))
            for count in threads:
                torch.set_num_threads(count)
                times.setdefault((name, count), []).append(spent_both(their))
    torch.set_num_threads(threads[-1])
    found = {}
    for side in (0, *threads):
        pairs = zip(times["many", side], times["few", side], strict=True)
        found["a frame of speech", side] = _median([(many - few) / (FRAMES_PER_CALL - 1) for many, few in pairs])
        found[f"sound of {SOUND} frames", side] = _median(times["sound", side])
    rows = {}
    for name in dict.fromkeys(name for name, _ in found):
        best = min(threads, key=lambda count, name=name: found[name, count][PINNED])
        said = ", ".join(f"{found[name, count][PINNED] * 1e3:.1f} ms on {count}" for count in threads)
        mine, their = found[name, 0], found[name, best]
        print(f"{name}: torch takes {said} threads; by processor time {their[1] / mine[1]:.2f}x")
        rows[name] = (mine[PINNED], their[PINNED])
    products, reading = rates.best(measured)
    rates.show("speech", products, reading)
    return {"codes_equal": equal, "sound_error": error, "rows": rows, "rates": {"speech": products}}


def _median(times: list[np.ndarray]) -> list[float]:
    return [statistics.median(column) for column in zip(*times, strict=True)]
