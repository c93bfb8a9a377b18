"""Options that commands share, and the recogniser that they ask for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import jaxasr

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
    Literal["greedy", "beam", "joint"] | None,
    typer.Option(
        help="How tokens are found: the best of each frame, a transducer's beam search, or that ranked by the CTC head "
        "too; the model's own if unset."
    ),
]
HeadOption = Annotated[
    str | None,
    typer.Option(metavar="ROLE", help="The head to decode with: transducer or ctc; the model's own if unset."),
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


def load(
    model: str | None,
    dtype: str,
    batch_seconds: float | None,
    blank_penalty: float,
    search: str | None,
    head: str | None,
    beam: int | None,
    pad_before: float | None,
    pad_after: float | None,
    precision: str,
) -> Recognizer:
    """What a command that transcribes works with; the first program is compiled while the parameters are read."""
    return jaxasr.load_model(
        model,
        dtype=dtype,
        batch_seconds=batch_seconds,
        blank_penalty=blank_penalty,
        search=search,
        head=head,
        beam=beam,
        pad_before=pad_before,
        pad_after=pad_after,
        precision=precision,
        lazy=True,
    )
