"""Parity of the causal Zipformer: chunk masks over whole utterances, and chunk by chunk with explicit state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from golden_models import CLIPS, END_TO_END, STREAMING, Golden, difference, emitted, icefall_greedy, quick_jit
from jaxasr.encoders.zipformer import PUBLISHER_PADDING

Arrays = dict[str, np.ndarray]

# Frames of padding after a stream: 13 of look-ahead and 30 more.
TAIL = 43
# What one chunk gives in the stream and in the whole utterance differs by float32's rounding (measured: 1e-5).
SAME = 2e-5


@pytest.fixture(scope="module")
def golden(goldens: Callable[[str], Golden]) -> Golden:
    return goldens(STREAMING)


def padded(features: Arrays, clips: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(frames (B, T, 80), lengths (B,)) of clips, padded as the publisher pads."""
    lengths = np.array([len(features[clip]) for clip in clips], np.int32)
    frames = np.full((len(clips), lengths.max(), 80), PUBLISHER_PADDING, np.float32)
    for row, clip in enumerate(clips):
        frames[row, : lengths[row]] = features[clip]
    return frames, lengths


def encode(golden: Golden, frames: np.ndarray, lengths: np.ndarray, **encoder: Any) -> tuple[np.ndarray, np.ndarray]:
    """(encoded, lengths) of a batch of features under a variant of the encoder's configuration."""

    @quick_jit
    def run(params: dict[str, Any], frames: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        return golden.bind(params, whole_chunks=False, **encoder).encoder(frames, lengths)

    return run(golden.params, frames, lengths)


@pytest.fixture(scope="module")
def search(golden: Golden) -> Callable[..., tuple[Any, np.ndarray]]:
    """(hypotheses, projected frames) of encoded frames (B, T, D) and their lengths; a program for each shape."""

    @quick_jit
    def run(params: dict[str, Any], encoded: jax.Array, lengths: jax.Array) -> tuple[Any, jax.Array]:
        head = golden.bind(params).transducer
        return icefall_greedy(head, encoded, lengths), head.project(encoded)

    return functools.partial(run, golden.params)


@pytest.fixture(scope="module")
def whole(golden: Golden, features: Arrays, search: Callable[..., tuple[Any, np.ndarray]]) -> Callable[[int, int], Any]:
    """(encoded, lengths, hypotheses) of all clips as one batch, under a chunk size and a left context."""

    @functools.cache
    def recognise(chunk: int, left: int) -> tuple[np.ndarray, np.ndarray, Any]:
        encoded, lengths = encode(golden, *padded(features, CLIPS), chunk_size=chunk, left_context=left)
        return encoded, lengths, search(encoded, lengths)[0]

    return recognise


# --- whole utterances with a chunk mask -------------------------------------------------------------------------------


@pytest.mark.parametrize(("chunk", "left"), [(16, 64), (16, 128), (32, 64), (32, 128), (-1, -1)])
def test_chunk_masks(golden: Golden, whole: Callable[[int, int], Any], chunk: int, left: int) -> None:
    """Every setting that was trained, on all clips at once: a batch gives what the original gives its singles.

    Among them is a clip shorter than a chunk, and without chunks (-1) every clip is a chunk of its own length.
    """
    stored = golden.arrays("encoder_chunk_mask")
    setting = "full" if chunk < 0 else f"c{chunk}_l{left}"
    clips = [clip for clip in CLIPS if f"{setting}/{clip}/encoder_out" in stored]
    assert len(clips) == (2 if chunk < 0 else len(CLIPS))
    encoded, lengths, hypotheses = whole(chunk, left)
    for row, clip in enumerate(CLIPS):
        if clip not in clips:
            continue
        theirs = stored[f"{setting}/{clip}/encoder_out"]
        assert int(lengths[row]) == len(theirs)
        assert difference(encoded[row, : len(theirs)], theirs) < END_TO_END, clip
        if f"{setting}/{clip}/tokens" in stored:
            tokens, frames, _ = emitted(hypotheses, row)
            assert tokens == stored[f"{setting}/{clip}/tokens"].tolist(), clip
            assert frames == stored[f"{setting}/{clip}/frames"].tolist(), clip


def test_a_single_utterance_without_chunks(golden: Golden, features: Arrays) -> None:
    """Not padded at all: the whole clip is one chunk."""
    stored = golden.arrays("encoder_chunk_mask")["full/short/encoder_out"]
    encoded, _ = encode(golden, *padded(features, ("short",)), chunk_size=-1, left_context=-1)
    assert difference(encoded[0], stored) < END_TO_END


def test_a_batch_with_a_mask_under_the_publishers_padding(golden: Golden, features: Arrays) -> None:
    stored = golden.arrays("encoder_chunk_mask")
    clips = tuple(golden.arrays("encoder_batch")["clips"].tolist())
    frames, lengths = padded(features, clips)
    encoded, encoded_lengths = encode(golden, frames, lengths, chunk_size=32, left_context=64, padding="publisher")
    np.testing.assert_array_equal(encoded_lengths, stored["c32_l64/batch/lens"])
    differs = 0.0
    for row, clip in enumerate(clips):
        end = int(encoded_lengths[row])
        assert difference(encoded[row, :end], stored["c32_l64/batch/encoder_out"][row, :end]) < END_TO_END, clip
        differs = max(differs, difference(encoded[row, :end], stored[f"c32_l64/{clip}/encoder_out"]))
    assert differs > 0.1, "the publisher's padding changes nothing: the switch tests nothing"


# --- chunk by chunk ---------------------------------------------------------------------------------------------------


def windows(frames: np.ndarray, chunk: int) -> np.ndarray:
    """The windows of a stream: (chunks, 2 chunk + 13, 80), 2 chunk apart, the last filled up."""
    size, shift = 2 * chunk + 13, 2 * chunk
    tail = np.full((TAIL, 80), PUBLISHER_PADDING, np.float32)
    frames = np.concatenate([frames, tail])
    count = -(-len(frames) // shift)
    frames = np.pad(frames, ((0, max(0, (count - 1) * shift + size - len(frames))), (0, 0)), constant_values=tail[0, 0])
    return np.stack([frames[i * shift : i * shift + size] for i in range(count)])


@pytest.fixture(scope="module")
def step(golden: Golden) -> Callable[[int, int], Any]:
    """The compiled step (params, state, x) of a chunk size and a left context; each number of clips is a program."""

    @functools.cache
    def make(chunk: int, left: int) -> Any:
        variant = {"chunk_size": chunk, "left_context": left}
        return quick_jit(lambda params, state, x: golden.bind(params, **variant).encoder.step(state, x))

    return make


@pytest.fixture(scope="module")
def streams(
    golden: Golden, features: Arrays, step: Callable[[int, int], Any]
) -> Callable[..., list[tuple[Any, np.ndarray]]]:
    """Runs clips side by side: (state, encoded (B, chunk // 2, D)) after each step, until the last clip ends."""

    @functools.cache
    def run(chunk: int, left: int, *clips: str) -> list[tuple[Any, np.ndarray]]:
        model = golden.bind(golden.params, chunk_size=chunk, left_context=left)
        state = model.encoder.initial_state(len(clips))
        each = [windows(features[clip], chunk) for clip in clips]
        steps = []
        for number in range(max(map(len, each))):
            x = np.stack([own[min(number, len(own) - 1)] for own in each])
            state, encoded = step(chunk, left)(golden.params, state, x)
            steps.append((state, np.asarray(encoded)))
        return steps

    return run


def in_the_originals_order(state: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(ONNX input name, array in the original's layout) of our state: there each kind has a batch axis of its own."""
    layers = [cache for stack in state["stacks"] for cache in stack]
    for number, cache in enumerate(layers):
        yield f"cached_key_{number}", np.swapaxes(cache["key"], 0, 1)
        yield f"cached_nonlin_attn_{number}", np.asarray(cache["nonlin"])[None]
        yield f"cached_val1_{number}", np.swapaxes(cache["value1"], 0, 1)
        yield f"cached_val2_{number}", np.swapaxes(cache["value2"], 0, 1)
        yield f"cached_conv1_{number}", np.swapaxes(cache["conv1"], 1, 2)
        yield f"cached_conv2_{number}", np.swapaxes(cache["conv2"], 1, 2)
    yield "embed_states", np.transpose(state["embed"], (0, 3, 1, 2))
    yield "processed_lens", np.asarray(state["processed"])


Greedy = Callable[[np.ndarray], tuple[tuple[list[int], list[int], np.ndarray], np.ndarray]]


@pytest.fixture(scope="module")
def greedy(features: Arrays, search: Callable[..., tuple[Any, np.ndarray]]) -> Greedy:
    """((tokens, frames, log-probabilities), projected frames) over the chunks of a stream, laid end to end (T, D).

    One program for all of them: it searches as many frames as the longest stream has, of which the rest are no number.
    """
    longest = max(len(windows(features[clip], chunk)) * (chunk // 2) for clip in CLIPS for chunk in (16, 32))

    def run(encoded: np.ndarray) -> tuple[tuple[list[int], list[int], np.ndarray], np.ndarray]:
        filled = np.full((1, longest, encoded.shape[1]), np.nan, np.float32)
        filled[0, : len(encoded)] = encoded
        hypotheses, projected = search(filled, np.array([len(encoded)], np.int32))
        return emitted(hypotheses), projected[0, : len(encoded)]

    return run


@pytest.mark.parametrize(("chunk", "left"), [(16, 64), (32, 128), (16, 128)])
def test_every_step_and_every_state(
    golden: Golden, features: Arrays, streams: Callable[..., list[Any]], greedy: Greedy, chunk: int, left: int
) -> None:
    setting = f"c{chunk}_l{left}"
    stored, states = golden.arrays("streaming"), golden.arrays("streaming_states")
    clips = [clip for clip in CLIPS if f"{setting}/{clip}/encoder_out" in stored]
    assert "digits_a" in clips and "short" in clips
    for clip in clips:
        if f"{setting}/{clip}/chunks" in stored:
            np.testing.assert_array_equal(windows(features[clip], chunk), stored[f"{setting}/{clip}/chunks"])
        steps = streams(chunk, left, clip)
        theirs = stored[f"{setting}/{clip}/encoder_out"]
        assert len(steps) == len(theirs)
        for number, (state, encoded) in enumerate(steps):
            assert difference(encoded[0], theirs[number]) < END_TO_END, (clip, number)
            kept = f"{setting}/{clip}/after{number}"
            if f"{kept}/state0" in states:
                ours = list(in_the_originals_order(state))
                assert f"{kept}/state{len(ours)}" not in states
                for index, (name, array) in enumerate(ours):
                    assert difference(array, states[f"{kept}/state{index}"]) < END_TO_END, (clip, number, name)
        (tokens, frames, _), projected = greedy(np.concatenate([encoded[0] for _, encoded in steps]))
        proj = stored[f"{setting}/{clip}/encoder_proj"]
        assert difference(projected, proj.reshape(-1, proj.shape[-1])) < END_TO_END
        assert tokens == stored[f"{setting}/{clip}/tokens"].tolist(), clip
        assert frames == stored[f"{setting}/{clip}/frames"].tolist(), clip
    compared = {name.split("/after")[1].split("/")[0] for name in states if name.startswith(f"{setting}/")}
    assert len(compared) >= 1 and str(len(streams(chunk, left, "digits_a")) - 1) in compared


def test_the_initial_state_has_the_originals_shapes(golden: Golden) -> None:
    shapes = golden.json("facts")["state_shapes"]
    for chunk, left in ((16, 64), (32, 128)):
        encoder = golden.bind(golden.params, chunk_size=chunk, left_context=left).encoder
        ours = [array for _, array in in_the_originals_order(encoder.initial_state(1))]
        assert [list(array.shape) for array in ours] == shapes[f"c{chunk}_l{left}/init_shapes"]
        assert not any(array.any() for array in ours)
        for leaf in jax.tree.leaves(encoder.initial_state(3)):
            assert leaf.shape[0] == 3  # batch first everywhere, so that slots are swapped with jnp.where


def test_the_exported_onnx_model_step_by_step(
    golden: Golden, streams: Callable[..., list[Any]], greedy: Greedy
) -> None:
    stored = golden.arrays("onnxruntime_streaming")
    for clip in CLIPS:
        steps = streams(16, 64, clip)
        encoded = np.concatenate([encoded[0] for _, encoded in steps])
        (tokens, frames, _), projected = greedy(encoded)
        theirs = stored[f"{clip}/encoder_out"]
        assert difference(projected, theirs.reshape(-1, theirs.shape[-1])) < END_TO_END, clip
        assert tokens == stored[f"{clip}/tokens"].tolist(), clip
        assert frames == stored[f"{clip}/frames"].tolist(), clip
        for number, (state, _) in enumerate(steps):
            for name, array in in_the_originals_order(state):
                key = f"{clip}/after{number}/{name}"
                if key in stored:
                    assert difference(array, stored[key]) < END_TO_END, key
    assert "digits_a/after0/cached_key_0" in stored


def test_two_streams_stepped_together(golden: Golden, streams: Callable[..., list[Any]]) -> None:
    stored = golden.arrays("streaming")
    together = stored["batch2/encoder_out"]
    steps = streams(16, 64, "digits_a", "espeak_sentence")
    for number in range(len(together)):
        assert difference(steps[number][1], together[number]) < END_TO_END
    for row, clip in enumerate(("digits_a", "espeak_sentence")):
        for number, (_, encoded) in enumerate(streams(16, 64, clip)):
            assert difference(steps[number][1][row], encoded[0]) < SAME, (clip, number)


def test_a_slot_that_is_taken_over_starts_anew(
    golden: Golden, features: Arrays, step: Callable[[int, int], Any], streams: Callable[..., list[Any]]
) -> None:
    """Streaming servers swap a slot's state with jnp.where: a clip that begins in a used slot is none the worse."""
    fresh = golden.bind(golden.params, chunk_size=16, left_context=64).encoder.initial_state(2)
    first, second = windows(features["digits_a"], 16), windows(features["espeak_sentence"], 16)
    state = fresh
    for number in range(3):
        state, _ = step(16, 64)(golden.params, state, np.stack([first[number], second[number]]))
    newcomer = np.array([True, False])
    state = jax.tree.map(lambda a, b: jnp.where(newcomer.reshape(-1, *[1] * (a.ndim - 1)), a, b), fresh, state)
    alone = streams(16, 64, "noise")
    noise = windows(features["noise"], 16)
    for number in range(4):
        state, encoded = step(16, 64)(golden.params, state, np.stack([noise[number], second[3 + number]]))
        assert difference(encoded[0], alone[number][1][0]) < SAME
        assert difference(encoded[1], streams(16, 64, "espeak_sentence")[3 + number][1][0]) < SAME


@pytest.mark.parametrize(("chunk", "left"), [(16, 64), (32, 128), (16, 128)])
def test_streams_equal_whole_utterances_up_to_the_last_full_chunk(
    golden: Golden,
    features: Arrays,
    whole: Callable[[int, int], Any],
    streams: Callable[..., list[Any]],
    chunk: int,
    left: int,
) -> None:
    """Then the whole form ends inside a chunk and the stream sees padded features; facts.json says where."""
    setting = f"c{chunk}_l{left}"
    encoded, lengths, _ = whole(chunk, left)
    compared = 0
    for row, clip in enumerate(CLIPS):
        if f"{setting}/{clip}/encoder_out" not in golden.arrays("streaming"):
            continue
        stream = np.concatenate([step[0] for _, step in streams(chunk, left, clip)])
        # Frames at 25 Hz of the chunks that are full and have three frames of look-ahead after them.
        full = max((len(features[clip]) - 7) // 2 - 3, 0) // chunk * (chunk // 2)
        if full:
            assert difference(encoded[row, :full], stream[:full]) < SAME, clip
        facts = {fact["setting"]: fact for fact in golden.json("facts")["stream_vs_whole"]}
        assert full == facts[f"{setting}/{clip}"]["first_frame_over_1e_4"]
        # From there on the two differ, in the original as here.
        assert difference(encoded[row, full : int(lengths[row])], stream[full : int(lengths[row])]) > 0.01
        compared += full
    assert compared >= 64
