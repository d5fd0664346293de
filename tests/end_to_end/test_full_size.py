"""The full-size benchmark: the same program on a tiny model, and its shapes at the published configuration."""

import importlib.util
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax import Omni
from omni_jax.config import from_hf
from omni_jax.engine.reply import Event
from omni_jax.models import parts
from omni_jax.testing import tiny_config
from omni_jax.testing.qwen3_omni import preprocessor

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "full_size.py"
TINY = ["--scale", "tiny", "--devices", "1", "--repeat", "1", "--tokens", "6", "--frames", "3"]


@pytest.fixture(scope="module")
def full_size():
    spec = importlib.util.spec_from_file_location("full_size", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROGRAM.parent)  # as where it runs alone: it imports its neighbours
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def published(full_size):
    return json.loads(full_size.PUBLISHED.read_text())


@pytest.fixture(scope="module")
def measured(full_size, tmp_path_factory):
    """Runs the program with further options and returns the JSON that it wrote."""

    def measure(*options):
        target = tmp_path_factory.mktemp("measured") / "found.json"
        full_size.main([*TINY, *options, "--json", str(target)])
        return json.loads(target.read_text())

    return measure


def is_time(figure):
    return figure.keys() == {"p50", "p95"} and 0 < figure["p50"] <= figure["p95"] < math.inf


def test_clients_are_answered_in_text_and_sound(measured, capsys):
    found = measured("--clients", "1,2")
    assert (found["scale"], found["input"], found["part"], found["devices"]) == ("tiny", "audio", "all", 1)
    assert (found["tokens"], found["frames"], found["repeat"]) == (6, 3, 1)
    # 5 s of sound are 65 tokens; 3 tokens of roles before them, 2 around them, 32 words, 5 tokens of roles after them.
    assert found["prompt"] == 65 + 3 + 2 + 32 + 5
    assert found["clients"].keys() == {"1", "2"}
    for clients, figures in found["clients"].items():
        assert figures["tokens"] == [6] * int(clients)
        assert figures["frames"] == [3] * int(clients)
        for name in ("reading_ms", "first_text_ms", "first_sound_ms", "token_ms", "frame_ms", "rtf", "wall_rtf"):
            assert is_time(figures[name]), name
        assert figures["stall_ms"].keys() == {"p50", "p95"}
        assert figures["first_text_ms"]["p50"] < figures["first_sound_ms"]["p50"]
        assert figures["compiled_while_timed"] == 0
        assert "report_ms" not in figures  # of another model's size
    head, one, two = capsys.readouterr().out.splitlines()[-4:-1]
    assert "first sound" in head
    assert (one.split()[0], two.split()[0]) == ("1", "2")


def test_the_thinker_alone_is_measured_with_a_video(measured, full_size, omni, monkeypatch):
    monkeypatch.setattr(full_size, "build", lambda *_: omni)  # built already
    found = measured("--clients", "2", "--part", "thinker", "--video", "--tokens", "4")
    figures = found["clients"]["2"]
    assert found["prompt"] == 107 + 2 + 10 * 144  # ten pairs of frames, each enlarged to 12 x 12 tokens
    assert figures["tokens"] == [4, 4]
    assert "first_sound_ms" not in figures
    for name in ("reading_ms", "encoding_ms", "first_text_ms", "token_ms", "tokens_per_s"):
        assert is_time(figures[name]), name
    assert figures["compiled_while_timed"] == 0


def test_speech_is_measured_alone(measured, full_size, omni, monkeypatch):
    monkeypatch.setattr(full_size, "build", lambda *_: omni)
    (figures,) = measured("--clients", "2", "--part", "speech", "--frames", "5")["clients"].values()
    for name in ("prompt_ms", "first_chunk_ms", "frame_ms", "vocoder_ms"):
        assert is_time(figures[name]), name
    assert figures["compiled_while_timed"] == 0


def test_times_are_computed_from_the_events_of_a_run(full_size):
    """Two clients; the thinker's calls end at 0.1 s and 0.5 s, those of speech at 0.2 s and 0.8 s; then the replies."""

    class Vocoder:
        frame_samples, lag = 1920, 555

    first, more = np.zeros(1920 - 555, np.float32), np.zeros(3 * 1920, np.float32)
    rows = [
        (0.1, Event(text="a")), (0.2, Event(audio=first)), (0.5, Event(text="bcde")), (0.8, Event(audio=more)),
        (0.9, Event(reply="whole")),
    ]  # fmt: skip
    events = [(at, client, event) for at, event in rows for client in range(2)]
    text = full_size.texts(events, 2)
    assert text["first_text_ms"] == pytest.approx([100, 100])
    assert text["token_ms"] == pytest.approx([300 / 4])
    assert text["tokens_per_s"] == pytest.approx([2 * 4 / 0.3])
    assert text["tokens"] == [5, 5]
    sound = full_size.sounds(events, 2, Vocoder())
    assert sound["first_sound_ms"] == pytest.approx([200, 200])
    assert sound["frame_ms"] == pytest.approx([100])
    assert sound["frames"] == [4, 4]
    seconds = (4 * 1920 - 555) / 24_000
    assert sound["wall_rtf"] == pytest.approx([0.8 / seconds] * 2)
    assert sound["stall_ms"] == pytest.approx([600 - 1e3 * len(first) / 24_000] * 2)


def test_the_table_has_the_reports_figures_beside_the_measured_ones(full_size):
    found = {
        "first_sound_ms": {"p50": 100.04, "p95": 110}, "report_ms": {"p50": 234}, "rtf": {"p50": 0.071, "p95": 0.08},
        "report_rtf": {"p50": None}, "programs": 3, "compile_s": 7.2,
    }  # fmt: skip
    head, line = (full_size.line(4, found, head=head) for head in (True, False))
    assert head.split() == ["clients", "first", "sound", "report", "RTF", "report"]
    assert line.split()[:5] == ["4", "100.0", "(110.0)", "234", "0.07"]
    assert line.endswith("(3 programs compiled in 7 s)")


def test_weights_have_the_published_size(full_size, published):
    config = from_hf(published["config"])
    expected, count = parts.leaves(parts.abstract(config, jnp.bfloat16)), 0
    for name, build in parts.builders(config).items():
        made = jax.eval_shape(lambda key, build=build: build(full_size.Layered(key, jnp.bfloat16)), jax.random.key(0))
        for path, leaf in parts.leaves({name: made}).items():
            assert (leaf.shape, leaf.dtype) == (expected[path].shape, jnp.bfloat16), path
            count += math.prod(leaf.shape)
    assert count == published["parameters"]


def test_large_weights_are_drawn_layer_by_layer_and_sharded(full_size, monkeypatch):
    config = from_hf(tiny_config())
    silent = parts.builders(config, speech=False)
    monkeypatch.setattr(full_size, "LARGE", 1)
    monkeypatch.setattr(full_size.parts, "builders", lambda config: silent)
    made = full_size.make(config, jnp.float32, jax.devices()[:4])
    down = made.thinker.decoder.experts.down[...]
    assert {shard.data.shape for shard in down.addressable_shards} == {(4, 8 // 4, 32, 64)}
    values = np.asarray(down)
    assert np.std(values) == pytest.approx(32**-0.5, rel=0.05)
    drawn = values.reshape(4 * 8, -1)
    assert len(np.unique(drawn[:, :8], axis=0)) == 32  # no two experts are equal
    q = np.asarray(made.thinker.decoder.layers.attention.q.kernel[...])
    assert len({tuple(layer.reshape(-1)[:8]) for layer in q}) == 4


def test_questions_have_the_expected_prompt_lengths_at_full_size(full_size, published, tmp_path):
    config = from_hf(published["config"])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor(published["config"]["thinker_config"])))
    omni = Omni(parts.abstract(config, jnp.bfloat16), config, tmp_path)
    batch = full_size.read(omni, full_size.questions(2, video=True, seed=0))
    request = full_size.Load(50, 150, 4, "Aiden").request(omni, batch, seed=0)
    assert [clip.shape for clip in request.prompts.batch.mel] == [(128, 500)] * 2
    assert [video.seconds for video in request.prompts.batch.videos] == [1, 1]
    assert not np.array_equal(batch.mel[0], batch.mel[1])
    assert (request.sampling.max_new_tokens, request.speech.talker.max_new_tokens) == (50, 151)
    assert (request.speech.talker.do_sample, request.speech.talker.temperature) == (True, 0.9)
    prompt = request.speech.prompt
    assert prompt.reads_states
    # Both end in the assistant's header; the talker's prompt then has four tokens of the voice and the first word.
    assert prompt.lengths.tolist() == [len(batch.tokens[0]) + 4 + 1] * 2


def test_user_errors_print_one_line(full_size, capsys):
    for options, said in (
        ([], "needs a GPU or TPUs"),
        (["--scale", "tiny", "--clients", "1,x"], "expected a whole number above 0, got 'x'"),
        (["--scale", "tiny", "--tokens", "1"], "expected at least 2"),
        (["--scale", "tiny", "--speaker", "Nobody"], "'chelsie'"),
    ):
        with pytest.raises(SystemExit) as raised:
            full_size.main(options)
        assert raised.value.code == 2
        assert said in capsys.readouterr().err
