"""Sampling: which tokens are drawn, how often, and what a draw depends on; options and their errors."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax import Omni, Sampling
from omni_jax.decoding.sampling import SamplingRows, sample

VOCABULARY, DRAWS = 24, 8192
_sample = partial(jax.jit, static_argnames="candidates")(sample)


def rng_logits(seed=0, rows=1, scale=1.5):
    return np.random.default_rng(seed).normal(scale=scale, size=(rows, VOCABULARY)).astype(np.float32)


def choose(logits, options, *, seen=None, count=None, seeds=None, candidates=None):
    """Tokens and log-probabilities of rows of logits [B, V]; ``options`` is one Sampling or one a row."""
    batch = len(logits)
    options = [options] * batch if isinstance(options, Sampling) else options
    rows = SamplingRows.of(options, list(range(batch)) if seeds is None else seeds, [100] * batch)
    seen = np.zeros(logits.shape, bool) if seen is None else seen
    count = np.zeros(batch, np.int32) if count is None else np.asarray(count, np.int32)
    candidates = options[0].candidates(VOCABULARY) if candidates is None else candidates
    tokens, logprobs = _sample(jnp.asarray(logits), jnp.asarray(seen), count, rows, candidates=candidates)
    return np.asarray(tokens), np.asarray(logprobs)


def draws(logits, options, *, seen=None):
    """One draw of the same row for each of many seeds."""
    seen = None if seen is None else np.broadcast_to(seen, (DRAWS, VOCABULARY))
    return choose(np.broadcast_to(logits, (DRAWS, VOCABULARY)), options, seen=seen)[0]


def expected(logits, options, seen=None):
    """Probabilities after Transformers' processors in their order: penalty, temperature, top-k, top-p."""
    scores = logits.astype(np.float64).copy()
    if seen is not None and options.repetition_penalty:
        factor = np.where(scores > 0, 1 / options.repetition_penalty, options.repetition_penalty)
        scores = np.where(seen, scores * factor, scores)
    scores /= options.temperature or 1.0
    top_k = 50 if options.top_k is None else options.top_k
    if 0 < top_k < scores.size:
        scores[scores < np.sort(scores)[-top_k]] = -np.inf
    if options.top_p is not None:
        ascending = np.argsort(scores)
        sums = np.cumsum(np.exp(scores[ascending]) / np.exp(scores).sum())
        removed = ascending[sums <= 1 - options.top_p]
        scores[np.setdiff1d(removed, ascending[-1:])] = -np.inf
    return np.exp(scores) / np.exp(scores).sum()


def excess(counts, probabilities):
    """Chi-square of counts against the probabilities, in units of a generous bound: five deviations over its mean."""
    mean, freedom = DRAWS * probabilities, len(counts) - 1
    return np.sum(np.square(counts - mean) / mean) / (freedom + 5 * np.sqrt(2 * freedom) + 1e-9)


CUTS = [
    Sampling(do_sample=True),
    Sampling(do_sample=True, temperature=0.6),
    Sampling(do_sample=True, temperature=1.7, top_k=0),
    Sampling(do_sample=True, top_k=5),
    Sampling(do_sample=True, top_k=1),
    Sampling(do_sample=True, top_k=1000, top_p=0.9),
    Sampling(do_sample=True, top_k=0, top_p=0.7),
    Sampling(do_sample=True, top_p=0.01),
    Sampling(do_sample=True, temperature=0.6, top_k=9, top_p=0.8),
    Sampling(do_sample=True, temperature=2.0, top_k=7, top_p=0.75, repetition_penalty=1.8),
]


@pytest.mark.parametrize("number", range(len(CUTS)))
def test_draws_keep_the_tokens_of_transformers_and_their_frequencies(number):
    options, logits = CUTS[number], rng_logits(number)[0]
    seen = np.arange(VOCABULARY) % 3 == 0
    probabilities = expected(logits, options, seen)
    counts = np.bincount(draws(logits, options, seen=seen), minlength=VOCABULARY)
    kept = probabilities > 0
    assert not counts[~kept].any()
    # A token of probability p is absent from all draws with probability (1 - p) ** DRAWS.
    assert counts[probabilities > 0.003].all()
    assert excess(counts[kept], probabilities[kept]) < 1


def test_the_frequency_bound_rejects_a_wrong_temperature():
    """A temperature that is 15 % off exceeds the bound by far."""
    logits = rng_logits(2)[0]
    counts = np.bincount(draws(logits, Sampling(do_sample=True, temperature=1.15)), minlength=VOCABULARY)
    assert excess(counts, expected(logits, Sampling(temperature=1.0))) > 2


def test_greedy_takes_the_most_likely_token():
    logits = rng_logits(rows=16)
    np.testing.assert_array_equal(choose(logits, Sampling(do_sample=False))[0], logits.argmax(1))
    for almost in (Sampling(do_sample=True, top_k=1), Sampling(do_sample=True, temperature=1e-40)):
        np.testing.assert_array_equal(choose(logits, almost)[0], logits.argmax(1))


def test_the_penalty_divides_positive_and_multiplies_negative_logits():
    logits = np.full((3, VOCABULARY), -9.0, np.float32)
    logits[:, :2] = [[3.0, 2.0], [3.0, 1.0], [-1.0, -1.5]]
    seen = np.zeros(logits.shape, bool)
    seen[:, 0] = True
    tokens, _ = choose(logits, Sampling(do_sample=False, repetition_penalty=2.0), seen=seen)
    np.testing.assert_array_equal(tokens, [1, 0, 1])  # 1.5 < 2, 1.5 > 1, -2 < -1.5
    tokens, _ = choose(logits, Sampling(do_sample=False, repetition_penalty=0.5), seen=~seen)
    np.testing.assert_array_equal(tokens, [1, 0, 1])  # 3 < 4, 3 > 2, -1 < -0.75


@pytest.mark.parametrize("do_sample", [False, True])
def test_no_stop_token_before_the_minimum_length(do_sample):
    logits = np.zeros((64, VOCABULARY), np.float32)
    logits[:, [3, 5, 7]] = 30.0
    options = Sampling(do_sample=do_sample, eos_token_id=[3, 5, 7], min_new_tokens=4)
    for count in (0, 3):
        assert not np.isin(choose(logits, options, count=[count] * 64)[0], [3, 5, 7]).any()
    assert np.isin(choose(logits, options, count=[4] * 64)[0], [3, 5, 7]).all()


def test_a_stop_token_beyond_the_vocabulary_masks_no_other_token():
    logits = rng_logits(rows=4)
    options = Sampling(do_sample=False, eos_token_id=[VOCABULARY + 5, -1], min_new_tokens=4)
    np.testing.assert_array_equal(choose(logits, options)[0], logits.argmax(1))


@pytest.mark.parametrize("do_sample", [False, True])
def test_log_probabilities_are_the_models_own(do_sample):
    logits = rng_logits(rows=32)
    seen = np.ones(logits.shape, bool)
    options = Sampling(
        do_sample=do_sample, temperature=0.5, top_k=4, repetition_penalty=1.7, eos_token_id=2, min_new_tokens=3
    )
    tokens, logprobs = choose(logits, options, seen=seen)
    own = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    np.testing.assert_allclose(logprobs, own[np.arange(32), tokens], atol=1e-5)


def test_a_draw_depends_only_on_seed_and_count():
    options = Sampling(do_sample=True, temperature=1.3, top_k=7, top_p=0.9)
    logits, seeds, count = rng_logits(rows=64, seed=5), np.arange(64) * 977, np.arange(64) % 5
    together, logprobs = choose(logits, options, seeds=seeds, count=count)
    for row in (0, 31, 63):  # alone
        one, own = choose(logits[row : row + 1], options, seeds=seeds[row : row + 1], count=count[row : row + 1])
        assert one[0] == together[row]
        np.testing.assert_allclose(own, logprobs[row], rtol=1e-6)
    order = np.random.default_rng(0).permutation(64)  # in another row
    np.testing.assert_array_equal(
        choose(logits[order], options, seeds=seeds[order], count=count[order])[0], together[order]
    )
    for candidates in (8, 16, VOCABULARY):  # with more candidates than may be drawn
        found = choose(logits, options, seeds=seeds, count=count, candidates=candidates)[0]
        np.testing.assert_array_equal(found, together)
    others = [options if row % 2 else Sampling(do_sample=True, top_k=3) for row in range(64)]  # beside other rows
    found = choose(logits, others, seeds=seeds, count=count, candidates=8)[0]
    np.testing.assert_array_equal(found[1::2], together[1::2])


def test_seeds_and_counts_give_independent_draws():
    logits = np.zeros((4096, VOCABULARY), np.float32)
    options = Sampling(do_sample=True)
    first = choose(logits, options)[0]
    for other in (choose(logits, options, count=[1] * 4096)[0], choose(logits, options, seeds=range(9, 4105))[0]):
        assert abs(np.mean(first == other) - 1 / VOCABULARY) < 0.015
    wide = choose(logits[:2], options, seeds=[2**40 + 3, np.int32(3)])[0]  # a seed has 32 bits
    assert wide[0] == wide[1] == choose(logits[:1], options, seeds=[3])[0][0]


def test_numbers_of_candidates_are_powers_of_two():
    assert Sampling(do_sample=False, top_k=5).candidates(1000) == 0
    sizes = {Sampling(do_sample=True, top_k=k).candidates(1000) for k in range(1001)}
    assert sizes == {1 << n for n in range(10)} | {1000}
    assert all(Sampling(do_sample=True, top_k=k).candidates(1000) >= k for k in range(1001))
    assert Sampling(do_sample=True, top_k=np.int64(20)).candidates(1000) == 32


# --- options

WRONG = {
    "max_new_tokens": [0, -1, 2.0, "5", True, 2**31],
    "min_new_tokens": [-1, 1.5, "1"],
    "do_sample": ["yes", 2],
    "temperature": [0, -0.5, "hot", float("nan"), float("inf")],
    "top_k": [-1, 0.5, "all"],
    "top_p": [0, 1.01, -1, "most"],
    "repetition_penalty": [0, -2, "none"],
    "eos_token_id": ["<|im_end|>", [1, "x"], list(range(9)), 2.5, 2**40],
    "stop_strings": ["", ["a", ""], [3], 3],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_raises_one_line_that_names_the_option(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected .*got") as error:
        Sampling(**{name: value})
    assert "\n" not in str(error.value)


def test_boundary_values_and_numpy_numbers_are_accepted():
    options = Sampling(
        max_new_tokens=1, min_new_tokens=0, temperature=np.float32(0.5), top_k=np.int64(0), top_p=1,
        repetition_penalty=0.1, eos_token_id=np.array([3, 4]), stop_strings=["a", "b"],
    )  # fmt: skip
    assert options.eos == (3, 4)
    assert options.stops == ("a", "b")
    assert Sampling(eos_token_id=7, stop_strings="end").eos == (7,)
    assert Sampling(stop_strings="end").stops == ("end",)
    assert Sampling().eos == Sampling().stops == ()


@pytest.mark.parametrize("name", ["thinker_heat", "temperature", "talker_temperature", "thinker_"])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=f"^unknown option {name}; expected one of .*thinker_temperature") as error:
        Sampling.named({"thinker_top_p": 0.5, name: 1}, prefix="thinker_")
    assert "\n" not in str(error.value)


def test_options_are_given_by_name():
    assert Sampling.named({"thinker_top_p": 0.5, "thinker_eos_token_id": 3}, prefix="thinker_") == Sampling(
        top_p=0.5, eos_token_id=3
    )


@pytest.mark.parametrize("one", [{"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.5}])
def test_a_temperature_alone_means_sampling(one):
    greedy = Sampling(do_sample=False, temperature=0.2, max_new_tokens=9)
    merged = greedy.override(Sampling(**one))
    assert merged.do_sample is True
    assert merged.max_new_tokens == 9
    assert getattr(merged, next(iter(one))) == next(iter(one.values()))
    assert greedy.override(Sampling(**one, do_sample=False)).do_sample is False


def test_options_that_are_not_given_keep_their_defaults():
    defaults = Sampling(do_sample=True, temperature=0.2, top_k=7, eos_token_id=4)
    assert defaults.override(Sampling()) == defaults
    assert defaults.override(Sampling(max_new_tokens=3, repetition_penalty=1.2)) == Sampling(
        do_sample=True, temperature=0.2, top_k=7, eos_token_id=4, max_new_tokens=3, repetition_penalty=1.2
    )
    assert defaults.override(Sampling(do_sample=False)).do_sample is False


THINKING = {"max_new_tokens": 32768, "temperature": 0.6, "top_k": 20, "top_p": 0.95}


def with_generation_config(omni, folder, content):
    shutil.copytree(omni.folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "generation_config.json").write_text(json.dumps(content))
    return Omni(omni.parts, omni.config, folder)


@pytest.mark.parametrize(
    ("content", "given"),
    [
        ({"talker_temperature": 0.9, "talker_top_k": 50}, {}),
        (THINKING, {**THINKING, "do_sample": True}),
        ({**THINKING, "do_sample": False}, {**THINKING, "do_sample": False}),
        ({"thinker_max_new_tokens": 77, "eos_token_id": [4, 5]}, {"max_new_tokens": 77, "eos_token_id": [4, 5]}),
    ],
)
def test_defaults_are_the_checkpoints_generation_config(omni, tmp_path, content, given):
    """The Thinking release publishes a temperature without do_sample; Instruct has no thinker options and is greedy."""
    silent = {"max_new_tokens": 1024, "do_sample": False, "eos_token_id": omni.config.im_end}
    found = with_generation_config(omni, tmp_path / "model", content).defaults
    assert found.thinker == Sampling(**(silent | given))


def test_a_wrong_generation_config_is_named(omni, tmp_path):
    wrong = with_generation_config(omni, tmp_path / "model", {"temperature": 0.0})
    with pytest.raises(ValueError, match=r"generation_config\.json: temperature: expected .* got 0\.0") as error:
        _ = wrong.defaults
    assert "\n" not in str(error.value)
