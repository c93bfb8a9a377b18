"""The ONNX trio of an icefall transducer, or NeMo's export of a CTC model: its files, and sherpa-onnx over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def part(trio: Path, name: str, *, int8: bool = False) -> str:
    """The file of one network, such as "encoder"; of the quantized ones with `int8`."""
    for path in sorted(trio.glob(f"{name}*.onnx")):
        if path.name.endswith(".int8.onnx") == int8:
            return str(path)
    raise SystemExit(f"{trio}: no {'int8 ' if int8 else ''}{name}*.onnx")


def recognizer(trio: Path, threads: int, *, int8: bool = False) -> Any:
    """sherpa-onnx's recogniser, greedy search; of the quantized files with `int8`."""
    import sherpa_onnx

    if not list(trio.glob("joiner*.onnx")):
        return sherpa_onnx.OfflineRecognizer.from_nemo_ctc(
            model=part(trio, "encoder", int8=int8), tokens=str(trio / "tokens.txt"), num_threads=threads
        )
    return sherpa_onnx.OfflineRecognizer.from_transducer(
        encoder=part(trio, "encoder", int8=int8),
        decoder=part(trio, "decoder", int8=int8),
        joiner=part(trio, "joiner", int8=int8),
        tokens=str(trio / "tokens.txt"),
        num_threads=threads,
        decoding_method="greedy_search",
    )
