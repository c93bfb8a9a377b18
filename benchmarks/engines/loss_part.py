"""jaxasr: value and gradient of the transducer loss from the encoder's output on, or of the encoder itself."""

from __future__ import annotations

import argparse
import os
from typing import Any

from turns import take_turns, use_cores

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--encoder", metavar="CONFIG", help="time this model's encoder instead of the loss")
parser.add_argument("--threads", type=int, required=True)
for name in ("batch", "frames", "labels", "vocabulary", "width"):
    parser.add_argument(f"--{name}", type=int, required=True)
parser.add_argument("--budget", type=float, default=0, help="MiB that the joiner's outputs may take; 0: all at once")
options = parser.parse_args()
use_cores(options.threads)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402

from jaxasr import configure_process  # noqa: E402
from jaxasr.configs import named_configs  # noqa: E402
from jaxasr.heads.configs import StatelessConfig, TransducerConfig  # noqa: E402
from jaxasr.heads.transducer import Transducer  # noqa: E402
from jaxasr.model import AbstractModel  # noqa: E402
from jaxasr.store import read_config  # noqa: E402
from jaxasr.training.loop import new_parameters  # noqa: E402
from jaxasr.training.losses import choose_frames_at_once, transducer_loss  # noqa: E402

configure_process()
generator = np.random.default_rng(1)
sizes = (options.batch, options.frames, options.labels, options.vocabulary)


def loss_step() -> tuple[Any, tuple[Any, ...]]:
    """The head's parameters and the encoder's output get gradients."""
    width = options.width
    head = Transducer(TransducerConfig(options.vocabulary, StatelessConfig(dim=width), width), width, rngs=nnx.Rngs(0))
    graph, state = nnx.split(head)
    encoded = jnp.asarray(generator.standard_normal((options.batch, options.frames, width)), jnp.float32)
    labels = jnp.asarray(generator.integers(1, options.vocabulary, (options.batch, options.labels)))
    frame_lengths = jnp.full((options.batch,), options.frames)
    label_lengths = jnp.full((options.batch,), options.labels)
    at_once = choose_frames_at_once(*sizes, int(options.budget * 2**20)) if options.budget else None

    def objective(state: Any, encoded: jax.Array) -> jax.Array:
        head = nnx.merge(graph, state)
        return transducer_loss(
            head.combine, head.project(encoded), head.predict(labels), labels, frame_lengths, label_lengths,
            frames_at_once=at_once,
        ).sum()  # fmt: skip

    return jax.jit(jax.value_and_grad(objective, argnums=(0, 1))), (state, encoded)


def encoder_step() -> tuple[Any, tuple[Any, ...]]:
    """All parameters of the encoder get gradients; features of as many frames as give `--frames` encoded ones."""
    config = read_config(named_configs()[options.encoder])
    abstract_model, parameters = AbstractModel(config), new_parameters(config, 1)
    features = jnp.asarray(generator.standard_normal((options.batch, 4 * options.frames + 8, 80)), jnp.float32)
    lengths = jnp.full((options.batch,), features.shape[1])

    def objective(parameters: Any) -> jax.Array:
        encoded, _ = abstract_model.fill(parameters).encoder(features, lengths)
        return jnp.square(encoded).sum()

    return jax.jit(jax.value_and_grad(objective)), (parameters,)


step, arguments = encoder_step() if options.encoder else loss_step()


def run() -> dict[str, Any]:
    value, gradients = jax.block_until_ready(step(*arguments))
    return {"value": float(value)}


def prepare_step() -> dict[str, Any]:
    compiled = step.lower(*arguments).compile()
    return run() | {"temporary_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20}


take_turns(prepare_step, run)
