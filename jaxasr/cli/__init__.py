"""The command line, one file per command; `main` turns what goes wrong into one line and an exit code.

Exit codes: 0 done, 1 an error that the line on standard error names, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer

from jaxasr import __version__
from jaxasr.cli import bench, compile, convert, evaluate, export, info, quantize, sensitivity, train, transcribe
from jaxasr.cli.progress import debugging, log_to_stderr, say, show_traceback
from jaxasr.errors import JaxasrError, printable
from jaxasr.files import reason

app = typer.Typer(
    name="jaxasr",
    help="Published speech recognisers in JAX: convert a checkpoint once, then transcribe on CPU, GPU or TPU.",
    epilog="Example: jaxasr convert icefall-model/ model/ && jaxasr transcribe *.wav --model model/",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # with it help takes 0.45 s instead of 0.2, half of it an import of Markdown
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"jaxasr {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command("transcribe", epilog=transcribe.EXAMPLE)(transcribe.transcribe)
app.command("convert", epilog=convert.EXAMPLE, cls=convert.ConvertCommand)(convert.convert)
app.command("compile", epilog=compile.EXAMPLE)(compile.compile)
app.command("info", epilog=info.EXAMPLE)(info.info)
app.command("evaluate", epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command("quantize", epilog=quantize.EXAMPLE)(quantize.quantize)
app.command("sensitivity", epilog=sensitivity.EXAMPLE)(sensitivity.sensitivity)
app.command("export", epilog=export.EXAMPLE)(export.export)
app.command("train", epilog=train.EXAMPLE)(train.train)
app.command("bench", epilog=bench.EXAMPLE)(bench.bench)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line (of `arguments`, else of the process) and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        # Whatever the locale says: transcripts are UTF-8, and file names that are not pass through.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    log_to_stderr()
    if not debugging() and sys.unraisablehook is sys.__unraisablehook__:
        # After a failed write Orbax's threads raise again in callbacks. The first error is reported; drop the echoes.
        sys.unraisablehook = lambda _: None
    _stopped_by.clear()
    if threading.current_thread() is threading.main_thread():
        # What is half written is cleaned up, also when a scheduler ends the process.
        signal.signal(signal.SIGTERM, _stop)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored, in the background
            signal.signal(signal.SIGINT, _stop)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    code = _exit_code(lambda: app(arguments or ["--help"], prog_name="jaxasr", standalone_mode=False))
    sys.exit(code)


_stopped_by: list[int] = []  # signals that asked the process to end


def _stop(number: int, _: object) -> NoReturn:
    _stopped_by.append(number)
    raise KeyboardInterrupt


def _exit_code(work: Callable[[], Any]) -> int:
    """Run `work`; print one line for whatever goes wrong and give the exit code of the process."""
    try:
        code = work()
        sys.stdout.flush()
        if code == 130:  # how Typer passes an interruption on
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _stopped()
    except (BrokenPipeError, SystemExit):  # Typer makes the second of the first
        # Nobody reads the results any more, which is no error: `jaxasr … | head`.
        _drop_stdout()
        return 128 + 13  # as of a process that SIGPIPE ended
    except Exception as error:
        if _stopped_by:  # modules of C, while they are imported, raise something else than they got
            return _stopped()
        if debugging():
            show_traceback()
        # Wrong usage has these in every version of Typer and Click, which differ in where the class lives.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else "jaxasr"
            message = error.format_message().rstrip(".")
            say(f"{message} (see {command} --help)")
            return int(error.exit_code)
        say(_message(error))
        try:
            sys.stdout.flush()
        except OSError:
            _drop_stdout()
        return 1


def _stopped() -> int:
    terminated = signal.SIGTERM in _stopped_by
    say("terminated" if terminated else "interrupted")
    return 128 + (signal.SIGTERM if terminated else signal.SIGINT)


def _message(error: Exception) -> str:
    if isinstance(error, JaxasrError):
        return str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return "out of memory: try a smaller --batch-seconds, or --dtype bfloat16"
    if isinstance(error, OSError) and error.strerror:
        return f"{_named(error.filename)}: {error.strerror}"
    words = f" {reason(error)}" if str(error) else ""
    return f"unexpected {type(error).__name__}:{words} (JAXASR_DEBUG=1 shows where; please report it)"


def _named(file: object) -> str:
    """What an OSError says it was about, where it says so."""
    return printable(os.fsdecode(file) if isinstance(file, (str, bytes)) else str(file or "standard output"))


def _drop_stdout() -> None:
    """Let go of what standard output does not take, of which the interpreter would complain at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
