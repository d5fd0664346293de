"""Every entry point of a model, lowered ahead of time with abstract weights: the programs and shapes that run later.

Nothing is read or run, and devices may exist only for the compiler. The jitted functions are those that run later.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omni_jax.buckets import CALL_PATCHES, CHUNK_SLOTS, INITIAL_NEW_SLOTS, bucket
from omni_jax.config import OmniConfig
from omni_jax.decoding.frames import FRAMES_PER_CALL, SpeechRows, SpeechState
from omni_jax.decoding.sampling import Sampling, SamplingRows
from omni_jax.decoding.text import CALL_STEPS, DecodeState
from omni_jax.engine import programs
from omni_jax.errors import is_out_of_memory
from omni_jax.models import parts
from omni_jax.models.decoder import PREFILL_CHUNK, Decoder
from omni_jax.models.memory_layout import abstract_layout
from omni_jax.models.parts import Talker, loaded
from omni_jax.models.placement import shardings
from omni_jax.models.qwen2_5_omni import Qwen25OmniParts
from omni_jax.models.qwen3_omni import Qwen3OmniParts
from omni_jax.models.qwen3_omni.code2wav import BATCH_FRAMES, axes
from omni_jax.models.thinker import Embedded, Thinker
from omni_jax.nn import expert_parallel
from omni_jax.nn.cache import AXES as CACHE_AXES
from omni_jax.nn.cache import KVCache
from omni_jax.nn.kernels.packed_attention import BLOCK
from omni_jax.parallel.sharding import spec
from omni_jax.plan import lower_bound
from omni_jax.plan.hlo import Grouped, HloProgram
from omni_jax.plan.kernel_costs import visited
from omni_jax.plan.lower_bound import Cost, bytes_per_device
from omni_jax.plan.workload import Workload
from omni_jax.speech import qwen3_omni, token2wav

CANDIDATES = 64  # tokens that a draw chooses from: the published top_k of 50, as a power of two
REFERENCE_FRAMES = 512  # mel frames of a speaker's reference recording in Qwen2.5-Omni
# Patches of a picture that shares a call with others; its queries attend only to its own frame.
FRAME_PATCHES = 784
EXHAUSTED = re.compile(r"temporaries \(([\d.]+)([KMGT]?)\)")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class ProgramSpec:
    """A program before it is compiled.

    Attributes:
        function: jitted.
        arguments: abstract.
        bound: counts the lower bound of a step.
        weights: bytes of weights a chip among its arguments.
        caches: bytes a chip of caches that it takes or makes; they stay on the device between calls.
        options: static arguments.
        steps: steps of a call; bytes and operations are reported per step.
        runs: iterations of loops whose length is only known at run time.
        seen: keys of a query in kernels of spans.
        grouped: costs of grouped products, by the shape of their matrices.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    bound: Callable[[], Cost]
    weights: int
    caches: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 1
    runs: int = 1
    seen: int = 0
    grouped: Mapping[tuple[int, ...], Grouped] = field(default_factory=dict)

    @cached_property
    def cost(self) -> Cost:
        """The lower bound of a step, per chip."""
        return self.bound()

    def lower(self) -> Any:
        return self.function.lower(*self.arguments, **self.options)


@dataclass(frozen=True)
class CompiledProgram:
    """A program's measures; if it is too large for its devices, only the memory that it would hold.

    Attributes:
        seconds: time to compile.
        held: bytes a chip while it runs, arguments included.
        temporaries: bytes of ``held`` that are neither arguments nor results.
    """

    entry: ProgramSpec
    seconds: float
    held: int
    temporaries: int
    program: HloProgram | None

    @property
    def bytes(self) -> int | None:
        return self.program and self.program.bytes() // self.entry.steps

    @property
    def flops(self) -> int | None:
        return self.program and self.program.flops() // self.entry.steps


def compiled(entry: ProgramSpec) -> CompiledProgram:
    """Compiles an entry point for the devices of its weights."""
    lowered, began = entry.lower(), time.perf_counter()
    try:
        with _anew():
            program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = EXHAUSTED.search(str(error))
        if not is_out_of_memory(error) or not found:
            raise
        held = int(float(found[1]) * UNITS[found[2]])
        arguments = sum(lower_bound.shard_bytes(leaf) for leaf in jax.tree.leaves(entry.arguments))
        return CompiledProgram(entry, time.perf_counter() - began, held, max(0, held - arguments), None)
    seconds, memory = time.perf_counter() - began, program.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return CompiledProgram(
        entry=entry,
        seconds=seconds,
        held=memory.argument_size_in_bytes + results + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        program=HloProgram(program.as_text(), entry.grouped, runs=entry.runs, seen=entry.seen),
    )


@contextmanager
def _anew() -> Iterator[None]:
    """Bypasses JAX's compilation cache: it stores programs for chips that do not exist, but cannot read them again."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # the cache reads the setting only once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


class Programs:
    """The entry points of a model on a mesh, for a workload.

    Attributes:
        parts: abstract, placed.
        weights: bytes of weights a chip.
        caches: bytes of caches a chip.
    """

    def __init__(self, config: OmniConfig, mesh: Mesh, workload: Workload):
        workload.check(config)
        self.config, self.mesh, self.workload = config, mesh, workload
        made = parts.abstract(config, workload.dtype, speech=workload.speech)
        where = shardings(made, mesh)
        leaves = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where[path])
            for path, leaf in parts.leaves(made).items()
        }
        made = parts.replace(made, leaves)
        self.parts = abstract_layout(made) if mesh.devices.flat[0].platform == "tpu" else made
        self.weights = bytes_per_device(self.parts)
        self.slots = bucket(workload.context)
        self.cache = self._cache(self.parts.thinker, workload.batch, self.slots)
        self.speech_slots = bucket(workload.context + INITIAL_NEW_SLOTS)
        self.speech_cache = (
            self._cache(loaded(self.parts.talker), workload.batch, self.speech_slots) if workload.speech else None
        )
        self.caches = bytes_per_device(self.cache) + bytes_per_device(self.speech_cache)

    def __iter__(self) -> Iterator[ProgramSpec]:
        yield from self._perceiving()
        yield self.prefill(self.slots)
        if self.slots > bucket(1):
            yield self._growth()
        yield self.decode()
        if self.workload.speech:
            yield self.frame()
            yield from self._sounding()

    def prefill(self, tokens: int, rows: int = 1) -> ProgramSpec:
        """Prefill of prompts, by default one at a time, as in a batch job; ``tokens`` is their bucket."""
        thinker, config = self.parts.thinker, self.config.thinker
        width, cache = config.decoder.width, self._cache(self.parts.thinker, rows, tokens)
        taps = len(config.vision_encoder.taps)
        embedded = Embedded(
            self.array((rows, tokens, width), self.workload.dtype, ("batch", None, None)),
            self.array((taps, rows, tokens, width), self.workload.dtype, ("batch", None, None)) if taps else None,
        )
        arguments = (
            thinker, embedded, self.array((rows, tokens), jnp.int32), self.array((3, rows, tokens), jnp.float32),
            self.array((rows,), jnp.int32), cache, self._options(rows),
        )  # fmt: skip
        hidden_layer = None
        if self.workload.speech:
            assert self.config.talker is not None
            hidden_layer = self.config.talker.read_layer(config.decoder.layers)
        return ProgramSpec(
            f"prefill, {rows} x {tokens:,} tokens", programs.prefill, arguments,
            partial(self._bounds().prefill, rows, tokens), bytes_per_device(thinker),
            options={"candidates": CANDIDATES, "hidden_layer": hidden_layer},
            grouped=self._grouped(thinker.decoder, rows * tokens),
        )  # fmt: skip

    def decode(self) -> ProgramSpec:
        batch, config = self.workload.batch, self.config.thinker
        state = DecodeState(
            cache=self.cache,
            tokens=self.array((batch,), jnp.int32),
            positions=self.array((3, batch), jnp.float32),
            seen=self.array((batch, config.vocabulary), bool),
            count=self.array((batch,), jnp.int32),
            finished=self.array((batch,), bool),
        )
        thinker, options = self.parts.thinker, {"candidates": CANDIDATES}
        talker = self.config.talker
        if self.workload.speech and talker and talker.reads_reply:
            options["return_hidden_states"] = True
        return ProgramSpec(
            f"decode, a token of {batch} x {self.slots:,}", programs.decode_steps,
            (thinker, state, self._options(batch), self.array((), jnp.int32)), partial(self._bounds().decode, batch, self.cache),
            bytes_per_device(thinker), bytes_per_device(self.cache), options, steps=CALL_STEPS, runs=CALL_STEPS,
            grouped=self._grouped(thinker.decoder, batch),
        )  # fmt: skip

    def frame(self) -> ProgramSpec:
        """A frame of codes: a step of the talker and, if there is one, all steps of the code predictor."""
        talker, predictor, batch = loaded(self.parts.talker), self.parts.code_predictor, self.workload.batch
        config = self.config.talker
        assert config is not None
        assert self.speech_cache is not None
        width = config.frame_width
        options = self._options(batch)
        state = SpeechState(
            cache=self.speech_cache,
            frame=self.array((batch, width), self.workload.dtype),
            position=self.array((batch,), jnp.float32),
            seen=self.array((batch, config.vocabulary), bool),
            count=self.array((batch,), jnp.int32),
            finished=self.array((batch,), bool),
        )
        text = self.array((batch, FRAMES_PER_CALL, width), self.workload.dtype)
        rows = SpeechRows(options, options if predictor is not None else None)
        return ProgramSpec(
            f"speech, a frame of {batch} x {self.speech_slots:,}", programs.generate_frames,
            (talker, predictor, state, text, rows, self.array((), jnp.int32)),
            partial(self._bounds().frame, batch, self.speech_cache),
            bytes_per_device((talker, predictor)), bytes_per_device(self.speech_cache),
            {"candidates": (CANDIDATES, CANDIDATES if predictor is not None else 0)},
            steps=FRAMES_PER_CALL, runs=FRAMES_PER_CALL, grouped=self._grouped(talker.decoder, batch),
        )  # fmt: skip

    def array(self, shape: tuple[int, ...], dtype: Any, names: tuple[str | None, ...] = ()) -> Any:
        """An abstract array with its named axes placed by the sharding rules; without names, on every chip."""
        where = spec(names, shape, self.mesh) if names else PartitionSpec()
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, where))

    def _growth(self) -> ProgramSpec:
        """The growth of a full cache, at most from the next smaller bucket; both are held at that moment."""
        smaller = self.slots * 2 // 3 if self.slots % 3 == 0 else self.slots * 3 // 4
        cache = self._cache(self.parts.thinker, self.workload.batch, smaller)
        made = partial(Cost, bytes_per_device(cache) + bytes_per_device(self.cache), 0)
        # Its result is the cache that ``caches`` counts.
        return ProgramSpec(
            f"grow the cache to {self.slots:,}",
            programs.grow,
            (cache,),
            made,
            0,
            bytes_per_device(self.cache),
            {"slots": self.slots},
        )

    def _perceiving(self) -> Iterator[ProgramSpec]:
        """Calls of the encoders at their largest sizes."""
        config, sight = self.config.thinker.audio_encoder, self.config.thinker.vision_encoder
        audio, vision = self.parts.audio_encoder, self.parts.vision_encoder
        chunks = CHUNK_SLOTS[-1]
        mel = [
            self.array((chunks, config.mel_bins, config.chunk_frames), jnp.float32), self.array((chunks,), jnp.int32)
        ]  # fmt: skip
        window = 0  # where chunks attend by themselves, without a kernel
        if config.windowed:
            mel.append(self.array((chunks, config.chunk_tokens), jnp.int32))
            window = visited(chunks * config.chunk_tokens, config.window_tokens, BLOCK)
        yield self._whole(f"audio encoder, {chunks} chunks", programs.audio_features, (audio, *mel), seen=window)
        sizes = ((CALL_PATCHES, 2), (CALL_PATCHES, 2), (CALL_PATCHES,))
        places = [self.array(size, jnp.int32) for size in sizes]
        pixels = self.array((CALL_PATCHES, sight.patch_width), self.workload.dtype)
        yield self._whole(
            f"vision encoder, {CALL_PATCHES:,} patches",
            programs.vision_features,
            (vision, pixels, *places),
            runs=-(-FRAME_PATCHES // 512),
            seen=visited(CALL_PATCHES, FRAME_PATCHES, BLOCK),
        )

    def _sounding(self) -> Iterator[ProgramSpec]:
        """Calls of the vocoder: a frame codec's largest steps, or a flow's for a long row."""
        rows = 1 << (self.workload.batch - 1).bit_length()
        if isinstance(self.parts, Qwen3OmniParts):
            code2wav = loaded(self.parts.code2wav)
            frames = max(size for size in qwen3_omni.CHUNKS if size <= max(1, BATCH_FRAMES // rows))
            made = jax.eval_shape(lambda part: part.start(rows), code2wav)
            state = jax.tree.map(lambda leaf, names: self.array(leaf.shape, leaf.dtype, names), made, axes(made))
            codes = self.array((rows, code2wav.config.codebooks, FRAMES_PER_CALL), jnp.int32)
            ends = (self.array((rows,), jnp.int32),) * 2
            arguments = (code2wav, state, codes, *ends)
            yield self._whole(
                f"code2wav, {rows} x {frames} frames", programs.samples_of_codes, arguments, kept=state, frames=frames
            )
            return
        assert isinstance(self.parts, Qwen25OmniParts)
        dit, bigvgan = loaded(self.parts.dit), loaded(self.parts.bigvgan)
        rows = min(rows, 16)
        frames, bins = token2wav.MEL_FRAMES_PER_CALL // rows, dit.config.mel_bins
        floats = partial(self.array, dtype=jnp.float32)
        counts = self.array((rows,), jnp.int32)
        arguments = (
            dit, self.array((rows, frames // dit.config.repeats), jnp.int32), counts,
            floats((rows, dit.config.speaker_width)), floats((rows, REFERENCE_FRAMES, bins)), counts,
            floats((rows, frames, bins)), counts,
        )  # fmt: skip
        yield self._whole(f"DiT, {rows} x {frames:,} mel frames", programs.mel_of_codes, arguments)
        window = token2wav.LONG * dit.config.block_frames
        mel = floats((rows, window, bins))
        yield self._whole(
            f"BigVGAN, {rows} x {window} mel frames", programs.samples_of_mel, (bigvgan, mel, counts, counts)
        )

    def _whole(
        self, name: str, function: Any, arguments: tuple[Any, ...], *, runs: int = 1, seen: int = 0, kept: Any = None,
        **options: Any,
    ) -> ProgramSpec:  # fmt: skip
        """A program that reads its part once: its lower bound comes from its trace."""
        few = partial(lower_bound.traced, partial(function, **options), arguments, self.mesh.size, runs=runs, kept=kept)
        return ProgramSpec(
            name, function, arguments, few, bytes_per_device(arguments[0]), options=options, runs=runs, seen=seen
        )

    def _cache(self, part: Thinker | Talker, batch: int, slots: int) -> KVCache:
        made = jax.eval_shape(lambda part: part.empty_cache(batch, slots), part)
        keys = self.array(made.k.shape, made.k.dtype, CACHE_AXES)
        return replace(made, k=keys, v=keys, length=self.array(made.length.shape, made.length.dtype))

    def _options(self, batch: int) -> SamplingRows:
        made = jax.eval_shape(lambda: SamplingRows.of([Sampling()] * batch, [0] * batch, [1] * batch))
        return jax.tree.map(lambda leaf: self.array(leaf.shape, leaf.dtype), made)

    def _bounds(self) -> lower_bound.DecoderLowerBound:
        return lower_bound.DecoderLowerBound(self.parts, self.config, self.mesh.size)

    def _grouped(self, decoder: Decoder, tokens: int) -> dict[tuple[int, ...], Grouped]:
        """Costs of a chip's own experts, if tokens are spread evenly over all experts."""
        experts, config = getattr(decoder, "experts", None), decoder.config.experts
        if experts is None or config is None:
            return {}
        found, tokens = {}, min(tokens, PREFILL_CHUNK)  # a long prompt is computed in pieces
        for kernel in (experts.gate_up, experts.down):
            layers, count, *matrix = kernel.sharding.shard_shape(kernel.shape)
            slots, devices = tokens * config.per_token, config.count // count
            groups = -(-min(slots, config.count) // devices)
            room = (
                expert_parallel.EVEN if devices > 1 and tokens >= expert_parallel.MIN_EXCHANGED_TOKENS * devices else 1
            )
            found[layers * count, *matrix] = Grouped(groups, max(1, slots // devices), room)
        return found


def compile_programs(
    entries: Programs,
    *,
    only: Callable[[str], bool] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Iterator[CompiledProgram]:
    """Compiles all, or ``only`` some by name; ``progress`` is called with the number done, that of all, and a name."""
    known = list(entries)
    made = [entry for entry in known if only is None or only(entry.name)]
    if not made:
        raise ValueError(f"only: no program has such a name; there are: {'; '.join(entry.name for entry in known)}")
    for number, entry in enumerate(made):
        if progress:
            progress(number, len(made), entry.name)
        yield compiled(entry)
