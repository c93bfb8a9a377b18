from __future__ import annotations

import numpy as np

from jaxasr.batching import Batch, Window, assemble


def test_rows_hold_silence_sound_and_nothing() -> None:
    clips = [np.full(5, 1.0, np.float32), np.full(9, 2.0, np.float32)]
    batch = Batch((Window(0, 1, 5), Window(1, 0, 9)), 3, 20)
    waveforms, lengths = assemble(batch, clips, before=2, after=3)
    assert waveforms.shape == (3, 20)
    np.testing.assert_array_equal(lengths, [9, 14, 0])
    np.testing.assert_array_equal(waveforms[0, :8], [0, 0, 1, 1, 1, 1, 0, 0])
