"""A checkpoint's files beside its weights, read once when it is loaded, so that a damaged one is reported there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omni_jax import weights
from omni_jax.config import OmniConfig
from omni_jax.decoding.defaults import GenerationConfig
from omni_jax.errors import UserError, cut, listed
from omni_jax.processing.media.reader import FolderReader
from omni_jax.processing.processor_files import NESTED, PARTS, read_processor
from omni_jax.processing.prompt import NoTokenizerError, check_template, load_tokenizer
from omni_jax.weights import speakers

# A field that no part of a processor can do without: where it is absent, the file says nothing about that part.
ESSENTIAL = {"sound": "n_fft", "image": "patch_size", "video": "patch_size"}
# The property of a reader that reads each part.
READ = {"sound": "sound", "image": "patches", "video": "frames"}


def read(folder: Path, config: OmniConfig, *, speech: bool) -> Any:
    """Reads the tokenizer, the chat template, the processor, the generation config and the speakers.

    A file that is absent is no fault: weights alone answer a Batch, and media that are not sent need no processor.

    Args:
        folder: the checkpoint's folder.
        config: the checkpoint's configuration.
        speech: whether it is loaded with speech; otherwise speakers are not read.

    Returns:
        The tokenizer, whose reading takes the longest; None if there is none.

    Raises:
        ValueError: every damaged or impossible file, in one line.
        RetryableError: the file system does not answer.
    """
    faults: list[str] = []
    tokenizer = None
    with _noted(faults):
        try:
            tokenizer = load_tokenizer(folder)
            check_template(tokenizer)
        except NoTokenizerError:  # of weights alone; the first call that needs it says what is missing
            pass
    reader = FolderReader(folder, config.thinker)
    for part, name in READ.items():
        with _noted(faults):
            if _states(folder, part):
                getattr(reader, name)
    with _noted(faults):
        GenerationConfig.read(folder, config)
    if (folder / speakers.FILE).exists():
        with _noted(faults):
            weights.voices(folder, config, speech=speech)
    if faults:
        names = (fault.removeprefix(str(folder)).lstrip("/: ") for fault in dict.fromkeys(faults))
        raise UserError(f"{cut(str(folder))}: {listed(names)}")
    return tokenizer


def _states(folder: Path, part: str) -> bool:
    """Whether a file has the parameters of a part of the processor."""
    files = (NESTED, *PARTS[part][1])
    return any((folder / file).is_file() for file in files) and ESSENTIAL[part] in read_processor(folder, part).values


@contextmanager
def _noted(faults: list[str]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        faults.append(str(error))
