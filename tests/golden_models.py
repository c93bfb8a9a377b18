"""The reference models as our own: converted once a session, with the arrays of the originals beside them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxasr
from jaxasr import store
from jaxasr.model import AbstractModel, Model
from jaxasr.model_config import ModelConfig
from jaxasr.recognizer import Recognizer
from jaxasr.search.greedy import TransducerGreedy
from jaxasr.search.hypotheses import Hypotheses
from jaxasr.search.protocols import search_whole
from jaxasr.text.tokens import TokenTable

OFFLINE = ("zipformer-tiny", "zipformer-ja-tiny", "zipformer-ctc-tiny")
STREAMING = "zipformer-streaming-tiny"
GOLDENS = (*OFFLINE, STREAMING)
CLIPS = ("digits_a", "digits_b", "espeak_sentence", "noise", "near_silence", "short")
# What lies in tests/data, for machines that have nothing but the repository.
BUNDLED, BUNDLED_CLIP = "zipformer-ctc-tiny", "espeak_sentence"

# Two float32 implementations of one module, fed with the same values, as a share of the result's largest magnitude;
# and the whole network, whose rounding errors the random weights amplify (../shared/reference/icefall.md).
PER_MODULE, END_TO_END = 1e-4, 1e-3


def quick_jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The function compiled, with results of numpy: each row or slice of another shape that a test takes of an array of
    JAX is a program of its own, which takes longer to compile than the row does to compare. `options`: of `jax.jit`.
    """
    compiled = jax.jit(function, **options)
    return lambda *arguments: jax.device_get(compiled(*arguments))


@dataclasses.dataclass(frozen=True, eq=False)
class Golden:
    """A reference model: its publisher's files in `folder`, the model directory made of its pretrained.pt."""

    name: str
    folder: Path
    directory: Path
    config: ModelConfig
    params: dict[str, Any]
    tokens: TokenTable

    def arrays(self, file: str) -> dict[str, np.ndarray]:
        """All arrays of one of the .npz files."""
        return read_arrays(self.folder / f"{file}.npz")

    def json(self, file: str) -> Any:
        return json.loads((self.folder / f"{file}.json").read_text(encoding="utf-8"))

    def recognizer(self, **options: Any) -> Recognizer:
        """A recognizer over this model's parameters; options as `Recognizer` takes them."""
        return Recognizer(options.pop("config", self.config), self.params, self.tokens, **options)

    def bind(self, params: dict[str, Any], **encoder: Any) -> Model:
        """The module over (traced) parameters; `encoder` replaces fields of the encoder's configuration."""
        variant = dataclasses.replace(self.config.encoder, **encoder)
        return abstract_model(dataclasses.replace(self.config, encoder=variant)).fill(params)


@functools.cache
def abstract_model(config: ModelConfig) -> AbstractModel:
    return AbstractModel(config)


def convert(name: str, folder: Path, directory: Path) -> Golden:
    """Convert pretrained.pt with the recipe's arguments beside it, as a user would, and load the result."""
    jaxasr.configure_process()
    jaxasr.convert_checkpoint(folder / "pretrained.pt", directory, config=folder / "config.yaml")
    config, params, tokens = store.load(directory)
    return Golden(name, folder, directory, config, jax.device_put(params), tokens)


@functools.cache
def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def difference(ours: Any, theirs: np.ndarray) -> float:
    """The largest difference as a share of the largest magnitude of `theirs`; shapes must agree."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    return float(np.abs(ours - theirs).max(initial=0.0) / max(float(np.abs(theirs).max(initial=0.0)), 1e-30))


class EmitsAll:
    """A transducer head of which a search emits every id but the blank, as icefall's does; sherpa-onnx skips <unk>."""

    silent_ids = ()

    def __init__(self, head: Any) -> None:
        self.blank_id, self.durations, self.max_symbols = head.blank_id, head.durations, head.max_symbols
        self.length_offset = head.length_offset
        self.project, self.initial_state = head.project, head.initial_state
        self.advance, self.join = head.advance, head.join


def icefall_greedy(head: Any, encoded: Any, lengths: Any) -> Hypotheses:
    """icefall's greedy search of whole utterances: encoded (B, T, D), lengths (B,)."""
    return search_whole(TransducerGreedy(EmitsAll(head)), encoded, lengths)


def emitted(hypotheses: Any, row: int = 0) -> tuple[list[int], list[int], np.ndarray]:
    """(token ids, frames, log-probabilities) of the best hypothesis of a row."""
    count = int(hypotheses.length[row, 0])
    return (
        np.asarray(hypotheses.tokens[row, 0, :count]).tolist(),
        np.asarray(hypotheses.frames[row, 0, :count]).tolist(),
        np.asarray(hypotheses.log_probs[row, 0, :count]),
    )


def check_predictor_and_joiner(golden: Golden) -> None:
    """icefall's stateless predictor, its projection, the joiner and whole label sequences equal the stored arrays."""
    stored, encoder = golden.arrays("decoder_joiner"), golden.arrays("encoder_single")
    frames = encoder["espeak_sentence/encoder_proj"][stored["joiner_frames"]]
    sequence = np.concatenate([[-1], stored["padded_tokens"]])

    @quick_jit
    def run(params: dict[str, Any]) -> tuple[jax.Array, ...]:
        head = golden.bind(params).transducer
        state = head.initial_state(len(stored["contexts"]))
        for tokens in stored["contexts"].T:
            state = head.advance(state, tokens)
        rows = (len(state[1]), frames.shape[1])
        logits = jax.vmap(lambda frame: head.join(jnp.broadcast_to(frame, rows), state))(frames)
        training = head.predictor.predict(np.stack([sequence[:-1], sequence[1:]], axis=1))
        return head.predictor.predict(stored["contexts"]), state[1], logits, training

    ours = run(golden.params)
    names = ("decoder_out", "decoder_proj", "joiner_logits", "padded_decoder_out")
    off = {array: difference(mine, stored[array]) for array, mine in zip(names, ours, strict=True)}
    assert max(off.values()) < 1e-5, off
