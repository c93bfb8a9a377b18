"""What libsndfile refuses or reads short goes to FFmpeg; damage costs what it costs, in one line."""

from __future__ import annotations

import io
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxasr import audio
from jaxasr.errors import AudioError
from sound_files import encoded, loudest, muxed, syllables, tone

SECONDS = 6


def without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)


def refusal(source: bytes | Path) -> str:
    with pytest.raises(AudioError) as caught:
        audio.load(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def heard(samples: np.ndarray, seconds: range) -> list[float]:
    return [loudest(samples, second) for second in seconds]


def expected(seconds: range) -> list[float]:
    return [300.0 + 100.0 * second for second in seconds]


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("caf", "alac", 16000),
        ("wav", "g722", 16000),
        ("wav", "adpcm_g726", 8000),
        ("ogg", "flac", 16000),
        ("matroska", "alac", 16000),
        ("flv", "aac", 44100),
        ("asf", "mp2", 44100),
        ("avi", "mp2", 16000),
        ("mpegts", "mp2", 16000),
        ("tta", "tta", 16000),
        ("wv", "wavpack", 16000),
        ("ac3", "ac3", 48000),
    ],
)
def test_what_libsndfile_lacks(monkeypatch: pytest.MonkeyPatch, container: str, codec: str, rate: int) -> None:
    content = muxed(syllables(2, rate), rate, container, codec)
    samples = audio.load(content)
    assert abs(len(samples) - 32000) <= 3000
    assert heard(samples, range(2)) == expected(range(2))
    without_pyav(monkeypatch)
    message = refusal(content)
    assert message.endswith("PyAV (the extra media): pip install av")
    assert "damaged" not in message


def test_aac_in_wav() -> None:
    stream = muxed(syllables(2), 16000, "adts", "aac")
    form = struct.pack("<HHIIHHH", 0x1600, 1, 16000, 8000, 1, 0, 0)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(stream)) + stream
    samples = audio.load(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    assert abs(len(samples) - 32000) <= 3000
    assert heard(samples, range(2)) == expected(range(2))


def test_opus_in_caf() -> None:
    """As iPhones record; FFmpeg writes no such file, so that its chunks are put together here."""
    av = pytest.importorskip("av", reason="needs PyAV (pip install av)")
    with av.open(io.BytesIO(muxed(syllables(3, 48000), 48000, "ogg", "libopus"))) as container:
        packets = [bytes(packet) for packet in container.demux(audio=0) if packet.size]

    def chunk(tag: bytes, content: bytes) -> bytes:
        return tag + struct.pack(">q", len(content)) + content

    def variable(number: int) -> bytes:
        return bytes([number >> 7 | 128, number & 127]) if number > 127 else bytes([number])

    description = struct.pack(">d4sIIIII", 48000.0, b"opus", 0, 0, 960, 1, 0)
    sizes = struct.pack(">qqii", len(packets), 144000, 0, 0) + b"".join(variable(len(packet)) for packet in packets)
    chunks = chunk(b"desc", description) + chunk(b"pakt", sizes) + chunk(b"data", bytes(4) + b"".join(packets))
    samples = audio.load(b"caff" + struct.pack(">HH", 1, 0) + chunks)
    assert abs(len(samples) - 48000) <= 3000
    assert heard(samples, range(3)) == expected(range(3))


def flac_of_unknown_length() -> bytes:
    content = bytearray(encoded(syllables(SECONDS), form="FLAC"))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return bytes(content)


def test_flac_that_was_written_to_a_pipe(monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    without_pyav(monkeypatch)
    np.testing.assert_array_equal(
        audio.load(flac_of_unknown_length()), audio.load(encoded(syllables(SECONDS), form="FLAC"))
    )
    assert logged == []


def test_wav_of_a_recorder_that_died(logged: list[str]) -> None:
    for form in ("WAV", "RF64"):
        content = bytearray(encoded(syllables(1), form=form))
        whole = audio.load(bytes(content))
        data = content.index(b"data")
        content[data + 4 : data + 8] = bytes(4)
        if form == "RF64":
            content[28:36] = bytes(8)
        np.testing.assert_array_equal(audio.load(bytes(content)), whole)
        content[4:8] = bytes(4)
        np.testing.assert_array_equal(audio.load(bytes(content)), whole)
        # Chunks that fill the file follow a data chunk that is empty indeed.
        assert len(audio.load(bytes(content[: data + 8]) + b"LIST\x04\0\0\0INFO")) == 0
        assert len(audio.load(bytes(content[: data + 8]))) == 0
    assert logged == []


def test_wav_that_ends_before_its_header_says(logged: list[str]) -> None:
    content = encoded(syllables(2))
    assert len(audio.load(content[:-32000])) == 16000
    assert logged == ["audio bytes: 1.00 s of its sound are damaged or missing"]


DAMAGED = {  # container, codec, rate: seconds that go with 300 zeros in the middle, at least and at most
    ("flac", "", 16000): (0.1, 1.0),
    ("ipod", "aac", 16000): (0.06, 0.5),
    ("adts", "aac", 16000): (0.06, 0.5),
    ("matroska", "aac", 16000): (0.06, 2.6),
    ("matroska", "flac", 16000): (0.06, 2.6),
    ("webm", "libopus", 48000): (0.06, 2.6),
    ("mpegts", "aac", 16000): (0.06, 0.5),
    ("opus", "", 16000): (0.06, 2.0),
    ("vorbis", "", 16000): (0.06, 2.6),
    ("mp3", "", 16000): (0.06, 0.5),
}


def sound_of(container: str, codec: str, rate: int) -> bytes:
    if codec:
        return muxed(syllables(SECONDS, rate), rate, container, codec)
    form, subtype = {
        "flac": ("FLAC", "PCM_16"),
        "opus": ("OGG", "OPUS"),
        "vorbis": ("OGG", "VORBIS"),
        "mp3": ("MP3", "MPEG_LAYER_III"),
    }[container]
    # With some noise FLAC's frames and MP3's are as long as those of speech.
    noise = np.random.default_rng(1).normal(0, 0.01, SECONDS * 16000).astype(np.float32)
    return encoded(syllables(SECONDS) + noise, 16000, form, subtype)


@pytest.mark.parametrize(("container", "codec", "rate"), DAMAGED)
@pytest.mark.usefixtures("silenced")
def test_a_damaged_place_costs_what_it_holds(logged: list[str], container: str, codec: str, rate: int) -> None:
    pytest.importorskip("av", reason="needs PyAV (pip install av)")
    content = bytearray(sound_of(container, codec, rate))
    whole = audio.load(bytes(content))
    assert logged == []
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(300)
    samples = audio.load(bytes(content))
    (line,) = logged
    lost = float(re.findall(r"([0-9.]+) s of its sound are damaged or missing", line)[0])
    low, high = DAMAGED[container, codec, rate]
    assert low <= lost <= high
    assert abs(len(samples) - len(whole)) <= 16000 * min(lost, 0.4) + 3000
    # The first two seconds and, in their place, the last two.
    assert heard(samples, range(2)) == expected(range(2))
    if container != "mp3":
        assert heard(samples, range(SECONDS - 1, SECONDS)) == expected(range(SECONDS - 1, SECONDS))


def test_damaged_flac_without_pyav(monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    content = bytearray(sound_of("flac", "", 16000) * 1)
    content[len(content) // 2 : len(content) // 2 + 300] = bytes(300)
    without_pyav(monkeypatch)
    audio.load(bytes(content))
    (line,) = logged
    assert line.endswith("damaged or missing; to decode more of it, install PyAV (the extra media): pip install av")


@pytest.mark.parametrize(("container", "codec"), [("adts", "aac"), ("mpegts", "aac"), ("matroska", "flac")])
def test_a_file_that_is_cut_off_is_read_to_its_cut(container: str, codec: str) -> None:
    content = muxed(syllables(SECONDS), 16000, container, codec)
    samples = audio.load(content[: len(content) // 2])
    assert abs(len(samples) - SECONDS * 8000) < 12000
    assert heard(samples, range(2)) == expected(range(2))


def test_m4a_without_its_index_is_called_damaged() -> None:
    content = muxed(tone(2.0, 16000), 16000, "ipod", "aac")
    assert "M4A or MP4 audio, damaged or cut off" in refusal(content[: len(content) // 2])


@pytest.mark.parametrize("form", ["OGG VORBIS", "OGG OPUS", "FLAC PCM_16", "MP3 MPEG_LAYER_III"])
@pytest.mark.usefixtures("silenced")
def test_joined_files_are_heard_whole(monkeypatch: pytest.MonkeyPatch, logged: list[str], form: str) -> None:
    pytest.importorskip("av", reason="needs PyAV (pip install av)")
    single = encoded(syllables(2), 16000, *form.split())
    samples = audio.load(single + single)
    assert abs(len(samples) - 4 * 16000) < 3000
    assert heard(samples, range(1)) == expected(range(1))
    # The second file begins where the first one ends, but for what the codecs pad.
    assert loudest(samples, 2) == 300.0
    assert logged == []
    np.testing.assert_array_equal(audio.load(single + bytes(1000)), audio.load(single))
    without_pyav(monkeypatch)
    if form.startswith("MP3"):
        assert len(audio.load(single + single)) == len(samples)
    else:
        assert "several" in refusal(single + single) and "pip install av" in refusal(single + single)


def test_pyav_that_fails_in_its_own_ways(tmp_path: Path) -> None:
    content = muxed(tone(1.0, 16000), 16000, "matroska", "aac", title="recorded in Orleans")
    assert "FFmpeg has no decoder for its sound" in refusal(content.replace(b"A_AAC", b"A_XYZ"))
    named = audio.load(content.replace(b"Orleans", b"Orl\xe9ans"))
    np.testing.assert_array_equal(named, audio.load(content))
    noise = np.random.default_rng(3)
    for container, codec in (("flv", "aac"), ("matroska", "aac"), ("mpegts", "mp2"), ("asf", "mp2"), ("avi", "mp2")):
        whole = muxed(tone(1.0, 44100), 44100, container, codec)
        for _ in range(40):
            damaged = bytearray(whole)
            for place in noise.integers(0, len(whole), 12).tolist() + noise.integers(0, 400, 3).tolist():
                damaged[place] = int(noise.integers(256))
            try:
                assert np.isfinite(audio.load(bytes(damaged))).all()
            except AudioError as error:
                assert "\n" not in str(error)


def test_an_mp3_without_frames(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tag = b"ID3\x03\0\0\0\0\2\0" + bytes(256)
    for _ in range(2):
        for content in (tag, tag + bytes(3000)):
            assert refusal(content) == "audio bytes: holds tags and no MPEG audio after them; copy or export it again"
        without_pyav(monkeypatch)
    path = tmp_path / "a.wav"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n")
    assert "a git-lfs pointer" in refusal(path)


def test_a_folder_called_av_is_not_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "av").mkdir()
    for name in [name for name in sys.modules if name.split(".")[0] == "av"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert refusal(b"\x1a\x45\xdf\xa3" + bytes(100)).endswith("pip install av")


HOSTILE = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile '{target}'\n",
    "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="audio/mp4"><Representation id="1" '
    'bandwidth="1"><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n",
    "cpl.xml": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016">'
    "<Id>urn:uuid:00000000-0000-0000-0000-000000000000</Id><Asset>{target}</Asset></CompositionPlaylist>",
    "frame%d.png": "{target}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_that_a_file_names_is_opened(tmp_path: Path, name: str) -> None:
    pytest.importorskip("av", reason="needs PyAV (pip install av)")
    import socket

    secret = tmp_path / "secret.wav"
    secret.write_bytes(encoded(tone(1.0, 16000)))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.05)
        port = server.getsockname()[1]
        for target in (str(secret), f"file:{secret}", f"http://127.0.0.1:{port}/x.wav", f"tcp://127.0.0.1:{port}"):
            path = tmp_path / name
            path.write_text(HOSTILE[name].format(target=target, port=port))
            before = secret.stat().st_atime_ns
            assert "no audio that libsndfile or FFmpeg can decode" in refusal(path)
            assert secret.stat().st_atime_ns == before
        with pytest.raises(TimeoutError):
            server.accept()
