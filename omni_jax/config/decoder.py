"""The configuration of a stack of decoder blocks, and of its experts."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """A mixture of SwiGLU experts. ``shared_ffn_width`` is 0 where no shared expert exists."""

    count: int
    per_token: int
    ffn_width: int
    normalize: bool
    shared_ffn_width: int = 0


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A stack of pre-norm decoder blocks: thinker, talker, code predictor and the transformer of code2wav.

    Attributes:
        layers: number of blocks.
        width: width of the residual stream.
        heads: number of query heads.
        kv_heads: number of key heads.
        head_width: width of a head; the file's own where it states one, which need not be width / heads.
        ffn_width: width of the dense SwiGLU; 0 where every layer is a mixture of experts.
        experts: the mixture, or None for a dense stack.
        mrope_section: frequencies for time, height and width; None for one-dimensional rope.
        mrope_interleaved: time, height and width take frequencies in turn; False where each has a contiguous run of
            them, in that order.
        qk_norm: RMSNorm over the head width on queries and keys, before rope.
        bias: biases of the query, key and value projections; the output projection has none.
        layer_scale: a learned scale for each channel on each residual branch.
        window: keys a query may see, itself included; None for all.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    ffn_width: int
    norm_eps: float
    rope_theta: float
    qk_norm: bool
    experts: ExpertsConfig | None = None
    mrope_section: tuple[int, int, int] | None = None
    mrope_interleaved: bool = True
    bias: bool = False
    layer_scale: bool = False
    window: int | None = None
