"""Prints what Qwix (github.com/google/qwix) makes of a few weights, as test_qwix.py holds it.

    pip install qwix && python tests/quant/qwix_numbers.py

Qwix 0.1.8 has no documented function for one array: these are of its module qarray.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from qwix._src.core import qarray
from test_qwix import BLOCK, CASES, WEIGHTS


def main() -> None:
    for name, (bits, symmetric, blocks) in CASES.items():
        how = qarray.HowToQuantize(
            qtype=jnp.int8 if bits == 8 else jnp.int4,
            channelwise_axes=(1,),
            tiled_axes={0: BLOCK} if blocks else {},
            calibration_method="absmax" if symmetric else "minmax",
        )
        made = qarray.quantize(jnp.asarray(WEIGHTS), how)
        print(f'    "{name}": (')
        for part in (made.scale.astype(jnp.float32), made.qvalue.astype(jnp.int32)):
            print(f"        {np.asarray(part).tolist()},")
        print(f"        {None if made.zero_point is None else np.asarray(made.zero_point.astype(jnp.int32)).tolist()},")
        print("    ),")


if __name__ == "__main__":
    main()
