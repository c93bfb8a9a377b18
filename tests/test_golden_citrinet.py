"""Parity of Citrinet with NeMo: its blocks and encoder from the stored features, clip by clip and as one batch."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import yaml
from flax import nnx

from golden_models import difference, quick_jit, read_arrays
from jaxasr.convert.formats.torch.pickles import read_torch
from jaxasr.convert.mapping import map_tensors
from jaxasr.convert.nemo import citrinet
from jaxasr.encoders.citrinet import Citrinet
from jaxasr.encoders.citrinet_config import CitrinetConfig
from jaxasr.store import flatten, unflatten

CLIPS = ("digits_a", "espeak_sentence", "noise", "near_silence", "short")  # in the order of the batch
# The stored values against float64 differ by 2e-5 of values up to 8 (the folder's README): float32 on both sides.
LIMIT = 1e-5


class Network(NamedTuple):
    """A tiny encoder of NeMo's as ours, and what NeMo computes with it."""

    config: CitrinetConfig
    params: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def run(self, frames: np.ndarray, lengths: np.ndarray) -> tuple[list[Any], Any, Any]:
        """frames (B, T, bins), lengths (B,) -> (outputs of the blocks, encoded, lengths)."""
        graph, state = nnx.split(nnx.eval_shape(lambda: Citrinet(self.config, rngs=nnx.Rngs(0))))

        @quick_jit
        def call(params: dict[str, Any], frames: jax.Array, lengths: jax.Array) -> Any:
            nnx.replace_by_pure_dict(state, nnx.restore_int_paths(params))
            encoder = nnx.merge(graph, state)
            return encoder.block_outputs(frames, lengths), *encoder(frames, lengths)

        outputs: tuple[list[Any], Any, Any] = call(self.params, frames, lengths.astype(np.int32))
        return outputs


def read(folder: Path, unpacked: Path) -> Network:
    """The encoder in model.nemo of a folder, by its own settings, and golden.npz beside it."""
    with tarfile.open(folder / "model.nemo") as archive:
        for member in archive:
            if member.isfile() and (stream := archive.extractfile(member)):
                (unpacked / Path(member.name).name).write_bytes(stream.read())
    settings = yaml.safe_load((unpacked / "model_config.yaml").read_text(encoding="utf-8"))["encoder"]
    config = citrinet.encoder_config(settings, settings["feat_in"])
    state = read_torch(unpacked / "model_weights.ckpt")
    assert isinstance(state, dict)
    tensors = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    mapped = map_tensors(tensors, citrinet.rules(config), citrinet.IGNORED)
    params = unflatten({path.removeprefix("encoder."): array for path, array in mapped.items()})
    return Network(config, params, read_arrays(folder / "golden.npz"))


@pytest.fixture(scope="module")
def network(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Network:
    return read(shared / "golden/citrinet-tiny", tmp_path_factory.mktemp("nemo"))


def compare(network: Network, prefix: str, rows: int) -> None:
    """Outputs of every block that is stored and of the encoder, on the frames of each row."""
    arrays = {name.removeprefix(prefix): array for name, array in network.arrays.items() if name.startswith(prefix)}
    lengths = arrays["mel_len"]
    blocks, encoded, encoded_lengths = network.run(arrays["mel"].transpose(0, 2, 1)[:, : lengths.max()], lengths)
    np.testing.assert_array_equal(encoded_lengths, arrays["enc_len"])
    for index, output in enumerate(blocks):
        if f"block{index}" not in arrays:
            continue
        lengths = network.config.blocks[index].output_length(lengths)
        for row in range(rows):
            theirs = arrays[f"block{index}"][row].T[: lengths[row]]
            assert difference(output[row, : lengths[row]], theirs) < LIMIT, f"block {index}, row {row}"
    for row in range(rows):
        length = arrays["enc_len"][row]
        assert difference(encoded[row, :length], arrays["enc"][row].T[:length]) < LIMIT, f"row {row}"


@pytest.mark.parametrize("clip", CLIPS)
def test_a_clip_alone(network: Network, clip: str) -> None:
    compare(network, f"{clip}/", 1)


def test_the_clips_as_one_batch(network: Network) -> None:
    compare(network, "batch/", len(CLIPS))


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
