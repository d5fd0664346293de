"""Qwen3-Omni: each of our parameters in the published checkpoints.

The grammar of the rows is explained in `weights/table.py`. Both names follow the prefixes of their block (see the end).

Names and shapes are those of the published files, with a tensor for each expert and projection. `or` lines (in
`common.py`) accept what Transformers writes of its modules in memory. A published linear weight is [out, in], a
convolution [out, in, width], a transposed one [in, out, width].
"""

from collections.abc import Iterator, Sequence

from omni_jax.config import Qwen3OmniConfig
from omni_jax.weights.table import Row, parse
from omni_jax.weights.tables import common

AUDIO_ENCODER = """
.conv1.kernel                | .conv2d1.weight                         | o i h w -> h w i o
.conv1.bias                  | .conv2d1.bias                           | o -> o
.conv2.kernel                | .conv2d2.weight                         | o i h w -> h w i o
.conv2.bias                  | .conv2d2.bias                           | o -> o
.conv3.kernel                | .conv2d3.weight                         | o i h w -> h w i o
.conv3.bias                  | .conv2d3.bias                           | o -> o
.stem.kernel                 | .conv_out.weight                        | d (c f) -> f c d
.projection.up.kernel        | .proj1.weight                           | f d -> d f
.projection.up.bias          | .proj1.bias                             | f -> f
.projection.down.kernel      | .proj2.weight                           | o f -> f o
.projection.down.bias        | .proj2.bias                             | o -> o
"""

VISION_ENCODER = """
.patches.kernel              | .patch_embed.proj.weight          | d c t h w -> c t h w d
.patches.bias                | .patch_embed.proj.bias            | d -> d
.positions.table             | .pos_embed.weight                 | s d -> s d
.layers.attention_norm.scale | .blocks.{l}.norm1.weight          | l d -> l d
.layers.attention_norm.bias  | .blocks.{l}.norm1.bias            | l d -> l d
.layers.qkv.kernel           | .blocks.{l}.attn.qkv.weight       | l (q n h) d -> l d q n h
.layers.qkv.bias             | .blocks.{l}.attn.qkv.bias         | l (q n h) -> l q n h
.layers.o.kernel             | .blocks.{l}.attn.proj.weight      | l d (n h) -> l n h d
.layers.o.bias               | .blocks.{l}.attn.proj.bias        | l d -> l d
.layers.ffn_norm.scale       | .blocks.{l}.norm2.weight          | l d -> l d
.layers.ffn_norm.bias        | .blocks.{l}.norm2.bias            | l d -> l d
.layers.ffn.up.kernel        | .blocks.{l}.mlp.linear_fc1.weight | l f d -> l d f
.layers.ffn.up.bias          | .blocks.{l}.mlp.linear_fc1.bias   | l f -> l f
.layers.ffn.down.kernel      | .blocks.{l}.mlp.linear_fc2.weight | l d f -> l f d
.layers.ffn.down.bias        | .blocks.{l}.mlp.linear_fc2.bias   | l d -> l d
.merger.norm.scale           | .merger.ln_q.weight               | d -> d
.merger.norm.bias            | .merger.ln_q.bias                 | d -> d
.merger.mlp.up.kernel        | .merger.mlp.0.weight              | f d -> d f
.merger.mlp.up.bias          | .merger.mlp.0.bias                | f -> f
.merger.mlp.down.kernel      | .merger.mlp.2.weight              | d f -> f d
.merger.mlp.down.bias        | .merger.mlp.2.bias                | d -> d
.deepstack.norm.scale        | .merger_list.{l}.ln_q.weight      | l d -> l d
.deepstack.norm.bias         | .merger_list.{l}.ln_q.bias        | l d -> l d
.deepstack.mlp.up.kernel     | .merger_list.{l}.mlp.0.weight     | l f d -> l d f
.deepstack.mlp.up.bias       | .merger_list.{l}.mlp.0.bias       | l f -> l f
.deepstack.mlp.down.kernel   | .merger_list.{l}.mlp.2.weight     | l d f -> l f d
.deepstack.mlp.down.bias     | .merger_list.{l}.mlp.2.bias       | l d -> l d
"""

TALKER = """
.embedding.table               | .model.codec_embedding.weight        | v d -> v d
.head.kernel                   | .codec_head.weight                   | v d -> d v
.text_projection.up.kernel     | .text_projection.linear_fc1.weight   | f d -> d f
.text_projection.up.bias       | .text_projection.linear_fc1.bias     | f -> f
.text_projection.down.kernel   | .text_projection.linear_fc2.weight   | d f -> f d
.text_projection.down.bias     | .text_projection.linear_fc2.bias     | d -> d
.hidden_projection.up.kernel   | .hidden_projection.linear_fc1.weight | f d -> d f
.hidden_projection.up.bias     | .hidden_projection.linear_fc1.bias   | f -> f
.hidden_projection.down.kernel | .hidden_projection.linear_fc2.weight | d f -> f d
.hidden_projection.down.bias   | .hidden_projection.linear_fc2.bias   | d -> d
"""

CODE_PREDICTOR = """
.embeddings.table | .model.codec_embedding.{l}.weight | l v d -> l v d
.heads.kernel     | .lm_head.{l}.weight               | l v d -> l d v
"""

# Their `decoder` is one list: the first convolution, the stages, a snake, the last convolution.
CODE2WAV = """
.embedding.table                | .code_embedding.weight                       | v d -> v d
.upsamples.{i}.conv.kernel      | .upsample.{i}.0.conv.weight                  | c o k -> k c o
.upsamples.{i}.conv.bias        | .upsample.{i}.0.conv.bias                    | o -> o
.upsamples.{i}.depthwise.kernel | .upsample.{i}.1.dwconv.conv.weight           | c 1 k -> k 1 c
.upsamples.{i}.depthwise.bias   | .upsample.{i}.1.dwconv.conv.bias             | c -> c
.upsamples.{i}.norm.scale       | .upsample.{i}.1.norm.weight                  | c -> c
.upsamples.{i}.norm.bias        | .upsample.{i}.1.norm.bias                    | c -> c
.upsamples.{i}.mlp.up.kernel    | .upsample.{i}.1.pwconv1.weight               | f c -> c f
.upsamples.{i}.mlp.up.bias      | .upsample.{i}.1.pwconv1.bias                 | f -> f
.upsamples.{i}.mlp.down.kernel  | .upsample.{i}.1.pwconv2.weight               | c f -> f c
.upsamples.{i}.mlp.down.bias    | .upsample.{i}.1.pwconv2.bias                 | c -> c
.upsamples.{i}.gamma            | .upsample.{i}.1.gamma                        | c -> c
.conv_in.kernel                 | .decoder.0.conv.weight                       | o c k -> k c o
.conv_in.bias                   | .decoder.0.conv.bias                         | o -> o
.stages.{i}.snake.alpha         | .decoder.{i+1}.block.0.alpha                 | c -> c
.stages.{i}.snake.beta          | .decoder.{i+1}.block.0.beta                  | c -> c
.stages.{i}.conv.kernel         | .decoder.{i+1}.block.1.conv.weight           | c o k -> k c o
.stages.{i}.conv.bias           | .decoder.{i+1}.block.1.conv.bias             | o -> o
.stages.{i}.units.snake1.alpha  | .decoder.{i+1}.block.{l+2}.act1.alpha        | l c -> l c
.stages.{i}.units.snake1.beta   | .decoder.{i+1}.block.{l+2}.act1.beta         | l c -> l c
.stages.{i}.units.conv1.kernel  | .decoder.{i+1}.block.{l+2}.conv1.conv.weight | l o c k -> l k c o
.stages.{i}.units.conv1.bias    | .decoder.{i+1}.block.{l+2}.conv1.conv.bias   | l o -> l o
.stages.{i}.units.snake2.alpha  | .decoder.{i+1}.block.{l+2}.act2.alpha        | l c -> l c
.stages.{i}.units.snake2.beta   | .decoder.{i+1}.block.{l+2}.act2.beta         | l c -> l c
.stages.{i}.units.conv2.kernel  | .decoder.{i+1}.block.{l+2}.conv2.conv.weight | l o c k -> l k c o
.stages.{i}.units.conv2.bias    | .decoder.{i+1}.block.{l+2}.conv2.conv.bias   | l o -> l o
.snake.alpha                    | .decoder.SNAKE.alpha                         | c -> c
.snake.beta                     | .decoder.SNAKE.beta                          | c -> c
.conv_out.kernel                | .decoder.LAST.conv.weight                    | o c k -> k c o
.conv_out.bias                  | .decoder.LAST.conv.bias                      | o -> o
"""

IGNORED = {**common.IGNORED, "code2wav.code_offset": "the codebooks' first rows in the joined table are computed"}


def is_spoken(name: str) -> bool:
    """Whether only speech needs a tensor. Such tensors are not read where no speech is wanted."""
    return name.startswith(("talker.", "code2wav."))


# Objects of config.json whose tensors are float32 in any checkpoint.
FLOAT32 = ()


def rows(config: Qwen3OmniConfig) -> Sequence[Row]:
    """The table for one checkpoint. Rows for parameters that it does not have match no leaf."""
    stages = len(config.code2wav.rates) if config.code2wav else 0
    blocks = (
        ("thinker", "thinker", common.THINKER),
        ("thinker.decoder", "thinker.model", common.DECODER),
        ("audio_encoder", "thinker.audio_tower", AUDIO_ENCODER + common.AUDIO_LAYERS),
        ("vision_encoder", "thinker.visual", VISION_ENCODER),
        ("talker", "talker", TALKER),
        ("talker.decoder", "talker.model", common.DECODER),
        ("code_predictor", "talker.code_predictor", CODE_PREDICTOR),
        ("code_predictor.decoder", "talker.code_predictor.model", common.DECODER),
        ("code2wav", "code2wav", CODE2WAV.replace("SNAKE", str(stages + 1)).replace("LAST", str(stages + 2))),
        ("code2wav.decoder", "code2wav.pre_transformer", common.DECODER),
    )
    return [row for ours, theirs, text in blocks for row in parse(text, ours, theirs)]


def counted(config: Qwen3OmniConfig) -> Iterator[tuple[str, str, int]]:
    """Fields of config.json that count tensors: the field, the tensors' prefix before the number, and the count."""
    thinker, talker = config.thinker, config.talker
    yield "thinker_config.audio_config.encoder_layers", "thinker.audio_tower.layers", thinker.audio_encoder.layers
    yield "thinker_config.vision_config.depth", "thinker.visual.blocks", thinker.vision_encoder.layers
    stacks = [("thinker_config", "thinker.model.layers", thinker.decoder)]
    stacks += [("talker_config", "talker.model.layers", talker.decoder)] if talker else []
    for part, prefix, decoder in stacks:
        yield f"{part}.text_config.num_hidden_layers", prefix, decoder.layers
        if decoder.experts:
            yield f"{part}.text_config.num_experts", f"{prefix}.0.mlp.experts", decoder.experts.count
    if talker and config.code2wav:
        predictor = "talker_config.code_predictor_config.num_hidden_layers"
        yield predictor, "talker.code_predictor.model.layers", talker.predictor.layers
        yield "talker_config.num_code_groups - 1", "talker.code_predictor.lm_head", talker.codebooks - 1
        yield "code2wav_config.num_hidden_layers", "code2wav.pre_transformer.layers", config.code2wav.decoder.layers
