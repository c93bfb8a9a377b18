from __future__ import annotations

import numpy as np

from jaxasr.batching import Window, assemble, cut, plan

RATE = 16000


def windows_of(lengths: list[int]) -> list[Window]:
    return [Window(index, 0, length) for index, length in enumerate(lengths)]


def test_a_thousand_lengths_need_few_programs() -> None:
    lengths = np.random.default_rng(7).integers(1, 30 * RATE, 1000).tolist()
    batches = plan(windows_of(lengths), padding=0, shortest=RATE, most_samples=60 * RATE, multiple=1)
    programs = {(batch.rows, batch.samples) for batch in batches}
    # 21 buckets up to 32 s; 60 s hold 1 to 16 rows of them, in powers of four.
    assert len({samples for _, samples in programs}) <= 21
    assert len(programs) <= 45
    assert sorted(w.clip for batch in batches for w in batch.windows) == list(range(1000))
    for batch in batches:
        assert len(batch.windows) <= batch.rows
        assert all(w.stop - w.start <= batch.samples for w in batch.windows)
        assert batch.rows == 1 or batch.rows * batch.samples <= 60 * RATE


def test_six_equal_clips_run_as_four_and_two_alone() -> None:
    batches = plan(windows_of([2 * RATE] * 6), padding=0, shortest=RATE, most_samples=60 * RATE, multiple=1)
    assert [batch.rows for batch in batches] == [4, 1, 1]


def test_devices_share_a_batch_evenly() -> None:
    batches = plan(windows_of([2 * RATE] * 7), padding=0, shortest=RATE, most_samples=60 * RATE, multiple=4)
    assert [(batch.rows, len(batch.windows)) for batch in batches] == [(4, 4), (4, 3)]


def test_silence_counts_into_the_bucket() -> None:
    padding = round(1.8 * RATE)
    (batch,) = plan(windows_of([10 * RATE]), padding=padding, shortest=RATE, most_samples=60 * RATE, multiple=1)
    assert batch.samples == 12 * RATE


def test_rows_hold_silence_sound_and_nothing() -> None:
    clips = [np.full(5, 1.0, np.float32), np.full(9, 2.0, np.float32)]
    (batch,) = plan([Window(0, 1, 5), Window(1, 0, 9)], padding=5, shortest=20, most_samples=2000, multiple=3)
    waveforms, lengths = assemble(batch, clips, before=2, after=3)
    assert waveforms.shape == (3, batch.samples)
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
