"""torchaudio: value and gradient of its transducer loss after a joiner in PyTorch, from the encoder's output on."""

from __future__ import annotations

import argparse
from typing import Any

from turns import take_turns, use_cores

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--threads", type=int, required=True)
for name in ("batch", "frames", "labels", "vocabulary", "width"):
    parser.add_argument(f"--{name}", type=int, required=True)
options = parser.parse_args()
use_cores(options.threads)

import torch  # noqa: E402
import torchaudio  # noqa: E402

torch.set_num_threads(options.threads)
torch.manual_seed(1)
encoded = torch.randn(options.batch, options.frames, options.width, requires_grad=True)
predicted = torch.randn(options.batch, options.labels + 1, options.width, requires_grad=True)
encoder_proj = torch.nn.Linear(options.width, options.width)
predictor_proj = torch.nn.Linear(options.width, options.width)
output = torch.nn.Linear(options.width, options.vocabulary)
labels = torch.randint(1, options.vocabulary, (options.batch, options.labels), dtype=torch.int32)
frame_lengths = torch.full((options.batch,), options.frames, dtype=torch.int32)
label_lengths = torch.full((options.batch,), options.labels, dtype=torch.int32)


def run() -> dict[str, Any]:
    for tensor in (encoded, predicted, *output.parameters(), *encoder_proj.parameters(), *predictor_proj.parameters()):
        tensor.grad = None
    logits = output(torch.tanh(encoder_proj(encoded)[:, :, None] + predictor_proj(predicted)[:, None]))
    loss = torchaudio.functional.rnnt_loss(logits, labels, frame_lengths, label_lengths, blank=0, reduction="sum")
    loss.backward()
    return {"value": loss.item(), "version": f"torch {torch.__version__}, torchaudio {torchaudio.__version__}"}


take_turns(run, run)
