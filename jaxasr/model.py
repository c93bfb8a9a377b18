"""A whole recogniser, or a detector of speech, as one Flax module: features, encoder, heads."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax.typing import DTypeLike

from jaxasr.detector_config import DetectorConfig
from jaxasr.encoders import ENCODERS, ChunkedEncoderConfig, StreamingEncoder
from jaxasr.features import FEATURES, StreamingFeatures
from jaxasr.heads.classifier import Classifier
from jaxasr.heads.ctc import CTC
from jaxasr.heads.parallel import Parallel
from jaxasr.heads.transducer import Transducer
from jaxasr.model_config import ModelConfig, Parameters
from jaxasr.pieces import StreamPiece
from jaxasr.quant.ranges import ranges_over
from jaxasr.quant.tree import abstract_tree
from jaxasr.search import SEARCHES, SearchConfig, searched_head
from jaxasr.search.hypotheses import Hypotheses
from jaxasr.search.protocols import StreamingSearch, search_whole


class Model(nnx.Module):
    """Waveforms (B, S) at 16 kHz to Hypotheses; every part can also be called by itself."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.features = FEATURES.make(config.features, rngs=rngs)
        self.encoder = ENCODERS.make(config.encoder, rngs=rngs)
        width = config.encoder.output_dim
        self.transducer = Transducer(config.transducer, width, rngs=rngs) if config.transducer else None
        self.ctc = CTC(config.ctc, width, rngs=rngs) if config.ctc else None
        self.parallel = Parallel(config.parallel, width, rngs=rngs) if config.parallel else None

    @property
    def heads(self) -> dict[str, Any]:
        """The head modules by their role, in the order of `ModelConfig.heads`."""
        return {role: getattr(self, role) for role in self.config.heads}

    def encode(
        self, waveforms: jax.Array, lengths: jax.Array, dtype: DTypeLike = jnp.float32
    ) -> tuple[jax.Array, jax.Array]:
        """waveforms (B, S) float32, lengths (B,) in samples -> encoded (B, T, D), lengths (B,) in frames to decode.

        `dtype` is the type of the activations inside the encoder.
        """
        frames, frame_lengths = self.features(waveforms, lengths)
        return self.encoder(frames.astype(dtype), frame_lengths)

    def search(
        self,
        encoded: jax.Array,
        lengths: jax.Array,
        search: SearchConfig | None = None,
        blank_penalty: jax.Array | float = 0.0,
    ) -> Hypotheses:
        """encoded (B, T, D), lengths (B,) -> Hypotheses of a search, the configuration's own by default.

        `blank_penalty` is taken off the blank's logit; in a joint search off the transducer's.
        """
        config = search or self.config.search
        made = SEARCHES.make(config, self.heads, blank_penalty)
        if searched_head(config, self.config.heads) == "parallel":  # it multiplies tokens too, not frames alone
            return search_whole(made, encoded, lengths)
        encoder = self.config.encoder
        with ranges_over(lengths, encoder.encoded_chunk if isinstance(encoder, ChunkedEncoderConfig) else None):
            return search_whole(made, encoded, lengths)

    def initial_state(self, batch: int, search: StreamingSearch[Any], room: int, dtype: DTypeLike) -> Any:
        """The state of streams of which nothing has been heard: a pytree of arrays, the batch axis first.

        `room`: encoded frames for whose tokens the search has room while they are not settled. `dtype` is the type of
        the activations inside the encoder. Models that `pieces.StreamPlan` takes only, as for `step`.
        """
        encoder = cast(StreamingEncoder, self.encoder)
        return {"encoder": encoder.initial_state(batch, jnp.dtype(dtype)), "search": search.start(batch, room)}

    def step(
        self, state: Any, piece: StreamPiece, search: StreamingSearch[Any], dtype: DTypeLike
    ) -> tuple[Any, Hypotheses, Hypotheses]:
        """One step of every row's stream -> the state, the tokens that are settled by it, and the others, best first.

        The hypotheses of what is not settled go on from what is. Piece by piece they say what `encode` and `search` say
        of the whole.
        """
        features, encoder = cast(StreamingFeatures, self.features), cast(StreamingEncoder, self.encoder)
        samples, begin, end, first, stop, counted, final = (jnp.asarray(leaf) for leaf in piece)
        frames = features.piece(samples, begin, end)
        index = jnp.arange(frames.shape[1])
        exists = (index >= first[:, None]) & (index < stop[:, None])
        frames = jnp.where(exists[..., None], frames, 0).astype(dtype)
        heard, encoded = encoder.step(state["encoder"], frames, stop, final)
        with contextlib.nullcontext() if self.parallel is not None else ranges_over(counted):
            searched, settled = search.advance(state["search"], encoded, counted, final)
        return {"encoder": heard, "search": searched}, settled, search.finish(searched)


class DetectorModel(nnx.Module):
    """Waveforms (B, S) at 16 kHz to probabilities of speech; every part can also be called by itself."""

    def __init__(self, config: DetectorConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.features = FEATURES.make(config.features, rngs=rngs)
        self.encoder = ENCODERS.make(config.encoder, rngs=rngs)
        self.classifier = Classifier(config.classifier, config.encoder.output_dim, rngs=rngs)

    def __call__(self, waveforms: jax.Array, lengths: jax.Array) -> jax.Array:
        """waveforms (B, S) float32, lengths (B,) in samples -> probabilities (B, T) float32, (B, 1) of whole windows.

        Of a row the first `config.row_frames` of its length count. A window is S samples, whatever its length.
        """
        frames, frame_lengths = self.features(waveforms, lengths)
        window = self.config.window
        if window is None:
            return self.classifier(self.encoder(frames, frame_lengths)[0])
        frames = jnp.pad(frames, ((0, 0), (0, window.trailing_frames), (0, 0)))
        encoded, _ = self.encoder(frames, frame_lengths)
        # Over all frames, masked ones too, as the classifier was trained: in all windows they are as many.
        pooled = encoded.max(1) if window.pooling == "max" else encoded.mean(1)
        return self.classifier(pooled[:, None])


Module = TypeVar("Module", bound=nnx.Module)


class AbstractModule(Generic[Module]):
    """A module's structure without numbers: made once, then filled inside a traced function at no cost per call."""

    def __init__(self, make: Callable[[nnx.Rngs], Module]) -> None:
        self._graph, self._state = nnx.split(nnx.eval_shape(lambda: make(_AnyKey())))
        self.parameters: dict[str, Any] = _named(nnx.to_pure_dict(self._state))
        """Shapes and types of every parameter, nested by name as `fill` takes them: quantized arrays of shapes too."""

    def split(self, parameters: Parameters) -> tuple[Parameters, Parameters]:
        """Nested parameters in two: those that gradients train, and the others, which are statistics and constants."""
        trained: dict[tuple[str, ...], Any] = {}
        others: dict[tuple[str, ...], Any] = {}
        for path, value in traverse_util.flatten_dict(parameters).items():
            (trained if path in self._trained else others)[path] = value
        return traverse_util.unflatten_dict(trained), traverse_util.unflatten_dict(others)

    @functools.cached_property
    def _trained(self) -> frozenset[tuple[str, ...]]:
        """The paths of what gradients train."""
        model = nnx.merge(self._graph, self._state)
        return frozenset(traverse_util.flatten_dict(named_parameters(model, nnx.Param)))

    def fill(self, parameters: Parameters) -> Module:
        """The module over nested `parameters`, to call it or parts of it."""
        state = jax.tree.map(lambda leaf: leaf, self._state)
        nnx.replace_by_pure_dict(state, nnx.restore_int_paths(parameters))
        filled: Module = nnx.merge(self._graph, state)
        return filled


class AbstractModel(AbstractModule[Model]):
    """A recogniser without numbers."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        super().__init__(lambda rngs: Model(config, rngs=rngs))
        self.floats = self.parameters
        """Shapes and types of every parameter before any is quantized, nested by name."""
        self.parameters = abstract_tree(config.quantization, self.floats)


class AbstractDetector(AbstractModule[DetectorModel]):
    """A detector without numbers."""

    def __init__(self, config: DetectorConfig) -> None:
        self.config = config
        super().__init__(lambda rngs: DetectorModel(config, rngs=rngs))


def named_parameters(model: nnx.Module, kind: type[nnx.Variable[Any]] = nnx.Variable) -> Parameters:
    """A model's parameters, nested by name as a model directory stores them and `AbstractModel.fill` takes them.

    `kind`: those of one kind alone, such as nnx.BatchStat, the running averages of batch norms.
    """
    return _named(nnx.to_pure_dict(nnx.state(model, kind)))


def merged(*trees: Parameters) -> Parameters:
    """Nested parameters put together; where two hold the same one, that of the later."""
    flat = {path: leaf for tree in trees for path, leaf in traverse_util.flatten_dict(tree).items()}
    nested: Parameters = traverse_util.unflatten_dict(flat)
    return nested


class _AnyKey(nnx.Rngs):
    """One key for all, where only shapes matter: counting keys took four fifths of the time of an abstract model."""

    def __init__(self) -> None:
        super().__init__()

    def params(self) -> jax.Array:
        return jax.random.key(0)


def _named(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Module lists count their members with integers; paths and files hold names only."""
    return {str(key): _named(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
