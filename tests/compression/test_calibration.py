"""What calibration hears: windows of recordings, and the inputs of an encoder's weights."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import soundfile
from jax import lax

from jaxasr import store
from jaxasr.compression import calibration
from jaxasr.compression.calibration import Hearing, Windows, read_windows
from jaxasr.configs import named_configs
from jaxasr.errors import AudioError
from jaxasr.layers.products import convolution_product, linear_product
from jaxasr.manifests import read_manifest
from jaxasr.model import AbstractModel
from jaxasr.quant.rules import QuantizationConfig, default_rules
from jaxasr.quant.watched import WatchedArray
from jaxasr.speechlike import speechlike
from jaxasr.testing import tiny_config, tiny_recognizer

GENERATOR = np.random.default_rng(0)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Six recordings of 1.5 s."""
    for number in range(6):
        soundfile.write(tmp_path / f"{number}.wav", speechlike(1.5, number), 16000)
    path = tmp_path / "manifest.tsv"
    path.write_text("path\ttext\n" + "".join(f"{number}.wav\tA\n" for number in range(6)))
    return path


def test_recordings_fill_windows(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "WINDOW_SECONDS", 2.0)
    windows = read_windows(read_manifest(manifest))
    assert windows.waveforms.shape == (4, 32000) and windows.seconds == 8.0
    every = np.concatenate(
        [soundfile.read(manifest.parent / f"{number}.wav", dtype="float32")[0] for number in range(6)]
    )
    np.testing.assert_array_equal(windows.waveforms.ravel(), every[:128000])
    names = [[Path(file).name for file in files] for files in windows.files]
    assert names == [["0.wav", "1.wav"], ["1.wav", "2.wav"], ["2.wav", "3.wav"], ["4.wav", "5.wav"]]
    # A third of them, spread evenly.
    files = itertools.chain(*read_windows(read_manifest(manifest), 3.0).files)
    assert {Path(file).name for file in files} == {"0.wav", "3.wav"}


def test_nan_in_a_recording_names_it(manifest: Path) -> None:
    broken = speechlike(1.0, 0)
    broken[100] = np.nan
    soundfile.write(manifest.parent / "3.wav", broken, 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match="3.wav: holds NaN"):
        read_windows(read_manifest(manifest))


def test_what_products_tell() -> None:
    """Rows that, times the kernel, are the product; inside loops too."""
    heard: list[tuple[str, np.ndarray]] = []

    def watched(kernel: np.ndarray, path: str) -> Any:
        return WatchedArray(jax.numpy.asarray(kernel), path, lambda path, rows: heard.append((path, rows)))

    x = GENERATOR.standard_normal((2, 6, 4)).astype(np.float32)
    kernel = GENERATOR.standard_normal((4, 3)).astype(np.float32)
    window = GENERATOR.standard_normal((3, 1, 4, 5)).astype(np.float32)

    @jax.jit
    def run(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        looped = lax.map(lambda row: linear_product(row, watched(kernel, "loop")), x)
        convolved = convolution_product(x[:, :, None], watched(window, "convolution"), (2, 1), ((1, 0), (0, 0)))
        return linear_product(x, watched(kernel, "dense")[:, :2]), looped, convolved

    dense, looped, convolved = jax.device_get(run(x))
    jax.effects_barrier()
    rows = {path: [each for name, each in heard if name == path] for path in ("dense", "loop", "convolution")}
    np.testing.assert_allclose(rows["dense"][0] @ kernel[:, :2], dense.reshape(-1, 2), rtol=1e-5, atol=1e-5)
    assert len(rows["loop"]) == 2
    np.testing.assert_allclose(np.stack(rows["loop"]) @ kernel, looped, rtol=1e-5, atol=1e-5)
    product = rows["convolution"][0] @ window.reshape(-1, 5)
    np.testing.assert_allclose(product, convolved.reshape(-1, 5), rtol=1e-5, atol=1e-5)


def test_an_encoder_is_heard() -> None:
    sound = np.stack([speechlike(1.5, number) for number in range(4)])
    windows = Windows(sound, tuple((f"{number}.wav",) for number in range(4)), rows=2)
    with tiny_recognizer() as recognizer:
        params = jax.device_get(recognizer.programs.params)
    leaves = store.flatten(params)
    kernels = [path for path, leaf in leaves.items() if path.startswith("encoder.stacks") and path.endswith("kernel")]
    dense = [path for path in kernels if leaves[path].ndim == 2]
    hearing = Hearing(tiny_config(), windows, dense)
    heard: dict[str, list[np.ndarray]] = {path: [] for path in dense}
    encoded = np.concatenate(list(hearing.batches(params, lambda path, rows: heard[path].append(rows))))
    assert len(encoded) == 4 and np.isfinite(encoded).all()
    assert {path: {rows.shape[1] for rows in each} for path, each in heard.items()} == {
        path: {leaves[path].shape[0]} for path in dense
    }
    assert {len(each) for each in heard.values()} == {2}, "once for each batch"
    np.testing.assert_array_equal(hearing.encode(params), encoded)
    # Numbers beyond the range of floats come from the third recording alone.
    sound[2] *= 1e30
    with pytest.raises(AudioError, match="^2.wav: the encoder makes NaN or infinity of it"):
        hearing.encode(params)


@pytest.mark.parametrize(
    "name",
    [
        "gigaspeech_kws_zipformer",
        "librispeech_icefall_conformer_base",
        "stt_en_conformer_ctc_large",
        "stt_en_citrinet_256",
        "paraformer_large",
    ],
)
def test_every_family_tells_what_all_its_weights_are_multiplied_by(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, not run: what the rules quantize of an encoder has its inputs told, with as many as it has rows."""
    told: dict[str, int] = {}
    monkeypatch.setattr(WatchedArray, "tell", lambda self, x: told.setdefault(self.path, x.shape[-1]))
    config = store.read_config(named_configs()[name])
    fields: Any = vars(config.encoder)
    fewer = {"num_layers": 2} if isinstance(fields.get("num_layers"), int) else {}
    fewer |= {"blocks": fields["blocks"][:3]} if "blocks" in fields else {}
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, **fewer))  # type: ignore[type-var]
    model = AbstractModel(config)
    leaves = store.flatten(model.floats)
    rules = QuantizationConfig(rules=default_rules(4))
    wanted = {
        path: math.prod(leaf.shape[:-1])
        for path, leaf in leaves.items()
        if path.startswith("encoder.") and rules.rule(path, leaf.shape) is not None
    }
    watched = {path: WatchedArray(leaves[path], path, lambda path, rows: None) for path in wanted}
    params = store.unflatten({**leaves, **watched})
    sound = jax.ShapeDtypeStruct((1, 32000), jax.numpy.float32), jax.ShapeDtypeStruct((1,), jax.numpy.int32)
    jax.eval_shape(lambda params, *sound: model.fill(params).encode(*sound), params, *sound)
    assert wanted and told == wanted
