"""Overlapping chunks against their places written out."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.layers.overlapped import Overlapped

CHUNKS = Overlapped(size=5, stride=3, gap=2, encoder_look_back=1, decoder_look_back=1)


def test_rows_hold_frames_of_chunks_and_zeros_between_them() -> None:
    lengths = np.array([8, 4, 3, 1, 0])
    frames = np.arange(1, 9, dtype=np.float32)[None, :, None] + 10 * np.arange(5, dtype=np.float32)[:, None, None]
    rows = np.asarray(CHUNKS.split(frames, jnp.asarray(lengths)))[..., 0]
    assert rows[0].tolist() == [0, 0, 1, 2, 3, 4, 5, 0, 0, 4, 5, 6, 7, 8, 0, 0, 7, 8]
    assert rows[1].tolist()[:10] == [0, 0, 11, 12, 13, 14, 0, 0, 0, 14]
    counts = [CHUNKS.length(int(length)) for length in lengths]
    assert counts == CHUNKS.length(jnp.asarray(lengths)).tolist() == [18, 10, 5, 3, 0]
    assert rows.shape[1] == 18 and (rows[4] == 0).all()


def test_what_is_seen_of_what() -> None:
    rows = 18
    encoder = np.asarray(CHUNKS.encoder_mask(rows))
    own = {0: range(2, 7), 1: range(9, 14), 2: range(16, 18)}
    new = {0: range(2, 5), 1: range(9, 12)}
    assert np.flatnonzero(encoder[0]).tolist() == np.flatnonzero(encoder[8]).tolist() == []
    assert np.flatnonzero(encoder[3]).tolist() == [*own[0]]
    assert np.flatnonzero(encoder[10]).tolist() == [*new[0], *own[1]]
    assert np.flatnonzero(encoder[13]).tolist() == [*own[1]]  # a frame to come sees its own chunk only
    assert np.flatnonzero(encoder[17]).tolist() == [*new[1], *own[2]]
    decoder = np.asarray(CHUNKS.decoder_mask(jnp.array([[4, 11, 17, 18]]), rows))[0]
    assert [np.flatnonzero(token).tolist() for token in decoder] == [
        [*own[0]], [*new[0], *own[1]], [*new[1], *own[2]], [*new[1], *own[2]],
    ]  # fmt: skip
    assert CHUNKS.frame(jnp.array([[2, 4, 9, 8, 17]])).tolist() == [[0, 2, 3, 3, 7]]


@pytest.mark.parametrize(
    ("wrong", "fault"), [({"stride": 6}, "stride 6"), ({"stride": 0}, "stride 0"), ({"gap": -1}, "gap and look-backs")]
)
def test_what_chunks_cannot_be(wrong: dict[str, Any], fault: str) -> None:
    sizes = {"size": 5, "stride": 3, "gap": 2, "encoder_look_back": 1, "decoder_look_back": 1}
    with pytest.raises(ValueError, match=fault):
        Overlapped(**{**sizes, **wrong})
