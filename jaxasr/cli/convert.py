"""`jaxasr convert`: a publisher's checkpoint to a model directory."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from jaxasr.cli.progress import show
from jaxasr.errors import printable

EXAMPLE = (
    "Example: jaxasr convert exp/pretrained.pt model/ --config reazonspeech_k2_v2 --tokens data/tokens.txt; of int8 "
    "files as they are: jaxasr convert sherpa-onnx-folder/ model/ --precision int8"
)


class ConvertCommand(TyperCommand):
    """`--average` takes all file names that follow it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spell `--average A B` as `--average A --average B`, then parse as usual."""
        spelled: list[str] = []
        averaging = False
        for position, argument in enumerate(args):
            if argument == "--":
                spelled += args[position:]
                break
            if argument.startswith("-"):
                averaging = argument == "--average"
                # An --average without a file is left for the parser to complain of.
                followed = args[position + 1 : position + 2]
                if not averaging or not followed or followed[0].startswith("-"):
                    spelled.append(argument)
            else:
                spelled += ["--average", argument] if averaging else [argument]
        return super().parse_args(ctx, spelled)


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A checkpoint file, or the folder that holds it.")],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="The model directory to make.")],
    tokens: Annotated[
        Path | None, typer.Option(metavar="FILE", help="tokens.txt, where it does not lie beside the checkpoint.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="A yaml file of ours, the recipe's own arguments, or a name such as reazonspeech_k2_v2.",
        ),
    ] = None,
    precision: Annotated[
        Literal["float32", "int8", "int8-fp32"] | None,
        typer.Option(
            help="Which files to prefer where there are several; with int8 their integers stay integers, which without "
            "it are dequantized. int8-fp32: the decoder in float32."
        ),
    ] = None,
    floats: Annotated[
        Literal["float16", "bfloat16", "float32"] | None,
        typer.Option(
            help="With int8: the type of what is no integer; if unset float16, and float32 in the encoder, where it is "
            "little."
        ),
    ] = None,
    average: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE...", help="More training checkpoints to average SOURCE with; after OUT_DIR."),
    ] = None,
    chunk_seconds: Annotated[
        float | None, typer.Option(metavar="S", min=0, help="Chunk of a model that streams, in seconds; inf for none.")
    ] = None,
    left_context_seconds: Annotated[
        float | None,
        typer.Option(metavar="S", min=0, help="Left context of a model that streams, in seconds; inf for all."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model directory OUT_DIR.")] = False,
) -> None:
    """Make a model directory from a published checkpoint. It is a .pt, ONNX, .nemo or safetensors file, never executed.

    Of NeMo's voice activity detectors it makes a directory that jaxasr.load_detector takes.
    """
    from jaxasr import store
    from jaxasr.convert import convert_checkpoint
    from jaxasr.detector_config import DetectorConfig

    card = convert_checkpoint(
        source,
        out_dir,
        tokens=tokens,
        config=config,
        precision=precision,
        floats=floats,
        average=average or (),
        chunk_seconds=chunk_seconds,
        left_context_seconds=left_context_seconds,
        overwrite=overwrite,
    )
    for line in card.summary:
        show(line)
    if isinstance(store.load_any_config(out_dir), DetectorConfig):
        use = f"jaxasr.load_detector({str(out_dir)!r})(AUDIO) in Python gives probabilities of speech"
    else:
        use = f"jaxasr transcribe AUDIO --model {shlex.quote(str(out_dir))}"
    show(f"{printable(out_dir)} is ready: {use}")
