"""Reading audio: every format, rate, shape and type to float32 mono at 16 kHz, and one line for what cannot be read."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import tracemalloc
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from scipy import signal

from jaxasr import audio
from jaxasr.errors import AudioError
from sound_files import encoded, tone

FORMATS = {  # format, subtype: largest error allowed against the samples written
    ("WAV", "PCM_U8"): 2**-7,
    ("WAV", "PCM_16"): 2**-15,
    ("WAV", "PCM_24"): 2**-23,
    ("WAV", "PCM_32"): 2**-23,
    ("WAV", "FLOAT"): 0.0,
    ("WAV", "DOUBLE"): 0.0,
    ("WAV", "ULAW"): 0.03,
    ("WAVEX", "PCM_16"): 2**-15,
    ("W64", "PCM_16"): 2**-15,
    ("RF64", "PCM_16"): 2**-15,
    ("FLAC", "PCM_16"): 2**-15,
    ("FLAC", "PCM_24"): 2**-23,
    ("AIFF", "PCM_16"): 2**-15,
    ("CAF", "ALAC_16"): 2**-15,
    ("AU", "PCM_16"): 2**-15,
    ("OGG", "VORBIS"): 0.05,
    ("OGG", "OPUS"): 0.05,
    ("MP3", "MPEG_LAYER_III"): 0.05,
}


def refusal(source: Any, sample_rate: Any = None) -> str:
    """The message with which `load` refuses: always one line."""
    with pytest.raises(AudioError) as caught:
        audio.load(source, sample_rate)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(("form", "subtype"), FORMATS)
def test_formats(tmp_path: Path, form: str, subtype: str) -> None:
    samples = tone(1.0, 16000)
    content = encoded(samples, 16000, form, subtype)
    path = tmp_path / "extensions.do.not.matter"
    path.write_bytes(content)
    from_path = audio.load(path)
    assert from_path.dtype == np.float32
    assert from_path.shape == samples.shape
    inside = slice(800, -800)  # codecs fade in and out
    assert np.abs(from_path - samples)[inside].max() <= FORMATS[form, subtype]
    np.testing.assert_array_equal(audio.load(str(path)), from_path)
    np.testing.assert_array_equal(audio.load(content), from_path)
    np.testing.assert_array_equal(audio.load(memoryview(content)), from_path)
    with path.open("rb") as file:
        np.testing.assert_array_equal(audio.load(file), from_path)


@pytest.mark.parametrize("name", ["speech.wav", "speech.raw", "speech.flac", "speech"])
@pytest.mark.parametrize(("form", "subtype"), [("MP3", "MPEG_LAYER_III"), ("WAV", "PCM_16")])
def test_misnamed_files_go_by_content(tmp_path: Path, name: str, form: str, subtype: str) -> None:
    path = tmp_path / name
    path.write_bytes(encoded(tone(0.5, 16000), 16000, form, subtype))
    assert audio.load(path).shape == (8000,)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 24000, 32000, 44100, 48000, 96000])
def test_resampling(rate: int) -> None:
    expected = tone(2.0, 16000)
    from_file = audio.load(encoded(tone(2.0, rate), rate, subtype="FLOAT"))
    from_array = audio.load(tone(2.0, rate), rate)
    np.testing.assert_array_equal(from_file, from_array)
    assert abs(len(from_file) - 32000) <= 1
    inside = slice(1000, 31000)
    # Scipy's short filter, taken from below 16 kHz, ripples by a thousandth in its passband; soxr's does not.
    assert np.abs(from_file[inside] - expected[inside]).max() < (1e-4 if rate > 16000 else 1e-3)
    if rate > 16000:
        np.testing.assert_array_equal(from_array, soxr.resample(tone(2.0, rate), rate, 16000, quality="HQ"))


def test_telephone_audio_is_raised_as_the_published_table_was() -> None:
    noise = np.random.default_rng(1).standard_normal(8000) * 0.1
    expected = signal.resample_poly(noise, 2, 1)  # float64
    np.testing.assert_allclose(audio.load(noise, 8000), expected, atol=1e-6)


def test_frequencies_above_8_khz_do_not_fold_back() -> None:
    assert np.abs(audio.load(tone(1.0, 48000, 11000.0), 48000)[200:-200]).max() < 1e-4


def test_mixing_is_the_mean_of_the_channels() -> None:
    left, right, middle = tone(0.5, 16000, 300.0), tone(0.5, 16000, 500.0), tone(0.5, 16000, 900.0)
    for channels in ([left, right], [left, right, middle]):
        stacked = np.stack(channels, axis=1)
        mono = audio.load(encoded(stacked, subtype="FLOAT"))
        np.testing.assert_allclose(mono, stacked.mean(axis=1), atol=1e-7)
        np.testing.assert_array_equal(audio.load(stacked), mono)
        np.testing.assert_array_equal(audio.load(stacked.T), mono)
    np.testing.assert_array_equal(audio.load(left[:, None]), left)
    np.testing.assert_array_equal(audio.load(left[None, :]), left)


def test_two_samples_of_two_channels_are_samples_first() -> None:
    np.testing.assert_array_equal(audio.load(np.array([[0.5, 0.25], [0.0, 0.5]])), np.float32([0.375, 0.25]))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([-32768, 0, 16384], np.int16), [-1.0, 0.0, 0.5]),
        (np.array([-32768, 0, 16384], ">i2"), [-1.0, 0.0, 0.5]),
        (np.array([-(2**31), 0, 2**30], np.int32), [-1.0, 0.0, 0.5]),
        (np.array([0, 128, 192], np.uint8), [-1.0, 0.0, 0.5]),
        (np.array([-1.0, 0.0, 0.5], np.float16), [-1.0, 0.0, 0.5]),
        (np.array([-1.0, 0.0, 0.5], np.float32), [-1.0, 0.0, 0.5]),
        (np.array([-1.0, 0.0, 0.5], np.float64), [-1.0, 0.0, 0.5]),
        (np.array([-1.0, 9.0, 0.0, 9.0, 0.5, 9.0])[::2], [-1.0, 0.0, 0.5]),
    ],
)
def test_array_types(array: np.ndarray, expected: list[float]) -> None:
    samples = audio.load(array)
    assert samples.dtype == np.float32
    assert samples.tolist() == expected


def test_a_loaded_array_is_a_copy() -> None:
    array = np.zeros(100, np.float32)
    audio.load(array)[:] = 1.0
    assert not array.any()


@pytest.mark.parametrize(
    ("array", "rate", "message"),
    [
        (np.zeros(4, np.int64), None, "dtype int64"),
        (np.zeros(4, bool), None, "dtype bool"),
        (np.zeros(4, complex), None, "dtype complex128"),
        (np.array(["a"]), None, "dtype <U1"),
        (np.zeros(()), None, "0 axes"),
        (np.zeros((2, 3, 4)), None, "3 axes"),
        (np.zeros((80, 500)), None, "80 channels"),
        (np.zeros(4), 0, "sample rate of 0 Hz"),
        (np.zeros(4), -16000, "sample rate of -16000 Hz"),
        (np.zeros(4), float("nan"), "sample rate of nan Hz"),
        (np.zeros(4), float("inf"), "sample rate of inf Hz"),
        (np.zeros(4), "16000", "must be a number"),
        (np.zeros(4), True, "must be a number"),
        (np.array([0.0, np.nan]), None, "NaN"),
        (np.array([0.0, np.inf]), 8000, "infinite"),
        (np.array([[0.0, np.inf], [0.0, -np.inf], [0.0, 0.0]]), None, "NaN"),
        (np.array([0.0, 1e300]), None, "absurdly large"),
        (np.array([0.0, 1e10], np.float32), None, "absurdly large"),
    ],
)
def test_arrays_that_are_no_audio(array: np.ndarray, rate: Any, message: str) -> None:
    assert message in refusal(array, rate)


def test_other_types_are_refused() -> None:
    assert "not list" in refusal([0.0, 0.5])
    assert "not NoneType" in refusal(None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_files_with_samples_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    samples = tone(1.0, 44100)
    samples[30000] = value
    path = tmp_path / "broken.wav"
    soundfile.write(path, samples, 44100, subtype="FLOAT")
    assert refusal(path).startswith(f"{path}: holds NaN, infinite")


@pytest.mark.parametrize(
    "source",
    [
        encoded(np.zeros(0, np.float32)),
        encoded(np.zeros(0, np.float32), 44100),
        encoded(np.zeros((0, 2), np.float32), 16000, "AIFF"),
        np.zeros(0, np.float32),
        np.zeros((0, 2), np.int16),
        np.zeros((2, 0)),
    ],
)
def test_no_samples_are_an_empty_array(source: bytes | np.ndarray) -> None:
    samples = audio.load(source)
    assert samples.shape == (0,)
    assert samples.dtype == np.float32


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("length", [1, 2, 160])
def test_very_short_files(rate: int, length: int) -> None:
    samples = audio.load(encoded(np.full(length, 0.25, np.float32), rate))
    assert abs(len(samples) - length * 16000 / rate) <= 1
    assert np.isfinite(samples).all()


def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing.wav"
    assert refusal(missing) == f"{missing}: no such file; check the path"
    assert "is a folder" in refusal(tmp_path)
    assert "cannot be read" in refusal("nul\0character.wav")
    assert "cannot be read" in refusal("x" * 5000)
    empty = tmp_path / "empty.wav"
    empty.touch()
    assert refusal(empty).startswith(f"{empty}: is empty (0 bytes)")
    assert "empty (0 bytes)" in refusal(b"")

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # A test that runs as root may open everything: the refusal is staged.
    monkeypatch.setattr(audio, "open", deny, raising=False)
    assert refusal(empty) == f"{empty}: permission denied; make the file readable for this user"


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file whose reading fails")
def test_a_disk_that_fails() -> None:
    assert refusal("/proc/self/mem").startswith("/proc/self/mem: cannot be read (")


def test_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(tone(0.5, 16000))
    expected = audio.load(content)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(content)))
    np.testing.assert_array_equal(audio.load("-"), expected)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO()))
    assert refusal("-").startswith("standard input: is empty")

    class Socket:
        def read(self) -> bytes:
            raise ConnectionError("reset\nby peer")

    assert "cannot be read (reset by peer)" in refusal(Socket())
    assert "gives str instead of bytes" in refusal(io.StringIO("text"))

    if hasattr(os, "mkfifo"):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_bytes, args=(content,))
        writer.start()
        np.testing.assert_array_equal(audio.load(pipe), expected)
        writer.join()


def test_headers_of_pipes_and_of_crashed_recorders() -> None:
    content = bytearray(encoded(tone(0.5, 16000)))
    expected = audio.load(bytes(content))
    content[4:8] = content[40:44] = b"\xff" * 4  # what a program writes that cannot seek back
    np.testing.assert_array_equal(audio.load(bytes(content)), expected)
    content[4:8], content[40:44] = (36).to_bytes(4, "little"), bytes(4)  # what stands there while recording
    np.testing.assert_array_equal(audio.load(bytes(content)), expected)
    content[24:28] = (5).to_bytes(4, "little")
    content[4:8] = content[40:44] = b"\xff" * 4
    assert "sample rate of 5 Hz" in refusal(bytes(content))


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "IMA_ADPCM"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("CAF", "ALAC_16"),
    ]
    + [("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_24")],
)
@pytest.mark.usefixtures("silenced")
def test_damaged_files(capfd: pytest.CaptureFixture[str], form: str, subtype: str) -> None:
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, (16000, 2)).astype(np.float32)
    content = encoded(noise, 16000, form, subtype)
    rng = np.random.default_rng(2)
    damaged = [content[:size] for size in (1, 3, 4, 12, 20, 30, 44, 100, 1000, len(content) // 2, len(content) - 1)]
    for _ in range(30):
        flipped = bytearray(content)
        for place in rng.integers(0, len(content), 8).tolist() + rng.integers(0, 60, 2).tolist():
            flipped[place] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    middle = len(content) // 2
    damaged.append(content[:middle] + bytes(5000) + content[middle:])
    refused = 0
    for case in damaged:
        try:
            samples = audio.load(case)
        except AudioError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
        else:
            assert samples.dtype == np.float32
            assert np.isfinite(samples).all()
    assert refused >= 3
    assert capfd.readouterr().err == ""


def variable_rate_mp3() -> bytes:
    """Two seconds of silence and four of noise: the first frames' bit rate says nothing about the rest."""
    samples = np.zeros(6 * 16000, np.float32)
    samples[32000:] = np.random.default_rng(1).uniform(-0.5, 0.5, 64000)
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="MP3", bitrate_mode="VARIABLE", compression_level=0.3)
    return file.getvalue()


@pytest.mark.usefixtures("silenced")
def test_mp3_without_a_header_that_tells_its_length(capfd: pytest.CaptureFixture[str]) -> None:
    content = variable_rate_mp3()
    assert audio.load(content).shape == (96000,)
    start = content.index(b"\xff\xf3", 4)  # the second frame: what is left has no Xing header
    bare = content[start:]
    assert soundfile.info(io.BytesIO(bare)).frames != 96000  # libsndfile guesses
    samples = audio.load(bare)
    assert 96000 <= len(samples) <= 96000 + 4 * 576
    assert np.abs(samples[-16000:]).mean() > 0.1
    tag = b"ID3\x03\0\0" + bytes([0, 0, 2, 0]) + bytes(256)
    np.testing.assert_array_equal(audio.load(tag + bare), samples)
    assert capfd.readouterr().err == ""


def test_joined_files_are_read_to_the_end_or_refused() -> None:
    content = variable_rate_mp3()
    joined = audio.load(content + content)
    assert 2 * 96000 <= len(joined) <= 2 * 96000 + 12 * 576
    assert np.abs(joined[-16000:]).mean() > 0.1
    tags = (
        b"TAG" + bytes(125),
        b"APETAGEX\xd0\x07\0\0" + bytes(50000),
        b"TAG" + bytes(125) + b"ID3\3\0\0\0\1\0\0" + bytes(16384),
    )
    for tag in tags:
        np.testing.assert_array_equal(audio.load(content + tag), audio.load(content))
    assert len(audio.load(content + tags[2] + content)) >= 2 * 96000


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x1cftypM4A \0\0\0\0", "M4A or MP4 audio needs PyAV"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81", "WebM or Matroska audio needs PyAV"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA audio needs PyAV"),
        (b"#!AMR\n", "AMR audio needs PyAV"),
        (b"\xff\xf1`\x80W\xff\xfc", "AAC audio needs PyAV"),
        (b"the old man near the station", "is no audio that libsndfile knows"),
        (bytes(16), "is no audio that libsndfile knows"),
        (b"\xff", "is no audio that libsndfile knows"),
    ],
)
def test_without_pyav_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, head: bytes, kind: str) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    message = refusal(head + bytes(2000 if len(head) > 1 else 0))
    assert kind in message
    assert message.endswith("pip install av")


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [("mp4", "aac", 44100), ("ipod", "aac", 48000), ("webm", "libopus", 48000), ("adts", "aac", 16000)]
    + [("matroska", "flac", 48000), ("mov", "pcm_s16le", 8000)],
)
def test_formats_of_pyav(tmp_path: Path, container: str, codec: str, rate: int) -> None:
    av = pytest.importorskip("av", reason="needs PyAV (pip install av)")
    samples = np.stack([tone(2.0, rate), np.zeros(2 * rate, np.float32)])
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.layout = "stereo"
        for start in range(0, samples.shape[1], 1024):
            piece = np.ascontiguousarray(samples[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, start
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    path = tmp_path / "speech.wav"
    path.write_bytes(file.getvalue())
    decoded = audio.load(path)
    assert abs(len(decoded) - 32000) <= 2048
    spectrum = np.abs(np.fft.rfft(decoded[8000:24000]))
    assert spectrum.argmax() == 440
    assert spectrum.max() == pytest.approx(0.25 * 8000, rel=0.05)
    for cut in (len(file.getvalue()) // 2, 60, 13):
        try:
            assert len(audio.load(file.getvalue()[:cut])) < 32000
        except AudioError as error:
            assert len(str(error).splitlines()) == 1


def test_twenty_minutes_of_stereo_take_little_more_than_the_result(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    rate, seconds = 48000, 20 * 60
    with soundfile.SoundFile(path, "w", rate, 2, "PCM_16") as file:
        minute = np.zeros((60 * rate, 2), np.int16)
        for _ in range(seconds // 60 - 1):
            file.write(minute)
        minute[:, 0] = (tone(60.0, rate) * 32768).astype(np.int16)
        file.write(minute)
    tracemalloc.start()
    try:
        samples = audio.load(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(samples) == seconds * 16000
    assert not samples[: -61 * 16000].any()
    assert np.abs(samples[-59 * 16000 :]).max() == pytest.approx(0.25, abs=0.01)
    assert peak < 1.2 * samples.nbytes + 40e6  # whole, the decoded file alone would be 6 times the result


def test_paths_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["b/2.WAV", "b/1.mp3", "b/notes.txt", "b/._1.mp3", "b/c/3.flac", "b/.hidden/4.wav", "a.wav", "z.opus"]
    for name in [*names, "odd[1].wav", "empty/readme.txt"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert audio.expand_paths(["b"]) == ["b/1.mp3", "b/2.WAV", "b/c/3.flac"]
    listed = ["z.opus", "b/1.mp3", "b/2.WAV", "b/c/3.flac", "-", "a.wav"]
    assert audio.expand_paths(["z.opus", "b", "-", "a.wav"]) == listed
    assert audio.expand_paths(["missing.wav", "b/notes.txt"]) == ["missing.wav", "b/notes.txt"]
    assert audio.expand_paths(["?.*"]) == ["a.wav", "z.opus"]
    assert audio.expand_paths(["b/*"]) == ["b/1.mp3", "b/2.WAV", "b/c/3.flac", "b/notes.txt"]
    assert audio.expand_paths(["b/**"]) == ["b/1.mp3", "b/2.WAV", "b/c/3.flac", "b/notes.txt"]
    assert audio.expand_paths(["**/*.wav"]) == ["a.wav", "odd[1].wav"]
    assert audio.expand_paths(["odd[1].wav"]) == ["odd[1].wav"]
    listed = [str(tmp_path / "b" / name) for name in ("1.mp3", "2.WAV", "c/3.flac")]
    assert audio.expand_paths([str(tmp_path / "b")]) == listed
    assert audio.expand_paths([]) == []
    for wrong, message in [("*.ogg", "no audio file matches"), ("empty", "no audio file in this folder")]:
        with pytest.raises(AudioError, match=message) as caught:
            audio.expand_paths(["a.wav", wrong])
        assert str(caught.value).startswith(f"{wrong}: ")


def test_importing_is_light() -> None:
    heavy = "{'jax', 'soundfile', 'soxr', 'av', 'librosa', 'scipy'}"
    code = f"import sys, jaxasr.audio; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
