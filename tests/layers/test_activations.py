from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxasr.layers.activations import swoosh_l, swoosh_r


def test_formulas() -> None:
    x = np.linspace(-60, 60, 2001)
    np.testing.assert_allclose(
        swoosh_l(x.astype(np.float32)), np.logaddexp(0, x - 4) - 0.08 * x - 0.035, atol=1e-6, rtol=1e-6
    )
    np.testing.assert_allclose(
        swoosh_r(x.astype(np.float32)), np.logaddexp(0, x - 1) - 0.08 * x - 0.313261687, atol=1e-6, rtol=1e-6
    )
    assert abs(float(swoosh_r(jnp.zeros(())))) < 1e-7  # the constant makes it pass through the origin


def test_large_values_stay_finite_and_types_are_kept() -> None:
    for activation in (swoosh_l, swoosh_r):
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            x = jnp.array([-30000.0, -100.0, 0.0, 100.0, 30000.0], dtype)
            y = activation(x)
            assert y.dtype == dtype
            assert bool(jnp.isfinite(y).all())
        slope = jax.grad(lambda x, f=activation: f(x))(jnp.float32(1e4))
        np.testing.assert_allclose(slope, 0.92, atol=1e-6)
