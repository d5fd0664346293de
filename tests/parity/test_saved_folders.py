"""Folders that Transformers saves: a whole model, one without the talker, a thinker alone, and a processor."""

import json
import shutil
import warnings

import pytest
import torch
import transformers
from transformers import ProcessorMixin, WhisperFeatureExtractor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omni_jax import weights
from omni_jax.processing.media.reader import FolderReader
from omni_jax.testing import tiny_qwen2_5_config, write_tiny
from tests.support.trees import same

WHOLE = {
    "Qwen3-Omni": ("Qwen3OmniMoeForConditionalGeneration", "Qwen3OmniMoeThinkerForConditionalGeneration"),
    "Qwen2.5-Omni": ("Qwen2_5OmniForConditionalGeneration", "Qwen2_5OmniThinkerForConditionalGeneration"),
}


@pytest.fixture(scope="module", params=WHOLE)
def saved(request, tiny, tmp_path_factory):
    """The folders that the reference writes, by name, and the folder that it read."""
    root = tmp_path_factory.mktemp("saved")
    source = tiny if request.param == "Qwen3-Omni" else write_tiny(root / "source", config=tiny_qwen2_5_config())
    whole, thinker = (getattr(transformers, name) for name in WHOLE[request.param])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = whole.from_pretrained(source, dtype=torch.float32)
        model.save_pretrained(root / "whole")
        model.disable_talker()
        model.save_pretrained(root / "disabled")
        model.thinker.save_pretrained(root / "thinker")
        thinker.from_pretrained(source, dtype=torch.float32).save_pretrained(root / "of the whole")
    for name in ("tokenizer_config.json", "vocab.json"):
        for kind in ("thinker", "of the whole"):
            shutil.copy(source / name, root / kind)
    return root, source


@pytest.mark.parametrize("kind", ["whole", "disabled", "thinker", "of the whole"])
def test_folders_saved_by_the_reference_load_equal(saved, kind):
    root, source = saved
    config, found = weights.config_of(source), weights.config_of(root / kind)
    assert found == (config if kind == "whole" else config.silent())
    made = weights.load(root / kind, found, dtype="float32")
    wanted = weights.load(source, config, dtype="float32")
    assert ("talker" in made) == (kind == "whole")
    same(made, {name: wanted[name] for name in made})


class Processor(ProcessorMixin):
    """Like the reference's own processor, whose constructor needs torchvision for videos."""

    def __init__(self, image_processor=None, feature_extractor=None):
        super().__init__(image_processor, feature_extractor)


def test_a_processor_saved_by_the_reference_is_read(tmp_path, tiny, writer):
    flat = json.loads((tiny / "preprocessor_config.json").read_text())
    Processor(Qwen2VLImageProcessorPil(**flat), WhisperFeatureExtractor(**flat)).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["processor_config.json"]
    reader, wanted = FolderReader(tmp_path, writer.config.thinker), writer.reader
    assert (reader.sound, reader.patches, reader.frames) == (wanted.sound, wanted.patches, wanted.frames)
