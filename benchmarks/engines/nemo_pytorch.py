"""NeMo itself: the encoder (and CTC head) of an archive in PyTorch, on the features that NeMo computes beforehand.

Runs in an environment with nemo_toolkit[asr]; jaxasr is not needed there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from turns import take_turns, use_cores

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path, help="what nemo_models.py made")
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--clips", type=int, required=True)
parser.add_argument("--seconds", type=float, required=True)
options = parser.parse_args()
use_cores(options.threads)

answers, sys.stdout = sys.stdout, sys.stderr  # NeMo's log goes to what is stdout while it is imported

import torch  # noqa: E402
from nemo.collections.asr.models import ASRModel  # noqa: E402

torch.set_num_threads(options.threads)
torch.manual_seed(0)
model = ASRModel.restore_from(str(options.folder / "model.nemo"), map_location="cpu").eval()
samples = 0.1 * torch.randn(options.clips, round(16000 * options.seconds))
with torch.inference_mode():
    frames, lengths = model.preprocessor(
        input_signal=samples, length=torch.full((options.clips,), samples.shape[1], dtype=torch.long)
    )


def run() -> Any:
    with torch.inference_mode():
        encoded, _ = model.encoder(audio_signal=frames, length=lengths)
        if hasattr(model, "joint"):
            return {"frames": encoded.shape[2]}
        return {"frames": model.decoder(encoder_output=encoded).shape[1]}


sys.stdout = answers
take_turns(lambda: run() | {"version": torch.__version__}, run)
