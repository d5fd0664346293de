"""Qwen2.5-Omni, 7B and 3B: each of our parameters in the published checkpoints.

The grammar of the rows is explained in `weights/table.py`. Both names follow the prefixes of their block (see the end).

Thinker and talker are published in bfloat16, token2wav in float32. Speakers are not tensors: see `weights/speakers.py`.
A published linear weight is [out, in], a convolution [out, in, width], a transposed one [in, out, width].
"""

from collections.abc import Iterator, Sequence

from omni_jax.config import Qwen25OmniConfig
from omni_jax.weights.table import Row, parse
from omni_jax.weights.tables import common

AUDIO_ENCODER = """
.conv1.kernel  | .conv1.weight               | o i k -> k i o
.conv1.bias    | .conv1.bias                 | o -> o
.conv2.kernel  | .conv2.weight               | o i k -> k i o
.conv2.bias    | .conv2.bias                 | o -> o
.out.kernel    | .proj.weight                | o d -> d o
.out.bias      | .proj.bias                  | o -> o
.bos_eos.table | .audio_bos_eos_token.weight | b d -> b d
"""

VISION_ENCODER = """
.patches.kernel              | .patch_embed.proj.weight                | d c t h w -> c t h w d
.layers.attention_norm.scale | .blocks.{l}.norm1.weight                | l d -> l d
.layers.qkv.kernel           | .blocks.{l}.attn.{p:q,k,v}.weight       | l p (n h) d -> l d p n h
.layers.qkv.bias             | .blocks.{l}.attn.{p:q,k,v}.bias         | l p (n h) -> l p n h
.layers.o.kernel             | .blocks.{l}.attn.proj.weight            | l d (n h) -> l n h d
.layers.o.bias               | .blocks.{l}.attn.proj.bias              | l d -> l d
.layers.ffn_norm.scale       | .blocks.{l}.norm2.weight                | l d -> l d
.layers.ffn.gate_up.kernel   | .blocks.{l}.mlp.{p:gate,up}_proj.weight | l p f d -> l d p f
.layers.ffn.gate_up.bias     | .blocks.{l}.mlp.{p:gate,up}_proj.bias   | l p f -> l p f
.layers.ffn.down.kernel      | .blocks.{l}.mlp.down_proj.weight        | l d f -> l f d
.layers.ffn.down.bias        | .blocks.{l}.mlp.down_proj.bias          | l d -> l d
.merger.norm.scale           | .merger.ln_q.weight                     | d -> d
.merger.mlp.up.kernel        | .merger.mlp.0.weight                    | f d -> d f
.merger.mlp.up.bias          | .merger.mlp.0.bias                      | f -> f
.merger.mlp.down.kernel      | .merger.mlp.2.weight                    | o f -> f o
.merger.mlp.down.bias        | .merger.mlp.2.bias                      | o -> o
"""

TALKER = """
.table.table       | .model.embed_tokens.weight     | v e -> v e
.projection.kernel | .thinker_to_talker_proj.weight | d e -> e d
.projection.bias   | .thinker_to_talker_proj.bias   | d -> d
.head.kernel       | .codec_head.weight             | v d -> d v
"""

DIT = """
.time_in.kernel           | .time_embed.time_mlp.0.weight                   | d t -> t d
.time_in.bias             | .time_embed.time_mlp.0.bias                     | d -> d
.time_out.kernel          | .time_embed.time_mlp.2.weight                   | o d -> d o
.time_out.bias            | .time_embed.time_mlp.2.bias                     | d -> d
.codes.table              | .text_embed.codec_embed.weight                  | v d -> v d
.input.kernel             | .input_embed.proj.weight                        | d c -> c d
.input.bias               | .input_embed.proj.bias                          | d -> d
.layers.modulation.kernel | .transformer_blocks.{l}.attn_norm.linear.weight | l (s o) d -> l d s o
.layers.modulation.bias   | .transformer_blocks.{l}.attn_norm.linear.bias   | l (s d) -> l s d
.layers.q.kernel          | .transformer_blocks.{l}.attn.to_q.weight        | l (n h) d -> l d n h
.layers.q.bias            | .transformer_blocks.{l}.attn.to_q.bias          | l (n h) -> l n h
.layers.k.kernel          | .transformer_blocks.{l}.attn.to_k.weight        | l (n h) d -> l d n h
.layers.k.bias            | .transformer_blocks.{l}.attn.to_k.bias          | l (n h) -> l n h
.layers.v.kernel          | .transformer_blocks.{l}.attn.to_v.weight        | l (n h) d -> l d n h
.layers.v.bias            | .transformer_blocks.{l}.attn.to_v.bias          | l (n h) -> l n h
.layers.o.kernel          | .transformer_blocks.{l}.attn.to_out.0.weight    | l d (n h) -> l n h d
.layers.o.bias            | .transformer_blocks.{l}.attn.to_out.0.bias      | l d -> l d
.layers.mlp.up.kernel     | .transformer_blocks.{l}.ff.ff.0.weight          | l f d -> l d f
.layers.mlp.up.bias       | .transformer_blocks.{l}.ff.ff.0.bias            | l f -> l f
.layers.mlp.down.kernel   | .transformer_blocks.{l}.ff.ff.3.weight          | l d f -> l f d
.layers.mlp.down.bias     | .transformer_blocks.{l}.ff.ff.3.bias            | l d -> l d
.modulation.kernel        | .norm_out.linear.weight                         | (s o) d -> d s o
.modulation.bias          | .norm_out.linear.bias                           | (s d) -> s d
.out.kernel               | .proj_out.weight                                | z d -> d z
.out.bias                 | .proj_out.bias                                  | z -> z
"""

SPEAKER_ENCODER = """
.stem.kernel               | .blocks.0.conv.weight                              | o c k -> k c o
.stem.bias                 | .blocks.0.conv.bias                                | o -> o
.blocks.{i}.before.kernel  | .blocks.{i+1}.tdnn1.conv.weight                    | o c 1 -> c o
.blocks.{i}.before.bias    | .blocks.{i+1}.tdnn1.conv.bias                      | o -> o
.blocks.{i}.parts.kernel   | .blocks.{i+1}.res2net_block.blocks.{l}.conv.weight | l o c k -> l k c o
.blocks.{i}.parts.bias     | .blocks.{i+1}.res2net_block.blocks.{l}.conv.bias   | l o -> l o
.blocks.{i}.after.kernel   | .blocks.{i+1}.tdnn2.conv.weight                    | o c 1 -> c o
.blocks.{i}.after.bias     | .blocks.{i+1}.tdnn2.conv.bias                      | o -> o
.blocks.{i}.squeeze.kernel | .blocks.{i+1}.se_block.conv1.weight                | o c 1 -> c o
.blocks.{i}.squeeze.bias   | .blocks.{i+1}.se_block.conv1.bias                  | o -> o
.blocks.{i}.excite.kernel  | .blocks.{i+1}.se_block.conv2.weight                | o c 1 -> c o
.blocks.{i}.excite.bias    | .blocks.{i+1}.se_block.conv2.bias                  | o -> o
.join.kernel               | .mfa.conv.weight                                   | o c k -> k c o
.join.bias                 | .mfa.conv.bias                                     | o -> o
.attention_in.kernel       | .asp.tdnn.conv.weight                              | o c 1 -> c o
.attention_in.bias         | .asp.tdnn.conv.bias                                | o -> o
.attention_out.kernel      | .asp.conv.weight                                   | o c 1 -> c o
.attention_out.bias        | .asp.conv.bias                                     | o -> o
.out.kernel                | .fc.weight                                         | o c 1 -> c o
.out.bias                  | .fc.bias                                           | o -> o
"""

BIGVGAN = """
.conv_in.kernel               | .conv_pre.weight                         | o c k -> k c o
.conv_in.bias                 | .conv_pre.bias                           | o -> o
.upsamples.{i}.kernel         | .ups.{i}.0.weight                        | c o k -> k c o
.upsamples.{i}.bias           | .ups.{i}.0.bias                          | o -> o
.residuals.{i}.snakes.alpha   | .resblocks.{i}.activations.{l}.act.alpha | l c -> l c
.residuals.{i}.snakes.beta    | .resblocks.{i}.activations.{l}.act.beta  | l c -> l c
.residuals.{i}.dilated.kernel | .resblocks.{i}.convs1.{l}.weight         | l o c k -> l k c o
.residuals.{i}.dilated.bias   | .resblocks.{i}.convs1.{l}.bias           | l o -> l o
.residuals.{i}.convs.kernel   | .resblocks.{i}.convs2.{l}.weight         | l o c k -> l k c o
.residuals.{i}.convs.bias     | .resblocks.{i}.convs2.{l}.bias           | l o -> l o
.snake.alpha                  | .activation_post.act.alpha               | c -> c
.snake.beta                   | .activation_post.act.beta                | c -> c
.conv_out.kernel              | .conv_post.weight                        | o c k -> k c o
"""

IGNORED = common.IGNORED


def is_spoken(name: str) -> bool:
    """Whether only speech needs a tensor. Such tensors are not read where no speech is wanted."""
    return name.startswith(("talker.", "token2wav."))


# Objects of config.json whose tensors are float32 in any checkpoint.
FLOAT32 = ("token2wav_config",)


def rows(config: Qwen25OmniConfig) -> Sequence[Row]:
    """The table for one checkpoint. Rows for parameters that it does not have match no leaf."""
    dit, bigvgan = "token2wav.code2wav_dit_model", "token2wav.code2wav_bigvgan_model"
    blocks = (
        ("thinker", "thinker", common.THINKER),
        ("thinker.decoder", "thinker.model", common.DECODER),
        ("audio_encoder", "thinker.audio_tower", AUDIO_ENCODER + common.AUDIO_LAYERS),
        ("vision_encoder", "thinker.visual", VISION_ENCODER),
        ("talker", "talker", TALKER),
        ("talker.decoder", "talker.model", common.DECODER),
        ("dit", dit, DIT),
        ("dit.speaker_encoder", f"{dit}.input_embed.spk_encoder", SPEAKER_ENCODER),
        ("bigvgan", bigvgan, BIGVGAN),
    )
    return [row for ours, theirs, text in blocks for row in parse(text, ours, theirs)]


def counted(config: Qwen25OmniConfig) -> Iterator[tuple[str, str, int]]:
    """Fields of config.json that count tensors: the field, the tensors' prefix before the number, and the count."""
    thinker = config.thinker
    yield "thinker_config.text_config.num_hidden_layers", "thinker.model.layers", thinker.decoder.layers
    yield "thinker_config.audio_config.encoder_layers", "thinker.audio_tower.layers", thinker.audio_encoder.layers
    yield "thinker_config.vision_config.depth", "thinker.visual.blocks", thinker.vision_encoder.layers
    if config.talker and config.token2wav:
        yield "talker_config.num_hidden_layers", "talker.model.layers", config.talker.decoder.layers
        blocks = "token2wav.code2wav_dit_model.transformer_blocks"
        yield "token2wav_config.dit_config.num_hidden_layers", blocks, config.token2wav.dit.layers
