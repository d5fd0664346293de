"""Qwen2.5-Omni's vocoder against Transformers: each module, the flow with its noise given, and the whole.

The reference takes one row at a time; ours takes all rows, padded, in one call.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as theirs

from omni_jax.config.speech import BigVGANConfig, DiTConfig, SpeakerEncoderConfig
from omni_jax.models.qwen2_5_omni import bigvgan
from omni_jax.models.qwen2_5_omni.bigvgan import BigVGAN
from omni_jax.models.qwen2_5_omni.dit import DiT, sway_times
from omni_jax.models.qwen2_5_omni.ecapa_tdnn import SpeakerEncoder
from omni_jax.nn.conv import SnakeBeta
from omni_jax.nn.layers import Init
from omni_jax.nn.resample import FILTER, RowBounds, smooth
from tests.parity.parity_close import assert_close
from tests.parity.parity_qwen2_5 import filled, given_noise

BINS, VOICE, CODES = 16, 24, 128
ENCODER = SpeakerEncoderConfig(
    mel_bins=BINS, channels=(16, 16, 16, 16, 48), kernels=(5, 3, 3, 3, 1), dilations=(1, 2, 3, 4, 1), parts=2,
    squeeze_width=8, attention_width=8, out_width=16,
)  # fmt: skip
DIT = DiTConfig(
    layers=4, width=32, heads=2, head_width=16, ffn_width=64, rope_theta=1e4, context=4096, codes=CODES, code_width=16,
    repeats=2, mel_bins=BINS, speaker_width=VOICE, block_frames=24, look_ahead=(1,), look_back=(0, 2),
    speaker_encoder=ENCODER,
)  # fmt: skip
BIGVGAN = BigVGANConfig(
    mel_bins=BINS, channels=16, rates=(5, 2), kernels=(11, 4), block_kernels=(3, 7, 11), dilations=((1, 3, 5),) * 3
)

decode = jax.jit(lambda model, mel, lengths: model.decode(mel, lengths))


@partial(jax.jit, static_argnums=3)
def velocity(model, inputs, time, guidance):
    *condition, x = inputs
    return model.velocity(x, time, model.condition(*condition), guidance=guidance)


def sample(model, inputs, options):
    return jax.jit(lambda model, inputs: model.sample(*inputs, **options))(model, inputs)


def randomize(model, seed=0):
    """All parameters are random, and so small that neither the vocoder's sines nor its clipping make it chaotic."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        random = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            scale = 0.3 if name.endswith(("alpha", "beta")) else 0.05
        elif "embed.weight" in name:
            scale = 0.5
        else:
            fan_in = parameter.shape[0] * 2 if ".ups." in name else parameter[0].numel()
            scale = (0.5 if "bigvgan" in name else 1) / fan_in**0.5
        parameter.data.copy_(scale * random)
    return model.eval()


def reference_config(dit=DIT):
    encoder = dit.speaker_encoder
    sizes = dict(
        hidden_size=dit.width, num_hidden_layers=dit.layers, num_attention_heads=dit.heads, head_dim=dit.head_width,
        ff_mult=dit.ffn_width // dit.width, emb_dim=dit.code_width, block_size=dit.block_frames,
        look_ahead_layers=list(dit.look_ahead), look_backward_layers=list(dit.look_back), repeats=dit.repeats,
        num_embeds=dit.codes - 1, mel_dim=dit.mel_bins, enc_emb_dim=dit.speaker_width, enc_dim=encoder.out_width,
        enc_channels=list(encoder.channels), enc_kernel_sizes=list(encoder.kernels), enc_res2net_scale=encoder.parts,
        enc_dilations=list(encoder.dilations), enc_attention_channels=encoder.attention_width,
        enc_se_channels=encoder.squeeze_width, max_position_embeddings=dit.context,
        rope_parameters={"rope_type": "default", "rope_theta": dit.rope_theta},
    )  # fmt: skip
    vocoder = dict(
        mel_dim=BINS, upsample_initial_channel=BIGVGAN.channels, resblock_kernel_sizes=list(BIGVGAN.block_kernels),
        resblock_dilation_sizes=[list(each) for each in BIGVGAN.dilations], upsample_rates=list(BIGVGAN.rates),
        upsample_kernel_sizes=list(BIGVGAN.kernels),
    )  # fmt: skip
    return theirs.Qwen2_5OmniToken2WavConfig(dit_config=sizes, bigvgan_config=vocoder)


def flow(network, config=DIT):
    """Our flow with the reference's weights."""
    return filled("dit", lambda init: DiT(init, config), "token2wav.code2wav_dit_model", network)


@pytest.fixture(scope="module")
def reference():
    return randomize(theirs.Qwen2_5OmniToken2WavModel(reference_config()))


@pytest.fixture(scope="module")
def dit(reference):
    return flow(reference.code2wav_dit_model)


@pytest.fixture(scope="module")
def vocoder(reference):
    network = reference.code2wav_bigvgan_model
    return filled("bigvgan", lambda init: BigVGAN(init, BIGVGAN), "token2wav.code2wav_bigvgan_model", network)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# Rows of one call: codes, and reference mel frames. 24 frames make a block, 5 reference frames are the fewest.
LENGTHS, VOICES = np.array([60, 1, 37, 12]), np.array([40, 5, 23, 40])
FRAMES = 2 * LENGTHS


@pytest.fixture(scope="module")
def inputs():
    """Codes, lengths, speakers, reference mels, their lengths and noise; nothing is zero where a row has ended."""
    random = np.random.default_rng(0)
    rows = len(LENGTHS)
    return (
        random.integers(0, CODES, (rows, 60)),
        LENGTHS,
        random.standard_normal((rows, VOICE), np.float32),
        random.standard_normal((rows, 40, BINS), np.float32),
        VOICES,
        random.standard_normal((rows, 120, BINS), np.float32),
    )


def alone(inputs, row):
    """A row's own inputs for the reference: codes, speaker, reference mel, noise."""
    codes, lengths, speakers, mels, voices, noise = inputs
    one = slice(row, row + 1)
    frames = 2 * lengths[row]
    parts = codes[one, : lengths[row]], speakers[one], mels[one, : voices[row]], noise[one, :frames]
    return [torch.from_numpy(part) for part in parts]


def slope(reference, inputs, row, time, guidance):
    """The reference's velocity of a row, guided as in its ``sample``."""
    codes, speaker, mel, x = alone(inputs, row)
    y = reference(
        hidden_states=x,
        condition_vector=mel,
        speaker_embedding=speaker[:, None].repeat(1, x.shape[1], 1),
        quantized_code=codes,
        time_step=torch.tensor(np.float32(time)),
        apply_cfg=guidance > 0,
    )
    if guidance:
        given, absent = y.chunk(2)
        y = given + (given - absent) * guidance
    return y.numpy()


# --- its parts


def test_the_speaker_encoder_equals_the_reference(reference, dit, inputs):
    encode = jax.jit(lambda model, *voice: model(*voice))
    found = encode(dit.speaker_encoder, inputs[3], inputs[4])
    for row in range(len(LENGTHS)):
        _, _, mel, _ = alone(inputs, row)
        assert_close(found[row : row + 1], reference.code2wav_dit_model.input_embed.spk_encoder(mel).numpy())


def test_a_speaker_encoder_of_more_channel_groups_equals_the_reference():
    config = replace(ENCODER, parts=4)
    network = randomize(theirs.ECAPA_TimeDelayNet(reference_config(replace(DIT, speaker_encoder=config)).dit_config))
    names = "dit.speaker_encoder", "token2wav.code2wav_dit_model.input_embed.spk_encoder"
    encoder = filled(names[0], lambda init: SpeakerEncoder(init, config), names[1], network)
    mel = np.random.default_rng(0).standard_normal((2, 30, BINS), np.float32)
    assert_close(
        jax.jit(lambda model, *voice: model(*voice))(encoder, mel, np.array([30, 30])), network(torch.tensor(mel))
    )


def test_filter_and_activation_equal_the_reference():
    activation = theirs.Qwen2_5OmniAntiAliasedActivation1d(theirs.Qwen2_5OmniSnakeBeta(6))
    np.testing.assert_allclose(FILTER, activation.upsample.filter[0, 0].numpy(), rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(activation.upsample.filter, activation.downsample.filter)
    lengths = np.array([1, 2, 5, 30])
    x = np.random.default_rng(0).standard_normal((4, 30, 6), np.float32)
    snake = SnakeBeta(Init(jax.random.key(0), jnp.float32), 6)
    found = jax.jit(lambda x, end: smooth(x, RowBounds(0 * end, end), snake))(x, lengths)
    for row, length in enumerate(lengths):
        expected = activation(torch.from_numpy(x[row : row + 1, :length]).mT).mT
        assert_close(found[row : row + 1, :length], expected)


@pytest.mark.parametrize(("kernel", "rate"), [(11, 5), (7, 3), (4, 2), (2, 2)])
def test_the_transposed_convolution_equals_the_reference(kernel, rate):
    layer = torch.nn.ConvTranspose1d(6, 4, kernel, rate, padding=(kernel - rate) // 2)
    names = "bigvgan.upsamples.0", "token2wav.code2wav_bigvgan_model.ups.0.0"
    found = filled(names[0], lambda init: bigvgan.ConvTranspose1d(init, 6, 4, kernel), names[1], layer)
    x = np.random.default_rng(0).standard_normal((2, 9, 6), np.float32)
    found = found(x, RowBounds(np.array([0, 0]), np.array([9, 4])), rate=rate)
    for row, length in ((0, 9), (1, 4)):
        expected = layer(torch.from_numpy(x[row : row + 1, :length]).mT).mT
        assert_close(found[row : row + 1, : length * rate], expected)


def test_loudness_equals_the_reference(reference):
    """Levels from far below silence to far above the loudest."""
    mel = np.linspace(-20, 12, 2 * 50 * BINS, dtype=np.float32).reshape(2, 50, BINS)
    expected = reference.code2wav_bigvgan_model.process_mel_spectrogram(torch.from_numpy(mel)).numpy()
    assert_close(bigvgan.normalize(jnp.asarray(mel)), expected)
    assert (expected.min(), expected.max()) == (-1, 1)


# --- the flow


@pytest.mark.parametrize("guidance", [0.5, 0.0])
@pytest.mark.parametrize("time", [0.0, 0.357, 0.777, 1.0])
def test_the_velocity_equals_the_reference(reference, dit, inputs, time, guidance):
    found = velocity(dit, inputs, np.float32(time), guidance)
    for row in range(len(LENGTHS)):
        expected = slope(reference.code2wav_dit_model, inputs, row, time, guidance)
        assert_close(found[row : row + 1, : FRAMES[row]], expected)


def test_the_velocity_at_the_published_depth_equals_the_reference(inputs):
    """22 layers, of which the 1st and the 21st look back and the 11th ahead."""
    config = replace(DIT, layers=22, look_ahead=(10,), look_back=(0, 20))
    network = randomize(theirs.Qwen2_5OmniToken2WavModel(reference_config(config))).code2wav_dit_model
    found = velocity(flow(network, config), inputs, np.float32(0.4), 0.5)
    for row in range(len(LENGTHS)):
        assert_close(found[row : row + 1, : FRAMES[row]], slope(network, inputs, row, 0.4, 0.5))


@pytest.mark.parametrize("steps", [2, 3, 5, 8, 10, 16, 20])
def test_points_of_time_equal_the_reference_bit_for_bit(steps):
    """Bit for bit, because sines are taken of a thousand times the time."""
    times = torch.linspace(0, 1, steps)
    np.testing.assert_array_equal(sway_times(steps, None), times)
    np.testing.assert_array_equal(sway_times(steps, -1.0), times - (torch.cos(torch.pi / 2 * times) - 1 + times))


OPTIONS = [{}, {"steps": 4, "guidance": 1.0, "sway": None}, {"steps": 3, "guidance": 0.0, "sway": -0.5}]


@pytest.mark.parametrize("options", OPTIONS)
def test_mel_frames_equal_the_reference(reference, dit, inputs, options):
    found = sample(dit, inputs, options)
    names = {"steps": "num_steps", "guidance": "guidance_scale", "sway": "sway_coefficient"}
    options = {names[name]: value for name, value in options.items()}
    for row in range(len(LENGTHS)):
        codes, speaker, mel, noise = alone(inputs, row)
        with given_noise(noise[0]):
            expected = reference.code2wav_dit_model.sample(speaker, mel, codes, **options).mT
        assert_close(found[row : row + 1, : FRAMES[row]], expected)
        assert not np.any(found[row, FRAMES[row] :])


# --- the samples


def test_samples_equal_the_reference(reference, vocoder):
    lengths = np.array([33, 1, 2, 17])
    mel = np.random.default_rng(0).standard_normal((4, 33, BINS), np.float32) * 3 - 4
    found = decode(vocoder, mel, lengths)
    for row, length in enumerate(lengths):
        samples = length * BIGVGAN.frame_samples
        expected = reference.code2wav_bigvgan_model(torch.from_numpy(mel[row : row + 1, :length]).mT)
        assert 1e-3 < expected.abs().max() < 1
        assert_close(found[row, :samples], expected)
        assert not np.any(found[row, samples:])


def test_codes_to_samples_equal_the_reference(reference, dit, vocoder, inputs):
    found = decode(vocoder, sample(dit, inputs, {}), FRAMES)
    for row in range(len(LENGTHS)):
        codes, speaker, mel, noise = alone(inputs, row)
        with given_noise(noise[0]):
            expected = reference(codes, speaker, mel)
        assert_close(found[row, : FRAMES[row] * BIGVGAN.frame_samples], expected)
