"""Parity of icefall's Conformer with icefall, onnxruntime and sherpa-onnx: modules, whole utterances, texts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr
from golden_models import (
    CLIPS,
    END_TO_END,
    PER_MODULE,
    Golden,
    check_predictor_and_joiner,
    difference,
    emitted,
    icefall_greedy,
    quick_jit,
)
from jaxasr import store
from jaxasr.encoders.icefall_conformer import PUBLISHER_PADDING, ConvEmbed, Layer, double_swish
from jaxasr.layers.attention import SelfAttention
from jaxasr.layers.positions import relative_positions
from jaxasr.model import Model
from test_golden_zipformer import ONE_BUCKET, check_transcripts, logits_along, pad

Arrays = dict[str, np.ndarray]
Goldens = Callable[[str], Golden]

OFFLINE, STREAMING = "icefall-conformer-tiny", "icefall-conformer-streaming-tiny"
NAMES = (OFFLINE, STREAMING)
# The stored encoder outputs of the causal model are those under this chunk mask.
WHOLE: dict[str, dict[str, Any]] = {OFFLINE: {}, STREAMING: {"whole_chunks": False}}


# --- every named submodule, fed with what the original fed it ---------------------------------------------------------


def trace_front_end(embed: ConvEmbed, stored: Arrays) -> Iterator[tuple[str, jax.Array]]:
    """(name, our output in the original's layout) of each submodule of encoder_embed, fed with stored inputs."""
    name = "encoder.encoder_embed"

    def nhwc(inner: str) -> jax.Array:
        return jnp.asarray(stored[f"{name}.{inner}"]).transpose(0, 2, 3, 1)

    first = double_swish(embed.conv1(jnp.asarray(stored["input"])[..., None]))
    yield f"{name}.conv.5", double_swish(embed.conv2(first)).transpose(0, 3, 1, 2)
    yield f"{name}.conv.8", double_swish(embed.conv3(nhwc("conv.5"))).transpose(0, 3, 1, 2)
    flat = nhwc("conv.8")  # ours is flattened with channels last, the original with channels first
    yield f"{name}.out", embed.out(flat.reshape(*flat.shape[:2], -1))
    yield f"{name}.out_norm", embed.norm(stored[f"{name}.out"])
    yield name, embed(stored["input"])


def trace_layer(layer: Layer, name: str, x: np.ndarray, stored: Arrays) -> Iterator[tuple[str, jax.Array]]:
    """The same for one layer: x (1, T, D) is its stored input. The residual stream is made of stored outputs."""
    steps = x.shape[1]
    lengths, mask, positions = np.array([steps]), np.ones((1, 1, steps), bool), stored["pos_emb"][0]

    def out(inner: str) -> np.ndarray:
        return stored[f"{name}.{inner}"].swapaxes(0, 1)

    def result(inner: str, y: jax.Array) -> tuple[str, jax.Array]:
        return f"{name}.{inner}", y.swapaxes(0, 1)

    def feed_forward(inner: str, x: np.ndarray) -> Iterator[tuple[str, jax.Array]]:
        module = getattr(layer, inner)
        yield result(f"{inner}.0", module.in_proj(x))
        yield result(f"{inner}.2", double_swish(jnp.asarray(out(f"{inner}.0"))))
        yield result(f"{inner}.4", module.out_proj(out(f"{inner}.2")))

    yield from feed_forward("feed_forward_macaron", x)
    x = x + out("feed_forward_macaron.4")
    attention = layer.attention
    projected = [module(x) for module in (attention.query, attention.key, attention.value)]
    yield result("self_attn/in_proj", jnp.concatenate(projected, axis=-1))
    yield f"{name}.self_attn.linear_pos", attention.position(positions)[None]
    scores = attention_scores(attention, x, positions)
    yield f"{name}.self_attn/scores", scores
    yield f"{name}.self_attn/weights", jax.nn.softmax(scores, axis=-1)
    yield result("self_attn", attention(x, x, mask, positions))
    x = x + out("self_attn")
    conv = layer.conv
    yield f"{name}.conv_module.pointwise_conv1", conv.in_proj(x).swapaxes(1, 2)
    half, gate = np.split(stored[f"{name}.conv_module.pointwise_conv1"].swapaxes(1, 2), 2, axis=-1)
    gated = jnp.pad(half * jax.nn.sigmoid(gate), ((0, 0), conv.context, (0, 0)))
    yield f"{name}.conv_module.depthwise_conv", conv.depthwise(gated).swapaxes(1, 2)
    depthwise = stored[f"{name}.conv_module.depthwise_conv"].swapaxes(1, 2)
    yield f"{name}.conv_module.activation", double_swish(jnp.asarray(depthwise)).swapaxes(1, 2)
    activated = stored[f"{name}.conv_module.activation"].swapaxes(1, 2)
    yield f"{name}.conv_module.pointwise_conv2", conv.out_proj(activated).swapaxes(1, 2)
    yield result("conv_module", conv(x, lengths))
    x = x + out("conv_module")
    yield from feed_forward("feed_forward", x)
    x = x + out("feed_forward.4")
    yield result("norm_final", layer.norm(x))


def attention_scores(attention: SelfAttention, x: np.ndarray, positions: np.ndarray) -> jax.Array:
    """(heads, T, T), written out by the gather of the reference page: row T - 1 - i + j of the table."""
    _, steps, dim = x.shape
    heads, width = attention.heads, dim // attention.heads

    def split(y: jax.Array) -> jax.Array:
        return y.reshape(-1, heads, width).swapaxes(0, 1)

    content = split((attention.query(x) + attention.content_bias[...])[0])
    position = split((attention.query(x) + attention.position_bias[...])[0])
    encoded = split(attention.position(positions))
    rows = steps - 1 - np.arange(steps)[:, None] + np.arange(steps)[None, :]
    by_position = jnp.einsum("hid,hijd->hij", position, encoded[:, rows], precision="highest")
    by_content = jnp.einsum("hid,hjd->hij", content, split(attention.key(x)[0]), precision="highest")
    return (by_content + by_position) / math.sqrt(width)


@pytest.mark.parametrize("name", NAMES)
def test_every_named_submodule_on_its_stored_input(goldens: Goldens, name: str) -> None:
    golden = goldens(name)
    stored = golden.arrays("layer_trace")

    @quick_jit
    def trace(params: dict[str, Any]) -> dict[str, jax.Array]:
        encoder = golden.bind(params).encoder
        ours = dict(trace_front_end(encoder.embed, stored))
        before = "encoder.encoder_embed"
        for index, layer in enumerate(encoder.layers):
            x = stored[before] if index == 0 else stored[before].swapaxes(0, 1)
            before = f"encoder.encoder.layers.{index}"
            ours |= dict(trace_layer(layer, before, x, stored))
            lengths, mask = np.array([x.shape[1]]), np.ones((1, 1, x.shape[1]), bool)
            ours[before] = layer(x, stored["pos_emb"][0], mask, lengths).swapaxes(0, 1)
        ours["pos_emb"] = relative_positions(stored["input"].shape[1] // 4, 0, golden.config.encoder.encoder_dim)[None]
        return ours

    ours = trace(golden.params)
    # The relative shift is part of a product here; the scores are compared instead.
    assert stored.keys() - ours.keys() == {"input", *(key for key in stored if "/bd_" in key)}
    off = {module: difference(ours[module], stored[module]) for module in ours}
    assert {module: share for module, share in off.items() if share > PER_MODULE} == {}


# --- single utterances, and all of them as one batch ------------------------------------------------------------------


def end_to_end(model: Model, frames: jax.Array, lengths: jax.Array) -> dict[str, Any]:
    """What `assert_end_to_end` looks at, of a batch of features."""
    encoded, encoded_lengths = model.encoder(frames, lengths)
    found = icefall_greedy(model.transducer, encoded, encoded_lengths)
    projected = model.transducer.project(encoded)
    logits = jax.vmap(functools.partial(logits_along, model.transducer))(projected, found)
    return {
        "encoder_out": encoded,
        "encoder_proj": projected,
        "lens": encoded_lengths,
        "found": found,
        "logits": logits,
    }


def assert_end_to_end(golden: Golden, clip: str, ours: dict[str, Any], row: int) -> None:
    """The encoder's output and the greedy search against icefall's, and against the export of whole utterances."""
    stored, greedy = golden.arrays("encoder_single"), golden.arrays("greedy")
    steps = int(ours["lens"][row])
    assert steps == stored[f"{clip}/lens"]
    for stage in ("encoder_out", "encoder_proj"):
        assert difference(ours[stage][row, :steps], stored[f"{clip}/{stage}"]) < END_TO_END, (clip, stage)
    tokens, frames, log_probs = emitted(ours["found"], row)
    assert tokens == greedy[f"{clip}/tokens"].tolist(), clip
    assert frames == greedy[f"{clip}/frames"].tolist(), clip
    logits, along = greedy[f"{clip}/logits"], np.asarray(ours["logits"][row, :steps])
    assert difference(along, logits) < END_TO_END
    best, second = np.sort(along, axis=1)[:, :-3:-1].T
    error = np.abs(best - second - greedy[f"{clip}/margins"]).max()
    assert error < greedy[f"{clip}/margins"].min(), "the decisions agree by luck"
    np.testing.assert_allclose(log_probs, np.asarray(jax.nn.log_softmax(logits))[frames, tokens], atol=2e-3)
    if golden.name == OFFLINE:  # the streaming export has a test of its own
        exported = golden.arrays("onnxruntime")
        assert difference(ours["encoder_proj"][row, :steps], exported[f"{clip}/encoder_out"]) < END_TO_END
        assert (tokens, frames) == (exported[f"{clip}/tokens"].tolist(), exported[f"{clip}/frames"].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_a_single_utterance(goldens: Goldens, features: Arrays, name: str) -> None:
    """One clip, as long as it is, which ends in a frame that would see padding."""
    golden, clip = goldens(name), "digits_a"
    run = quick_jit(lambda params, frames, lengths: end_to_end(golden.bind(params, **WHOLE[name]), frames, lengths))
    frames = features[clip]
    assert len(frames) % 4 == 3
    assert_end_to_end(golden, clip, run(golden.params, frames[None], np.array([len(frames)], np.int32)), 0)


@pytest.mark.parametrize("name", NAMES)
def test_all_clips_as_one_batch(goldens: Goldens, features: Arrays, name: str) -> None:
    """A batch gives what the original gives its single utterances, and so does each layer on the stored inputs."""
    golden = goldens(name)
    stored = golden.arrays("encoder_single")
    # What lies beyond a clip's end must not matter.
    frames, lengths = pad([features[clip] for clip in CLIPS], PUBLISHER_PADDING)

    @quick_jit
    def run(params: dict[str, Any], frames: jax.Array) -> dict[str, Any]:
        return end_to_end(golden.bind(params, **WHOLE[name]), frames, lengths)

    ours = run(golden.params, frames)
    for row, clip in enumerate(CLIPS):
        assert_end_to_end(golden, clip, ours, row)
    assert len({len(stored[f"{clip}/encoder_out"]) for clip in CLIPS}) == len(CLIPS)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_under_the_publishers_padding(goldens: Goldens, features: Arrays, name: str) -> None:
    """What icefall computes where shorter utterances are padded with log(1e-10): some of the last frames see it."""
    golden = goldens(name)
    stored, single = golden.arrays("encoder_batch"), golden.arrays("encoder_single")
    clips = stored["clips"].tolist()
    frames, lengths = pad([features[clip] for clip in clips])
    np.testing.assert_array_equal(lengths, stored["x_lens"])
    variant = {**WHOLE[name], "padding": "publisher"}
    run = quick_jit(lambda params, frames: end_to_end(golden.bind(params, **variant), frames, lengths))
    ours = run(golden.params, frames)
    np.testing.assert_array_equal(ours["lens"], stored["lens"])
    differs = 0
    for row, clip in enumerate(clips):
        end = int(stored["lens"][row])
        for stage in ("encoder_out", "encoder_proj"):
            assert difference(ours[stage][row, :end], stored[stage][row, :end]) < END_TO_END, (clip, stage)
        tokens, _, _ = emitted(ours["found"], row)
        theirs = stored["tokens_padded"][row]
        assert tokens == theirs[theirs >= 0].tolist(), clip
        differs += difference(stored["encoder_out"][row, :end], single[f"{clip}/encoder_out"]) > 0.1
    assert differs == 2, "the publisher's padding changes nothing: the switch tests nothing"


@pytest.mark.parametrize("name", NAMES)
def test_predictor_and_joiner(goldens: Goldens, name: str) -> None:
    golden = goldens(name)
    assert golden.config.transducer.predictor.group_size == 1
    check_predictor_and_joiner(golden)


# --- from sound to text, as sherpa-onnx prints it ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_transcripts(shared: Path, goldens: Goldens, name: str) -> None:
    """The causal model is taken chunk by chunk, with the tail that sherpa-onnx's examples feed."""
    golden = goldens(name)
    recognizer = golden.recognizer(**ONE_BUCKET)
    files = [shared / f"golden/audio/{clip}.wav" for clip in CLIPS]
    runs = golden.json("sherpa_onnx")["runs"]
    check_transcripts(golden, list(recognizer.transcribe(files)), runs["greedy_search"])
    penalised = golden.recognizer(blank_penalty=1.5, **ONE_BUCKET)
    penalised.programs = recognizer.programs  # the penalty is an argument of the program
    check_transcripts(golden, list(penalised.transcribe(files)), runs["greedy_search blank_penalty=1.5"])
    assert runs["greedy_search blank_penalty=1.5"] != runs["greedy_search"]


def test_transcripts_of_beam_search(shared: Path, goldens: Goldens) -> None:
    golden = goldens(STREAMING)
    files = [shared / f"golden/audio/{clip}.wav" for clip in CLIPS]
    run = golden.json("sherpa_onnx")["runs"]["modified_beam_search max_active_paths=4"]
    check_transcripts(golden, list(golden.recognizer(beam=4, **ONE_BUCKET).transcribe(files)), run)


def test_transcripts_of_a_stream_without_tail(shared: Path, goldens: Goldens) -> None:
    """sherpa-onnx drops what does not fill a chunk and what it sees after that; no silence saves it."""
    golden = goldens(STREAMING)
    recognizer = jaxasr.load_model(golden.directory, pad_after=0.0, **ONE_BUCKET)
    files = [shared / f"golden/audio/{clip}.wav" for clip in CLIPS]
    run = golden.json("sherpa_onnx")["runs"]["greedy_search without tail padding"]
    check_transcripts(golden, list(recognizer.transcribe(files)), run)


def test_six_streams_decoded_as_one_batch(goldens: Goldens, waveforms: Arrays) -> None:
    """sherpa-onnx's own padded batch, the texts of which are not those of single utterances."""
    golden = goldens(OFFLINE)
    runs = golden.json("sherpa_onnx")["runs"]
    expected = runs["greedy_search, six streams decoded as one batch"]
    batch, lengths = pad([waveforms[clip][:, None] for clip in CLIPS])

    @quick_jit
    def run(params: dict[str, Any], waveforms: jax.Array, lengths: jax.Array) -> Any:
        model = golden.bind(params, padding="publisher")
        return model.search(*model.encode(waveforms, lengths))

    hypotheses = run(golden.params, batch[..., 0], lengths)
    for row, clip in enumerate(CLIPS):
        ids, _, _ = emitted(hypotheses, row)
        assert [golden.tokens[i].replace("▁", " ") for i in ids] == expected[clip]["tokens"], clip
    assert expected != runs["greedy_search"]


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_pt_and_onnx_give_the_same_model(goldens: Goldens, tmp_path: Path, name: str) -> None:
    golden = goldens(name)
    jaxasr.convert_checkpoint(golden.folder / "encoder-epoch-99-avg-1.onnx", tmp_path / "onnx")
    config, params, tokens = store.load(tmp_path / "onnx")
    assert tokens == golden.tokens
    assert (config.encoder, config.transducer) == (golden.config.encoder, golden.config.transducer)
    assert (config.text, config.audio) == (golden.config.text, golden.config.audio)
    ours, theirs = store.flatten(params), store.flatten(golden.params)
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        # The exporter multiplied by the exponentials of the scales, in float32, as we did.
        np.testing.assert_allclose(array, theirs[path], rtol=1e-6, atol=1e-6, err_msg=path)
