"""Bad input through the command line: one line that says what is wrong, a non-zero exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
import wave
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import jaxasr
from jaxasr import store
from jaxasr.cli import main
from jaxasr.errors import CheckpointError, JaxasrError

PROGRAM = [sys.executable, "-c", "import sys; from jaxasr.cli import main; sys.argv[0] = 'jaxasr'; main()"]
STEM = "epoch-2-avg-1"


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `jaxasr ARGUMENTS` in this process, which saves the seconds that a new one takes to import JAX."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, int(end.value.code or 0), *capfd.readouterr())

    return run


def run_alone(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own, which holds no file when it has ended."""
    return subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True, stdin=subprocess.DEVNULL)


def complaint(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that failed and printed nothing else."""
    assert result.returncode not in (0, -signal.SIGSEGV), result
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert "Traceback" not in line
    return line


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden" / "zipformer-tiny"


@pytest.fixture(scope="module")
def model(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("converted") / "model"
    jaxasr.convert_checkpoint(golden / f"encoder-{STEM}.onnx", directory)
    return directory


@pytest.fixture
def trio(golden: Path, tmp_path: Path) -> Path:
    """A folder of our own with the float32 trio, to be damaged."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for part in ("encoder", "decoder", "joiner"):
        shutil.copy(golden / f"{part}-{STEM}.onnx", folder)
        os.chmod(folder / f"{part}-{STEM}.onnx", 0o644)
    shutil.copy(golden / "tokens.txt", folder)
    os.chmod(folder / "tokens.txt", 0o644)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where a conversion would write; afterwards neither it nor anything beside it may be there."""
    folder = tmp_path / "models"
    folder.mkdir()
    yield folder / "model"
    assert list(folder.iterdir()) == []


# Checkpoints


@pytest.mark.parametrize("name", ["pretrained.pt", f"encoder-{STEM}.onnx", f"joiner-{STEM}.onnx"])
def test_truncated_at_many_places(run: Run, golden: Path, trio: Path, out: Path, name: str) -> None:
    data = (golden / name).read_bytes()
    path = trio / name
    lengths = sorted({0, 1, 4, 30, 100, len(data) - 1, *range(4096, len(data), max(4096, len(data) // 40))})
    for length in lengths:
        path.write_bytes(data[:length])
        with pytest.raises(JaxasrError) as error:
            jaxasr.convert_checkpoint(path, out, config=golden / "config.yaml")
        assert name in str(error.value) and "\n" not in str(error.value), length
    assert name in complaint(run("convert", path, out, "--config", golden / "config.yaml"))


def test_one_bit_flipped_in_a_training_checkpoint(golden: Path, tmp_path: Path, out: Path) -> None:
    data = bytearray((golden / "pretrained.pt").read_bytes())
    path = tmp_path / "pretrained.pt"
    shutil.copy(golden / "tokens.txt", tmp_path)
    for place in np.linspace(100, len(data) - 100, 25).astype(int):
        data[place] ^= 4
        path.write_bytes(data)
        data[place] ^= 4
        with pytest.raises(CheckpointError, match="pretrained.pt"):
            jaxasr.convert_checkpoint(path, out, config=golden / "config.yaml")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"RIFF\x24\x00\x00\x00WAVEfmt ", b"\x80\x02}q\x00.", b"PK\x03\x04", b"\x00" * 4096]
)
@pytest.mark.parametrize("name", ["pretrained.pt", "model.onnx"])
def test_foreign_files(tmp_path: Path, out: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "tokens.txt").write_text("<blk> 0\na 1\n")
    with pytest.raises(JaxasrError, match=name) as error:
        jaxasr.convert_checkpoint(tmp_path / name, out)
    assert "\n" not in str(error.value)


def test_a_pickle_that_names_code(run: Run, tmp_path: Path, out: Path) -> None:
    trap = tmp_path / "it ran"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(trap),)

    path = tmp_path / "pretrained.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": Payload()}, protocol=2))
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    (tmp_path / "tokens.txt").write_text("<blk> 0\na 1\n")
    assert "pretrained.pt" in complaint(run("convert", path, out))
    assert not trap.exists()


def test_a_value_that_is_no_number(run: Run, trio: Path, out: Path) -> None:
    path = trio / f"decoder-{STEM}.onnx"
    data = path.read_bytes()
    # The bytes of a bias lie in the file as they are: let its first value be NaN.
    place = data.index(b"joiner") if b"joiner" in data else len(data) // 2
    for start in range(place, len(data) - 64):
        values = np.frombuffer(data[start : start + 64], "<f4")
        if np.all((np.abs(values) > 1e-4) & (np.abs(values) < 10)):
            break
    path.write_bytes(data[:start] + struct.pack("<f", float("nan")) + data[start + 4 :])
    line = complaint(run("convert", trio, out))
    assert "finite" in line and str(trio) in line


def test_a_missing_part(run: Run, trio: Path, out: Path) -> None:
    (trio / f"joiner-{STEM}.onnx").unlink()
    assert "joiner" in complaint(run("convert", trio / f"encoder-{STEM}.onnx", out))


def test_parts_of_two_models(run: Run, trio: Path, shared: Path, out: Path) -> None:
    path = trio / f"joiner-{STEM}.onnx"
    path.write_bytes((shared / "golden/zipformer-ja-tiny/joiner-epoch-1-avg-1.onnx").read_bytes())
    assert str(trio) in complaint(run("convert", trio, out))


@pytest.mark.parametrize(
    "tokens",
    [b"", b"<blk> 0\n", b"<blk> 0\n<blk> 0\n", b"<blk> zero\n", b"\xff\xfe\x00", b"<blk> 0\na 100000000\n"],
)
def test_tokens_that_do_not_fit(trio: Path, out: Path, tokens: bytes) -> None:
    (trio / "tokens.txt").write_bytes(tokens)
    with pytest.raises(JaxasrError, match="tokens.txt") as error:
        jaxasr.convert_checkpoint(trio, out)
    assert "\n" not in str(error.value)


def test_no_tokens_at_all(run: Run, trio: Path, out: Path) -> None:
    (trio / "tokens.txt").unlink()
    assert "as tokens" in complaint(run("convert", trio, out))


def test_a_source_that_is_not_there(run: Run, tmp_path: Path, out: Path) -> None:
    assert "nowhere" in complaint(run("convert", tmp_path / "nowhere", out))
    (tmp_path / "empty").mkdir()
    assert "empty" in complaint(run("convert", tmp_path / "empty", out))


def test_configurations_that_do_not_fit(run: Run, golden: Path, tmp_path: Path, out: Path) -> None:
    for name, text in {
        "unknown.yaml": "num_encoder_layrs: 1,1\n",
        "broken.yaml": "a: [1\n",
        "list.yaml": "- 1\n",
        "other.yaml": (golden / "config.yaml").read_text().replace("cnn_module_kernel", "cnn_module_kernels"),
    }.items():
        (tmp_path / name).write_text(text)
        line = complaint(run("convert", golden / "pretrained.pt", out, "--config", tmp_path / name))
        assert name in line
    assert "no_such_model" in complaint(run("convert", golden / "pretrained.pt", out, "--config", "no_such_model"))


def test_an_existing_directory_is_not_overwritten(run: Run, golden: Path, tmp_path: Path) -> None:
    directory = tmp_path / "models" / "mine"
    directory.mkdir(parents=True)
    (directory / "thesis.txt").write_text("years of work")
    line = complaint(run("convert", golden / f"encoder-{STEM}.onnx", directory))
    assert "overwrite" in line and [path.name for path in directory.iterdir()] == ["thesis.txt"]
    assert [path.name for path in directory.parent.iterdir()] == ["mine"]


def test_an_output_folder_that_cannot_be_written(run: Run, golden: Path, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    assert "a file" in complaint(run("convert", golden / f"encoder-{STEM}.onnx", tmp_path / "a file" / "model"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills(golden: Path, model: Path, shared: Path, small_disk: Path) -> None:
    line = complaint(run_alone("convert", golden / f"encoder-{STEM}.onnx", small_disk / "model"))
    assert "space" in line
    assert list(small_disk.iterdir()) == []
    with (small_disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError):
        while True:
            ballast.write(b"\0" * 4096)
    clip = shared / "golden/audio/espeak_sentence.wav"
    line = complaint(run_alone("transcribe", clip, "--model", model, "--output", small_disk / "out.txt"))
    assert "space" in line and [path.name for path in small_disk.iterdir()] == ["ballast"]


# Audio


def test_bad_recordings_among_good_ones(run: Run, model: Path, shared: Path, tmp_path: Path) -> None:
    audio = shared / "golden" / "audio"
    bad = {
        "empty.wav": b"",
        "text.wav": b"not audio at all",
        "cut.wav": (audio / "short.wav").read_bytes()[:20],
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    nan = np.zeros(8000, np.float32)
    nan[100] = np.nan
    soundfile.write(tmp_path / "nan.wav", nan, 16000, subtype="FLOAT")
    good = [audio / "espeak_sentence.wav", audio / "short.wav"]
    inputs = [good[0], *(tmp_path / name for name in bad), tmp_path / "nan.wav", tmp_path / "missing.wav", good[1]]
    result = run("transcribe", *inputs, "--model", model, "--format", "json")
    assert result.returncode != 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    alone = run("transcribe", *good, "--model", model, "--format", "json")
    assert alone.returncode == 0 and rows == [json.loads(line) for line in alone.stdout.splitlines()]
    for name in [*bad, "nan.wav", "missing.wav"]:
        assert sum(name in line for line in result.stderr.splitlines()) == 1, name
    assert "Traceback" not in result.stderr


def test_short_and_silent_recordings_are_answered(run: Run, model: Path, tmp_path: Path) -> None:
    for name, samples in {"none": 0, "one": 1, "ten_ms": 160, "silent": 16000}.items():
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, samples, "NONE", ""))
            file.writeframes(b"\0\0" * samples)
    result = run("transcribe", tmp_path, "--model", model, "--format", "json")
    rows = {Path(row["audio"]).stem: row for row in map(json.loads, result.stdout.splitlines())}
    for name in ("one", "ten_ms"):
        assert rows[name]["text"] == "" and rows[name]["timestamps"] == []
    assert rows["silent"]["duration"] == 1.0
    # An empty file is either an empty text or one line of complaint, never a crash.
    assert result.returncode == 0 and rows["none"]["text"] == "" or "none.wav" in result.stderr


def test_unknown_model_broken_model(run: Run, model: Path, shared: Path, tmp_path: Path) -> None:
    clip = shared / "golden" / "audio" / "short.wav"
    assert "did you mean" in complaint(run("transcribe", clip, "--model", "reazonspeech-k2"))
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "config.yaml").write_text("{}\n")
    assert "config.yaml" in complaint(run("transcribe", clip, "--model", broken))
    (broken / "manifest.json").unlink()
    assert str(broken) in complaint(run("transcribe", clip, "--model", broken))


# Ctrl-C


def interrupted_conversion(golden: Path, out: Path, delay: float, *, begun: bool) -> tuple[int, str] | None:
    """Exit code and errors of a conversion that got Ctrl-C after `delay` s; None where it had left a whole model.

    `begun`: the time counts from its first file on, not from its start.
    """
    command = [*PROGRAM, "convert", str(golden / f"encoder-{STEM}.onnx"), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while begun and time.monotonic() < deadline and process.poll() is None and not list(out.parent.iterdir()):
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if out.exists():  # it was faster
        store.load(out)
        shutil.rmtree(out)
        return None
    return process.returncode, errors


@pytest.mark.parametrize("delay", [0.3, 1.5, 3.0])
def test_interrupted_conversion_leaves_nothing(golden: Path, out: Path, delay: float) -> None:
    if ended := interrupted_conversion(golden, out, delay, begun=False):
        code, errors = ended
        assert code != 0
        assert "Traceback" not in errors or delay < 1  # Python itself may still be importing


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2])
def test_a_conversion_interrupted_while_it_writes_leaves_nothing(golden: Path, out: Path, delay: float) -> None:
    ended = interrupted_conversion(golden, out, delay, begun=True)
    assert ended in (None, (130, "jaxasr: interrupted\n"))


def test_the_folder_that_one_stands_in_is_not_overwritten(golden: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    jaxasr.convert_checkpoint(golden / f"encoder-{STEM}.onnx", folder)
    command = [*PROGRAM, "convert", str(golden / f"encoder-{STEM}.onnx"), ".", "--overwrite"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert "is the folder that you are in" in complaint(done)
    store.load(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_interrupted_transcription_leaves_whole_files(model: Path, shared: Path, tmp_path: Path) -> None:
    clip = shared / "golden" / "audio" / "espeak_sentence.wav"
    inputs = tmp_path / "in"
    inputs.mkdir()
    for index in range(200):
        (inputs / f"{index:03}.wav").symlink_to(clip)
    output = tmp_path / "out"
    command = [
        *PROGRAM,
        "transcribe",
        str(inputs),
        "--model",
        str(model),
        "--output",
        str(output),
        "--batch-seconds",
        "4",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None and len(list(output.glob("*.txt"))) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    texts = {path.read_text() for path in output.iterdir()}
    assert len(texts) == 1 and texts.pop().strip()
    if len(list(output.iterdir())) < 200:
        assert process.returncode != 0 and "Traceback" not in errors
