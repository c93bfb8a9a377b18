"""The promises of the whole: text that does not depend on companions, order or padding, and bounded programs.

Measured here on every model: tokens are the same, and activations after every module agree to a few units in the sixth
place, which is the rounding of programs for other shapes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from golden_models import CLIPS, END_TO_END, GOLDENS, PER_MODULE, STREAMING, Golden, difference, emitted, quick_jit
from jaxasr.encoders.zipformer_config import subsampled_length
from jaxasr.planner import ladder
from jaxasr.search import BeamConfig, GreedyConfig, JointConfig, SearchConfig
from quick_compilation import RUNS_LONG

RATE = 16000
# Of the largest magnitude of encoded frames: several times what another order of sums changes.
ROUNDING = 1e-4
Goldens = Callable[[str], Golden]
# The causal model also without chunks, where a clip is a chunk of its own length.
VARIANTS = [*((name, {}) for name in GOLDENS), (STREAMING, {"chunk_size": -1, "left_context": -1})]
named = pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=[*GOLDENS, f"{STREAMING}-full"])


@dataclasses.dataclass
class Heard:
    """What a program made of one clip: the valid frames after each module, and the tokens of each head."""

    activations: dict[str, np.ndarray]
    tokens: dict[str, tuple[list[int], list[int], np.ndarray]]


class Probe:
    """Runs padded batches and looks after every module. One program a shape, and one search a shape of its frames."""

    def __init__(self, golden: Golden, encoder: dict[str, Any]) -> None:
        self.golden, self.encoder = golden, encoder
        self.encode, self.search = quick_jit(self._encode), quick_jit(self._search)
        self.encode_often = quick_jit(self._encode, compiler_options=RUNS_LONG)
        heads = golden.config.heads
        self.searches: dict[str, SearchConfig] = {head: GreedyConfig(head=head) for head in heads}
        if "transducer" in heads:
            self.searches["beam"] = JointConfig() if "ctc" in heads else BeamConfig()

    def _encode(self, params: dict[str, Any], waveforms: jax.Array, lengths: jax.Array) -> Any:
        model = self.golden.bind(params, **self.encoder)
        seen: dict[str, Any] = {}

        def watch(patch: pytest.MonkeyPatch, kind: type, name: Callable[[Any], str]) -> None:
            call = kind.__call__

            def watched(module: Any, *arguments: Any, **options: Any) -> Any:
                result = call(module, *arguments, **options)
                seen[name(module)] = result[0] if isinstance(result, tuple) else result
                return result

            patch.setattr(kind, "__call__", watched)

        stacks = list(model.encoder.stacks)
        with pytest.MonkeyPatch.context() as patch:
            watch(patch, type(model.features), lambda _: "features")
            watch(patch, type(model.encoder.embed), lambda _: "embed")
            watch(patch, type(stacks[0]), lambda stack: f"stack{next(i for i, s in enumerate(stacks) if s is stack)}")
            seen["encoded"], encoded_lengths = model.encode(waveforms, lengths)
        assert len(seen) == len(stacks) + 3
        return seen, encoded_lengths

    def _search(self, params: dict[str, Any], encoded: jax.Array, lengths: jax.Array) -> dict[str, Any]:
        model = self.golden.bind(params)
        return {name: model.search(encoded, lengths, search) for name, search in self.searches.items()}

    def is_tie(self, encoded: np.ndarray, search: str, size: float) -> bool:
        """Whether noise of this share of the largest magnitude decides what a search finds in frames (T, D).

        Two programs round differently. In thousands of random decisions one may hang on that, on another processor.
        """
        noise = np.random.default_rng(0).uniform(-size, size, (16, *encoded.shape)) * np.abs(encoded).max()
        lengths = np.full(16, len(encoded), np.int32)
        found = quick_jit(lambda params, x: self.golden.bind(params).search(x, lengths, self.searches[search]))(
            self.golden.params, (encoded + noise).astype(np.float32)
        )
        said = [emitted(jax.device_get(found), row)[:2] for row in range(16)]
        return any(each != said[0] for each in said)

    def __call__(
        self, clips: list[np.ndarray], samples: int, padding: float = 0.0, searched: int | None = None
    ) -> list[Heard]:
        """Clips in a batch of so many samples; `searched` is the number of encoded frames that the search is given.

        Batches of the same shapes come again and again, but for those that are searched in another number of frames.
        """
        lengths = np.array([len(clip) for clip in clips], np.int32)
        waveforms = np.full((len(clips), samples), padding, np.float32)
        for row, clip in enumerate(clips):
            waveforms[row, : len(clip)] = clip
        encode = self.encode_often if searched is None else self.encode
        seen, encoded_lengths = encode(self.golden.params, waveforms, lengths)
        encoded = seen["encoded"]
        if searched is not None:
            more = ((0, 0), (0, searched - encoded.shape[1]), (0, 0))
            encoded = np.pad(encoded, more, constant_values=padding)
        seen["heads"] = self.search(self.golden.params, encoded, encoded_lengths)
        seen = jax.device_get(seen)
        return [self._heard(seen, row, int(length)) for row, length in enumerate(lengths)]

    def frames(self, samples: int) -> int:
        """Encoded frames of a batch of so many samples."""
        return self.golden.config.encoder.encoded_length(self.golden.config.features.frame_count(samples))

    def _heard(self, seen: dict[str, Any], row: int, samples: int) -> Heard:
        frames = self.golden.config.features.frame_count(samples)
        inner = subsampled_length(frames)
        sizes = {"features": frames, "encoded": self.frames(samples)}
        return Heard(
            {
                module: seen[module][row, : sizes.get(module, inner)]
                for module in seen
                if module != "heads" and np.size(seen[module][row, : sizes.get(module, inner)])
            },
            {head: emitted(hypotheses, row) for head, hypotheses in seen["heads"].items()},
        )


@pytest.fixture(scope="module")
def probes(goldens: Goldens) -> Callable[[str, dict[str, Any]], Probe]:
    @functools.cache
    def make(name: str, variant: tuple[tuple[str, Any], ...]) -> Probe:
        probe = Probe(goldens(name), dict(variant))
        if variant:  # of the encoder: the search is the same program
            probe.search = make(name, ()).search
        return probe

    return lambda name, variant: make(name, tuple(variant.items()))


def assert_same(probe: Probe, ours: Heard, alone: Heard, what: object) -> None:
    assert ours.activations.keys() == alone.activations.keys(), what
    for module, expected in alone.activations.items():
        # A stack's frames come from the audio, through all stacks before it: their roundings add up, and on a processor
        # without AVX-512 stack3 of two lengths differed by 1.03e-4.
        limit = END_TO_END if module == "encoded" or module.startswith("stack") else PER_MODULE
        assert difference(ours.activations[module], expected) < limit, (what, module)
    for head, (tokens, frames, log_probs) in alone.tokens.items():
        if ours.tokens[head][:2] != (tokens, frames):
            assert probe.is_tie(alone.activations["encoded"], head, ROUNDING), (what, head)
        else:
            np.testing.assert_allclose(ours.tokens[head][2], log_probs, atol=END_TO_END)


def test_ties_are_told_from_decisions(probes: Callable[..., Probe], waveforms: dict[str, np.ndarray]) -> None:
    """What a clip says is no tie at the size of roundings, so that `assert_same` compares it."""
    probe = probes(STREAMING, {})
    alone = probe([waveforms["espeak_sentence"]], 8 * RATE)[0]
    assert len(alone.tokens["transducer"][0]) > 5
    assert not probe.is_tie(alone.activations["encoded"], "transducer", ROUNDING)
    assert probe.is_tie(alone.activations["encoded"], "transducer", 0.5)


@named
def test_random_batches(
    probes: Callable[..., Probe], waveforms: dict[str, np.ndarray], name: str, variant: dict[str, Any]
) -> None:
    """20 batches of clips in random order, beside pieces of random length, down to ones too short for a frame."""
    probe = probes(name, variant)
    alone = functools.cache(lambda clip: probe([waveforms[clip]], 8 * RATE)[0])
    said = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        clips = list(rng.permutation(CLIPS)[:3])
        source = waveforms[str(rng.choice(CLIPS))]
        start = int(rng.integers(len(source)))
        piece = source[start : start + int(RATE * np.exp(rng.uniform(np.log(0.002), np.log(7.0))))]
        place = int(rng.integers(4))
        rows = [waveforms[clip] for clip in clips]
        rows.insert(place, piece)
        padding = [0.0, np.nan, 1e30][seed % 3]
        heard = probe(rows, 7 * RATE, padding)
        assert_same(probe, heard.pop(place), probe([piece], 8 * RATE)[0], (seed, "piece", len(piece)))
        for clip, ours in zip(clips, heard, strict=True):
            assert_same(probe, ours, alone(clip), (seed, clip))
            said += sum(len(tokens) for tokens, _, _ in ours.tokens.values())
    assert said > 100, "models that say nothing prove nothing"


@named
def test_what_stands_in_the_padding_changes_nothing(
    probes: Callable[..., Probe], waveforms: dict[str, np.ndarray], name: str, variant: dict[str, Any]
) -> None:
    """Bit for bit, in one program: the padding is never read, be it infinite, enormous, or no number at all."""
    probe = probes(name, variant)
    rows = [waveforms[clip] for clip in ("short", "near_silence", "digits_a", "espeak_sentence")]
    silent = probe(rows, 7 * RATE)
    for padding in (np.nan, 1e30, -np.inf, 0.3):
        for ours, expected in zip(probe(rows, 7 * RATE, padding), silent, strict=True):
            for module, activations in expected.activations.items():
                np.testing.assert_array_equal(ours.activations[module], activations, err_msg=f"{padding} {module}")
            for head, emissions in expected.tokens.items():
                assert ours.tokens[head][:2] == emissions[:2]


@named
def test_the_order_of_rows_changes_nothing(
    probes: Callable[..., Probe], waveforms: dict[str, np.ndarray], name: str, variant: dict[str, Any]
) -> None:
    probe = probes(name, variant)
    rows = [waveforms[clip] for clip in ("digits_b", "short", "noise", "digits_a")]
    for ours, expected in zip(probe(rows[::-1], 7 * RATE)[::-1], probe(rows, 7 * RATE), strict=True):
        assert_same(probe, ours, expected, "reversed")


# What the planner may choose, up to the longest clip and once beyond it.
LENGTHS = [length for length in ladder(RATE, 30 * RATE) if length <= 8 * RATE or length == 20 * RATE]


@pytest.mark.parametrize(
    ("name", "variant", "lengths"),
    [
        ("zipformer-ctc-tiny", {}, LENGTHS),
        (STREAMING, {}, LENGTHS[::2]),
        (STREAMING, {"chunk_size": -1, "left_context": -1}, LENGTHS[1::3]),
    ],
    ids=["zipformer-ctc-tiny", STREAMING, f"{STREAMING}-full"],
)
def test_every_length_that_holds_a_clip(
    probes: Callable[..., Probe],
    waveforms: dict[str, np.ndarray],
    name: str,
    variant: dict[str, Any],
    lengths: list[int],
) -> None:
    """Utterances shorter than a chunk among them, in batches shorter and longer than a chunk.

    All are searched in as many frames as the longest batch has: what the number of frames does to a search is the
    subject of the random batches.
    """
    probe = probes(name, variant)
    clips = ("short", "near_silence", "espeak_sentence")
    alone = {clip: probe([waveforms[clip]], 8 * RATE)[0] for clip in clips}
    nothing = np.zeros(0, np.float32)
    searched = probe.frames(max(lengths))
    ran = 0
    for samples in lengths:
        rows = [waveforms[clip] if len(waveforms[clip]) <= samples else nothing for clip in clips]
        for clip, row, ours in zip(clips, rows, probe(rows, samples, np.nan, searched), strict=True):
            if len(row):
                assert_same(probe, ours, alone[clip], (samples / RATE, clip))
                ran += 1
    assert ran >= 2 * len(lengths) - 2


def test_an_empty_row_is_harmless(probes: Callable[..., Probe], waveforms: dict[str, np.ndarray]) -> None:
    """Batches are filled up to a power of two with rows of length 0."""
    probe = probes(STREAMING, {})
    nothing = np.zeros(0, np.float32)
    clip = waveforms["digits_a"]
    heard = probe([nothing, clip, nothing, nothing], 7 * RATE, np.nan)
    assert_same(probe, heard[1], probe([clip], 8 * RATE)[0], "beside empty rows")
    for row in (0, 2, 3):
        assert heard[row].tokens["transducer"][0] == []
