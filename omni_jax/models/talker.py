"""The talker and its code predictor. Today their weights: converted, counted, saved and exported; nothing runs them yet."""

from flax import nnx

from omni_jax.config import TalkerConfig
from omni_jax.models.decoder import Decoder
from omni_jax.nn.layers import Embedding, Init, Linear
from omni_jax.nn.stack import stack


class Projection(nnx.Module):
    """down(silu(up x)) with biases, from the thinker's width to the talker's."""

    def __init__(self, init: Init, config: TalkerConfig):
        hidden = config.projection_width
        self.up = Linear(init, (config.thinker_width,), (hidden,), axes=("embed", "ffn"), bias=True)
        self.down = Linear(init, (hidden,), (config.decoder.width,), axes=("ffn", "embed"), bias=True)


class Talker(nnx.Module):
    """Mixture-of-experts decoder over codec ids (arXiv:2509.17765)."""

    def __init__(self, init: Init, config: TalkerConfig):
        self.embedding = Embedding(init, config.vocabulary, config.decoder.width)
        self.text_projection = Projection(init, config)
        self.hidden_projection = Projection(init, config)
        self.decoder = Decoder(init, config.decoder)
        self.head = Linear(init, (config.decoder.width,), (config.vocabulary,), axes=("embed", "vocab"))
        self.config = config


class CodePredictor(nnx.Module):
    """Dense decoder of the residual codebooks: a table and a head for each but the first."""

    def __init__(self, init: Init, config: TalkerConfig):
        width, residual = config.predictor.width, config.codebooks - 1
        self.embeddings = stack(init, residual, lambda init: Embedding(init, config.codebook, width))
        self.decoder = Decoder(init, config.predictor)
        self.heads = stack(
            init, residual, lambda init: Linear(init, (width,), (config.codebook,), axes=("embed", "vocab"))
        )
        self.config = config
