"""One part of a message: text or a medium, in Qwen's spelling and those of OpenAI, Transformers and ``datasets``.

{"type": "audio", "audio": SOURCE}                                            Qwen's examples; "type" may be left out
{"type": "audio_url", "audio_url": {"url": SOURCE}}                           vLLM's, also without the dict
{"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}     OpenAI's; DashScope's data may be a URL
{"type": "image", "url": SOURCE}                                              Transformers'; "path" and "base64" too
{"audio": {"array": SAMPLES, "sampling_rate": 16000}}                         a decoded recording of ``datasets``
{"image": {"bytes": BYTES, "path": None}}                                     an undecoded medium of ``datasets``
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from omni_jax.errors import cut, listed, shown
from omni_jax.processing.options import OF_A_PART, misspelt

# Keys that hold a payload, and the types that say which kind it is.
KEYS = {
    "text": "text",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "image": "image",
    "image_url": "image",
    "video": "video",
    "video_url": "video",
}
TYPES = {**KEYS, "input_text": "text", "output_text": "text", "input_image": "image"}
# Keys under which Transformers' own templates take a medium of any type.
PLACES = ("url", "path", "base64")
ENCODED = ("data", "base64")


def read_part(part: object) -> tuple[str, Any, dict[str, Any]]:
    """(kind, payload, options) of one content part; a medium's payload is an input of ``processing.media``.

    Raises:
        ValueError: what is wrong with it.
    """
    if not isinstance(part, dict):
        raise ValueError(f'expected a dict such as {{"type": "text", "text": "..."}}, got {type(part).__name__}')
    named = part.get("type")
    if named is not None and (not isinstance(named, str) or named not in TYPES):
        raise ValueError(f"unknown content type {shown(named)} (expected {', '.join(KEYS)})")
    kind = None if named is None else TYPES[named]
    if faults := misspelt(str(key) for key in part):
        raise ValueError(listed(faults))
    # A key that is None counts as absent: tables of examples fill unused columns with it.
    held = {key: payload for key in KEYS if (payload := _payload(key, part.get(key))) is not None}
    if not held and kind not in (None, "text"):
        places = [medium for key in PLACES if (medium := _place(str(kind), key, part.get(key))) is not None]
        held = {str(named): places[0]} if places else held
    if len(held) > 1:
        raise ValueError(f"holds {' and '.join(held)} where one is expected; make them separate parts")
    if not held or (kind is not None and KEYS.get(next(iter(held)), kind) != kind):
        keys = [key for key, of in KEYS.items() if kind in (None, of)]
        raise ValueError(f"no payload under {' or '.join(keys)}" + (f" for type {named!r}" if named else ""))
    key, payload = next(iter(held.items()))
    kind = TYPES[str(key)]
    if kind == "text" and not isinstance(payload, str):
        raise ValueError(f"expected text as a string, got {type(payload).__name__}")
    if kind == "text":
        require_unicode(payload)
    return kind, payload, {name: part[name] for name in OF_A_PART if part.get(name) is not None}


def require_unicode(text: str) -> None:
    """Raises ValueError for text that cannot be written as UTF-8, such as a shell argument in another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            "the text holds lone surrogates, which UTF-8 cannot encode; decode it with errors='replace'"
        ) from None


def _payload(key: str, value: Any) -> Any:
    """The payload under one of a part's keys, without the dict around it; None if there is none."""
    if key == "text":
        return value
    if isinstance(value, Mapping):
        value = _unwrapped(key, value)
    elif key == "input_audio":
        value = _place(KEYS[key], "base64", value)
    return None if isinstance(value, str) and not value else value


def _place(kind: str, key: str, value: Any) -> Any:
    """A medium under one of the keys that a part of any type may have."""
    medium = _decodable(kind, key, value) if key in ENCODED and value is not None else value
    return None if isinstance(medium, str) and not medium else medium


def _unwrapped(key: str, value: Mapping[str, Any]) -> Any:
    """The medium inside a dict."""
    kind, held = KEYS[key], {name: item for name, item in value.items() if item is not None}
    if "array" in held:
        if kind != "audio" or "sampling_rate" not in held:
            raise ValueError(
                f"{key}: an array in a dict is sound, with its sampling_rate beside it; give other arrays bare"
            )
        return (
            held["array"] if hasattr(held["array"], "__array__") else np.asarray(held["array"]),
            held["sampling_rate"],
        )
    for name in ("bytes", *ENCODED, "url", "path"):
        if name in held:
            if name in ENCODED:
                return _decodable(kind, name, held[name], held.get("format"))
            return held[name]
    expected = "url, path, bytes, base64, data, or array and sampling_rate"
    raise ValueError(
        f"{key}: expected a dict with {expected}, got one with {cut(', '.join(map(str, value)) or 'nothing')}"
    )


def _decodable(kind: str, key: str, text: Any, form: Any = None) -> str:
    """Base64 as a data URL, which is decoded when the medium is read; a URL stays as it is."""
    if not isinstance(text, str):
        raise ValueError(f"{key}: expected base64 or a URL as a string, got {type(text).__name__}")
    if text[:5].lower() == "data:" or "://" in text[:16] or not text:
        return text
    if isinstance(form, str) and form.lower().startswith(("pcm", "g711")):
        raise ValueError(f"format {shown(form)}: samples without a header; give them as (array, rate), or as wav")
    return f"data:{kind};base64,{''.join(text.split())}"
