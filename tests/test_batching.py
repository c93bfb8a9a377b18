from __future__ import annotations

import numpy as np

from jaxasr.batching import Batch, Window, assemble, cut

RATE = 16000


def test_rows_hold_silence_sound_and_nothing() -> None:
    clips = [np.full(5, 1.0, np.float32), np.full(9, 2.0, np.float32)]
    batch = Batch((Window(0, 1, 5), Window(1, 0, 9)), 3, 20)
    waveforms, lengths = assemble(batch, clips, before=2, after=3)
    assert waveforms.shape == (3, 20)
    np.testing.assert_array_equal(lengths, [9, 14, 0])
    np.testing.assert_array_equal(waveforms[0, :8], [0, 0, 1, 1, 1, 1, 0, 0])


def test_long_audio_is_cut_where_it_is_quiet() -> None:
    rng = np.random.default_rng(3)
    samples = rng.standard_normal(100 * RATE).astype(np.float32)
    pauses = [25.0, 52.0, 78.5]
    for pause in pauses:
        samples[int(pause * RATE) : int((pause + 0.4) * RATE)] *= 0.001
    pieces = cut(samples, 30 * RATE, RATE)
    assert pieces[0][0] == 0 and pieces[-1][1] == len(samples)
    assert all(stop == start for (_, stop), (start, _) in zip(pieces, pieces[1:], strict=False))
    assert all(stop - start <= 30 * RATE for start, stop in pieces)
    for pause, (_, stop) in zip(pauses, pieces, strict=False):
        assert pause <= stop / RATE <= pause + 0.4


def test_an_hour_makes_windows_no_longer_than_allowed() -> None:
    pieces = cut(np.zeros(3600 * RATE, np.float32), 30 * RATE, RATE)
    assert max(stop - start for start, stop in pieces) <= 30 * RATE
    assert sum(stop - start for start, stop in pieces) == 3600 * RATE
    assert len(pieces) <= 180


def test_short_audio_is_one_window() -> None:
    assert cut(np.zeros(5, np.float32), 30 * RATE, RATE) == [(0, 5)]
