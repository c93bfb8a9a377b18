"""Makes tones.npz beside it, the weights of the model of tests/tones.py after 600 steps.

    python tests/training/data/make_tones.py

Weights whose texts a different rounding could change are refused.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))
import jaxasr  # noqa: E402
import tones  # noqa: E402
from jaxasr import store  # noqa: E402
from jaxasr.manifests import read_manifest  # noqa: E402

if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = tones.changed(
            tones.RECIPE,
            steps=600,
            average=0.95,
            dropout=0.0,
            augmentation={"speed": (1.0, 1.0), "volume_db": (0.0, 0.0), "telephone_probability": 0.0},
            curriculum={"edge_share": 0.0},
            optimizer={"learning_rate": 0.005, "warmup_steps": 20},
            stored="float16",
        )
        manifest = tones.write_manifest(folder)
        run = tones.trainer(manifest, folder, recipe)
        run.train(lambda now: now.step % 50 or print(now.step, f"{now.loss:.3f}", flush=True))
        utterances = read_manifest(manifest)
        # Every decision is one between blank and a token: it must stand when blank's logit moves either way.
        for penalty in (-0.2, 0.0, 0.2):
            recognizer = jaxasr.load_model(run.folder.model, blank_penalty=penalty)
            heard = recognizer.transcribe([str(utterance.pieces[0].path) for utterance in utterances])
            texts = [each.text for each in heard]
            assert texts == [utterance.text for utterance in utterances], f"blank's logit less {penalty}: {texts}"
        averaged = store.flatten(run.averaged)
        np.savez_compressed(
            tones.TRAINED, **{name: np.asarray(leaf).astype(np.float16) for name, leaf in averaged.items()}
        )
