"""The shapes in the library's annotations are really checked while tests run."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from flax import nnx

from jaxasr.encoders.zipformer_attention import relative_bias
from jaxasr.encoders.zipformer_layer import SelfAttention
from jaxasr.heads.configs import StatelessConfig, TransducerConfig
from jaxasr.heads.transducer import Transducer
from jaxasr.layers import attention, convolution, dropout, products
from jaxasr.layers.linear import Linear
from jaxasr.layers.products import linear_product

WRONG = jaxtyping.TypeCheckError


def zeros(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.zeros(shape, dtype)


def test_a_wrong_shape_fails() -> None:
    assert linear_product(zeros(2, 3), zeros(3, 4), zeros(4)).shape == (2, 4)
    with pytest.raises(WRONG, match="bias"):  # JAX itself would broadcast this bias
        linear_product(zeros(2, 3), zeros(3, 4), zeros(1))
    with pytest.raises(WRONG, match="encoded"):
        relative_bias(zeros(1, 2, 5, 3), zeros(2, 8, 3), 5)
    with pytest.raises(WRONG, match="weights"):
        SelfAttention(4, 2, 3, rngs=nnx.Rngs(0))(zeros(1, 5, 4), zeros(1, 2, 1, 5))
    head = Transducer(TransducerConfig(7, StatelessConfig(dim=4), 3), 5, rngs=nnx.Rngs(0))
    with pytest.raises(WRONG, match="tokens"):
        head.advance(head.initial_state(2), zeros(1, dtype=jnp.int32))


def test_a_wrong_kind_of_number_fails() -> None:
    with pytest.raises(WRONG, match="x"):
        Linear(3, 4, rngs=nnx.Rngs(0))(zeros(2, 3, dtype=jnp.int32))


def test_shapes_are_checked_inside_jit_too() -> None:
    with pytest.raises(WRONG, match="bias"):
        jax.jit(linear_product)(zeros(2, 3), zeros(3, 4), zeros(1))


def test_a_wrong_result_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Linear(3, 4, rngs=nnx.Rngs(0))
    monkeypatch.setitem(vars(inspect.getmodule(Linear)), "linear_product", lambda x, kernel, bias: x[0])
    with pytest.raises(WRONG, match="return"):
        module(zeros(2, 3))


@pytest.mark.parametrize("room", [attention, convolution, dropout, products])
def test_every_function_of_layers_that_takes_an_array_says_its_shape(room: Any) -> None:
    """Custom gradients excepted, which JAX alone calls, with what it has saved."""
    functions = [each for _, each in inspect.getmembers(room, inspect.isfunction) if each.__module__ == room.__name__]
    classes = [each for _, each in inspect.getmembers(room, inspect.isclass) if each.__module__ == room.__name__]
    functions += [call for each in classes for name, call in vars(each).items() if name == "__call__"]
    assert functions
    for function in functions:
        if not function.__name__.endswith(("_forward", "_backward")):
            bare = {name: note for name, note in function.__annotations__.items() if "jax.Array" in str(note)}
            assert not bare, (function.__qualname__, bare)


def test_the_library_runs_without_jaxtyping() -> None:
    code = "import sys, jaxasr.encoders.zipformer, jaxasr.heads.transducer; print('jaxtyping' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
