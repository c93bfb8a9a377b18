from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.devices import policy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_host_casts_as_a_device_does(dtype: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32).view(np.float32)
    numbers = bits[np.isfinite(bits)]  # subnormal ones, and those beyond float16, are among them
    params = {"a": {"kernel": numbers, "bias": numbers}}
    ours, theirs = policy(dtype).cast(params), policy(dtype).cast(jax.device_put(params))
    for name, kind in (("kernel", dtype), ("bias", "float32")):
        assert ours["a"][name].dtype == theirs["a"][name].dtype == jnp.dtype(kind)
        assert ours["a"][name].tobytes() == np.asarray(theirs["a"][name]).tobytes()


def test_what_needs_no_cast_is_not_copied_and_each_is_put_before_the_next_is_cast() -> None:
    put: list[Any] = []
    kernel, bias = np.ones((2, 3), np.float16), np.ones(3, np.float32)
    cast = policy("float16").cast({"kernel": kernel, "bias": bias}, lambda leaf: put.append(leaf) or len(put))
    assert cast == {"kernel": 1, "bias": 2}
    assert put[0] is kernel and put[1] is bias
