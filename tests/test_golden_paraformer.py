"""Parity of offline Paraformers with FunASR: stored frames to logits layer by layer, audio to text, batches, times."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr
from golden_models import abstract_model, emitted, quick_jit, read_arrays
from jaxasr import audio, store
from jaxasr.arrays import length_mask
from jaxasr.encoders.sanm import Sanm
from jaxasr.heads.parallel import Parallel
from jaxasr.model import Model
from jaxasr.model_config import ModelConfig
from jaxasr.recognizer import Recognizer
from jaxasr.search.parallel import ParallelSearch
from jaxasr.search.protocols import search_whole
from jaxasr.text.funasr import FunasrConfig, FunasrSpelling, spell_with_times
from jaxasr.text.tokens import TokenTable
from jaxasr.training.parallel import parallel_loss, text_loss, with_end

PLAIN, SECOND = "paraformer-tiny", "paraformer-bicif-tiny"
CLIPS = ("digits_a", "espeak_sentence", "funasr-zh", "noise", "near_silence", "short", "funasr-short")
SECOND_CLIPS = ("digits_a", "espeak_sentence", "funasr-zh", "noise", "funasr-short")
# The rows of batch.npz.
BATCH = ("digits_a", "funasr-zh", "noise", "funasr-short")

# The limits of the reference data's README, absolute. A filterbank's bins near their floor differ by up to 9.6e-4
# between two implementations of Kaldi's; a run in float64 differs from the stored encoder output by 3e-6.
FBANK, ENCODER, WEIGHTS, VECTORS, LOGITS, FROM_AUDIO = 2e-3, 1e-4, 1e-5, 1e-4, 2e-4, 5e-4

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class GoldenParaformer:
    """A reference model as our own."""

    folder: Path
    directory: Path
    config: ModelConfig
    params: dict[str, Any]
    tokens: TokenTable

    def bind(self, params: dict[str, Any], **head: Any) -> Model:
        """The module over (traced) parameters; `head` replaces fields of the head's configuration."""
        assert self.config.parallel is not None
        variant = dataclasses.replace(self.config, parallel=dataclasses.replace(self.config.parallel, **head))
        return abstract_model(variant).fill(params)

    def clip(self, name: str) -> Arrays:
        return read_arrays(self.folder / f"clip_{name}.npz")

    @functools.cached_property
    def results(self) -> dict[str, Any]:
        results: dict[str, Any] = json.loads((self.folder / "results.json").read_text(encoding="utf-8"))
        return results


@pytest.fixture(scope="session")
def paraformers(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], GoldenParaformer]:
    """The reference model of a name, converted once a session as a user would."""

    @functools.cache
    def load(name: str) -> GoldenParaformer:
        folder, directory = shared / "golden" / name, tmp_path_factory.mktemp("models") / name
        jaxasr.configure_process()
        jaxasr.convert_checkpoint(folder, directory)
        config, params, tokens = store.load(directory)
        return GoldenParaformer(folder, directory, config, jax.device_put(params), tokens)

    return load


Paraformers = Callable[[str], GoldenParaformer]


def off(ours: Any, theirs: np.ndarray) -> float:
    """The largest difference; shapes must agree."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max(initial=0.0))


def padded(rows: list[np.ndarray], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (T, F) as one batch of `steps` frames, and their lengths. What is padded must have no effect."""
    batch = np.full((len(rows), steps, rows[0].shape[1]), 7.0, np.float32)
    for number, row in enumerate(rows):
        batch[number, : len(row)] = row
    return batch, np.array([len(row) for row in rows], np.int32)


def encoder_trace(encoder: Sanm, frames: jax.Array, lengths: jax.Array) -> dict[str, jax.Array]:
    """What each layer makes of frames (B, T, F)."""
    seen = {"enc_in_pos": encoder.placed(frames)}
    x, mask = seen["enc_in_pos"], length_mask(lengths, frames.shape[1])
    for number, layer in enumerate(encoder.layers):
        x = seen[f"enc_block{number}"] = layer(x, mask, mask[:, None])
    seen["enc_out"] = encoder.norm(x)
    return seen


def head_trace(head: Parallel, encoded: jax.Array, lengths: jax.Array) -> dict[str, jax.Array]:
    """What the predictor and each layer of the decoder make of encoded frames (B, T, D)."""
    isolated = jnp.where(length_mask(lengths, encoded.shape[1])[..., None], encoded, 0)
    cif = head.predictor
    convolved = cif.convolved(isolated)
    fired = head.fire(encoded, lengths)
    seen = {
        "cif_conv": convolved.swapaxes(1, 2),
        "cif_logit": cif.output(jax.nn.relu(convolved)),
        "alphas": fired.weights,
        "fires": fired.running.fires,
        "token_num": fired.counts,
        "acoustic_embeds": fired.vectors,
    }
    x = fired.vectors
    mask, sees = head.masks(fired, lengths, encoded.shape[1])
    for number, layer in enumerate(head.layers):
        x = seen[f"dec_decoders_{number}"] = layer(x, mask, encoded, sees)
    for number, memory_layer in enumerate(head.memory_layers):
        x = seen[f"dec_decoders2_{number}"] = memory_layer(x, mask)
    for number, final_layer in enumerate(head.final_layers):
        x = seen[f"dec_decoders3_{number}"] = final_layer(x, mask)
    seen["dec_hidden"] = head.norm(x)
    seen["logits"] = head.decode(fired, encoded, lengths)
    if cif.second is not None:
        peaks = cif.peaks(isolated, lengths, fired.counts)
        seen["us_alphas"] = peaks.weights
    return seen


def valid_part(name: str, row: np.ndarray, frames: int, tokens: int) -> np.ndarray:
    """What of a batch's row (steps first but for cif_conv) belongs to the row."""
    if name == "cif_conv":
        return row[:, :frames]
    if name == "token_num":
        return row.reshape(1)
    if name.startswith("us_"):
        return row[: 3 * frames]
    if name in ("alphas", "fires"):
        return row[: frames + 1]
    return row[: tokens if name in ("acoustic_embeds", "logits") or name.startswith("dec_") else frames]


LIMITS = {"alphas": WEIGHTS, "us_alphas": WEIGHTS, "fires": WEIGHTS * 10, "token_num": 0.0}


def limit(name: str) -> float:
    """Encoder arrays, weights, vectors and logits as the README has them; what the decoder makes is between both.

    A running sum gathers the weights' differences, and is allowed ten times theirs.
    """
    return LIMITS.get(name, LOGITS if name == "logits" or name.startswith("dec_") else ENCODER)


@pytest.mark.parametrize(("name", "clips"), [(PLAIN, CLIPS), (SECOND, SECOND_CLIPS)])
def test_every_layer_on_stored_frames_in_a_batch(paraformers: Paraformers, name: str, clips: tuple[str, ...]) -> None:
    """All clips in one batch, whose padding is no zero: each row is the single utterance of FunASR."""
    golden = paraformers(name)
    stored = [golden.clip(clip) for clip in clips]
    frames, lengths = padded([each["feats"] for each in stored], max(len(each["feats"]) for each in stored))
    encode = quick_jit(lambda params, *batch: encoder_trace(golden.bind(params).encoder, *batch))
    seen = encode(golden.params, frames, lengths)
    encoded, _ = padded([each["enc_out"] for each in stored], frames.shape[1])
    search = quick_jit(lambda params, *batch: head_trace(golden.bind(params).parallel, *batch))
    seen |= search(golden.params, encoded, lengths)
    compared = set()
    for row, (clip, arrays) in enumerate(zip(clips, stored, strict=True)):
        count = int(arrays["token_num"][0])
        for array in seen.keys() & arrays.keys():
            ours = valid_part(array, seen[array][row], lengths[row], count)
            assert off(ours, arrays[array]) <= limit(array), (clip, array, off(ours, arrays[array]))
            compared.add(array)
        if count:
            ids = seen["logits"][row, :count].argmax(-1)
            assert ids.tolist() == arrays["ids"].tolist(), clip
    assert compared >= {"enc_out", "alphas", "fires", "token_num", "acoustic_embeds", "logits"}
    assert name == SECOND or compared >= {"enc_in_pos", "enc_block3", "dec_decoders_1", "dec_decoders2_1", "dec_hidden"}
    assert name == PLAIN or "us_alphas" in compared


def test_what_the_original_does_with_padding_is_a_switch(paraformers: Paraformers) -> None:
    """batch.npz: the predictor reads the encoder's output of padded frames, and the tail stands on the first of it."""
    golden = paraformers(PLAIN)
    stored = read_arrays(golden.folder / "batch.npz")
    lengths = stored["enc_len"].astype(np.int32)

    @quick_jit
    def run(params: dict[str, Any]) -> Any:
        model = golden.bind(params, padding="publisher")
        encoded, _ = model.encoder(stored["feats"], lengths)
        fired = model.parallel.fire(stored["enc_out"], lengths)
        logits = model.parallel.decode(fired, stored["enc_out"], lengths)
        return encoded, fired.weights, fired.counts, fired.vectors, logits

    encoded, weights, counts, vectors, logits = run(golden.params)
    assert counts.tolist() == stored["token_num"].ravel().tolist()
    assert off(weights, stored["alphas"]) <= WEIGHTS
    single = golden.clip("noise")
    row = BATCH.index("noise")
    assert abs(stored["alphas"][row, lengths[row] - 1] - single["alphas"][-2]) > 0.03
    for row, (frames, count) in enumerate(zip(lengths, counts, strict=True)):
        assert off(encoded[row, :frames], stored["enc_out"][row, :frames]) <= ENCODER
        assert off(vectors[row, :count], stored["acoustic_embeds"][row, :count]) <= VECTORS
        assert off(logits[row, :count], stored["logits"][row, :count]) <= LOGITS


@pytest.fixture(scope="module")
def clips(shared: Path) -> dict[str, np.ndarray]:
    return {clip: audio.load(shared / f"golden/audio/{clip}.wav") for clip in CLIPS}


def test_from_audio_to_logits(paraformers: Paraformers, clips: dict[str, np.ndarray]) -> None:
    golden = paraformers(PLAIN)
    waveforms, lengths = padded([clip[:, None] for clip in clips.values()], max(map(len, clips.values())) + 100)

    @quick_jit
    def run(params: dict[str, Any], waveforms: jax.Array) -> Any:
        model = golden.bind(params)
        fbank, counts = model.features.fbank(waveforms, lengths)
        stacked, _ = model.features.stack(fbank, counts)
        frames, frame_lengths = model.features(waveforms, lengths)
        encoded, _ = model.encoder(frames, frame_lengths)
        fired = model.parallel.fire(encoded, frame_lengths)
        logits = model.parallel.decode(fired, encoded, frame_lengths)
        return fbank, counts, stacked, frames, frame_lengths, logits, fired.counts

    fbank, counts, stacked, frames, frame_lengths, logits, tokens = run(golden.params, waveforms[..., 0])
    for row, clip in enumerate(clips):
        arrays = golden.clip(clip)
        for ours, theirs in ((fbank, "fbank"), (stacked, "lfr"), (frames, "feats")):
            size = counts[row] if theirs == "fbank" else frame_lengths[row]
            assert off(ours[row, :size], arrays[theirs]) <= FBANK, (clip, theirs)
        assert tokens[row] == arrays["token_num"][0]
        if tokens[row]:
            assert off(logits[row, : tokens[row]], arrays["logits"]) <= FROM_AUDIO, clip


@pytest.mark.parametrize(("name", "names"), [(PLAIN, CLIPS), (SECOND, SECOND_CLIPS)])
def test_texts_are_funasrs(
    paraformers: Paraformers, clips: dict[str, np.ndarray], name: str, names: tuple[str, ...]
) -> None:
    """Ids and texts, of clips in a batch; the text without timestamps where the results have those."""
    golden = paraformers(name)
    spell = FunasrSpelling(FunasrConfig())
    with jaxasr.load_model(golden.directory) as recognizer:
        heard = list(recognizer.transcribe([clips[clip] for clip in names], sample_rate=16000))
    for clip, transcript in zip(names, heard, strict=True):
        wanted = golden.results[clip]
        kept = [token for token in wanted["ids"] if token not in (0, 1, 2)]
        assert transcript.token_ids == kept, clip
        text, _ = spell([golden.tokens[token] for token in kept])
        assert transcript.text == text
        assert transcript.text.replace(" ", "") == wanted["text"].replace(" ", ""), clip
        assert name == SECOND or transcript.text == wanted["text"]
        times = transcript.timestamps
        assert times == sorted(times) and all(0 <= time <= transcript.duration for time in times)


@pytest.mark.parametrize(("name", "names"), [(PLAIN, CLIPS), (SECOND, SECOND_CLIPS)])
def test_times_as_the_publisher_states_them(
    paraformers: Paraformers, clips: dict[str, np.ndarray], name: str, names: tuple[str, ...]
) -> None:
    """From sound through the predictor's own peaks to `generate`'s texts and times: of words, in whole milliseconds.

    FunASR hands on the spans of all tokens, `<unk>` included, and takes them one after another without it. It cuts
    milliseconds off in this order of operations: 5.5 steps of 60 ms end at 329 ms.
    """
    golden = paraformers(name)
    assert golden.config.parallel is not None
    head = dataclasses.replace(golden.config.parallel, times="publisher")
    config = dataclasses.replace(golden.config, parallel=head, text=FunasrConfig(spaces="all"))
    with Recognizer(config, golden.params, golden.tokens) as recognizer:
        heard = list(recognizer.transcribe([clips[clip] for clip in names], sample_rate=16000))
    steps = 1 if name == PLAIN else 3  # of a frame
    compared = 0
    for clip, transcript in zip(names, heard, strict=True):
        wanted = golden.results[clip] if name == SECOND else golden.results[clip]["pred_timestamp"] or {"text": ""}
        spans = [
            tuple(int(round(time / 0.06 * steps * 4) / 4 * (10.0 * 6 / 1000 / steps) * 1000) for time in (start, stop))
            for start, stop in zip(
                transcript.timestamps, np.add(transcript.timestamps, transcript.durations), strict=True
            )
        ]
        spoken = [golden.tokens[token] for token in transcript.token_ids if golden.tokens[token] != "<unk>"]
        text, words = spell_with_times(spoken, spans[: len(spoken)])
        assert transcript.text == text == wanted["text"], clip
        assert [list(span) for span in words] == wanted.get("timestamp", []), clip
        compared += len(words)
    assert compared > 25


def test_an_utterance_in_pieces_gives_the_same_hypotheses(paraformers: Paraformers) -> None:
    golden = paraformers(PLAIN)
    encoded = golden.clip("digits_a")["enc_out"][None]
    steps = encoded.shape[1]

    @quick_jit
    def run(params: dict[str, Any]) -> Any:
        search = ParallelSearch(golden.bind(params).parallel)
        state = search.start(1, steps)
        for begin, end in ((0, 20), (20, steps)):
            state = search.step(state, encoded[:, begin:end], jnp.array([end - begin]))
        return search.finish(state), search_whole(search, jnp.asarray(encoded), jnp.array([steps]))

    pieces, whole = run(golden.params)
    assert emitted(pieces)[:2] == emitted(whole)[:2]
    np.testing.assert_allclose(pieces.score, whole.score, rtol=1e-5)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0, 0.75])
def test_losses(paraformers: Paraformers, ratio: float) -> None:
    """The loss of the batch, without and with the sampler, whose permutations are given; and what it is made of."""
    golden = paraformers(PLAIN)
    stored, made = read_arrays(golden.folder / "batch.npz"), read_arrays(golden.folder / "loss.npz")
    wanted = json.loads((golden.folder / "loss.json").read_text(encoding="utf-8"))
    expected = wanted[f"sampling_ratio_{ratio}"]
    labels, label_lengths = padded([np.array(target)[:, None] for target in wanted["targets"]], 9)
    order = np.full((len(BATCH), 10), 10, np.int32)
    for row, permutation in enumerate(expected.get("randperms_in_call_order", [])):
        order[row, permutation] = np.arange(len(permutation))

    @quick_jit
    def run(params: dict[str, Any]) -> Any:
        head, lengths = golden.bind(params, padding="publisher").parallel, jnp.asarray(stored["enc_len"], jnp.int32)
        texts = labels[..., 0].astype(np.int32)
        options: Any = {"smoothing": 0.1, "sampled": ratio, "order": order if ratio else None}
        fired, total = head.fire_known(stored["enc_out"], lengths, label_lengths + 1, 10)
        whole = parallel_loss(head, stored["enc_out"], lengths, texts, label_lengths, **options)
        # The weights of the last row add up to 2.9999997 there, so that FunASR's third vector is zeros.
        lost = fired._replace(vectors=fired.vectors.at[3, 2].set(0.0))
        texts, _ = with_end(jnp.asarray(texts), label_lengths, head.config.end_id)
        loss = text_loss(head, lost, stored["enc_out"], lengths, texts, **options)
        return loss, whole, lost, total, head.decode(lost, stored["enc_out"], lengths)

    loss, whole, fired, total, logits = run(golden.params)
    counts = label_lengths + 1
    assert counts.sum() == expected["weight"]
    assert loss.sum() / counts.sum() == pytest.approx(expected["loss_att"], rel=1e-5)
    assert np.abs(total - counts).sum() / counts.sum() == pytest.approx(expected["loss_pre"], rel=1e-5)
    np.testing.assert_allclose(whole[:3], (loss + np.abs(total - counts))[:3], rtol=1e-5)
    assert off(total, made["token_num"]) <= WEIGHTS * 10
    assert off(fired.weights, made["alphas_scaled"]) <= WEIGHTS
    for row, count in enumerate(counts):
        assert off(fired.vectors[row, :count], made["acoustic_embeds"][row, :count]) <= VECTORS
        assert off(logits[row, :count], made["logits"][row, :count]) <= LOGITS


# --- the streaming model over whole utterances ------------------------------------------------------------------------

ONLINE = "paraformer-online-tiny"
ONLINE_CLIPS = ("digits_a", "espeak_sentence", "funasr-zh", "funasr-short")
RESULTS = {"chunked": "chunked", "full": "full_context_offline_classes"}  # of results.json


@pytest.fixture(scope="session", params=["chunked", "full"])
def online(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The form's name, and the streaming model, converted for it: chunks by default, or none of them."""
    directory = tmp_path_factory.mktemp("models") / f"{ONLINE}-{request.param}"
    chunk_seconds = None if request.param == "chunked" else float("inf")
    jaxasr.convert_checkpoint(shared / "golden" / ONLINE, directory, chunk_seconds=chunk_seconds)
    config, params, tokens = store.load(directory)
    return request.param, GoldenParaformer(
        shared / "golden" / ONLINE, directory, config, jax.device_put(params), tokens
    )


def test_a_streaming_model_over_whole_utterances(online: tuple[str, GoldenParaformer]) -> None:
    """From stored features in one batch: encoder blocks, masks, weights, vectors, logits and ids of each clip."""
    form, golden = online
    stored = [read_arrays(golden.folder / f"offline_{clip}.npz") for clip in ONLINE_CLIPS]
    frames, lengths = padded([each["feats"] for each in stored], max(len(each["feats"]) for each in stored))

    @quick_jit
    def run(params: dict[str, Any], frames: jax.Array, lengths: jax.Array) -> Any:
        model = golden.bind(params)
        encoded, rows = model.encoder(frames, lengths)
        fired = model.parallel.fire(encoded, rows)
        seen = {"enc_out": encoded, "alphas": fired.weights, "fires": fired.running.fires}
        seen |= {"acoustic_embeds": fired.vectors, "logits": model.parallel.decode(fired, encoded, rows)}
        return seen, rows, fired, model.parallel.masks(fired, rows, encoded.shape[1])[1]

    seen, rows, fired, sees = run(golden.params, frames, lengths)
    for row, (clip, arrays) in enumerate(zip(ONLINE_CLIPS, stored, strict=True)):
        theirs = {name.removeprefix(f"{form}/"): array for name, array in arrays.items() if name.startswith(form)}
        count = int(theirs["token_num"][0])
        assert fired.counts[row] == count and rows[row] == len(theirs["enc_out"]), clip
        for name in seen.keys() & theirs.keys():
            inside = slice(None)
            if form == "chunked" and name == "enc_out":
                inside = theirs["mask_shfit_chunk"][:, 0] > 0  # what stands in the gaps is read by nobody
            ours = valid_part(name, seen[name][row], rows[row], count)
            assert off(ours[inside], theirs[name][inside]) <= limit(name), (clip, name)
        if count:
            assert seen["logits"][row, :count].argmax(-1).tolist() == theirs["ids"].tolist()
        if "scama_mask" in theirs:
            np.testing.assert_array_equal(sees[row, :count, : rows[row]], theirs["scama_mask"] > 0)
        assert (fired.frames[row, :count] < lengths[row]).all() and (np.diff(fired.frames[row, :count]) >= 0).all()


def test_a_streaming_model_over_whole_recordings(
    online: tuple[str, GoldenParaformer], clips: dict[str, np.ndarray]
) -> None:
    """From sound, as users transcribe: ids and texts of FunASR's own chunks, and of its offline classes."""
    form, golden = online
    with jaxasr.load_model(golden.directory) as recognizer:
        heard = list(recognizer.transcribe([clips[clip] for clip in ONLINE_CLIPS], sample_rate=16000))
    for clip, transcript in zip(ONLINE_CLIPS, heard, strict=True):
        wanted = golden.results["_offline"][clip][RESULTS[form]]
        assert transcript.token_ids == [token for token in wanted["ids"] if token not in (0, 1, 2)], clip
        assert transcript.text == wanted["text"], clip
    assert sum(len(transcript.tokens) for transcript in heard) > 15
