"""`jaxasr transcribe`: audio files to text, subtitles or tables."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import jaxasr
from jaxasr.cli.options import RecognizerOptions, with_recognizer_options
from jaxasr.cli.progress import Meter, handed_on, metered, say
from jaxasr.cli.streamed import streamed
from jaxasr.cli.targets import file_names, named_once, prepare_folder, without_existing
from jaxasr.errors import ConfigError, JaxasrError
from jaxasr.files import writing_file
from jaxasr.writers import FORMATS, Document, Format

if TYPE_CHECKING:
    from jaxasr.audio import Channels

_FILE_A_CHANNEL = ("txt", "srt", "vtt")  # formats that do not name the channel
_FIRST_CHANNEL = ".ch1"

EXAMPLE = "Example: jaxasr transcribe talks/ extra.mp3 --model model/ --format srt --output subtitles/ --skip-existing"


@with_recognizer_options
def transcribe(
    audio: Annotated[
        list[str], typer.Argument(metavar="AUDIO", help="Files, folders, patterns, and - for standard input.")
    ],
    format: Annotated[
        Format | None,
        typer.Option("--format", "-f", help="What to write; told from the suffix of --output if unset, else txt."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|DIR",
            help="Where to write instead of standard output: one file for all, or a folder (one that exists, or a name "
            "without a suffix or with a / at its end) that gets a file for each: talk.wav's is talk.txt; of several "
            "called talk each has more of its path, as in talk.wav.txt or monday_talk.wav.txt.",
        ),
    ] = None,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            help="Leave out audio whose file in the output folder exists; a line says which, since the file may be of "
            "other audio of that name. Without this option such files are replaced, and a line says which.",
        ),
    ] = False,
    channels: Annotated[
        str,
        typer.Option(
            metavar="mix|each|N",
            help="Which channels are heard: mix, their mean; number N, from 1 on; or each by itself, as of a "
            "telephone call: json and tsv then name the channel, and in a folder txt, srt and vtt get a file for each, "
            "call.ch1.txt and call.ch2.txt.",
        ),
    ] = "mix",
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Hear each recording piece by piece, as one that still goes on, and print on standard error what is "
            "understood so far. For models whose encoder works in chunks.",
        ),
    ] = False,
    *,
    options: RecognizerOptions,
) -> None:
    """Print the words spoken in audio files. They come in the files' order, as they are recognised."""
    output = None if output == "-" else output
    heard = _channels(channels)
    format = format or _format_of(output)
    folder = Path(output) if output is not None and _is_folder(output) else None
    if skip_existing and folder is None:
        raise typer.BadParameter("--skip-existing needs --output with a folder")
    inputs, failed = _find(audio)
    targets: list[Path] = []
    if folder is not None:
        existing = prepare_folder(folder)
        inputs = named_once(inputs)
        # How many channels there are is not known yet: the first one's file stands for all.
        suffix = f"{_FIRST_CHANNEL}.{format}" if heard == "each" and format in _FILE_A_CHANNEL else f".{format}"
        targets = [folder / name for name in file_names(inputs, suffix, existing)]
        inputs, targets = without_existing(inputs, targets, skip_existing=skip_existing)
    elif format in ("srt", "vtt") and (len(inputs) > 1 or heard == "each"):
        many = f"{len(inputs)} recordings" if len(inputs) > 1 else "all channels"
        say(f"one {format} for {many}, each from 0:00 on; --output FOLDER writes a file for each")
    _protect(inputs, [Path(output or os.devnull)] if folder is None else targets)
    if not inputs:
        raise typer.Exit(int(failed))

    with contextlib.ExitStack() as stack:
        # Opened before the model is loaded, so that what cannot be written is known at once.
        write = stack.enter_context(writing_file(output)) if output is not None and folder is None else None
        recognizer = stack.enter_context(options.load())
        meter = Meter() if stream else stack.enter_context(metered("transcribing"))
        document = Document(format)
        succeeded = 0
        results: Iterator[jaxasr.Transcript | jaxasr.Failure]
        if stream:
            results = streamed(recognizer, inputs, heard)
        else:
            results = recognizer.transcribe(inputs, on_error="yield", progress=meter, channels=heard)
        files = iter(targets)
        for result in results:
            if isinstance(result, jaxasr.Failure) or heard != "each" or result.channel == 1:
                target, text, parts = next(files, None), "", Document(format)  # of the next recording
            if isinstance(result, jaxasr.Failure):
                say(str(result.error))
                failed = True
                continue
            succeeded += 1
            if target is not None and heard == "each" and format in _FILE_A_CHANNEL:
                with writing_file(_of_channel(target, result.channel or 1)) as write_target:
                    write_target(Document(format).add(result))
            elif target is not None:
                text += parts.add(result)  # whole after each of a recording's channels
                with writing_file(target) as write_target:
                    write_target(text)
            elif write is not None:
                write(document.add(result))
            else:
                if format == "tsv":
                    # The other formats hold no names, or (json) nothing that a terminal would act on.
                    result = dataclasses.replace(result, audio=handed_on(result.audio))
                with meter.aside():
                    print(document.add(result), end="", flush=True)
        if not succeeded:
            # Leaves no empty file under the output's name.
            raise typer.Exit(1)
    if failed:
        raise typer.Exit(1)


def _channels(given: str) -> Channels:
    if given == "mix":
        return "mix"
    if given == "each":
        return "each"
    if given.isdecimal() and int(given) >= 1:
        return int(given)
    raise typer.BadParameter(f"--channels takes mix, each or a number from 1 on, not {given!r}")


def _of_channel(first: Path, number: int) -> Path:
    """The file of a channel, by the name of the first one's."""
    stem, _, suffix = first.name.rpartition(_FIRST_CHANNEL)
    return first.with_name(f"{stem}.ch{number}{suffix}")


def _is_folder(output: str) -> bool:
    path = Path(output)
    return path.is_dir() or output.endswith(("/", os.sep)) or (not path.exists() and not path.suffix)


def _format_of(output: str | None) -> Format:
    suffix = Path(output or "").suffix.lower().lstrip(".")
    return next((format for format in FORMATS if suffix in (format, f"{format}l")), "txt")


def _find(arguments: list[str]) -> tuple[list[str], bool]:
    """The audio that the arguments mean, and whether one of them meant none, for which a line is printed."""
    from jaxasr.audio import expand_paths  # with it comes numpy

    found: list[str] = []
    failed = False
    for argument in arguments:
        try:
            found += expand_paths([argument])
        except JaxasrError as error:
            say(str(error))
            failed = True
    return found, failed


def _protect(inputs: list[str], targets: list[Path]) -> None:
    """Refuse to write over the audio."""
    sources = {os.path.realpath(name) for name in inputs if name != "-"}
    for target in targets:
        if os.path.realpath(target) in sources:
            raise ConfigError(f"{target}: is one of the audio files; give another --output")
