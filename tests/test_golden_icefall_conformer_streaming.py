"""Parity of icefall's causal Conformer: chunk masks over whole utterances, and chunk by chunk with explicit state."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from golden_models import CLIPS, END_TO_END, Golden, difference, emitted, icefall_greedy, quick_jit
from jaxasr.encoders.icefall_conformer import PUBLISHER_PADDING, chunk_mask
from test_golden_zipformer import pad

Arrays = dict[str, np.ndarray]
Setting = tuple[int, int, int]  # chunk, left and right context in encoded frames

NAME = "icefall-conformer-streaming-tiny"
SETTINGS: tuple[Setting, ...] = ((16, 64, 0), (8, 32, 2), (32, 64, 4))
# What one chunk gives alone and in other company differs by float32's rounding (measured: 8e-6).
SAME = 2e-5


@pytest.fixture(scope="module")
def golden(goldens: Callable[[str], Golden]) -> Golden:
    return goldens(NAME)


# --- whole utterances with a chunk mask -------------------------------------------------------------------------------


@pytest.mark.parametrize(("chunk", "left"), [(4, 8), (4, -1), (3, 0), (16, 16)])
def test_masks(golden: Golden, chunk: int, left: int) -> None:
    stored = golden.arrays("encoder_chunk_mask")
    chunks = -1 if left < 0 else left // chunk
    np.testing.assert_array_equal(chunk_mask(20, chunk, left), stored[f"mask/size20_chunk{chunk}_left{chunks}"])


@pytest.mark.parametrize(("chunk", "left"), [(16, 64), (16, 32), (8, 32), (32, 64), (-1, -1)])
def test_chunk_masks(golden: Golden, features: Arrays, chunk: int, left: int) -> None:
    """Every setting, on all clips at once: a batch gives what the original's simulated streaming gives its singles.

    The last has no mask: causal convolutions and attention over everything.
    """
    stored = golden.arrays("encoder_chunk_mask")
    setting = "full" if chunk < 0 else f"c{chunk}_l{left}"
    clips = tuple(clip for clip in CLIPS if f"{setting}/{clip}/encoder_out" in stored)
    assert len(clips) >= 3
    frames, lengths = pad([features[clip] for clip in clips])

    @quick_jit
    def run(params: dict[str, Any], frames: jax.Array) -> tuple[Any, Any, Any]:
        model = golden.bind(params, chunk_size=chunk, left_context=left, whole_chunks=False)
        encoded, encoded_lengths = model.encoder(frames, lengths)
        return encoded, encoded_lengths, icefall_greedy(model.transducer, encoded, encoded_lengths)

    encoded, encoded_lengths, hypotheses = run(golden.params, frames)
    for row, clip in enumerate(clips):
        theirs = stored[f"{setting}/{clip}/encoder_out"]
        assert int(encoded_lengths[row]) == len(theirs)
        assert difference(encoded[row, : len(theirs)], theirs) < END_TO_END, clip
        tokens, at, _ = emitted(hypotheses, row)
        assert tokens == stored[f"{setting}/{clip}/tokens"].tolist(), clip
        assert at == stored[f"{setting}/{clip}/frames"].tolist(), clip


def test_a_batch_with_a_mask_under_the_publishers_padding(golden: Golden, features: Arrays) -> None:
    stored = golden.arrays("encoder_chunk_mask")
    clips = golden.arrays("encoder_batch")["clips"].tolist()
    frames, lengths = pad([features[clip] for clip in clips])
    variant = {"chunk_size": 8, "left_context": 32, "whole_chunks": False, "padding": "publisher"}
    run = quick_jit(lambda params, frames: golden.bind(params, **variant).encoder(frames, lengths))
    encoded, encoded_lengths = run(golden.params, frames)
    np.testing.assert_array_equal(encoded_lengths, stored["c8_l32/batch/lens"])
    for row, end in enumerate(encoded_lengths):
        assert difference(encoded[row, :end], stored["c8_l32/batch/encoder_out"][row, :end]) < END_TO_END, clips[row]


# --- chunk by chunk ---------------------------------------------------------------------------------------------------


def windows(golden: Golden, frames: np.ndarray, setting: Setting) -> np.ndarray:
    """The windows of a stream: (chunks, frames_per_step, 80), shift_per_step apart, after a tail of padding."""
    chunk, left, right = setting
    encoder = dataclasses.replace(golden.config.encoder, chunk_size=chunk, left_context=left, right_context=right)
    size, shift = encoder.frames_per_step, encoder.shift_per_step
    assert (size, shift) == (4 * chunk + 4 * (right + 2) + 3, 4 * chunk)
    frames = np.pad(frames, ((0, 4 * (right + 2) + 3), (0, 0)), constant_values=PUBLISHER_PADDING)
    count = -(-len(frames) // shift)
    missing = max(0, (count - 1) * shift + size - len(frames))
    frames = np.pad(frames, ((0, missing), (0, 0)), constant_values=PUBLISHER_PADDING)
    return np.stack([frames[number * shift : number * shift + size] for number in range(count)])


@pytest.fixture(scope="module")
def streams(golden: Golden, features: Arrays) -> Callable[..., list[tuple[Any, np.ndarray]]]:
    """Runs clips side by side: (state, encoded (B, chunk, D)) after each step, until the last clip ends."""
    steps = {}

    @functools.cache
    def run(setting: Setting, processed: str, *clips: str) -> list[tuple[Any, np.ndarray]]:
        chunk, left, right = setting
        variant = {"chunk_size": chunk, "left_context": left, "right_context": right, "processed": processed}
        state = golden.bind(golden.params, **variant).encoder.initial_state(len(clips))
        each = [windows(golden, features[clip], setting) for clip in clips]
        key = (setting, processed)
        if key not in steps:
            steps[key] = quick_jit(lambda params, state, x: golden.bind(params, **variant).encoder.step(state, x))
        made = []
        for number in range(max(map(len, each))):
            x = np.stack([own[min(number, len(own) - 1)] for own in each])
            state, encoded = steps[key](golden.params, state, x)
            made.append((state, np.asarray(encoded)))
        return made

    return run


def greedy(golden: Golden, encoded: np.ndarray) -> tuple[tuple[list[int], list[int], np.ndarray], np.ndarray]:
    """((tokens, frames, log-probabilities), projected frames) of the frames of a stream, laid end to end (T, D)."""
    room = 192  # one program for all clips
    padded = np.pad(encoded, ((0, room - len(encoded)), (0, 0)))
    hypotheses, projected = search(golden)(golden.params, padded[None], jnp.array([len(encoded)]))
    return emitted(hypotheses), np.asarray(projected[0, : len(encoded)])


@functools.cache
def search(golden: Golden) -> Callable[..., tuple[Any, jax.Array]]:
    @quick_jit
    def run(params: dict[str, Any], encoded: jax.Array, lengths: jax.Array) -> tuple[Any, jax.Array]:
        head = golden.bind(params).transducer
        return icefall_greedy(head, encoded, lengths), head.project(encoded)

    return run


def assert_stream(golden: Golden, steps: list[Any], stored: Arrays, prefix: str) -> None:
    """Every step's frames, and the tokens of all of them together, against those stored under `prefix`."""
    theirs = stored[f"{prefix}/encoder_out"]
    assert len(steps) == len(theirs)
    encoded = np.concatenate([encoded[0] for _, encoded in steps])
    (tokens, frames, _), projected = greedy(golden, encoded)
    ours = projected if theirs.shape[-1] == projected.shape[-1] else encoded  # exports project, too
    assert difference(ours, theirs.reshape(-1, theirs.shape[-1])) < END_TO_END, prefix
    assert tokens == stored[f"{prefix}/tokens"].tolist(), prefix
    assert frames == stored[f"{prefix}/frames"].tolist(), prefix


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_step_and_every_state(
    golden: Golden, features: Arrays, streams: Callable[..., list[Any]], setting: Setting
) -> None:
    """icefall's own streaming, which counts encoded frames."""
    prefix = "c{}_l{}_r{}".format(*setting)
    stored, states = golden.arrays("streaming"), golden.arrays("streaming_states")
    clips = [clip for clip in CLIPS if f"{prefix}/{clip}/encoder_out" in stored]
    assert len(clips) >= 3
    np.testing.assert_array_equal(windows(golden, features["short"], setting), stored[f"{prefix}/short/windows"])
    for clip in clips:
        assert_stream(golden, streams(setting, "encoded", clip), stored, f"{prefix}/{clip}")
    compared = 0
    for number, (state, _) in enumerate(streams(setting, "encoded", "digits_a")):
        for ours, theirs in (("attention", "attn_cache"), ("convolution", "conv_cache")):
            key = f"{prefix}/digits_a/after{number}/{theirs}"
            if key in states:  # there the batch is the third axis
                assert difference(state[ours].transpose(1, 2, 0, 3), states[key]) < END_TO_END, key
                compared += 1
        assert state["processed"].tolist() == [(number + 1) * setting[0]]
    assert compared == 6


@pytest.mark.parametrize("processed", ["encoded", "features"])
def test_the_exported_onnx_model_step_by_step(
    golden: Golden, streams: Callable[..., list[Any]], processed: str
) -> None:
    """Under either count of the frames processed: what a caller gives the graph."""
    stored = golden.arrays("onnxruntime_streaming")
    prefix = "" if processed == "encoded" else "processed_lens_x4/"
    for clip in CLIPS:
        assert_stream(golden, streams(SETTINGS[0], processed, clip), stored, f"{prefix}{clip}")
    for number, (state, _) in enumerate(streams(SETTINGS[0], "encoded", "digits_a")):
        for ours, theirs in (("attention", "cached_attn"), ("convolution", "cached_conv")):
            key = f"digits_a/after{number}/{theirs}"
            if key in stored:
                assert difference(state[ours].transpose(1, 2, 0, 3), stored[key]) < END_TO_END, key


def test_sherpa_onnxs_count_of_processed_frames(golden: Golden, streams: Callable[..., list[Any]]) -> None:
    """The default: from the second chunk on the empty left cache is attended to."""
    assert golden.config.encoder.processed == "features"
    stored = golden.arrays("streaming")
    for clip in CLIPS:
        steps = streams(SETTINGS[0], "features", clip)
        assert_stream(golden, steps, stored, f"processed_lens_x4/{clip}")
        first, *others = (encoded for _, encoded in steps)
        icefall = streams(SETTINGS[0], "encoded", clip)
        assert difference(first, icefall[0][1]) < SAME
        assert all(difference(ours, icefall[n][1]) > 0.01 for n, ours in enumerate(others[:3], 1))


@pytest.mark.parametrize("setting", SETTINGS[:2])
def test_a_last_window_that_is_shorter(golden: Golden, features: Arrays, setting: Setting) -> None:
    """icefall's DecodeStream does not fill it up, and so its attention sees fewer padded frames."""
    chunk, left, right = setting
    prefix = f"decode_stream_c{chunk}_l{left}_r{right}"
    stored = golden.arrays("streaming")
    variant = {"chunk_size": chunk, "left_context": left, "right_context": right, "processed": "encoded"}
    encoder = golden.bind(golden.params, **variant).encoder
    step = quick_jit(lambda params, state, x: golden.bind(params, **variant).encoder.step(state, x))
    size, shift, tail = encoder.config.frames_per_step, encoder.config.shift_per_step, 4 * (right + 2)
    clips = [clip for clip in ("digits_a", "short") if f"{prefix}/{clip}/encoder_out" in stored]
    for clip in clips:
        frames = np.pad(features[clip], ((0, tail + 3), (0, 0)), constant_values=PUBLISHER_PADDING)
        state, pieces = encoder.initial_state(1), []
        for number, length in enumerate(stored[f"{prefix}/{clip}/chunk_lens"]):
            window = frames[number * shift : number * shift + size]
            missing = max(0, tail + 7 - len(window))
            window = np.pad(window, ((0, missing), (0, 0)), constant_values=PUBLISHER_PADDING)
            state, encoded = step(golden.params, state, window[None])
            assert encoded.shape[1] == length
            pieces.append(encoded[0])
        theirs = stored[f"{prefix}/{clip}/encoder_out"]
        assert difference(np.concatenate(pieces), theirs) < END_TO_END, clip
    assert clips


def test_two_streams_stepped_together(golden: Golden, features: Arrays, streams: Callable[..., list[Any]]) -> None:
    """One in its third chunk, the other in its first: a slot that is taken over starts anew."""
    together = golden.arrays("streaming")["batch2/encoder_out"]
    setting = SETTINGS[0]
    variant = {"chunk_size": 16, "left_context": 64, "processed": "encoded"}
    step = quick_jit(lambda params, state, x: golden.bind(params, **variant).encoder.step(state, x))
    fresh = golden.bind(golden.params, **variant).encoder.initial_state(2)
    first, second = (windows(golden, features[clip], setting) for clip in ("digits_a", "espeak_sentence"))
    state = fresh
    for number in range(2):
        state, _ = step(golden.params, state, np.stack([first[number], second[-1 - number]]))
    newcomer = np.array([False, True])
    state = jax.tree.map(lambda a, b: jnp.where(newcomer.reshape(-1, *[1] * (a.ndim - 1)), a, b), fresh, state)
    for number in range(2):
        state, encoded = step(golden.params, state, np.stack([first[2 + number], second[number]]))
        assert difference(encoded, together[number]) < END_TO_END
        assert difference(encoded[1], streams(setting, "encoded", "espeak_sentence")[number][1][0]) < SAME


def test_whole_chunks_are_the_steps(golden: Golden, features: Arrays, streams: Callable[..., list[Any]]) -> None:
    """An utterance in one call gives, row by row, the steps for which more frames are ready than they read."""
    clips = ("digits_a", "short", "near_silence")
    tail = 66  # frames of 0.66 s
    frames, lengths = pad([features[clip] for clip in clips], PUBLISHER_PADDING)
    frames = np.pad(frames, ((0, 0), (0, tail), (0, 0)), constant_values=PUBLISHER_PADDING)
    encoder = golden.config.encoder
    run = quick_jit(lambda params, frames: golden.bind(params, padding="publisher").encoder(frames, lengths + tail))
    encoded, decoded = run(golden.params, frames)
    assert encoded.shape[1] == encoder.encoded_length(frames.shape[1])
    for row, clip in enumerate(clips):
        chunks = -(-(int(lengths[row]) + tail - 75) // 64)
        assert int(decoded[row]) == 16 * chunks == int(encoder.decoded_length(int(lengths[row]) + tail))
        assert chunks == golden.json("sherpa_onnx")["runs"]["greedy_search"][clip]["chunks_decoded"]
        steps = np.concatenate([encoded[0] for _, encoded in streams(SETTINGS[0], "features", clip)[:chunks]])
        assert difference(encoded[row, : len(steps)], steps) < SAME, clip


def test_the_initial_state_is_empty(golden: Golden) -> None:
    encoder = golden.bind(golden.params).encoder
    state = encoder.initial_state(3)
    shapes = {name: leaf.shape for name, leaf in state.items()}
    assert shapes == {"attention": (3, 3, 64, 20), "convolution": (3, 3, 30, 20), "processed": (3,)}
    assert not any(leaf.any() for leaf in jax.tree.leaves(state))
    with pytest.raises(ValueError, match="limited left context has a step form"):
        golden.bind(golden.params, left_context=-1, whole_chunks=False).encoder.initial_state(1)
