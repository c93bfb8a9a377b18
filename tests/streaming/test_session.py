"""Streams of small models: whatever the pieces, and whoever has the other slots, they say what the whole says."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxasr.encoders.conformer_config import ConformerConfig
from jaxasr.encoders.icefall_conformer_config import IcefallConformerConfig
from jaxasr.encoders.sanm_config import SanmConfig
from jaxasr.errors import AudioError, ConfigError, ModelError
from jaxasr.features.kaldi_config import KaldiConfig
from jaxasr.features.lfr_config import LfrConfig
from jaxasr.features.nemo_config import NemoMelConfig
from jaxasr.heads.configs import CTCConfig, TransducerConfig
from jaxasr.heads.lstm_config import LSTMConfig
from jaxasr.heads.parallel_config import ParallelConfig
from jaxasr.layers.sliding import Sliding
from jaxasr.model import AbstractModel
from jaxasr.model_config import AudioConfig, ModelConfig
from jaxasr.recognizer import Recognizer
from jaxasr.search import ParallelSearchConfig
from jaxasr.streaming import Stream, Streams
from jaxasr.testing import random_parameters, tiny_config
from jaxasr.text.funasr import FunasrConfig
from jaxasr.text.tokens import TokenTable

RATE = 16000
TOKENS = TokenTable(("<blk>", "<unk>", "▁A", "▁B", "C", "D", "E", "F"))
CUTS = 200  # of the first model; a quarter of them of each other
ROWS, LONGEST = 25, 170000  # samples of the longest utterance, silence included: one program decodes them whole


def chunked() -> ModelConfig:
    """Convolutions and attention within chunks, of which whole ones alone are decoded; a transducer, greedily."""
    config = tiny_config()
    encoder: Any = dataclasses.replace(config.encoder, causal=True, chunk_size=16, left_context=16, whole_chunks=True)
    return dataclasses.replace(config, encoder=encoder, audio=AudioConfig(silence_before=0.1, silence_after=0.3))


def with_a_shorter_chunk() -> ModelConfig:
    """Convolutions and attention within chunks, the last of which may be shorter; stacks at two rates, CTC."""
    config = chunked()
    twice: Any = {
        field.name: getattr(config.encoder, field.name) * 2
        for field in dataclasses.fields(config.encoder)  # type: ignore[arg-type]
        if isinstance(getattr(config.encoder, field.name), tuple) and field.name != "embed_channels"
    }
    encoder: Any = dataclasses.replace(config.encoder, **twice | {"downsampling": (1, 2), "whole_chunks": False})
    return dataclasses.replace(config, encoder=encoder, transducer=None)


def with_a_last_chunk() -> ModelConfig:
    """The last chunk may be shorter; a predictor with a memory, and tokens with durations."""
    encoder = ConformerConfig(
        num_layers=1, dim=8, num_heads=2, feedforward_dim=8, conv_kernel=5, subsampling=8, front_end="separable",
        front_end_channels=4, causal_front_end=True, context=(4, 1), context_style="chunked", conv_context=(4, 0),
        conv_norm="layer",
    )  # fmt: skip
    transducer = TransducerConfig(
        8, predictor=LSTMConfig(dim=8), joiner_dim=8, durations=(0, 1, 3), max_symbols=2, activation="relu"
    )
    features = NemoMelConfig(normalize="none", framing="reflected")
    return dataclasses.replace(tiny_config(), encoder=encoder, features=features, transducer=transducer, ctc=None)


def with_a_right_context() -> ModelConfig:
    """A chunk sees what comes after it; CTC, whose tokens begin where the one before was said."""
    encoder = IcefallConformerConfig(
        num_layers=1, encoder_dim=8, feedforward_dim=8, num_heads=2, conv_kernel=5, embed_channels=(2, 4, 4),
        causal=True, chunk_size=4, left_context=8, right_context=2, whole_chunks=True,
    )  # fmt: skip
    ctc = CTCConfig(8, token_frames="previous")
    audio = AudioConfig(silence_after=0.66)
    return dataclasses.replace(tiny_config(), encoder=encoder, transducer=None, ctc=ctc, audio=audio)


def with_a_parallel_head() -> ModelConfig:
    """A window slides over the stream, in which a parallel head says all tokens at once."""
    window = Sliding(current=4, ahead=2)
    sizes: dict[str, Any] = {"num_layers": 1, "num_heads": 1, "feedforward_dim": 4, "kernel": 3, "window": window}
    features = LfrConfig(fbank=KaldiConfig(bins=4), stacked=3, shift=2)
    return ModelConfig(
        name="tiny",
        encoder=SanmConfig(dim=4, input_dim=features.output_dim, **sizes),
        features=features,
        text=FunasrConfig(),
        parallel=ParallelConfig(vocabulary_size=8, **sizes),
        search=ParallelSearchConfig(),
    )


MODELS: dict[str, tuple[Callable[[], ModelConfig], dict[str, Any]]] = {
    "chunked": (chunked, {}),
    "beam": (chunked, {"search": "beam"}),
    "shorter chunk": (with_a_shorter_chunk, {}),
    "last chunk": (with_a_last_chunk, {}),
    "right context": (with_a_right_context, {}),
}


def recognizer_of(name: str, **options: Any) -> Recognizer:
    make, own = MODELS[name]
    config = make()
    params = random_parameters(AbstractModel(config).parameters, 3)
    if "filterbank" in params.get("features", {}):
        params["features"]["filterbank"] = np.abs(params["features"]["filterbank"])  # a logarithm follows
    return Recognizer(config, params, TOKENS, **own, **options)


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return recognizer_of("chunked")


@pytest.fixture(scope="module")
def streams(recognizer: Recognizer) -> Streams:
    return recognizer.streams(8)


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """Noise that gets louder and softer."""
    rng = np.random.default_rng(5)
    loudness = np.repeat(rng.uniform(0.001, 0.3, LONGEST // 2000), 2000)
    return (rng.standard_normal(len(loudness)) * loudness).astype(np.float32)


def pieces_of(utterance: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """An utterance in pieces of 1 sample to 10 s, some single samples among them."""
    pieces = []
    while len(utterance):
        size = 1 if rng.random() < 0.5 else int(10 ** rng.uniform(0, 5.2))
        pieces.append(utterance[:size])
        utterance = utterance[size:]
    return pieces


def run_side_by_side(streams: Streams, utterances: list[list[np.ndarray]], rng: np.random.Generator) -> list[Any]:
    """The transcripts of utterances in pieces, as many at a time as there are slots, a piece of some of them next."""
    found: list[Any] = [None] * len(utterances)
    waiting = list(enumerate(utterances))[::-1]
    running: dict[int, tuple[Stream, list[np.ndarray]]] = {}
    while waiting or running:
        while waiting and len(running) < streams.slots:
            number, pieces = waiting.pop()
            running[number] = streams.open(), pieces[::-1]
        next_ones = [number for number in running if rng.random() < 0.8]
        streams.feed([(running[number][0], running[number][1].pop()) for number in next_ones if running[number][1]])
        over = [number for number, (_, pieces) in running.items() if not pieces]
        for number, transcript in zip(over, streams.finish([running[each][0] for each in over]), strict=True):
            found[number] = transcript
            del running[number]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_whatever_the_pieces_a_stream_says_what_the_whole_says(
    name: str, recognizer: Recognizer, sound: np.ndarray
) -> None:
    """Utterances end anywhere, many of them within a token: tokens, frames and durations equal those of the whole."""
    if name != "chunked":
        recognizer = recognizer_of(name)
    audio = recognizer.config.audio
    before, after = round(audio.silence_before * RATE), round(audio.silence_after * RATE)
    rng = np.random.default_rng(7)
    cuts = CUTS if name == "chunked" else CUTS // 4
    lengths = rng.integers(1, 24000, cuts)
    lengths[:20] = np.arange(20) * 80 + 1  # shorter than a frame, a chunk or the features' reach
    lengths[20:25] = rng.integers(1, LONGEST - before - after, 5)
    starts = rng.choice([0, 777], cuts)  # two sounds to decide about: a near tie among thousands could go either way
    utterances = [sound[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    whole = []
    for first in range(0, cuts, ROWS):
        waveforms = np.zeros((ROWS, LONGEST), np.float32)
        for row, utterance in enumerate(utterances[first : first + ROWS]):
            waveforms[row, before : before + len(utterance)] = utterance
        sizes = np.array([len(each) for each in utterances[first : first + ROWS]], np.int32) + before + after
        found = recognizer.programs.run(waveforms, sizes)
        whole += [[np.asarray(leaf)[row, 0] for leaf in found[:5]] for row in range(ROWS)]

    transcripts = run_side_by_side(recognizer.streams(8), [pieces_of(each, rng) for each in utterances], rng)
    seconds = recognizer.config.seconds_per_frame
    for transcript, (tokens, frames, durations, log_probs, count), utterance in zip(
        transcripts, whole, utterances, strict=True
    ):
        assert transcript.token_ids == tokens[:count].tolist()
        assert transcript.duration == len(utterance) / RATE
        if name == "beam":  # frames of equal sound tie, and a rounding decides which of them a merged hypothesis keeps
            continue
        times = np.maximum(frames[:count] * seconds - audio.silence_before, 0)
        np.testing.assert_allclose(transcript.timestamps, times, atol=1e-4)  # which is what they are rounded to
        if recognizer.config.transducer is not None and recognizer.config.transducer.durations:
            np.testing.assert_allclose(transcript.durations, durations[:count] * seconds, atol=1e-4)
        np.testing.assert_allclose(transcript.log_probs, log_probs[:count], rtol=1e-3, atol=1e-4)
    counts = [len(each.tokens) for each in transcripts]
    assert max(counts) > 5 and min(counts[20:]) < max(counts)


def test_a_partial_grows_into_the_transcript(recognizer: Recognizer, streams: Streams, sound: np.ndarray) -> None:
    whole = next(recognizer.transcribe(sound[:40000]))
    assert len(whole.tokens) > 10
    grown = [()]
    with streams.open() as stream:
        for start in range(0, 40000, 1000):
            stream.feed(sound[start : start + 1000].astype(np.float64))
            partial = stream.partial
            assert partial.duration == (start + 1000) / RATE
            assert tuple(partial.token_ids[: len(grown[-1])]) == grown[-1]
            assert len(partial.tokens) == len(partial.timestamps) == len(partial.log_probs)
            grown.append(tuple(partial.token_ids))
        transcript = stream.finish()
    assert len(set(grown)) > 5
    assert (transcript.text, transcript.tokens, transcript.token_ids) == (whole.text, whole.tokens, whole.token_ids)
    assert transcript.timestamps == whole.timestamps and transcript.duration == whole.duration
    assert stream.partial == transcript


def test_several_streams_are_fed_and_finished_together(streams: Streams, sound: np.ndarray) -> None:
    clips = [sound[:30000], sound[20000:41000], sound[:0]]
    alone = []
    for clip in clips:
        stream = streams.open()
        stream.feed(clip)
        alone.append(stream.finish())
    together = [streams.open() for _ in clips]
    for start in range(0, 30000, 10000):
        streams.feed([(stream, clip[start : start + 10000]) for stream, clip in zip(together, clips, strict=True)])
    found = streams.finish(together)
    assert [each.token_ids for each in found] == [each.token_ids for each in alone]
    assert found[2].text == "" and found[2].duration == 0 and found[0].text


def test_slots_are_freed(recognizer: Recognizer, streams: Streams, sound: np.ndarray) -> None:
    opened = [streams.open() for _ in range(streams.slots)]
    with pytest.raises(ConfigError, match="all 8 slots hold streams: finish or close one"):
        streams.open()
    opened[3].close()
    opened[3].close()
    with streams.open() as stream:
        stream.feed(sound[:100])
    for each in (opened[3], stream):
        with pytest.raises(ConfigError, match="finished or closed"):
            each.feed(sound[:100])
        with pytest.raises(ConfigError, match="finished or closed"):
            each.finish()
    with pytest.raises(ConfigError, match="another recognizer's"):
        recognizer.streams(8).feed([(opened[0], sound)])
    for each in opened:
        each.close()
    with pytest.raises(ConfigError, match="slots must be a number of streams, not 0"):
        recognizer.streams(0)


@pytest.mark.parametrize(
    "samples", [np.zeros((2, 8), np.float32), np.zeros(8, np.int16), np.float32(0.5), np.array([0.0, np.nan])]
)
def test_what_is_no_sound_is_refused(streams: Streams, samples: np.ndarray) -> None:
    with streams.open() as stream, pytest.raises(AudioError, match="a stream (is fed arrays|was fed NaN)"):
        stream.feed(samples)


def test_an_overflow_is_an_error_and_ends_one_stream_alone(streams: Streams, sound: np.ndarray) -> None:
    other = streams.open()
    other.feed(sound[:9000])
    with streams.open() as stream, pytest.raises(ModelError, match="leaves the range of its numbers"):
        stream.feed(np.full(40000, 1e30, np.float32) * sound[:40000])
    other.feed(sound[9000:20000])
    again = streams.open()
    again.feed(sound[:20000])
    assert other.finish().token_ids == again.finish().token_ids


def test_a_recognizer_with_streams_pickles(recognizer: Recognizer, streams: Streams, sound: np.ndarray) -> None:
    copy = pickle.loads(pickle.dumps(recognizer))
    with copy.stream() as stream, streams.open() as ours:
        for each in (stream, ours):
            each.feed(sound[:30000])
        assert stream.finish().token_ids == ours.finish().token_ids
    copy.close()


def test_models_that_cannot_stream_are_refused_in_one_line(recognizer: Recognizer) -> None:
    def refused(config: ModelConfig, **options: Any) -> str:
        params = random_parameters(AbstractModel(config).parameters)
        with pytest.raises(ConfigError) as error:
            Recognizer(config, params, TOKENS, **options).stream()
        return str(error.value)

    assert refused(tiny_config()).startswith("tiny cannot stream, since its encoder is computed over whole recordings")
    features = dataclasses.replace(with_a_last_chunk().features, normalize="per_feature")
    normalized = dataclasses.replace(with_a_last_chunk(), features=features)
    assert "since its features are computed over whole recordings: take a model whose" in refused(normalized)
    assert refused(chunked(), search="joint") == (
        "tiny: a joint search hears the whole recording: take search greedy or beam"
    )
    remedied = "tiny: a parallel search of 4 hypotheses hears the whole recording: leave out beam"
    assert refused(with_a_parallel_head(), beam=4) == remedied
