"""Parity of Citrinet's blocks with NeMo: each block and the encoder, from stored features, of single clips and batches.

The reference model is a Citrinet; tests/data/nemo-blocks holds networks of all else that blocks can be.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx

import jaxasr
from conftest import DATA
from golden_models import difference, quick_jit, read_arrays
from jaxasr.convert.mapping import map_tensors
from jaxasr.convert.nemo import citrinet
from jaxasr.convert.nemo.archive import CONFIG, read_archive
from jaxasr.convert.nemo.settings import read_settings
from jaxasr.encoders.citrinet import Citrinet
from jaxasr.encoders.citrinet_config import CitrinetConfig
from jaxasr.store import flatten, unflatten

CLIPS = ("digits_a", "espeak_sentence", "noise", "near_silence", "short")  # in the order of the batch
# The stored values against float64 differ by 2e-5 of values up to 8 (the folder's README): float32 on both sides.
LIMIT = 1e-5


class Network(NamedTuple):
    """A tiny encoder of NeMo's as ours."""

    config: CitrinetConfig
    params: dict[str, Any]

    def run(self, frames: np.ndarray, lengths: np.ndarray) -> tuple[list[Any], Any, Any]:
        """frames (B, T, bins), lengths (B,) -> (outputs of the blocks, encoded, lengths)."""
        outputs: tuple[list[Any], Any, Any] = program(self.config)(self.params, frames, lengths.astype(np.int32))
        return outputs


@functools.cache
def program(config: CitrinetConfig) -> Any:
    """The compiled encoder of these sizes, which also gives the outputs of the blocks."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Citrinet(config, rngs=nnx.Rngs(0))))

    @quick_jit
    def call(params: dict[str, Any], frames: jax.Array, lengths: jax.Array) -> Any:
        nnx.replace_by_pure_dict(state, nnx.restore_int_paths(params))
        encoder = nnx.merge(graph, state)
        return encoder.block_outputs(frames, lengths), *encoder(frames, lengths)

    return call


def read(path: Path) -> Network:
    """The encoder of an archive, by the archive's own settings."""
    archive = read_archive(path, [])
    settings = read_settings(archive.texts[CONFIG], CONFIG)["encoder"]
    config = citrinet.encoder_config(settings, settings["feat_in"])
    tensors = {name: tensor for name, tensor in archive.tensors.items() if name.startswith("encoder.")}
    mapped = map_tensors(tensors, citrinet.rules(config), citrinet.IGNORED)
    return Network(config, unflatten({path.removeprefix("encoder."): array for path, array in mapped.items()}))


# --- the reference model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(shared: Path) -> Network:
    return read(shared / "golden/citrinet-tiny/model.nemo")


@pytest.fixture(scope="module")
def stored(shared: Path) -> dict[str, np.ndarray]:
    return read_arrays(shared / "golden/citrinet-tiny/golden.npz")


@pytest.mark.parametrize("stored_as", ["single", "batch"])
def test_blocks_and_encoder(network: Network, stored: dict[str, np.ndarray], stored_as: str) -> None:
    """The clips in one batch, each before what must not be heard: what NeMo gives for each alone, and for a batch."""
    rows = [(f"{clip}/", 0) if stored_as == "single" else ("batch/", row) for row, clip in enumerate(CLIPS)]
    lengths = np.array([stored[f"{prefix}mel_len"][row] for prefix, row in rows])
    frames = np.full((len(rows), lengths.max(), network.config.input_dim), np.nan, np.float32)
    for into, length, (prefix, row) in zip(frames, lengths, rows, strict=True):
        into[:length] = stored[f"{prefix}mel"][row].T[:length]
    blocks, encoded, encoded_lengths = network.run(frames, lengths)
    np.testing.assert_array_equal(encoded_lengths, [stored[f"{prefix}enc_len"][row] for prefix, row in rows])
    names = [f"block{number}" for number in range(len(blocks))]
    compared = 0
    for name, output, block in zip([*names, "enc"], [*blocks, encoded], [*network.config.blocks, None], strict=True):
        lengths = lengths if block is None else block.output_length(lengths)
        for ours, length, (prefix, row) in zip(output, lengths, rows, strict=True):
            if prefix + name in stored:
                theirs = stored[prefix + name][row].T[:length]
                assert difference(ours[:length], theirs) < LIMIT, f"{prefix}{name}, row {row}"
                compared += 1
    # Of single clips NeMo's blocks are stored for two.
    assert compared == len(CLIPS) + len(blocks) * (2 if stored_as == "single" else len(CLIPS))


def test_blocks_take_over_what_they_do_not_state(network: Network) -> None:
    """Block 6 strides and names no residual mode; two kernels of 11 * 0.25 and 19 * 0.25 frames, bumped where even."""
    blocks = network.config.blocks
    assert [block.strides for block in blocks if block.stride > 1] == [(1, 1, 2), (1, 2), (1, 2)]
    assert [block.kernel for block in blocks] == [5, 3, 3, 5, 5, 7, 7, 9, 11]
    assert network.config.subsampling == 8


def test_every_parameter_is_filled(network: Network) -> None:
    state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Citrinet(network.config, rngs=nnx.Rngs(0)))))
    wanted = {path: leaf.shape for path, leaf in flatten(state).items()}
    assert {path: array.shape for path, array in flatten(network.params).items()} == wanted
    trained = [size for path, size in wanted.items() if path.rpartition(".")[2] not in ("mean", "variance")]
    assert sum(int(np.prod(shape)) for shape in trained) == 95_664


# --- a published network of the same blocks ---------------------------------------------------------------------------


def test_marblenet(shared: Path) -> None:
    """Four stretches of speech through a published detector of voices, whose last block is an ordinary convolution."""
    folder = shared / "published/nemo-marblenet-vad"
    network, theirs = read(folder / "MarbleNet-3x2x64.nemo"), read_arrays(folder / "nemo-reference.npz")
    lengths = np.array([theirs[f"features_length_{row}"][0] for row in range(4)])
    frames = np.full((4, lengths.max(), 64), np.nan, np.float32)
    for row, length in enumerate(lengths):
        frames[row, :length] = theirs[f"features_{row}"].T[:length]
    _, encoded, counts = network.run(frames, lengths)
    np.testing.assert_array_equal(counts, lengths)
    for row, length in enumerate(lengths):
        assert difference(encoded[row, :length], theirs[f"encoder_{row}"].T[:length]) < LIMIT, row


# --- what else blocks can be ------------------------------------------------------------------------------------------

VARIANTS = ("quartznet", "mixed", "group_norm", "instance_norm", "layer_norm", "unmasked")


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str) -> None:
    """Two clips of different lengths in one batch give what NeMo gives for each by itself."""
    folder = DATA / "nemo-blocks"
    network, theirs, features = (
        read(folder / f"{name}.nemo"),
        read_arrays(folder / f"{name}.npz"),
        read_arrays(folder / "features.npz"),
    )
    lengths = np.array([len(features["first"]), len(features["second"])])
    frames = np.full((2, lengths.max() + 3, 64), np.nan, np.float32)
    for row, piece in enumerate(("first", "second")):
        frames[row, : lengths[row]] = features[piece]
    blocks, encoded, counts = network.run(frames, lengths)
    # NeMo's arrays hold one frame more than count, which its convolutions hear where nothing is masked.
    length = int(lengths[0]) + (not network.config.conv_mask)
    for index, output in enumerate(blocks):
        length = network.config.blocks[index].output_length(length)
        assert difference(output[0, :length], theirs[f"block{index}"][:length]) < LIMIT, f"block {index}"
    for row, piece in enumerate(("first", "second")):
        assert counts[row] == len(theirs[f"{piece}/encoded"])
        assert difference(encoded[row, : int(counts[row])], theirs[f"{piece}/encoded"]) < LIMIT, piece


@pytest.mark.parametrize("name", ["quartznet", "unmasked"])
def test_text_of_variants(name: str, tmp_path: Path) -> None:
    """From the archive and the recording to the text that NeMo's `transcribe` gives."""
    jaxasr.convert_checkpoint(DATA / f"nemo-blocks/{name}.nemo", tmp_path / name)
    with jaxasr.load_model(tmp_path / name) as recognizer:
        transcript = recognizer.transcribe(DATA / "espeak_sentence.wav")
    assert transcript.text == json.loads((DATA / "nemo-blocks/texts.json").read_text())[name]
