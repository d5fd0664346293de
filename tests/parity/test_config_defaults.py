"""Fields that config.json leaves out have the values of Transformers' class, which reads and writes such files."""

import json
import warnings

import pytest
from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as qwen2_5
from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as newer

from omni_jax.config import from_hf
from omni_jax.config.defaults import QWEN2_5, QWEN3
from omni_jax.testing import tiny_config, tiny_qwen2_5_config

CLASSES = {
    "": newer.Qwen3OmniMoeConfig,
    "thinker_config": newer.Qwen3OmniMoeThinkerConfig,
    "thinker_config.audio_config": newer.Qwen3OmniMoeAudioEncoderConfig,
    "thinker_config.vision_config": newer.Qwen3OmniMoeVisionEncoderConfig,
    "thinker_config.text_config": newer.Qwen3OmniMoeTextConfig,
    "talker_config": newer.Qwen3OmniMoeTalkerConfig,
    "talker_config.text_config": newer.Qwen3OmniMoeTalkerTextConfig,
    "talker_config.code_predictor_config": newer.Qwen3OmniMoeTalkerCodePredictorConfig,
    "code2wav_config": newer.Qwen3OmniMoeCode2WavConfig,
}
QWEN2_5_CLASSES = {
    "": qwen2_5.Qwen2_5OmniConfig,
    "thinker_config": qwen2_5.Qwen2_5OmniThinkerConfig,
    "thinker_config.audio_config": qwen2_5.Qwen2_5OmniAudioEncoderConfig,
    "thinker_config.vision_config": qwen2_5.Qwen2_5OmniVisionEncoderConfig,
    "thinker_config.text_config": qwen2_5.Qwen2_5OmniTextConfig,
    "talker_config": qwen2_5.Qwen2_5OmniTalkerConfig,
    "token2wav_config": qwen2_5.Qwen2_5OmniToken2WavConfig,
    "token2wav_config.dit_config": qwen2_5.Qwen2_5OmniDiTConfig,
    "token2wav_config.bigvgan_config": qwen2_5.Qwen2_5OmniBigVGANConfig,
}
# The model itself reads these from rope_parameters, with these defaults.
SECTIONS = {"newer": [24, 20, 20], "qwen2_5": [16, 24, 24]}


# Spellings of the published files beside the reference's. We read both, so both are removed to leave a field out.
TWINS = {
    "hidden_size": ("embed_dim", "dim"),
    "patch_size": ("spatial_patch_size",),
    "num_hidden_layers": ("depth",),
    "num_attention_heads": ("heads",),
}


def plain(value):
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    ("table", "classes", "sections"),
    [(QWEN3, CLASSES, SECTIONS["newer"]), (QWEN2_5, QWEN2_5_CLASSES, SECTIONS["qwen2_5"])],
    ids=["Qwen3-Omni", "Qwen2.5-Omni"],
)
def test_every_default_equals_that_of_transformers(table, classes, sections):
    assert table.keys() == classes.keys()
    for path, fields in table.items():
        reference = classes[path]()
        for name, value in fields.items():
            if name == "rope_theta":
                wanted = reference.rope_parameters["rope_theta"]
            elif name == "mrope_section":
                wanted = sections
            else:
                wanted = plain(getattr(reference, name))
            assert value == wanted, f"{path}.{name}"


def fields_of(config, path=()):
    for name, value in config.items():
        if isinstance(value, dict) and name.endswith("_config"):
            yield from fields_of(value, (*path, name))
        else:
            yield path, name


def read(config):
    """Our configuration, or the error."""
    try:
        return from_hf(config)
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("config", "reference"),
    [(tiny_config(), newer.Qwen3OmniMoeConfig), (tiny_qwen2_5_config(), qwen2_5.Qwen2_5OmniConfig)],
    ids=["Qwen3-Omni", "Qwen2.5-Omni"],
)
def test_a_file_without_a_field_reads_the_same_in_both(config, reference):
    """Each field in turn: we read the sparse file as we read the file that the reference writes from it.

    Other tests cover ids, which we read from the tokenizer first, and voices, which only we require.
    """
    same = 0
    for path, name in fields_of(config):
        if name.endswith(("_token_id", "_token_index")) or name in ("model_type", "speaker_id"):
            continue
        sparse = json.loads(json.dumps(config))
        place = sparse
        for part in path:
            place = place[part]
        for spelling in (name, *TWINS.get(name, ())):
            place.pop(spelling, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = json.loads(json.dumps(reference(**json.loads(json.dumps(sparse))).to_dict()))
        ours = read(sparse)
        assert ours == read(written), (path, name)
        same += ours is not None
    assert same > 60  # with the other defaults the tiny model contradicts itself, and both files are refused
