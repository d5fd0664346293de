"""Recognizes folders that are no readable checkpoint (adapters, trainers' output, quantized weights, other formats) and
says what to do.

Only names of files and small JSON files are read.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni_jax.config.fields import json_or_empty
from omni_jax.errors import cut, shown

ADAPTER = "adapter_config.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SAVE_ANEW = (
    "which may hold code that runs on loading; where you trust it, open it with Transformers, call "
    "model.save_pretrained(NEW_FOLDER), which writes safetensors, and give that folder"
)
# Weights in other formats: a pattern that some file's name matches, and the format with what to do.
FORMATS = (
    ("*.gguf", "GGUF files of llama.cpp, which are quantized; give the published safetensors that they were made from"),
    ("*.onnx", "ONNX files; give the published safetensors that they were made from"),
    ("model_index.json", "a diffusers pipeline; give the folder of a Qwen3-Omni or Qwen2.5-Omni"),
    ("latest_checkpointed_iteration.txt", "a Megatron checkpoint; export it to Hugging Face's format, then give that folder"),
    ("mp_rank_*", "a Megatron checkpoint; export it to Hugging Face's format, then give that folder"),
    ("zero_to_fp32.py", "a DeepSpeed checkpoint; run its zero_to_fp32.py, which joins the shards, with --safe_serialization"),
    ("global_step*", "a DeepSpeed checkpoint; join its shards with DeepSpeed's zero_to_fp32.py --safe_serialization"),
    ("*.distcp", "a distributed PyTorch checkpoint; merge it (accelerate merge-weights), then give that folder"),
    ("*.nemo", "a NeMo checkpoint; export it to Hugging Face's format, then give that folder"),
    ("*.msgpack", "weights of another Flax model; give the published safetensors"),
    ("*.h5", "weights of TensorFlow; give the published safetensors"),
)  # fmt: skip
# Suffixes that quantizers add to the name of a tensor.
QUANTIZED = (
    ".qweight",
    ".qzeros",
    ".g_idx",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_packed",
    ".absmax",
    ".scales",
)


def refuse_foreign(folder: Path) -> None:
    """Refuses a folder that holds no readable checkpoint.

    Raises:
        ValueError: what the folder is instead, and what to do, in one line.
    """
    if (folder / ADAPTER).is_file() and not _has_weights(folder):
        about = json_or_empty(folder / ADAPTER)
        kind, base = about.get("peft_type"), about.get("base_model_name_or_path")
        raise ValueError(
            f"{folder}: an adapter ({shown(kind, 30)}) for {shown(base, 120)}, not a model; merge it into that model with peft "
            "(merge_and_unload, then save_pretrained), and give the merged folder"
        )
    if (folder / "config.json").is_file() or not folder.is_dir():
        return
    if found := _trained(folder):
        raise ValueError(
            f"{folder}: a trainer's output, found no config.json in it; give its newest checkpoint, {found}"
        )
    if inner := _inner(folder):
        raise ValueError(f"{folder}: found no config.json in it, but in a folder there; give {inner}")
    if said := other_weights(folder):
        raise ValueError(f"{folder}: found no config.json, but {said}")


def other_weights(folder: Path) -> str:
    """Names a folder's weights that are not safetensors and says what to do with them; empty where it has none."""
    for pattern, said in FORMATS:
        if any(folder.glob(pattern)):
            return said
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern) if path.name != "spk_dict.pt")
    return f"weights of PyTorch ({cut(', '.join(pickled[:3]))}), {SAVE_ANEW}" if pickled else ""


def refuse_file(path: Path) -> None:
    """Refuses a file in place of a folder.

    Raises:
        ValueError: which folder to give instead.
    """
    said = next((said for pattern, said in FORMATS if path.match(pattern)), "")
    if not said and any(path.match(pattern) for pattern in PICKLED):
        said = f"a file of PyTorch, {SAVE_ANEW}"
    where = path.parent if path.suffix in (".json", ".safetensors") else "the folder that holds config.json"
    raise ValueError(f"{path}: expected a model folder, got a file{': ' + said if said else f'; give {where}'}")


def refuse_quantized(config: Mapping[str, Any]) -> None:
    """Refuses the config.json of a quantized checkpoint.

    Raises:
        ValueError: which checkpoint to give instead.
    """
    for place in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        about = place.get("quantization_config") or place.get("compression_config")
        if isinstance(about, Mapping):
            method = about.get("quant_method") or about.get("quant_algo") or "unknown method"
            raise ValueError(f"config.json: {quantized(shown(method, 40).strip(chr(39)), about.get('bits'))}")
        if isinstance(about := place.get("quantization"), Mapping) and {"group_size", "bits"} <= about.keys():
            raise ValueError(f"config.json: {quantized('MLX', about['bits'])}")


def quantized(method: str, bits: Any = None) -> str:
    """The error message for quantized weights."""
    how = f"{method}, {bits} bits" if type(bits) is int else method
    return (
        f"the checkpoint is quantized ({how}); expected float32, bfloat16 or float16: give the folder or hub id of the model "
        "that it was made from, such as Qwen/Qwen2.5-Omni-7B or Qwen/Qwen3-Omni-30B-A3B-Instruct"
    )


def _has_weights(folder: Path) -> bool:
    return any(not path.name.startswith("adapter") for path in folder.glob("*.safetensors"))


def _trained(folder: Path) -> Path | None:
    """The newest of a trainer's checkpoints (the highest step)."""
    steps = {path: re.fullmatch(r"checkpoint-(\d{1,18})", path.name) for path in folder.glob("checkpoint-*")}
    found = {path: int(step[1]) for path, step in steps.items() if step and path.is_dir()}
    return max(found, key=found.__getitem__) if found else None


def _inner(folder: Path) -> Path | None:
    """The only checkpoint inside a folder: a folder in it, or the snapshot in a model's folder of the hub's cache."""
    found = [path.parent for pattern in ("*", "snapshots/*") for path in folder.glob(f"{pattern}/config.json")]
    return found[0] if len(found) == 1 else None
