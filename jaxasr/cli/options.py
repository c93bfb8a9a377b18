"""Options that commands share, and the recogniser that they ask for."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import jaxasr
from jaxasr.cli.progress import say

if TYPE_CHECKING:
    from jaxasr.recognizer import Recognizer


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def _silence(where: str) -> Any:
    return typer.Option(
        metavar="S",
        callback=_finite,
        min=0,
        max=60,
        help=f"Seconds of silence {where} the audio; the model's own if unset.",
    )


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="DIR|NAME",
        help="A folder made by jaxasr convert or train, or a published model's name; if unset the small one inside "
        "jaxasr, which knows English letters, digits, numbers and dates.",
    ),
]
DtypeOption = Annotated[
    Literal["float32", "bfloat16", "float16"], typer.Option(help="The type that the network computes in.")
]
BatchSecondsOption = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        callback=_finite,
        min=0.1,
        help="Seconds of audio in one batch, padding included; by the device if unset.",
    ),
]
BlankPenaltyOption = Annotated[
    float,
    typer.Option(
        metavar="X",
        callback=_finite,
        help="Subtracted from the blank's logit (a joint search: the transducer's): more of it, fewer words left out.",
    ),
]
SearchOption = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="How tokens are found: greedy, the best of each frame; beam, a transducer's beam search; joint, that one "
        "ranked by the CTC head too; parallel, all tokens at once; the model's own if unset.",
    ),
]
HeadOption = Annotated[
    str | None,
    typer.Option(
        metavar="ROLE", help="The head to decode with: transducer, ctc or parallel; the model's own if unset."
    ),
]
BeamOption = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Hypotheses that a search keeps, 1: greedy; the model's own if unset."),
]
PadBeforeOption = Annotated[float | None, _silence("before")]
PadAfterOption = Annotated[float | None, _silence("after")]
PrecisionOption = Annotated[
    Literal["float32", "int8"], typer.Option(help="Which files of a published model to take, when given by its name.")
]
ActivationsOption = Annotated[
    Literal["float", "int8"] | None,
    typer.Option(
        help="What a quantized model's weights are multiplied by: float, for which they are dequantized, or int8; the "
        "model's own if unset."
    ),
]

VadOption = Annotated[
    str,
    typer.Option(
        metavar="none|energy|MODEL",
        help="What is heard of the audio: energy, all of it, cut at quiet points where it is longer than the model "
        "takes; none, all of it at once; or the speech that a detector finds in it: its folder, made by jaxasr "
        "convert, or its published name.",
    ),
]


@dataclasses.dataclass(frozen=True)
class RecognizerOptions:
    """The options of every command that transcribes, under the names that `load_model` gives them."""

    model: ModelOption = None
    dtype: DtypeOption = "float32"
    batch_seconds: BatchSecondsOption = None
    blank_penalty: BlankPenaltyOption = 0.0
    search: SearchOption = None
    head: HeadOption = None
    beam: BeamOption = None
    pad_before: PadBeforeOption = None
    pad_after: PadAfterOption = None
    precision: PrecisionOption = "float32"
    activations: ActivationsOption = None
    vad: VadOption = "energy"

    def load(self) -> Recognizer:
        """The recogniser that was asked for; the first program is compiled while the parameters are read."""
        from jaxasr import loading

        jaxasr.configure_process()
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        name = options.pop("model")
        if name is None:
            name = loading.EMBEDDED
            say(f"no --model is given: {loading.LIMITS}; for all words: --model {loading.SUGGESTED} (a download, once)")
        return jaxasr.load_model(name, **options, lazy=True)


def with_recognizer_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of RecognizerOptions instead of its parameter `options`.

    A field that the command has as a parameter of its own is as the command has it.
    """
    names = [field.name for field in dataclasses.fields(RecognizerOptions)]
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = RecognizerOptions(**{name: given[name] for name in names})
        command(**{name: value for name, value in given.items() if name in own.parameters}, options=options)

    shared = inspect.signature(RecognizerOptions, eval_str=True).parameters.values()
    parameters = [parameter for parameter in own.parameters.values() if parameter.name != "options"]
    parameters += [parameter for parameter in shared if parameter.name not in own.parameters]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
