"""Names that the published checkpoints of both families share: rows of their tables, aliases, and ignored tensors.

A family's table gives each block a prefix for our paths and one for their names. Rows for parameters that a stack does
not have match no leaf.
"""

# The block of every decoder: thinker, talker, code predictor, code2wav.
DECODER = """
.norm.scale                       | .norm.weight                                          | d -> d
.layers.attention_norm.scale      | .layers.{l}.input_layernorm.weight                    | l d -> l d
.layers.attention.q.kernel        | .layers.{l}.self_attn.q_proj.weight                   | l (n h) d -> l d n h
.layers.attention.q.bias          | .layers.{l}.self_attn.q_proj.bias                     | l (n h) -> l n h
.layers.attention.k.kernel        | .layers.{l}.self_attn.k_proj.weight                   | l (n h) d -> l d n h
.layers.attention.k.bias          | .layers.{l}.self_attn.k_proj.bias                     | l (n h) -> l n h
.layers.attention.v.kernel        | .layers.{l}.self_attn.v_proj.weight                   | l (n h) d -> l d n h
.layers.attention.v.bias          | .layers.{l}.self_attn.v_proj.bias                     | l (n h) -> l n h
.layers.attention.o.kernel        | .layers.{l}.self_attn.o_proj.weight                   | l d (n h) -> l n h d
.layers.attention.q_norm.scale    | .layers.{l}.self_attn.q_norm.weight                   | l h -> l h
.layers.attention.k_norm.scale    | .layers.{l}.self_attn.k_norm.weight                   | l h -> l h
.layers.attention_scale           | .layers.{l}.self_attn_layer_scale.scale               | l d -> l d
.layers.ffn_norm.scale            | .layers.{l}.post_attention_layernorm.weight           | l d -> l d
.layers.ffn_scale                 | .layers.{l}.mlp_layer_scale.scale                     | l d -> l d
.layers.ffn.gate_up.kernel        | .layers.{l}.mlp.{p:gate,up}_proj.weight               | l p f d -> l d p f
.layers.ffn.down.kernel           | .layers.{l}.mlp.down_proj.weight                      | l d f -> l f d
.layers.ffn.router.kernel         | .layers.{l}.mlp.gate.weight                           | l e d -> l d e
.layers.ffn.shared_gate.kernel    | .layers.{l}.mlp.shared_expert_gate.weight             | l 1 d -> l d 1
.layers.ffn.shared.gate_up.kernel | .layers.{l}.mlp.shared_expert.{p:gate,up}_proj.weight | l p f d -> l d p f
.layers.ffn.shared.down.kernel    | .layers.{l}.mlp.shared_expert.down_proj.weight        | l d f -> l f d
.experts.gate_up                  | .layers.{l}.mlp.experts.{e}.{p:gate,up}_proj.weight   | l e p f d -> l e d (p f)
or                                | .layers.{l}.mlp.experts.gate_up_proj                  | l e g d -> l e d g
.experts.down                     | .layers.{l}.mlp.experts.{e}.down_proj.weight          | l e d f -> l e f d
or                                | .layers.{l}.mlp.experts.down_proj                     | l e d f -> l e f d
"""

THINKER = """
.embedding.table | .model.embed_tokens.weight | v d -> v d
.head.kernel     | .lm_head.weight            | v d -> d v
"""

# The audio encoder's transformer.
AUDIO_LAYERS = """
.layers.attention_norm.scale | .layers.{l}.self_attn_layer_norm.weight | l d -> l d
.layers.attention_norm.bias  | .layers.{l}.self_attn_layer_norm.bias   | l d -> l d
.layers.q.kernel             | .layers.{l}.self_attn.q_proj.weight     | l (n h) d -> l d n h
.layers.q.bias               | .layers.{l}.self_attn.q_proj.bias       | l (n h) -> l n h
.layers.k.kernel             | .layers.{l}.self_attn.k_proj.weight     | l (n h) d -> l d n h
.layers.k.bias               | .layers.{l}.self_attn.k_proj.bias       | l (n h) -> l n h
.layers.v.kernel             | .layers.{l}.self_attn.v_proj.weight     | l (n h) d -> l d n h
.layers.v.bias               | .layers.{l}.self_attn.v_proj.bias       | l (n h) -> l n h
.layers.o.kernel             | .layers.{l}.self_attn.out_proj.weight   | l d (n h) -> l n h d
.layers.o.bias               | .layers.{l}.self_attn.out_proj.bias     | l d -> l d
.layers.ffn_norm.scale       | .layers.{l}.final_layer_norm.weight     | l d -> l d
.layers.ffn_norm.bias        | .layers.{l}.final_layer_norm.bias       | l d -> l d
.layers.ffn.up.kernel        | .layers.{l}.fc1.weight                  | l f d -> l d f
.layers.ffn.up.bias          | .layers.{l}.fc1.bias                    | l f -> l f
.layers.ffn.down.kernel      | .layers.{l}.fc2.weight                  | l d f -> l f d
.layers.ffn.down.bias        | .layers.{l}.fc2.bias                    | l d -> l d
.norm.scale                  | .ln_post.weight                         | d -> d
.norm.bias                   | .ln_post.bias                           | d -> d
"""

# Other prefixes and the published ones: of Transformers' modules in memory, and of a thinker that it saves alone.
ALIASES = (
    ("thinker.model.language_model.", "thinker.model."),
    ("thinker.model.audio_tower.", "thinker.audio_tower."),
    ("thinker.model.visual.", "thinker.visual."),
    ("model.language_model.", "thinker.model."),
    ("model.audio_tower.", "thinker.audio_tower."),
    ("model.visual.", "thinker.visual."),
    ("model.", "thinker.model."),
    ("audio_tower.", "thinker.audio_tower."),
    ("visual.", "thinker.visual."),
    ("lm_head.", "thinker.lm_head."),
)

# Tensors that are not read, by pattern, and why.
IGNORED = {
    "*.inv_freq": "rotary frequencies are computed",
    "*.original_inv_freq": "rotary frequencies are computed",
    "thinker.audio_tower.positional_embedding.*": "the audio encoder's sinusoids are computed",
}
