"""RequestOptions: one precedence, one list of names, the same answer from keywords, lines and commands."""

from dataclasses import fields
from typing import get_type_hints

import numpy as np
import pytest

from omni_jax import Sampling
from omni_jax.decoding.defaults import OF_PREDICTOR, GenerationConfig
from omni_jax.engine import keywords
from omni_jax.engine.options import OF_JSON, PREFIXES, RequestOptions, json_options
from omni_jax.engine.transformers_keywords import translated
from omni_jax.processing import options as media

FIELDS = {field.name for field in fields(Sampling)}
CHECKPOINT = GenerationConfig(
    Sampling(max_new_tokens=9, do_sample=False), Sampling(do_sample=True, top_k=50), Sampling(temperature=1.0)
)


def test_keywords_are_the_fields_of_the_options():
    """Static types cannot be computed, so the typed keywords repeat names; here they are compared with the fields."""
    names = set(get_type_hints(keywords.RequestKeywords))
    expected = {field.name for field in fields(RequestOptions)} | media.NAMES
    expected |= {f"thinker_{name}" for name in FIELDS} | {f"talker_{name}" for name in FIELDS - {"stop_strings"}}
    expected |= {f"predictor_{name}" for name in OF_PREDICTOR}
    transformers = set(get_type_hints(keywords.TransformersKeywords))
    assert names == expected | transformers
    assert expected == keywords.NAMES
    assert set(translated(dict.fromkeys(transformers))) <= expected
    assert set(get_type_hints(keywords.JobKeywords)) == names - {"progress"}
    assert set(get_type_hints(keywords.SpeakKeywords)) < names | {"conversation"}


def test_json_may_give_what_keywords_may_but_objects_and_limits():
    limits = {"max_bytes", "timeout", "allow_private", "allow_local"}
    objects = {"thinker", "talker", "predictor", "media", "progress"}
    single = {name for name in keywords.NAMES if not name.startswith(PREFIXES)}
    assert set(OF_JSON) == single - limits - objects


def test_keywords_and_overriding_give_equal_options():
    both = {"thinker_top_k": 3, "fps": 2.0, "speaker": "Ethan", "seed": 5}
    assert RequestOptions.from_mapping(both) == RequestOptions.from_mapping(
        {"thinker": Sampling(top_k=3), "media": media.MediaOptions(fps=2.0), "speaker": "Ethan", "seed": 5}
    )
    assert RequestOptions.from_mapping({"seed": 5, "fps": 1.0}).override({**both, "use_cache": True}).override(
        {"thinker_top_k": None, "speaker": None, "media": None, "return_audio": None}
    ) == RequestOptions.from_mapping(both)


def test_the_argument_of_override_wins_everywhere():
    job = RequestOptions.from_mapping({"thinker_do_sample": False, "thinker_max_new_tokens": 4, "min_pixels": 900})
    line = job.override({"thinker_temperature": 0.7, "max_pixels": 400, "compat": "transformers-5.23"})
    assert line.thinker == Sampling(do_sample=True, temperature=0.7, max_new_tokens=4)
    assert line.media == (media.MediaOptions(max_pixels=400),)  # they contradict, so the earlier one is reset
    assert job.override({"thinker": Sampling(top_k=2), "thinker_top_k": 3}).thinker.top_k == 3
    generation = CHECKPOINT.override(thinker=line.thinker, talker=Sampling(do_sample=False), predictor=Sampling())
    assert generation.thinker == Sampling(do_sample=True, temperature=0.7, max_new_tokens=4)
    assert generation.predictor.do_sample is False  # the code predictor samples when the talker does
    assert CHECKPOINT.override(
        thinker=Sampling(), talker=Sampling(do_sample=False), predictor=Sampling(top_k=4)
    ).predictor == Sampling(do_sample=True, temperature=1.0, top_k=4)


def test_media_options_are_one_for_all_or_one_a_conversation():
    rows = RequestOptions.from_mapping({"fps": [1.0, 2.0], "max_pixels": 400}, rows=2)
    assert rows.media == tuple(media.MediaOptions(fps=fps, max_pixels=400) for fps in (1.0, 2.0))
    with pytest.raises(ValueError, match=r"^fps: expected one, or one for each of the 3 conversations, got 2"):
        RequestOptions.from_mapping({"fps": [1.0, 2.0]}, rows=3)


def test_seeds_are_one_for_all_or_one_a_conversation():
    assert RequestOptions(seed=7).seeds(2) == (7, 7)
    assert RequestOptions(seed=np.array([1, 2])).seeds(2) == (1, 2)
    with pytest.raises(ValueError, match=r"^seed: expected one whole number, or one for each of the 3 conversations"):
        RequestOptions(seed=[1, 2]).seeds(3)


def test_options_that_only_speech_has_are_named():
    options = RequestOptions.from_mapping({"speaker": "Ethan", "talker": Sampling(top_k=1), "predictor_top_p": 0.5})
    assert options.of_speech == ["speaker", "talker_top_k", "predictor_top_p"]
    assert RequestOptions.from_mapping({"thinker_top_k": 1, "talker_top_k": None, "seed": 3}).of_speech == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"talker_stop_strings": "x"}, "talker_stop_strings: speech has no text to stop at; use thinker_stop_strings"),
        ({"predictor_max_new_tokens": 3}, "predictor_max_new_tokens: expected predictor_... options among do_sample"),
        ({"thinker": {"top_k": 3}}, "thinker: expected a Sampling, got dict; or use thinker_... options"),
        ({"min_new_tokens": 3}, "unknown option min_new_tokens; did you mean thinker_min_new_tokens"),
        ({"max_pixel": 3}, "unknown option max_pixel; did you mean max_pixels"),
        ({"progress": 3}, "progress: expected a function"),
        ({"return_audio": 1}, "return_audio: expected True, False or None"),
    ],
)
def test_an_impossible_option_is_refused_without_a_model(given, said):
    with pytest.raises(ValueError, match=f"^{said}") as error:
        RequestOptions.from_mapping(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", [{"allow_local": True}, {"progress": 1}, {"media": {}}, {"temperature": 1}])
def test_json_does_not_give_what_only_the_caller_decides(given):
    with pytest.raises(ValueError, match=r"^unknown option"):
        json_options(given)


def test_json_that_is_null_leaves_an_option_as_it_is():
    assert json_options({"seed": None, "speaker": None, "fps": 2}) == {"fps": 2}
