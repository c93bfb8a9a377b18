"""The recognizer on the model that lies in the repository: order, errors, overlap, devices, threads."""

from __future__ import annotations

import dataclasses
import io
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr
from golden_models import Golden
from jaxasr import audio
from jaxasr.errors import AudioError, ConfigError, ModelError
from jaxasr.heads.configs import CTCConfig
from jaxasr.recognizer import Recognizer
from jaxasr.search import DEFAULT_BEAM, BeamConfig, GreedyConfig, JointConfig, SearchConfig
from jaxasr.transcripts import Failure, Transcript
from quick_compilation import with_flags

CLIP = Path(__file__).parent / "data" / "espeak_sentence.wav"


@pytest.fixture(scope="module")
def recognizer(bundled: Golden) -> Recognizer:
    return bundled.recognizer()


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    sound = audio.load(str(CLIP))
    return [sound, sound[:20000], sound[:5000], sound[8000:40000], sound[:200], np.zeros(0, np.float32)]


def spoken(results: list[Transcript | Failure]) -> list[tuple[int, ...]]:
    return [tuple(result.token_ids) for result in results if isinstance(result, Transcript)]


def test_order_is_kept_and_companions_do_not_matter(recognizer: Recognizer, clips: list[np.ndarray]) -> None:
    together = list(recognizer.transcribe(clips))
    alone = [next(recognizer.transcribe(clip)) for clip in clips]
    assert spoken(together) == spoken(alone)
    backwards = list(recognizer.transcribe(clips[::-1]))[::-1]
    assert [t.text for t in backwards] == [t.text for t in together]
    assert [t.duration for t in together] == [len(clip) / 16000 for clip in clips]
    assert together[0].text and together[-1].text == "" and together[-1].tokens == []


def test_fields_run_side_by_side(recognizer: Recognizer) -> None:
    result = next(recognizer.transcribe(str(CLIP)))
    assert result.audio == str(CLIP)
    count = len(result.tokens)
    assert count > 10
    assert len(result.token_ids) == len(result.timestamps) == len(result.log_probs) == count
    assert result.timestamps == sorted(result.timestamps)
    assert all(0 <= t <= result.duration for t in result.timestamps)
    assert all(p <= 0 for p in result.log_probs)


def test_one_recording_in_any_form_is_one_recording(recognizer: Recognizer, clips: list[np.ndarray]) -> None:
    expected = next(recognizer.transcribe(str(CLIP))).token_ids
    content = CLIP.read_bytes()
    for source in (content, bytearray(content), memoryview(content), io.BytesIO(content), CLIP, jnp.asarray(clips[0])):
        (transcript,) = recognizer.transcribe(source)
        assert transcript.token_ids == expected


def test_short_clips_are_padded_to_the_shortest(
    bundled: Golden, clips: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    padded = bundled.recognizer(shortest_seconds=4.0)
    shapes = []

    def run(waveforms: np.ndarray, *_: object) -> None:
        shapes.append(waveforms.shape)
        raise InterruptedError

    monkeypatch.setattr(padded.programs, "run", run)  # nothing is compiled
    for clip in clips[1:3]:
        with pytest.raises(InterruptedError):
            list(padded.transcribe(clip))
    assert shapes == [(1, 4 * 16000)] * 2


def test_a_recognizer_is_closed_after_its_parameters_have_been_read(bundled: Golden) -> None:
    reading = threading.Event()

    def read() -> dict[str, Any]:
        reading.wait(60)
        return bundled.params

    with Recognizer(bundled.config, read, bundled.tokens) as recognizer:
        alive = [thread for thread in threading.enumerate() if thread.name == "jaxasr-params"]
        assert len(alive) == 1
        reading.set()
    assert not alive[0].is_alive()
    recognizer.close()
    with pytest.raises(ModelError, match="closed"):
        list(recognizer.transcribe(str(CLIP)))


def test_a_refused_option_leaves_no_thread(bundled: Golden) -> None:
    for option in ({"dtype": "float33"}, {"head": "rnnt"}, {"shortest_seconds": 0.0}):
        with pytest.raises(ConfigError):
            Recognizer(bundled.config, lambda: bundled.params, bundled.tokens, **option)
    assert not [thread for thread in threading.enumerate() if thread.name == "jaxasr-params"]


def test_repeated_calls_compile_nothing_new(recognizer: Recognizer, clips: list[np.ndarray]) -> None:
    list(recognizer.transcribe(clips))
    known = set(recognizer.programs.compiled)
    list(recognizer.transcribe(clips))
    assert set(recognizer.programs.compiled) == known


def test_unreadable_inputs_among_good_ones(recognizer: Recognizer, tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF nothing")
    first, second, third = recognizer.transcribe([str(CLIP), str(bad), str(CLIP)], on_error="yield")
    assert isinstance(first, Transcript) and isinstance(third, Transcript)
    assert isinstance(second, Failure) and second.audio == str(bad) and isinstance(second.error, AudioError)
    assert first.text == third.text != ""
    results = recognizer.transcribe([str(bad), str(CLIP)])
    with pytest.raises(AudioError, match="bad.wav"):
        list(results)


@pytest.mark.parametrize("ahead", [None, 0, 2])
def test_every_input_has_its_result_or_its_failure(
    recognizer: Recognizer, clips: list[np.ndarray], ahead: int | None
) -> None:
    row = {"array": clips[1], "sampling_rate": 16000, "path": "row.wav"}
    sources = [None, clips[1], 7, clips[-1], row, "no such file", clips[1].astype(jnp.bfloat16), None]
    for given in (sources, iter(sources)):
        results = list(recognizer.transcribe(given, on_error="yield", read_ahead=ahead))
        assert [isinstance(result, Failure) for result in results] == [
            True,
            False,
            True,
            False,
            False,
            True,
            False,
            True,
        ]
        assert results[1].text == results[4].text != "" == results[3].text and results[4].audio == "row.wav"
    results = recognizer.transcribe(iter([clips[1], None, clips[1]]), read_ahead=ahead)
    assert next(results).text
    with pytest.raises(AudioError, match="not NoneType"):
        next(results)


def test_results_of_a_group_come_when_their_batch_is_done(
    bundled: Golden, recognizer: Recognizer, clips: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shortest clip runs first: as the first input it is out before the others have run."""
    single = bundled.recognizer(batch_seconds=2.0)
    single.programs = recognizer.programs
    done = []
    keep = single._keep_best
    monkeypatch.setattr(single, "_keep_best", lambda *batch: done.append(batch[0]) or keep(*batch))
    results = single.transcribe([clips[-1], "no such file", clips[2], clips[1], clips[0]], on_error="yield")
    counts = [len(done) for _ in results]
    assert counts == [0, 0, 1, 2, 3]


def test_misspelt_arguments_are_errors(recognizer: Recognizer, bundled: Golden) -> None:
    with pytest.raises(TypeError):
        recognizer.transcribe([], sample_rat=8000)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        jaxasr.load_model(bundled.directory, blank_penlty=1.0)
    with pytest.raises(TypeError):
        jaxasr.convert_checkpoint("a", "b", overwritten=True)
    with pytest.raises(ConfigError, match="on_error"):
        recognizer.transcribe([], on_error="ignore")  # type: ignore[arg-type]
    for ahead in (-1, True, float("nan")):
        with pytest.raises(ConfigError, match="read_ahead must be a number of inputs"):
            recognizer.transcribe([], read_ahead=ahead)
    with pytest.raises(ConfigError, match="float33"):
        bundled.recognizer(dtype="float33")
    for option in ("pad_before", "pad_after"):
        for seconds in (-1.0, float("nan")):
            with pytest.raises(ConfigError, match=f"{option} must be a number of seconds"):
                jaxasr.load_model(bundled.directory, **{option: seconds})
    with pytest.raises(ConfigError, match="shortest_seconds"):
        bundled.recognizer(shortest_seconds=0.05)
    with pytest.raises(ConfigError, match="batch_seconds"):
        bundled.recognizer(batch_seconds=0)
    with pytest.raises(ConfigError, match="rnnt"):
        bundled.recognizer(head="rnnt")
    with pytest.raises(ConfigError, match="greedy search keeps one hypothesis: leave out beam"):
        bundled.recognizer(head="ctc", beam=4)


GREEDY, JOINT = GreedyConfig(), JointConfig(beam=8)


@pytest.mark.parametrize(
    ("own", "asked", "chosen"),
    [
        (GREEDY, {}, GREEDY),
        (GREEDY, {"head": "ctc"}, GreedyConfig(head="ctc")),
        (GREEDY, {"beam": 1}, GREEDY),
        (GREEDY, {"beam": 3}, BeamConfig(beam=3)),
        (GREEDY, {"kind": "beam"}, BeamConfig(beam=DEFAULT_BEAM)),
        (GREEDY, {"kind": "joint"}, JointConfig(beam=DEFAULT_BEAM)),
        (GREEDY, {"kind": "greedy", "head": "transducer"}, GreedyConfig(head="transducer")),
        (BeamConfig(beam=6), {"beam": 1}, GREEDY),
        (BeamConfig(beam=6), {"beam": 2}, BeamConfig(beam=2)),
        (JOINT, {}, JOINT),
        (JOINT, {"beam": 3}, JointConfig(beam=3)),
        (JOINT, {"beam": 1}, GREEDY),
        (JointConfig(beam=8, ctc_weight=0.7), {"kind": "joint", "beam": 3}, JointConfig(beam=3, ctc_weight=0.7)),
        (JOINT, {"kind": "greedy"}, GREEDY),
        (JOINT, {"kind": "beam"}, BeamConfig(beam=8)),
        (JOINT, {"head": "transducer"}, BeamConfig(beam=8)),
        (JOINT, {"head": "transducer", "beam": 1}, GreedyConfig(head="transducer")),
        (JOINT, {"head": "ctc"}, GreedyConfig(head="ctc")),
    ],
)
def test_the_search_is_the_models_unless_another_is_asked_for(
    bundled: Golden, own: SearchConfig, asked: dict[str, Any], chosen: SearchConfig
) -> None:
    assert dataclasses.replace(bundled.config, search=own).choose_search(**asked) == chosen


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"kind": "prefix"}, "none of greedy, beam, joint"),
        ({"head": "decoder"}, "no decoder head: take transducer or ctc"),
        ({"kind": "joint", "beam": 1}, "beam of 2 or more"),
        ({"kind": "beam", "beam": 0}, "beam of 1 or more"),
        ({"beam": 0}, "beam of 1 or more"),
        ({"kind": "joint", "head": "ctc"}, "leave out head"),
        ({"kind": "greedy", "beam": 2}, "leave out beam"),
        ({"head": "ctc", "beam": 2}, "leave out beam"),
    ],
)
def test_a_search_that_cannot_be_is_refused_by_name(bundled: Golden, asked: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{bundled.config.name}: .*{named}"):
        bundled.config.choose_search(**asked)


def test_a_configuration_names_parts_that_do_not_agree(bundled: Golden) -> None:
    with pytest.raises(ValueError, match="ctc_weight"):
        JointConfig(ctc_weight=1.5)
    with pytest.raises(ValueError, match="two heads of one vocabulary"):
        dataclasses.replace(bundled.config, search=JOINT, ctc=None)
    with pytest.raises(ValueError, match="no ctc head"):
        dataclasses.replace(bundled.config, search=GreedyConfig(head="ctc"), ctc=None)
    with pytest.raises(ValueError, match="vocabularies differ"):
        dataclasses.replace(bundled.config, ctc=CTCConfig(7))
    with pytest.raises(ValueError, match="needs a transducer, a ctc or a parallel head"):
        dataclasses.replace(bundled.config, transducer=None, ctc=None)


@pytest.mark.parametrize(
    "search", [GreedyConfig(head="transducer"), BeamConfig(), GreedyConfig(head="ctc"), JointConfig()]
)
def test_what_is_no_number_is_no_text(bundled: Golden, search: SearchConfig) -> None:
    """As when activations leave the range of float16: a beam goes on with blanks then, and says so all the same."""
    config = dataclasses.replace(bundled.config, search=search)
    recognizer = Recognizer(config, bundled.params, bundled.tokens)
    recognizer.programs.replace_params(jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), bundled.params))
    with pytest.raises(ModelError, match="leaves the range of float32"):
        list(recognizer.transcribe([str(CLIP)]))


def test_a_joint_search_hears_what_both_heads_say(bundled: Golden) -> None:
    found = []
    for weight in (0.0, 1.0):
        search = JointConfig(beam=8, ctc_weight=weight)
        recognizer = bundled.recognizer(config=dataclasses.replace(bundled.config, search=search))
        found += [each.token_ids for each in recognizer.transcribe([str(CLIP)])]
    assert found[0] != found[1]


def test_reading_goes_on_while_the_device_works(
    bundled: Golden, recognizer: Recognizer, clips: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = bundled.recognizer(batch_seconds=1.0)
    slow.programs = recognizer.programs
    list(recognizer.transcribe([clips[1]]))  # compiled before anything is counted
    read, reading = threading.Event(), []
    original = audio.load_pieces

    def load(source: Any, *arguments: Any) -> object:
        reading.append(source)
        if len(reading) > 4:
            read.set()
        return original(source, *arguments)

    run = slow.programs.run

    def wait_for_reader(*batch: Any) -> object:
        # The first group is on the device; with no reading meanwhile this would never end.
        assert read.wait(timeout=60)
        return run(*batch)

    monkeypatch.setattr(audio, "load_pieces", load)
    monkeypatch.setattr(slow.programs, "run", wait_for_reader)
    results = list(slow.transcribe([clips[1]] * 12))
    assert len(results) == 12 and len(set(spoken(results))) == 1


def test_results_come_before_all_is_read(bundled: Golden, recognizer: Recognizer, clips: list[np.ndarray]) -> None:
    eager = bundled.recognizer(batch_seconds=1.0)
    eager.programs = recognizer.programs
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield clips[1]

    results = eager.transcribe(endless())  # type: ignore[arg-type]
    for _ in range(3):
        assert next(results).text
    assert taken < 40
    results.close()


def test_long_audio_is_cut_with_one_line(recognizer: Recognizer, clips: list[np.ndarray], logged: list[str]) -> None:
    long = np.tile(np.concatenate([clips[0], np.zeros(8000, np.float32)]), 14)  # 63 s
    result = next(recognizer.transcribe(long))
    assert len([line for line in logged if "quiet points" in line]) == 1
    single = next(recognizer.transcribe(clips[0]))
    assert len(result.tokens) > 10 * len(single.tokens)
    assert result.timestamps == sorted(result.timestamps) and result.timestamps[-1] > 58


def test_threads_share_a_recognizer(recognizer: Recognizer, clips: list[np.ndarray]) -> None:
    expected = spoken(list(recognizer.transcribe(clips[:4])))
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: spoken(list(recognizer.transcribe(clips[:4]))), range(24)):
            assert result == expected


def test_progress_reaches_the_whole(recognizer: Recognizer, clips: list[np.ndarray]) -> None:
    calls: list[tuple[float, float]] = []
    list(recognizer.transcribe(clips, progress=lambda done, known: calls.append((done, known))))
    done, known = calls[-1]
    assert done == pytest.approx(known) == pytest.approx(sum(map(len, clips)) / 16000)


def test_damage_is_reported_at_once_or_when_loading_lazily_at_the_first_use(bundled: Golden, tmp_path: Path) -> None:
    damaged = shutil.copytree(bundled.directory, tmp_path / "damaged")
    shutil.rmtree(damaged / "params")
    with pytest.raises(ModelError, match="params"):
        jaxasr.load_model(damaged)
    late = jaxasr.load_model(damaged, lazy=True)
    with pytest.raises(ModelError, match="params"):
        list(late.transcribe(str(CLIP)))


SCRIPT = """
import sys
import jax, numpy as np
import jaxasr
from jaxasr import audio
sound = audio.load(sys.argv[2])
clips = [sound, sound[:20000], sound[8000:40000], sound[:9000], sound[100:30000]]
model = jaxasr.load_model(sys.argv[1])
print(len(model.programs.devices))
for t in model.transcribe(clips):
    print(*t.token_ids)
"""


@pytest.mark.slow
def test_devices_share_batches_and_give_the_same(bundled: Golden, recognizer: Recognizer) -> None:
    sound = audio.load(str(CLIP))
    clips = [sound, sound[:20000], sound[8000:40000], sound[:9000], sound[100:30000]]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(bundled.directory), str(CLIP)],
        env={**with_flags("--xla_force_host_platform_device_count=2"), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    devices, *lines = run.stdout.splitlines()
    assert devices == "2"
    assert [tuple(map(int, line.split())) for line in lines] == spoken(list(recognizer.transcribe(clips)))
