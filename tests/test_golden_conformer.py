"""Parity of the Conformer encoders with NeMo, from stored features to encoded frames (conformer-*, fastconformer-*)."""

from __future__ import annotations

import dataclasses
import functools
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx

from golden_models import END_TO_END, PER_MODULE, difference, quick_jit, read_arrays
from jaxasr.convert.formats.torch.pickles import read_torch
from jaxasr.convert.mapping import map_tensors
from jaxasr.convert.nemo import conformer as nemo
from jaxasr.encoders.conformer import Conformer
from jaxasr.encoders.conformer_config import ConformerConfig
from jaxasr.layers.positions import relative_positions
from jaxasr.store import unflatten

STREAMING = "fastconformer-streaming-tiny"
MODELS = ("conformer-ctc-tiny", "conformer-transducer-tiny", "fastconformer-tdt-tiny", STREAMING)
# The order of the rows of the stored batches.
CLIPS = ("digits_a", "espeak_sentence", "noise", "near_silence", "short")
TRACED = ("espeak_sentence", "short")

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class GoldenEncoder:
    """An encoder of NeMo's as our own, and what NeMo computed with it."""

    config: ConformerConfig
    params: dict[str, Any]
    arrays: Arrays
    texts: dict[str, Any]

    def bind(self, params: dict[str, Any], **changes: Any) -> Conformer:
        """The module over (traced) parameters; `changes` replace fields of its configuration."""
        config = dataclasses.replace(self.config, **changes)
        graph, state = nnx.split(nnx.eval_shape(lambda: Conformer(config, rngs=nnx.Rngs(0))))
        nnx.replace_by_pure_dict(state, nnx.restore_int_paths(params))
        return nnx.merge(graph, state)

    def features(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Stored features as our encoder takes them: frames (B, T, bins), lengths (B,)."""
        return self.arrays[f"{name}/mel"].swapaxes(1, 2), self.arrays[f"{name}/mel_len"].astype(np.int32)


@pytest.fixture(scope="session")
def encoders(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], GoldenEncoder]:
    """The encoder of the reference model of a name."""

    @functools.cache
    def load(name: str) -> GoldenEncoder:
        folder, weights = shared / "golden" / name, tmp_path_factory.mktemp(name) / "model_weights.ckpt"
        settings = yaml.safe_load((folder / "model_config.yaml").read_text(encoding="utf-8"))
        with tarfile.open(folder / "model.nemo") as archive:
            member = archive.extractfile("./model_weights.ckpt")
            assert member is not None
            weights.write_bytes(member.read())
        state = read_torch(weights)
        assert isinstance(state, dict)
        config = nemo.encoder_config(settings["encoder"], settings["preprocessor"]["features"])
        tensors = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
        mapped = map_tensors(tensors, nemo.rules(config), nemo.IGNORED)
        texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
        return GoldenEncoder(config, unflatten(mapped)["encoder"], read_arrays(folder / "golden.npz"), texts)

    return load


# --- every named module, fed with what the original fed it ------------------------------------------------------------


def trace(encoder: Conformer, clip: str, stored: Arrays) -> Iterator[tuple[str, jax.Array]]:
    """(name, our output) of each module whose output is stored for a clip, all frames of which exist."""
    frames, lengths = stored[f"{clip}/mel"].swapaxes(1, 2), stored[f"{clip}/mel_len"].astype(np.int32)
    steps = stored[f"{clip}/pre_encode"].shape[1]
    yield "pre_encode", encoder.subsample(frames, lengths)
    x = stored[f"{clip}/pre_encode"]
    scale = np.float32(encoder.config.dim**0.5 if encoder.config.scale_inputs else 1)
    yield "after_pos_enc", jnp.asarray(x * scale)
    x = stored[f"{clip}/after_pos_enc"]
    positions = relative_positions(steps, 0, encoder.config.dim)
    valid = encoder.config.encoded_length(jnp.asarray(lengths))
    mask = encoder.mask(valid, steps)
    for number, layer in enumerate(encoder.layers):
        if number == 0:
            yield "layer0_ff1", layer.feed_forward1(layer.norm_feed_forward1(x))
            y = x + 0.5 * stored[f"{clip}/layer0_ff1"]
            normal = layer.norm_attention(y)
            yield "layer0_attn", layer.attention(normal, normal, mask, positions)
            y = y + stored[f"{clip}/layer0_attn"]
            yield "layer0_conv", layer.conv(layer.norm_conv(y), valid)
            y = y + stored[f"{clip}/layer0_conv"]
            yield "layer0_ff2", layer.feed_forward2(layer.norm_feed_forward2(y))
        yield f"layer{number}", layer(x, mask, positions, valid)
        x = stored[f"{clip}/layer{number}"]
    yield "enc", jnp.asarray(x).swapaxes(1, 2)


@pytest.mark.parametrize("clip", TRACED)
@pytest.mark.parametrize("name", MODELS)
def test_every_named_module_on_its_stored_input(encoders: Callable[[str], GoldenEncoder], name: str, clip: str) -> None:
    golden = encoders(name)
    ours = quick_jit(lambda params: dict(trace(golden.bind(params), clip, golden.arrays)))(golden.params)
    theirs = {key.partition("/")[2]: value for key, value in golden.arrays.items() if key.startswith(f"{clip}/")}
    assert ours.keys() == {key for key in theirs if key.startswith(("pre_", "after", "layer"))} | {"enc"}
    length = int(golden.arrays[f"{clip}/enc_len"][0])
    off = {}
    for module, output in ours.items():
        frames = slice(length)
        index = (slice(None), slice(None), frames) if module == "enc" else (slice(None), frames)
        assert output.shape == theirs[module].shape, module
        off[module] = difference(output[index], theirs[module][index])
    assert {module: share for module, share in off.items() if share > PER_MODULE} == {}


# --- the whole encoder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_gives_what_nemo_gives_its_single_utterances(
    encoders: Callable[[str], GoldenEncoder], name: str
) -> None:
    golden = encoders(name)
    frames, lengths = golden.features("batch")
    encoded, valid = quick_jit(lambda params, *inputs: golden.bind(params)(*inputs))(golden.params, frames, lengths)
    for row, clip in enumerate(CLIPS):
        length = int(golden.arrays[f"{clip}/enc_len"][0])
        assert valid[row] == length
        for stored in (golden.arrays[f"{clip}/enc"][0], golden.arrays["batch/enc"][row]):
            assert difference(encoded[row, :length], stored[:, :length].T) < END_TO_END, clip


# --- streams ----------------------------------------------------------------------------------------------------------

# Frames before and after, and the clips whose chunks are stored.
STREAMS = {(20, 3): ("espeak_sentence", "digits_a", "short"), (20, 0): ("espeak_sentence", "short")}


@pytest.mark.parametrize("context", STREAMS)
def test_whole_utterances_under_a_limited_mask(
    encoders: Callable[[str], GoldenEncoder], context: tuple[int, int]
) -> None:
    golden = encoders(STREAMING)
    frames, lengths = golden.features("batch")
    run = quick_jit(lambda params, *inputs: golden.bind(params, context=context)(*inputs))
    encoded, valid = run(golden.params, frames, lengths)
    for clip in STREAMS[context]:
        stored = golden.arrays[f"ctx{context[0]}_{context[1]}/{clip}/offline_enc"][0]
        length = int(golden.arrays[f"ctx{context[0]}_{context[1]}/{clip}/offline_enc_len"][0])
        row = CLIPS.index(clip)
        assert valid[row] == length
        assert difference(encoded[row, :length], stored[:, :length].T) < END_TO_END, clip


@pytest.mark.parametrize("context", STREAMS)
def test_streams_chunk_by_chunk(encoders: Callable[[str], GoldenEncoder], context: tuple[int, int]) -> None:
    """Outputs and caches of each chunk are NeMo's, the short last chunk's as well."""
    golden = encoders(STREAMING)
    bound = functools.partial(golden.bind, context=context, padding="publisher")
    config = bound(golden.params).config
    step = quick_jit(lambda params, state, frames: bound(params).step(state, frames))

    def caches(state: dict[str, Any]) -> dict[str, np.ndarray]:
        attention = np.stack([layer["attention"] for layer in state["layers"]])
        conv = np.stack([layer["conv"].swapaxes(1, 2) for layer in state["layers"]])
        return {"cache_last_channel": attention, "cache_last_time": conv}

    for clip in STREAMS[context]:
        prefix = f"ctx{context[0]}_{context[1]}/{clip}"
        stored = {
            key.removeprefix(f"{prefix}/"): value
            for key, value in golden.arrays.items()
            if key.startswith(f"{prefix}/")
        }
        count = sum(key.endswith("/mel") for key in stored)
        assert count == len(golden.texts["stream"][f"{prefix}/rnnt"]["steps"])
        state = bound(golden.params).initial_state(1)
        for number, window in enumerate(_windows(golden.arrays[f"{clip}/mel"].swapaxes(1, 2), config, count)):
            theirs = stored[f"chunk{number}/mel"].swapaxes(1, 2)
            np.testing.assert_array_equal(window[:, window.shape[1] - theirs.shape[1] :], theirs)
            state, encoded = step(golden.params, state, window)
            ours = {f"chunk{number}/enc": encoded.swapaxes(1, 2)}
            ours |= {f"chunk{number}/{which}": cache for which, cache in caches(state).items()}
            for key in ours.keys() & stored.keys():
                assert difference(ours[key], stored[key]) < END_TO_END, (clip, key)
        for which, cache in caches(state).items():
            assert difference(cache, stored[f"final_{which}"]) < END_TO_END, (clip, which)
        assert min(int(state["processed"][0]), context[0]) == stored["final_cache_last_channel_len"][0]


def _windows(frames: np.ndarray, config: ConformerConfig, count: int) -> list[np.ndarray]:
    """The windows of `step` over an utterance (1, T, bins), zeros before its beginning; the last one may be short."""
    before = config.frames_per_step - (config.shift_per_step - config.subsampling + 1)
    padded = np.pad(frames, ((0, 0), (before, 0), (0, 0)))
    starts = [number * config.shift_per_step for number in range(count)]
    return [padded[:, start : start + config.frames_per_step] for start in starts]
