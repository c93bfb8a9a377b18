"""How far a published int8 Zipformer is from itself when only the last bit of its floats changes, and how far we are.

    python benchmarks/published_rounding.py CHECKPOINT MODEL [SET.tsv...]

CHECKPOINT holds the ONNX files, derived/encoder-runnable.int8.onnx and streaming-trace.npz; MODEL is their import with
`--precision int8`. The original is run by onnxruntime with its optimizations of the graph, without them, and with
features that differ by 1e-7 noise. Of the encoder on the trace's features: the mean difference from the stored output;
and of the chunks by themselves, each begun with the original's states, how many are within 1e-4, with the largest
difference among these and the smallest among the others. Of SETs, as published_manifests.py writes them: the
utterances whose token ids are the stored ones.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import jax
import kaldi_native_fbank
import numpy as np
import onnxruntime

from jaxasr import audio, store
from jaxasr.manifests import read_audio, read_manifest
from jaxasr.model import AbstractModel

WINDOW, SHIFT, TAIL_SECONDS, NOISE = 45, 32, 0.66, 1e-7
SILENT = (0, 2)  # blank, and <unk>, which sherpa-onnx never emits
NEAR = 1e-4  # a projection whose bias is stored in 16 bits takes 2e-5
States = dict[str, np.ndarray]


class Original:
    """The three files under onnxruntime, one thread each; the first chunk begins with states of zeros."""

    def __init__(self, checkpoint: Path, optimized: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL

        def session(pattern: str) -> Any:
            (path,) = checkpoint.glob(pattern)
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        self.encoder = session("derived/encoder*.int8.onnx")
        self.decoder, self.joiner = session("decoder*.onnx"), session("joiner*.int8.onnx")

    def start(self) -> States:
        inputs = [each for each in self.encoder.get_inputs() if each.name != "x"]
        return {each.name: np.zeros(each.shape, np.int64 if "int64" in each.type else np.float32) for each in inputs}

    def step(self, window: np.ndarray, states: States) -> tuple[np.ndarray, States]:
        """One chunk: frames (45, 80) -> projected frames (8, 320), states."""
        made = dict(
            zip(
                [o.name for o in self.encoder.get_outputs()],
                self.encoder.run(None, {"x": window[None], **states}),
                strict=True,
            )
        )
        return made["encoder_out"][0], {name: made[f"new_{name}"] for name in states}

    def tokens(self, features: np.ndarray) -> list[int]:
        """Greedy search, at most one token a frame; a chunk while more frames are ready than it reads."""
        states, context = self.start(), [-1, 0]
        predicted = self._predict(context)
        names = [each.name for each in self.joiner.get_inputs()]
        for begin in range(0, len(features) - WINDOW, SHIFT):
            frames, states = self.step(features[begin : begin + WINDOW], states)
            for frame in frames:
                (logits,) = self.joiner.run(None, dict(zip(names, (frame[None], predicted), strict=True)))
                if (token := int(logits.argmax())) not in SILENT:
                    context.append(token)
                    predicted = self._predict(context)
        return context[2:]

    def _predict(self, context: list[int]) -> np.ndarray:
        return self.decoder.run(None, {self.decoder.get_inputs()[0].name: np.array([context[-2:]], np.int64)})[0]


class Imported:
    """Our model, chunk by chunk as the original."""

    def __init__(self, model: Path) -> None:
        stored = store.open_model(model)
        abstract, self.params = AbstractModel(stored.config), stored.params()
        self.initial = abstract.fill(self.params).encoder.initial_state(1)

        @jax.jit
        def run(params: Any, state: Any, frames: jax.Array) -> tuple[Any, jax.Array]:
            filled = abstract.fill(params)
            state, encoded = filled.encoder.step(state, frames)
            return state, filled.transducer.project(encoded)

        self.run = run

    def step(self, window: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        """One chunk: frames (45, 80), our own state -> projected frames (8, 320), state."""
        state, projected = self.run(self.params, state, window[None])
        return np.asarray(projected)[0], state

    def state_of(self, states: States) -> Any:
        """The original's states as ours."""
        stacks = [
            {
                "key": states[f"cached_key_{stack}"].swapaxes(0, 1),
                "value1": states[f"cached_val1_{stack}"].swapaxes(0, 1),
                "value2": states[f"cached_val2_{stack}"].swapaxes(0, 1),
                "nonlin": states[f"cached_nonlin_attn_{stack}"][0],
                "conv1": states[f"cached_conv1_{stack}"].swapaxes(1, 2),
                "conv2": states[f"cached_conv2_{stack}"].swapaxes(1, 2),
            }
            for stack in range(len(self.initial["stacks"]))
        ]
        return {
            "embed": states["embed_states"].transpose(0, 2, 3, 1),
            "stacks": [[layer] for layer in stacks],
            "processed": states["processed_lens"].astype(np.int32),
        }


def on_the_trace(checkpoint: Path, optimized: Original, plain: Original, ours: Imported) -> None:
    """The encoder on the stored features: whole utterances, then each chunk from the original's states."""
    with np.load(checkpoint / "streaming-trace.npz") as arrays:
        trace = {name: arrays[name] for name in arrays.files if name.startswith(("features", "encoder_out_int8"))}
        dequantized = [
            _mean_difference(arrays[f"encoder_out_dequantized_{n}"], trace[f"encoder_out_int8_{n}"]) for n in range(3)
        ]
    whole: dict[str, list[float]] = {}
    chunks: dict[str, list[float]] = {}
    noise = np.random.default_rng(0)
    for number in range(3):
        features, expected = trace[f"features_{number}"], trace[f"encoder_out_int8_{number}"]
        noisy = (features + NOISE * noise.standard_normal(features.shape)).astype(np.float32)
        begins = range(0, len(features) - WINDOW + 1, SHIFT)
        before = [optimized.start()]
        for begin in begins:
            before.append(optimized.step(features[begin : begin + WINDOW], before[-1])[1])
        ways: dict[str, tuple[Any, np.ndarray, Any]] = {
            "optimized": (optimized.step, features, before),
            "not optimized": (plain.step, features, before),
            "with noise": (optimized.step, noisy, before),
            "ours": (ours.step, features, [ours.initial, *map(ours.state_of, before[1:])]),
        }
        for name, (step, frames, states) in ways.items():
            state, made = states[0], []
            for begin in begins:
                encoded, state = step(frames[begin : begin + WINDOW], state)
                made.append(encoded)
            whole.setdefault(name, []).append(_mean_difference(np.concatenate(made), expected))
            for chunk, begin in enumerate(begins):
                encoded, _ = step(frames[begin : begin + WINDOW], states[chunk])
                wanted = expected[chunk * len(encoded) : (chunk + 1) * len(encoded)]
                chunks.setdefault(name, []).append(_mean_difference(encoded, wanted))
    print(f"dequantized weights: mean difference {', '.join(f'{each:.4f}' for each in dequantized)}")
    for name, differences in chunks.items():
        near, far = [each for each in differences if each < NEAR], [each for each in differences if each >= NEAR]
        print(
            f"{name}: mean difference {', '.join(f'{each:.4f}' for each in whole[name])}; {len(near)} of "
            f"{len(differences)} chunks within {max(near, default=0):.0e}, the others from {min(far, default=0):.0e} on"
        )


def _mean_difference(made: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(made - expected).mean())


def features_of(waveform: np.ndarray) -> np.ndarray:
    """sherpa-onnx's features of 16 kHz, and of the silence after it: (frames, 80)."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither, options.frame_opts.snip_edges, options.frame_opts.samp_freq = 0, False, 16000
    options.mel_opts.num_bins, options.mel_opts.high_freq = 80, -400
    computer = kaldi_native_fbank.OnlineFbank(options)
    for samples in (waveform, np.zeros(int(TAIL_SECONDS * 16000), np.float32)):
        computer.accept_waveform(16000, samples.tolist())
    computer.input_finished()
    return np.stack([computer.get_frame(number) for number in range(computer.num_frames_ready)])


def on_recordings(manifest: Path, optimized: Original, plain: Original) -> None:
    """Utterances of a set with the stored token ids."""
    with open(manifest, encoding="utf-8", newline="") as file:
        wanted = [
            [int(token) for token in row["token_ids"].split()]
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]
    equal = {"optimized": 0, "not optimized": 0, "with noise": 0}
    noise = np.random.default_rng(0)
    for utterance, tokens in zip(read_manifest(manifest), wanted, strict=True):
        features = features_of(np.asarray(audio.load(*read_audio(utterance))))
        noisy = (features + NOISE * noise.standard_normal(features.shape)).astype(np.float32)
        equal["optimized"] += optimized.tokens(features) == tokens
        equal["not optimized"] += plain.tokens(features) == tokens
        equal["with noise"] += optimized.tokens(noisy) == tokens
    print(f"{manifest.stem}, {len(wanted)} utterances, same token ids: {equal}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("sets", type=Path, nargs="*", metavar="SET.tsv")
    arguments = parser.parse_args()
    optimized, plain = (Original(arguments.checkpoint, each) for each in (True, False))
    on_the_trace(arguments.checkpoint, optimized, plain, Imported(arguments.model))
    for manifest in arguments.sets:
        on_recordings(manifest, optimized, plain)


if __name__ == "__main__":
    main()
