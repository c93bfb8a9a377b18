"""Parity of whole utterances with icefall, onnxruntime and sherpa-onnx, on the reference models (zipformer-*)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import jaxasr
from golden_models import (
    CLIPS,
    END_TO_END,
    GOLDENS,
    OFFLINE,
    PER_MODULE,
    STREAMING,
    Golden,
    check_predictor_and_joiner,
    difference,
    emitted,
    icefall_greedy,
    quick_jit,
)
from jaxasr import store
from jaxasr.arrays import ceil_div
from jaxasr.encoders.zipformer import PUBLISHER_PADDING, match_channels
from jaxasr.encoders.zipformer_attention import attention_mask
from jaxasr.encoders.zipformer_config import subsampled_length
from jaxasr.encoders.zipformer_layer import Layer, swoosh_l, swoosh_r
from jaxasr.encoders.zipformer_positions import compact_relative_positions
from jaxasr.model import Model
from jaxasr.search import BeamConfig, GreedyConfig

Arrays = dict[str, np.ndarray]
Goldens = Callable[[str], Golden]

# sherpa-onnx computes the features itself, in another order of operations: they differ from ours by 1e-4, and random
# weights make up to 3e-3 of that in a log-probability. It prints six decimals.
SHERPA_LOG_PROBS = 5e-3


# --- every named submodule, fed with what the original fed it ---------------------------------------------------------


def batch_first(x: np.ndarray) -> np.ndarray:
    """(T, B, C) -> (B, T, C)."""
    return x.swapaxes(0, 1)


def trace_front_end(model: Any, stored: Arrays) -> Iterator[tuple[str, jax.Array]]:
    """(name, our output in the original's layout) of each submodule of encoder_embed, fed with stored inputs."""
    embed, frames = model.encoder.embed, stored["input"]
    name = "encoder_embed"

    def nhwc(inner: str) -> jax.Array:
        return jnp.asarray(stored[f"{name}.{inner}"]).transpose(0, 2, 3, 1)

    def nchw(x: jax.Array) -> jax.Array:
        return x.transpose(0, 3, 1, 2)

    if f"{name}.conv.0" in stored:
        yield f"{name}.conv.0", nchw(embed.conv1(jnp.asarray(frames)[..., None]))
        yield f"{name}.conv.4", nchw(embed.conv2(swoosh_r(nhwc("conv.0"))))
        yield f"{name}.conv.7", nchw(embed.conv3(swoosh_r(nhwc("conv.4"))))
        padded = jnp.pad(swoosh_r(nhwc("conv.7")), ((0, 0), (3, 3), (0, 0), (0, 0)))
        yield f"{name}.convnext", nchw(embed.convnext(padded))
        flat = nhwc("convnext")  # ours is flattened with channels last, the original with channels first
        yield f"{name}.out", embed.out(flat.reshape(*flat.shape[:2], -1))
        yield f"{name}.out_norm", embed.norm(stored[f"{name}.out"])
    yield name, embed(frames, np.array([frames.shape[1]]))[0]


def trace_layer(
    layer: Layer, prefix: str, x0: np.ndarray, positions: np.ndarray, stored: Arrays
) -> Iterator[tuple[str, jax.Array]]:
    """The same for one layer: x0 (1, T, C) is its stored input, positions the stored table."""
    steps = x0.shape[1]
    lengths = np.array([steps])
    mask = attention_mask(lengths, steps, layer.chunk, None)

    def out(name: str) -> np.ndarray:
        return batch_first(stored[f"{prefix}.{name}"])

    def result(name: str, x: jax.Array) -> tuple[str, jax.Array]:
        return f"{prefix}.{name}", x.swapaxes(0, 1)

    attention = layer.attention_weights
    yield result("self_attn_weights.in_proj", attention.in_proj(x0))
    yield f"{prefix}.self_attn_weights.linear_pos", attention.linear_pos(positions)[None]
    yield f"{prefix}.self_attn_weights", attention(x0, positions, mask).swapaxes(0, 1)
    weights = stored[f"{prefix}.self_attn_weights"].swapaxes(0, 1)  # (1, heads, T, T)

    def feed_forward(number: int, x: np.ndarray) -> Iterator[tuple[str, jax.Array]]:
        module, name = getattr(layer, f"feed_forward{number}"), f"feed_forward{number}"
        yield result(f"{name}.in_proj", module.in_proj(x))
        yield result(f"{name}.out_proj", module.out_proj(swoosh_l(out(f"{name}.in_proj"))))
        yield result(name, module(x))

    def self_attention(number: int, x: np.ndarray) -> Iterator[tuple[str, jax.Array]]:
        module, name = getattr(layer, f"attention{number}"), f"self_attn{number}"
        yield result(f"{name}.in_proj", module.in_proj(x))
        values = out(f"{name}.in_proj").reshape(1, steps, weights.shape[1], -1)
        mixed = np.einsum("bhts,bshv->bthv", weights, values, dtype=np.float32).reshape(1, steps, -1)
        yield result(f"{name}.out_proj", module.out_proj(mixed))
        yield result(name, module(x, weights))

    def convolution(number: int, x: np.ndarray) -> Iterator[tuple[str, jax.Array]]:
        module, name = getattr(layer, f"conv{number}"), f"conv_module{number}"
        yield result(f"{name}.in_proj", module.in_proj(x))
        half, gate = np.split(out(f"{name}.in_proj"), 2, axis=-1)
        yield result(f"{name}.sigmoid", jax.nn.sigmoid(gate))
        gated = half * out(f"{name}.sigmoid")
        inner = f"{prefix}.{name}.depthwise_conv"
        if f"{inner}.causal_conv" in stored:
            depthwise, half_width = module.depthwise, module.depthwise.half
            left = ((0, 0), (half_width, 0), (0, 0))
            both = ((0, 0), (half_width, half_width), (0, 0))  # the clip is shorter than a chunk: one chunk holds it
            yield f"{inner}.causal_conv", depthwise.causal(jnp.pad(gated, left)).swapaxes(1, 2)
            yield f"{inner}.chunkwise_conv", depthwise.chunkwise(jnp.pad(gated, both)).swapaxes(1, 2)
        yield inner, module.depthwise(gated, lengths, layer.chunk).swapaxes(1, 2)
        yield result(f"{name}.out_proj", module.out_proj(swoosh_r(stored[inner].swapaxes(1, 2))))
        yield result(name, module(x, lengths, lengths, layer.chunk))

    # The residual stream between the modules, as the stored outputs make it.
    yield from feed_forward(1, x0)
    x = x0 + out("feed_forward1")
    nonlin = layer.nonlin_attention
    yield result("nonlin_attention.in_proj", nonlin.in_proj(x))
    s, value, gate = np.split(out("nonlin_attention.in_proj"), 3, axis=-1)
    yield result("nonlin_attention.tanh", jnp.tanh(s))
    gated = value * out("nonlin_attention.tanh")
    mixed = np.einsum("bts,bsc->btc", weights[:, 0], gated, dtype=np.float32) * gate
    yield result("nonlin_attention.out_proj", nonlin.out_proj(mixed))
    yield result("nonlin_attention", nonlin(x, weights[:, 0]))
    x = x + out("nonlin_attention")
    yield from self_attention(1, x)
    x = x + out("self_attn1")
    yield from convolution(1, x)
    x = x + out("conv_module1")
    yield from feed_forward(2, x)
    x = x + out("feed_forward2")
    yield result("bypass_mid", layer.bypass_mid(x0, x))
    x = out("bypass_mid")
    yield from self_attention(2, x)
    x = x + out("self_attn2")
    yield from convolution(2, x)
    x = x + out("conv_module2")
    yield from feed_forward(3, x)
    x = x + out("feed_forward3")
    yield result("norm", layer.norm(x))
    yield result("bypass", layer.bypass(x0, out("norm")))
    yield f"{prefix}", layer(x0, positions, mask, lengths, lengths).swapaxes(0, 1)


def trace_stack(model: Any, index: int, stored: Arrays) -> Iterator[tuple[str, jax.Array]]:
    """The same for a stack: its change of rate, its layers, and the whole."""
    stack, prefix = model.encoder.stacks[index], f"encoder.encoders.{index}"
    before = stored["encoder_embed"] if index == 0 else batch_first(stored[f"encoder.encoders.{index - 1}"])
    steps = before.shape[1]
    inside = prefix if stack.factor == 1 else f"{prefix}.encoder"
    x = match_channels(before, stack.dim)
    if stack.factor > 1:
        yield f"{prefix}.downsample", stack.downsample(x).swapaxes(0, 1)
        x = batch_first(stored[f"{prefix}.downsample"])
    positions = stored[f"{inside}.encoder_pos"]
    yield f"{inside}.encoder_pos", compact_relative_positions(x.shape[1], 0, stack.config.pos_dim)[None]
    for number, layer in enumerate(stack.layers):
        name = f"{inside}.layers.{number}"
        yield from trace_layer(layer, name, np.asarray(x), positions[0], stored)
        x = batch_first(stored[name])
    if stack.factor > 1:
        y = batch_first(stored[f"{inside}"])
        yield inside, jnp.asarray(x).swapaxes(0, 1)  # a stack without its change of rate ends with its last layer
        yield f"{prefix}.upsample", jnp.repeat(y, stack.factor, axis=1)[:, :steps].swapaxes(0, 1)
        upsampled = batch_first(stored[f"{prefix}.upsample"])
        original = match_channels(before, stack.dim)
        yield f"{prefix}.out_combiner", stack.combiner(original, upsampled).swapaxes(0, 1)
    yield prefix, stack(before, np.array([steps])).swapaxes(0, 1)


@pytest.mark.parametrize("name", ["zipformer-tiny", STREAMING])
def test_every_named_submodule_on_its_stored_input(goldens: Goldens, name: str) -> None:
    golden = goldens(name)
    stored = golden.arrays("layer_trace")

    @quick_jit
    def trace(params: dict[str, Any]) -> dict[str, jax.Array]:
        model = golden.bind(params)
        ours = dict(trace_front_end(model, stored))
        for index in (0, 1):
            ours |= dict(trace_stack(model, index, stored))
        return ours

    ours = trace(golden.params)
    assert ours.keys() == stored.keys() - {"input"}
    off = {module: difference(ours[module], stored[module]) for module in ours}
    assert {module: share for module, share in off.items() if share > PER_MODULE} == {}


# --- single utterances, without padding -------------------------------------------------------------------------------


def pad(rows: list[np.ndarray], value: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows (T, D) as one array (B, longest T, D), and their lengths (B,)."""
    lengths = np.array([len(row) for row in rows], np.int32)
    padded = np.full((len(rows), lengths.max(), rows[0].shape[1]), value, np.float32)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded, lengths


def logits_along(head: Any, projected: jax.Array, hypothesis: Any) -> jax.Array:
    """The joiner's logits at each frame of one row, given what the search had emitted before it: (T, vocabulary)."""
    steps = projected.shape[0]
    count, frames, tokens = hypothesis.length[0], hypothesis.frames[0], hypothesis.tokens[0]
    before = ((frames[None, :] < jnp.arange(steps)[:, None]) & (jnp.arange(frames.size) < count)).sum(axis=1)  # (T,)
    padded = jnp.concatenate([jnp.array([-1, head.blank_id]), tokens])
    state = head.advance(head.initial_state(steps), padded[before])
    return head.join(projected, head.advance(state, padded[before + 1]))


def assert_end_to_end(golden: Golden, clip: str, ours: dict[str, Any], row: int) -> None:
    """The encoder's output and the results of both greedy searches against icefall's, and against the ONNX export's."""
    stored, greedy = golden.arrays("encoder_single"), golden.arrays("greedy")
    steps = int(ours["lens"][row])
    assert steps == stored[f"{clip}/lens"]
    for stage in ("encoder_out", "encoder_proj"):
        assert difference(ours[stage][row, :steps], stored[f"{clip}/{stage}"]) < END_TO_END, stage

    tokens, frames, log_probs = emitted(ours["icefall"], row)
    assert tokens == greedy[f"{clip}/tokens"].tolist()
    assert frames == greedy[f"{clip}/frames"].tolist()
    logits, along = greedy[f"{clip}/logits"], np.asarray(ours["logits"][row, :steps])
    assert difference(along, logits) < END_TO_END
    best, second = np.sort(along, axis=1)[:, :-3:-1].T
    error = np.abs(best - second - greedy[f"{clip}/margins"]).max()
    assert error < END_TO_END * np.abs(logits).max()
    assert error < greedy[f"{clip}/margins"].min(), "the decisions agree by luck"
    np.testing.assert_allclose(log_probs, scipy.special.log_softmax(logits, axis=-1)[frames, tokens], atol=2e-3)

    if "ctc" in ours:
        ctc = golden.arrays("ctc")
        assert difference(ours["log_probs"][row, :steps], ctc[f"{clip}/log_probs"]) < END_TO_END
        tokens, frames, log_probs = emitted(ours["ctc"], row)
        assert tokens == ctc[f"{clip}/tokens"].tolist()
        assert frames == ctc[f"{clip}/frames"].tolist()
        np.testing.assert_allclose(log_probs, ctc[f"{clip}/log_probs"][frames, tokens], atol=2e-3)

    if golden.name != STREAMING:  # the streaming export has a test of its own
        exported = golden.arrays("onnxruntime")
        key, search = ("log_probs", "ctc") if "ctc" in ours else ("encoder_proj", "icefall")
        theirs = exported[f"{clip}/{'log_probs' if key == 'log_probs' else 'encoder_out'}"]
        assert difference(ours[key][row, :steps], theirs) < END_TO_END
        assert emitted(ours[search], row)[:2] == (
            exported[f"{clip}/tokens"].tolist(),
            exported[f"{clip}/frames"].tolist(),
        )


def end_to_end(model: Model, frames: jax.Array, lengths: jax.Array) -> dict[str, Any]:
    """What `assert_end_to_end` looks at, of a batch of features."""
    encoded, encoded_lengths = model.encoder(frames, lengths)
    icefall = icefall_greedy(model.transducer, encoded, encoded_lengths)
    projected = model.transducer.project(encoded)
    ours: dict[str, Any] = {
        "encoder_out": encoded,
        "encoder_proj": projected,
        "lens": encoded_lengths,
        "icefall": icefall,
        "logits": jax.vmap(functools.partial(logits_along, model.transducer))(projected, icefall),
    }
    if model.ctc is not None:
        ours["log_probs"] = model.ctc(encoded)
        ours["ctc"] = model.search(encoded, encoded_lengths, GreedyConfig(head="ctc"))
    return ours


@pytest.mark.parametrize("clip", ["digits_a", "short"])
@pytest.mark.parametrize("name", GOLDENS)
def test_single_utterances(goldens: Goldens, features: Arrays, name: str, clip: str) -> None:
    """One clip, as long as it is."""
    golden = goldens(name)
    run = quick_jit(
        lambda params, frames, lengths: end_to_end(golden.bind(params, whole_chunks=False), frames, lengths)
    )
    frames = features[clip]
    assert_end_to_end(golden, clip, run(golden.params, frames[None], np.array([len(frames)], np.int32)), 0)


@contextlib.contextmanager
def watched(model: Model, inputs: dict[str, Any], fed: jax.Array) -> Iterator[dict[str, jax.Array]]:
    """What the front end and every stack give meanwhile, by stage, and the front end's lengths.

    Where `fed` () is true, a stack is given its stored input, by the stage that it comes from, instead of ours: one
    program then serves for the whole and, run once more, for each stack by itself.
    """
    embed, stacks = model.encoder.embed, list(model.encoder.stacks)
    call_embed, call_stack = type(embed).__call__, type(stacks[0]).__call__
    seen: dict[str, jax.Array] = {}

    def watched_embed(module: Any, *arguments: Any, **options: Any) -> Any:
        seen["embed"], seen["embed_lens"] = call_embed(module, *arguments, **options)
        return seen["embed"], seen["embed_lens"]

    def watched_stack(module: Any, x: jax.Array, lengths: jax.Array, dropout: None = None) -> jax.Array:
        number = next(index for index, stack in enumerate(stacks) if stack is module)
        x = jnp.where(fed, inputs[f"stack{number - 1}" if number else "embed"], x)
        seen[f"stack{number}"] = call_stack(module, x, lengths, dropout)
        return seen[f"stack{number}"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(embed), "__call__", watched_embed)
        patch.setattr(type(stacks[0]), "__call__", watched_stack)
        yield seen


@pytest.mark.parametrize("name", GOLDENS)
def test_all_clips_as_one_batch(goldens: Goldens, features: Arrays, name: str) -> None:
    """A batch gives what the original gives its single utterances, and so does each stack on the stored inputs."""
    golden = goldens(name)
    stored = golden.arrays("encoder_single")
    frames, lengths = pad([features[clip] for clip in CLIPS])
    stages = ["embed", *(f"stack{i}" for i in range(len(golden.config.encoder.num_layers)))]
    traced = [clip for clip in CLIPS if f"{clip}/embed" in stored]
    assert len(traced) == (6 if name == "zipformer-tiny" else 3)
    steps = subsampled_length(frames.shape[1])
    inputs = {}
    for stage in stages[:-1]:
        inputs[stage] = np.zeros((len(CLIPS), steps, stored[f"{traced[0]}/{stage}"].shape[1]), np.float32)
        for clip in traced:
            theirs = stored[f"{clip}/{stage}"]
            inputs[stage][CLIPS.index(clip), : len(theirs)] = theirs

    @quick_jit
    def run(params: dict[str, Any], frames: jax.Array, inputs: dict[str, jax.Array], fed: jax.Array) -> dict[str, Any]:
        model = golden.bind(params, whole_chunks=False)
        with watched(model, inputs, fed) as seen:
            return end_to_end(model, frames, lengths) | seen

    by_stage, whole = (run(golden.params, frames, inputs, np.array(fed)) for fed in (True, False))
    for clip in traced:
        for stage in stages:
            theirs = stored[f"{clip}/{stage}"]
            assert difference(by_stage[stage][CLIPS.index(clip), : len(theirs)], theirs) < PER_MODULE, (clip, stage)
    for row, clip in enumerate(CLIPS):
        assert_end_to_end(golden, clip, whole, row)


@pytest.mark.parametrize("name", GOLDENS)
def test_predictor_and_joiner(goldens: Goldens, name: str) -> None:
    check_predictor_and_joiner(goldens(name))


# --- padded batches as the publisher computes them --------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDENS)
def test_a_batch_under_the_publishers_padding(goldens: Goldens, features: Arrays, name: str) -> None:
    """What icefall computes where shorter utterances are padded with log(1e-10): its convolutions see the padding."""
    golden = goldens(name)
    stored = golden.arrays("encoder_batch")
    clips = stored["clips"].tolist()
    frames, lengths = pad([features[clip] for clip in clips], PUBLISHER_PADDING)
    np.testing.assert_array_equal(lengths, stored["x_lens"])
    stages = ["embed", *(f"stack{i}" for i in range(len(golden.config.encoder.num_layers)))]

    inputs = {stage: stored[stage] for stage in stages[:-1]}

    @quick_jit
    def run(params: dict[str, Any], frames: jax.Array, inputs: Arrays, fed: jax.Array) -> dict[str, jax.Array]:
        model = golden.bind(params, padding="publisher", whole_chunks=False)
        with watched(model, inputs, fed) as ours:
            ours["encoder_out"], ours["lens"] = model.encoder(frames, lengths)
        ours["encoder_proj"] = model.transducer.project(ours["encoder_out"])
        if model.ctc is not None:
            ours["log_probs"] = model.ctc(ours["encoder_out"])
        return ours

    by_stage, ours = (run(golden.params, frames, inputs, np.array(fed)) for fed in (True, False))
    for count in ("embed_lens", "lens"):
        np.testing.assert_array_equal(ours[count], stored[count])
    for row in range(len(clips)):
        for stage in (*stages, "encoder_out", "encoder_proj"):
            end = stored["embed_lens" if stage in stages else "lens"][row]
            limit = PER_MODULE if stage in stages else END_TO_END
            made = (by_stage if stage in stages else ours)[stage]
            assert difference(made[row, :end], stored[stage][row, :end]) < limit, (clips[row], stage)
        if "log_probs" in ours:
            end = stored["lens"][row]
            theirs = golden.arrays("ctc")["batch/log_probs"][row, :end]
            assert difference(ours["log_probs"][row, :end], theirs) < END_TO_END
    # It is a switch because it differs: a shorter utterance is not what it is alone.
    single = golden.arrays("encoder_single")
    row = clips.index("short")
    alone = single["short/encoder_out"]
    assert difference(ours["encoder_out"][row, : len(alone)], alone) > 0.1


# --- from sound to text, as sherpa-onnx prints it ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def transcribers(goldens: Goldens) -> Callable[[str], Any]:
    """A recognizer a model; the CTC golden decodes with its CTC head, the only one that sherpa-onnx was given."""

    @functools.cache
    def make(name: str) -> Any:
        return goldens(name).recognizer(head="ctc" if "ctc" in name else None, **ONE_BUCKET)

    return make


# All clips share a program, which saves compilations; what buckets do is the subject of test_promises.py.
ONE_BUCKET = {"batch_seconds": 8.0, "shortest_seconds": 8.0}


def check_transcripts(golden: Golden, transcripts: list[Any], run: dict[str, Any]) -> None:
    for clip, transcript in zip(CLIPS, transcripts, strict=True):
        theirs = run[clip]
        assert transcript.text == theirs["text"], clip
        assert transcript.tokens == theirs["tokens"], clip
        np.testing.assert_allclose(transcript.timestamps, theirs["timestamps"], atol=1e-3, err_msg=clip)
        if "ys_log_probs" in theirs:
            np.testing.assert_allclose(
                transcript.log_probs, theirs["ys_log_probs"], atol=SHERPA_LOG_PROBS, err_msg=clip
            )


@pytest.mark.parametrize("name", GOLDENS)
def test_transcripts(shared: Path, goldens: Goldens, transcribers: Callable[[str], Any], name: str) -> None:
    golden, recognizer = goldens(name), transcribers(name)
    files = [shared / f"golden/audio/{clip}.wav" for clip in CLIPS]
    runs = golden.json("sherpa_onnx")["runs"]
    check_transcripts(golden, list(recognizer.transcribe(files)), runs["greedy_search"])

    penalised = "greedy_search blank_penalty=1.5"
    assert (penalised in runs) == ("ctc" not in name)
    if penalised in runs:
        other = golden.recognizer(blank_penalty=1.5, **ONE_BUCKET)
        other.programs = recognizer.programs  # the penalty is an argument of the program
        check_transcripts(golden, list(other.transcribe(files)), runs[penalised])
        assert runs[penalised] != runs["greedy_search"]


@pytest.mark.parametrize("name", [name for name in GOLDENS if "ctc" not in name])
def test_transcripts_of_beam_search(shared: Path, goldens: Goldens, name: str) -> None:
    golden = goldens(name)
    files = [shared / f"golden/audio/{clip}.wav" for clip in CLIPS]
    runs = golden.json("sherpa_onnx")["runs"]
    compared = 0
    programs: dict[int, Any] = {}
    for beam, penalty in ((4, 0.0), (4, 1.5), (2, 0.0)):
        run = f"modified_beam_search max_active_paths={beam}" + (f" blank_penalty={penalty}" if penalty else "")
        if run in runs:
            recognizer = golden.recognizer(beam=beam, blank_penalty=penalty, **ONE_BUCKET)
            # The penalty is an argument of the program.
            recognizer.programs = programs.setdefault(beam, recognizer.programs)
            check_transcripts(golden, list(recognizer.transcribe(files)), runs[run])
            assert runs[run] != runs["greedy_search"]
            compared += 1
    assert compared == (1 if name == STREAMING else 3)


def test_transcripts_of_a_stream_without_tail(shared: Path, goldens: Goldens) -> None:
    """sherpa-onnx drops what does not fill a chunk and its look-ahead; no silence after the clip saves it."""
    golden = goldens(STREAMING)
    recognizer = jaxasr.load_model(golden.directory, pad_after=0.0, **ONE_BUCKET)
    files = [shared / f"golden/audio/{clip}.wav" for clip in CLIPS]
    run = golden.json("sherpa_onnx")["runs"]["greedy_search without tail padding"]
    check_transcripts(golden, list(recognizer.transcribe(files)), run)


@pytest.fixture(scope="module")
def six_streams(goldens: Goldens, waveforms: Arrays) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    """A model's (encoded, lengths) of all clips in one batch with the publisher's padding."""
    batch, lengths = pad([waveforms[clip][:, None] for clip in CLIPS])

    @functools.cache
    def encode(name: str) -> tuple[np.ndarray, np.ndarray]:
        golden = goldens(name)
        run = quick_jit(lambda params, *given: golden.bind(params, padding="publisher").encode(*given))
        return run(golden.params, batch[..., 0], lengths)

    return encode


@pytest.mark.parametrize(
    ("name", "beam"), [*((name, 1) for name in OFFLINE), *((name, 4) for name in OFFLINE if "ctc" not in name)]
)
def test_six_streams_decoded_as_one_batch(
    goldens: Goldens, six_streams: Callable[[str], tuple[np.ndarray, np.ndarray]], name: str, beam: int
) -> None:
    """sherpa-onnx's own padded batch, the texts of which are not those of single streams."""
    golden = goldens(name)
    runs = golden.json("sherpa_onnx")["runs"]
    search = f"modified_beam_search max_active_paths={beam}" if beam > 1 else "greedy_search"
    expected = runs[f"{search}, six streams decoded as one batch"]
    role = "ctc" if "ctc" in name else "transducer"
    chosen = BeamConfig(beam=beam) if beam > 1 else GreedyConfig(head=role)
    run = quick_jit(lambda params, encoded, lengths: golden.bind(params).search(encoded, lengths, chosen))
    hypotheses = run(golden.params, *six_streams(name))
    recognizer = golden.recognizer(head=role)
    differing = 0
    for row, clip in enumerate(CLIPS):
        ids, frames, log_probs = emitted(hypotheses, row)
        theirs = expected[clip]
        assert [golden.tokens[i].replace("▁", " ") for i in ids] == theirs["tokens"], clip
        np.testing.assert_allclose(
            np.array(frames) * recognizer.config.seconds_per_frame, theirs["timestamps"], atol=1e-3
        )
        if "ys_log_probs" in theirs:
            np.testing.assert_allclose(log_probs, theirs["ys_log_probs"], atol=SHERPA_LOG_PROBS)
        differing += theirs["tokens"] != runs[search][clip]["tokens"]
    assert differing


def test_icefall_emits_unknown_words_and_sherpa_onnx_skips_them(goldens: Goldens) -> None:
    """The head's `silent_ids`; the Japanese model's arrays hold both ways."""
    golden = goldens("zipformer-ja-tiny")
    (unknown,) = golden.config.transducer.silent_ids
    assert golden.tokens[unknown] == "<unk>"
    greedy, single = golden.arrays("greedy"), golden.arrays("encoder_single")
    clips = [clip for clip in CLIPS if unknown in greedy[f"{clip}/tokens"]]
    assert clips
    encoded, lengths = pad([single[f"{clip}/encoder_out"] for clip in clips])

    @quick_jit
    def run(params: dict[str, Any]) -> tuple[Any, Any]:
        model = golden.bind(params)
        default = model.search(encoded, lengths, GreedyConfig(head="transducer"))
        return default, icefall_greedy(model.transducer, encoded, lengths)

    sherpa, icefall = run(golden.params)
    for row, clip in enumerate(clips):
        assert emitted(icefall, row)[0] == greedy[f"{clip}/tokens"].tolist()
        ids = emitted(sherpa, row)[0]
        assert unknown not in ids
        theirs = golden.json("sherpa_onnx")["runs"]["greedy_search"][clip]["tokens"]
        assert [golden.tokens[i].replace("▁", " ") for i in ids] == theirs


# --- checkpoints ------------------------------------------------------------------------------------------------------


def assert_same_parameters(ours: dict[str, Any], theirs: dict[str, Any], atol: float = 0.0) -> None:
    ours, theirs = store.flatten(ours), store.flatten(theirs)
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        # The exporter stores softmax(bias) of a downsampling: its logarithm is right to the last places of float32.
        limit = 1e-6 if "downsample" in path else atol
        np.testing.assert_allclose(array, theirs[path], rtol=0, atol=limit, err_msg=path)


@pytest.mark.parametrize("name", GOLDENS)
def test_pt_and_onnx_give_the_same_model(goldens: Goldens, tmp_path: Path, name: str) -> None:
    golden = goldens(name)
    encoder = next(
        file
        for pattern in ("encoder-*.onnx", "model.onnx")
        for file in golden.folder.glob(pattern)
        if "int8" not in file.name
    )
    jaxasr.convert_checkpoint(encoder, tmp_path / "onnx")
    config, params, tokens = store.load(tmp_path / "onnx")
    assert tokens == golden.tokens
    assert config.encoder == golden.config.encoder
    if config.transducer is None:  # a CTC export holds the CTC head only
        theirs = {part: tree for part, tree in golden.params.items() if part != "transducer"}
        assert config.ctc == golden.config.ctc
    else:
        theirs = golden.params
        assert (config.transducer, config.ctc) == (golden.config.transducer, golden.config.ctc)
    assert config.audio == golden.config.audio
    assert_same_parameters(params, theirs)


def test_averaging_two_training_checkpoints_gives_the_exported_one(goldens: Goldens, tmp_path: Path) -> None:
    golden = goldens("zipformer-tiny")
    out = tmp_path / "averaged"
    jaxasr.convert_checkpoint(
        golden.folder / "epoch-2.pt",
        out,
        average=[golden.folder / "epoch-1.pt"],
        config=golden.folder / "config.yaml",
    )
    config, params, _ = store.load(out)
    assert (config.encoder, config.transducer, config.text) == (
        golden.config.encoder,
        golden.config.transducer,
        golden.config.text,
    )
    for path, array in store.flatten(params).items():
        np.testing.assert_array_equal(array, store.flatten(golden.params)[path], err_msg=path)


def test_a_training_checkpoint_carries_its_recipe(goldens: Goldens, tmp_path: Path) -> None:
    """Without --config: what train.py was called with stands inside an epoch-N.pt."""
    golden = goldens("zipformer-tiny")
    jaxasr.convert_checkpoint(golden.folder / "epoch-2.pt", tmp_path / "model")
    config = store.load_config(tmp_path / "model")
    assert (config.encoder, config.transducer, config.text) == (
        golden.config.encoder,
        golden.config.transducer,
        golden.config.text,
    )


def test_ceil_div_is_the_length_of_the_last_downsampling(goldens: Goldens) -> None:
    """icefall.md: ((T - 7) // 2 + 1) // 2 frames at 25 Hz."""
    stored = goldens("zipformer-tiny").arrays("encoder_batch")
    np.testing.assert_array_equal(ceil_div((stored["x_lens"] - 7) // 2, 2), stored["lens"])
