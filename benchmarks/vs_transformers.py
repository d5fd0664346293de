"""Ours against Transformers: the same random model, the same inputs, one run, alternating; medians and ratios.

    python benchmarks/vs_transformers.py [--pinned] [--repeat 7] [--json FILE] [--keep FOLDER] [--only
    thinker|speech|qwen2_5]

The model is a mid-size Qwen3-Omni of about 1.15 B parameters, made once in the published layout (4.6 GB in a temporary
folder) and loaded by both from there. float32 on the CPU. Both use all cores or, with --pinned, one thread on one core,
timed by processor time (clock.py). Each row is also given as a share of the matrix rate or memory bandwidth that this
machine reached in the same run (the better of jax and torch); the rates of each library are printed too (rates.py).
Speech has a model of its own (speaking.py), and so has Qwen2.5-Omni (qwen2_5_omni.py).
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import clock  # before jax and torch
import jax
import jax.numpy as jnp
import numpy as np
import qwen2_5_omni
import rates
import speaking
import torch
import transformers
from PIL import Image
from transformers import Qwen3OmniMoeForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omni_jax import Omni
from omni_jax.processing.batch import Batch
from omni_jax.processing.media import patches
from omni_jax.processing.media.patches import PatchConfig
from omni_jax.testing import tiny_config, write_tiny

PROMPT, NEW, SECONDS = 512, 32, 30
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, EXPERTS, PER_TOKEN, FFN, VOCABULARY = 12, 1024, 16, 4, 64, 64, 8, 384, 32_000
AUDIO_LAYERS, AUDIO_WIDTH, CHANNELS = 8, 512, 128
# The published vision encoder's widths, with 4 of its 27 layers and one of its three deepstack taps.
SIGHT_LAYERS, SIGHT_WIDTH, SIGHT_FFN, SIGHT_TAPS = 4, 1152, 4304, [1]
IMAGE, FRAMES, SIDE = (720, 1280), 32, 448


def mid_config() -> dict:
    """The tiny configuration at mid size, without the parts that this benchmark does not run."""
    config = tiny_config()
    config["enable_audio_output"] = False
    thinker = config["thinker_config"]
    thinker["text_config"] |= {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "num_experts": EXPERTS, "num_experts_per_tok": PER_TOKEN,
        "moe_intermediate_size": FFN,
    }  # fmt: skip
    thinker["text_config"]["rope_scaling"]["mrope_section"] = [12, 10, 10]
    thinker["audio_config"] |= {
        "encoder_layers": AUDIO_LAYERS, "d_model": AUDIO_WIDTH, "encoder_attention_heads": 8, "encoder_ffn_dim": 4 * AUDIO_WIDTH,
        "n_window_infer": 800, "conv_chunksize": 500, "downsample_hidden_size": CHANNELS, "output_dim": WIDTH,
    }  # fmt: skip
    thinker["vision_config"] |= {
        "depth": SIGHT_LAYERS, "hidden_size": SIGHT_WIDTH, "num_heads": 16, "intermediate_size": SIGHT_FFN,
        "out_hidden_size": WIDTH, "num_position_embeddings": 2304, "deepstack_visual_indexes": SIGHT_TAPS,
    }  # fmt: skip
    return config


def active(tokens: int) -> float:
    """Weights of the thinker that so many tokens need, without the output head (one row of it counts separately)."""
    attention = WIDTH * HEAD * (2 * HEADS + 2 * KV_HEADS)
    return LAYERS * (attention + PER_TOKEN * 3 * WIDTH * FFN + WIDTH * EXPERTS) * tokens


def audio_work(seconds: int) -> float:
    """Multiplications of the audio encoder for whole seconds: stem, blocks, windows of 104 tokens, projections."""
    stem = CHANNELS * 9 * (64 * 50 + CHANNELS * (32 * 25 + 16 * 13))
    block = 4 * AUDIO_WIDTH**2 + 8 * AUDIO_WIDTH**2 + 2 * 104 * AUDIO_WIDTH
    token = AUDIO_LAYERS * block + 16 * CHANNELS * AUDIO_WIDTH + AUDIO_WIDTH * (AUDIO_WIDTH + WIDTH)
    return seconds * (stem + 13 * token)


def vision_work(grid: tuple[int, int, int]) -> float:
    """Multiplications of the vision encoder: patches, blocks, attention inside a frame, mergers."""
    frames, rows, columns = grid
    block = 4 * SIGHT_WIDTH**2 + 2 * SIGHT_WIDTH * SIGHT_FFN + 2 * rows * columns * SIGHT_WIDTH
    merger = 4 * SIGHT_WIDTH * (4 * SIGHT_WIDTH + WIDTH) / 4
    patch = 3 * 2 * 16**2 * SIGHT_WIDTH
    return frames * rows * columns * (patch + SIGHT_LAYERS * block + (1 + len(SIGHT_TAPS)) * merger)


def smooth(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Pictures without noise, like photographs: a coarse random grid, enlarged."""
    coarse = rng.integers(0, 256, (count, 9, 16, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(item).resize((width, height))) for item in coarse])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=("thinker", "speech", "qwen2_5"), help="these rows alone")
    clock.add_option(parser)
    parser.add_argument("--keep", type=Path, help="make the model in this folder and leave it there for the next run")
    arguments = parser.parse_args()
    print(f"{rates.processor()}; {clock.threads()}; float32; jax {jax.__version__}", end=", ")
    print(f"torch {torch.__version__}, Transformers {transformers.__version__}; medians of {arguments.repeat} runs")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        result: dict = {"rows": {}}
        wanted = [arguments.only] if arguments.only else ["thinker", "speech", "qwen2_5"]
        if "thinker" in wanted:
            if not (folder / "config.json").exists():
                write_tiny(folder, config=mid_config())
            result = compare(folder, arguments.repeat)
        found = []
        if "speech" in wanted:
            if not (folder / "speech" / "config.json").exists():
                write_tiny(folder / "speech", config=speaking.speech_config())
            found.append(speaking.compare(folder / "speech", arguments.repeat))
        if "qwen2_5" in wanted:
            if not (folder / "qwen2_5" / "config.json").exists():
                write_tiny(folder / "qwen2_5", config=qwen2_5_omni.qwen2_5_config())
                qwen2_5_omni.write_voices(folder / "qwen2_5")
            found.append(qwen2_5_omni.compare(folder / "qwen2_5", arguments.repeat))
        for more in found:
            for name, (mine, their) in more.pop("rows").items():
                print(f"{name:36}{mine * 1e3:9.1f}ms{their * 1e3:9.1f}ms{their / mine:7.2f}x")
                result["rows"][name] = {"ours_s": mine, "theirs_s": their, "ratio": their / mine, "least_s": None}
            result["rates"] = result.get("rates", {}) | more.pop("rates")
            result |= more
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


def compare(folder: Path, repeat: int) -> dict:
    omni = Omni.load(folder, dtype=jnp.float32)
    reference = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval().thinker
    torch.set_grad_enabled(False)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, (1, PROMPT))
    batch = Batch.from_tokens(tokens)
    ids = torch.from_numpy(tokens)
    mel = rng.normal(size=(128, 100 * SECONDS)).astype(np.float32)
    features, mask = torch.from_numpy(mel[None]), torch.ones(1, 100 * SECONDS, dtype=torch.long)
    options = {"thinker_do_sample": False, "thinker_eos_token_id": (-1,)}

    def ours(new):
        return omni.generate_batch(batch, thinker_max_new_tokens=new, **options)[0].tokens

    def theirs(new):
        made = reference.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        return made[0, PROMPT:].tolist()

    def encode_theirs():
        return reference.get_audio_features(features, feature_attention_mask=mask).pooler_output

    picture = Image.fromarray(smooth(rng, 1, *IMAGE)[0])
    frames = smooth(rng, FRAMES, SIDE, SIDE)
    numbers = PatchConfig()
    processor = Qwen2VLImageProcessorPil(
        image_mean=list(numbers.mean), image_std=list(numbers.std), patch_size=numbers.patch, merge_size=numbers.merge,
        temporal_patch_size=numbers.temporal_patch,
        size={"shortest_edge": numbers.min_pixels, "longest_edge": numbers.max_pixels},
    )  # fmt: skip
    # Theirs supports no videos without torchvision: half as many pictures, each doubled in time, make as many patches.
    halves = [Image.fromarray(frame) for frame in frames[::2]]
    seen = {"image": patches.prepare(picture, numbers), "video": patches.to_patches(frames, numbers)}

    def see_ours(kind):
        patches, grid = seen[kind]
        return jax.block_until_ready(omni.encode_vision(patches, [grid]))

    def see_theirs(kind):
        patches, grid = seen[kind]
        return reference.model.visual(torch.from_numpy(patches), grid_thw=torch.tensor([grid]))

    same = ours(NEW + 1) == theirs(NEW + 1)
    error = float(np.abs(np.asarray(omni.encode_audio([mel])[0]) - encode_theirs().numpy()).max())
    their_patches = processor(images=[picture], return_tensors="np")["pixel_values"]
    see_error = max(
        float(np.abs(np.asarray(see_ours(kind)[0]) - see_theirs(kind).pooler_output.numpy()).max()) for kind in seen
    )
    patch_error = float(np.abs(their_patches - seen["image"][0]).max())
    print(
        f"greedy tokens equal: {same}; largest difference of the audio features: {error:.1e}, of the vision features: "
        f"{see_error:.1e}, of the patches: {patch_error:.1e}"
    )
    actions = {
        "prefill": (lambda: ours(1), lambda: theirs(1)),
        "prefill and decode": (lambda: ours(NEW + 1), lambda: theirs(NEW + 1)),
        "audio": (lambda: omni.encode_audio([mel]), encode_theirs),
        "image": (lambda: see_ours("image"), lambda: see_theirs("image")),
        "video": (lambda: see_ours("video"), lambda: see_theirs("video")),
        "patches of image": (
            lambda: patches.prepare(picture, numbers),
            lambda: processor(images=[picture], return_tensors="np"),
        ),
        "patches of video": (
            lambda: patches.to_patches(frames, numbers),
            lambda: processor(images=halves, return_tensors="np"),
        ),
    }
    times: dict[str, list[list[float]]] = {name: [[], []] for name in actions}
    measured = []
    for _ in range(repeat):
        for name, pair in actions.items():
            for side, action in enumerate(pair):
                times[name][side].append(clock.spent(action))
        measured.append(rates.measure("thinker"))
    products, reading = rates.best(measured)
    matrix, bandwidth = max(products[rates.LARGE]), max(reading)
    found = {name: [statistics.median(side) for side in sides] for name, sides in times.items()}
    decode = []
    for side in (0, 1):
        runs = zip(times["prefill and decode"][side], times["prefill"][side], strict=True)
        decode.append(statistics.median((whole - start) / NEW for whole, start in runs))
    bytes_a_token = 4 * (active(1) + WIDTH * VOCABULARY)
    rows = {
        f"prefill of {PROMPT} tokens": (*found["prefill"], 2 * active(PROMPT) / matrix),
        "decoding a token": (*decode, bytes_a_token / bandwidth),
        f"encoding {SECONDS} s of audio": (*found["audio"], 2 * audio_work(SECONDS) / matrix),
        f"encoding an image {IMAGE[1]}x{IMAGE[0]}": (*found["image"], 2 * vision_work(seen["image"][1]) / matrix),
        f"encoding {FRAMES} frames {SIDE}x{SIDE}": (*found["video"], 2 * vision_work(seen["video"][1]) / matrix),
        "patches of that image": (*found["patches of image"], None),
        "patches of those frames": (*found["patches of video"], None),
    }
    rates.show("thinker", products, reading)
    print(f"{'':28}{'ours':>11}{'theirs':>11}{'ratio':>8}{'our share':>12}{'their share':>13}")
    for name, (mine, their, least) in rows.items():
        shares = "" if least is None else f"{least / mine:11.0%}{least / their:12.0%}"
        print(f"{name:28}{mine * 1e3:9.1f}ms{their * 1e3:9.1f}ms{their / mine:7.2f}x{shares}")
    return {
        "tokens_equal": same,
        "audio_error": error,
        "vision_error": see_error,
        "patch_error": patch_error,
        "rates": {"thinker": products},
        "bandwidth": reading,
        "rows": {
            name: {"ours_s": mine, "theirs_s": their, "ratio": their / mine, "least_s": least}
            for name, (mine, their, least) in rows.items()
        },
    }


if __name__ == "__main__":
    main()
