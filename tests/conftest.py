"""Where the data beside the project lies; one fixture decides whether tests that need it run, skip or fail."""

from __future__ import annotations

import functools
import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import quick_compilation
import shape_checks

if TYPE_CHECKING:
    import numpy as np

    from golden_models import Golden

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = REPOSITORY / "tests" / "data"


def shared_folder() -> Path | None:
    """The folder of reference data: JAXASR_SHARED, else ../shared beside the checkout; None where there is none."""
    named = os.environ.get("JAXASR_SHARED")
    folder = Path(named) if named else REPOSITORY.parent / "shared"
    return folder.resolve() if (folder / "golden").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data's folder: skips without it, fails where it was promised (JAXASR_SHARED set, or under CI)."""
    folder = shared_folder()
    if folder is None and (os.environ.get("JAXASR_SHARED") or os.environ.get("CI")):
        pytest.fail("the reference data is missing: set JAXASR_SHARED to the folder that holds golden/ and speech/")
    if folder is None:
        pytest.skip("needs the reference data beside the checkout (JAXASR_SHARED)")
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--name-unexecuted", action="store_true", help="name the public functions that no test executes")
    parser.addoption("--all-executed", action="store_true", help="the same, and fail where there is one")


def pytest_configure(config: pytest.Config) -> None:
    """One cache of compiled programs for all workers and programs of a run, thrown away at its end.

    Unless the caller names one. Small programs are kept too: what a test compiles, most other processes need as well.
    Tests run on the CPU unless JAX_PLATFORMS says otherwise: libtpu, which the ahead-of-time tests bring, complains on
    stderr where there is no TPU, and the command line's tests count its lines.
    """
    shape_checks.install()
    # Tracing makes millions of objects that live on. To look for cycles among them at every 700th, as Python does, took
    # 6 % of a run's processor time.
    gc.set_threshold(50_000, 10, 10)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    quick_compilation.install()
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if config.getoption("--all-executed") or config.getoption("--name-unexecuted"):
        from executed import Recorder

        config.pluginmanager.register(Recorder(), "executed")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # Started in the background: the programs that tests interrupt would ignore it too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("JAXASR_CACHE", "JAX_COMPILATION_CACHE_DIR"):
        if name not in os.environ:
            os.environ[name] = folder = tempfile.mkdtemp(prefix="jaxasr-tests-")
            config.add_cleanup(functools.partial(shutil.rmtree, folder, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, else in their order: of several workers none is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What tests of odd names print and log is no UTF-8, which pytest-xdist cannot hand on."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def goldens(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Golden]:
    """The reference model of a name, converted once a session."""
    from golden_models import convert

    @functools.cache
    def load(name: str) -> Golden:
        return convert(name, shared / "golden" / name, tmp_path_factory.mktemp("models") / name)

    return load


@pytest.fixture(scope="session")
def features(shared: Path) -> dict[str, np.ndarray]:
    """The clips' feature frames (T, 80) as kaldi-native-fbank made them, by name."""
    from golden_models import CLIPS, read_arrays

    stored = read_arrays(shared / "golden/audio/fbank80.npz")
    return {clip: stored[clip] for clip in CLIPS}


@pytest.fixture(scope="session")
def waveforms(shared: Path) -> dict[str, np.ndarray]:
    """The clips' samples, float32 at 16 kHz, by name."""
    from golden_models import CLIPS
    from jaxasr import audio

    return {clip: audio.load(shared / f"golden/audio/{clip}.wav") for clip in CLIPS}


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """The reference Zipformer that lies in the repository (tests/data), converted once a session."""
    from golden_models import BUNDLED, convert

    return convert(BUNDLED, DATA / BUNDLED, tmp_path_factory.mktemp("models") / BUNDLED)


@pytest.fixture(scope="session")
def bundled_paraformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model directory of the Paraformer that lies in the repository (tests/data), converted once a session."""
    import jaxasr

    jaxasr.configure_process()
    directory = tmp_path_factory.mktemp("models") / "paraformer-tiny"
    jaxasr.convert_checkpoint(DATA / "paraformer-tiny", directory)
    return directory


@pytest.fixture(scope="module")
def compiled_as_for_users() -> Iterator[None]:
    """Programs of a module's tests have all optimizations, those of processes that it starts too."""
    with quick_compilation.as_for_users():
        yield


@pytest.fixture(autouse=True)
def logger_restored() -> Iterator[None]:
    """The command line, run in the process of the tests, makes jaxasr's logger print; it does so for one test alone."""
    logger = logging.getLogger("jaxasr")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Between modules, a worker that holds thousands of programs lets go of them.

    Each takes about 80 memory maps, and a process may have 65,530 (vm.max_map_count): above that XLA ends it.
    """
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and len(maps.read_bytes().splitlines()) > 12_000:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The messages that jaxasr logs during a test.

    caplog hears a logger that does not propagate, as within the command line, not at all or once more than it should,
    depending on pytest's version.
    """
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Keep()
    logger = logging.getLogger("jaxasr")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture
def silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    """libmpg123 is kept from standard error, as `configure_process` keeps it."""
    from jaxasr.process import mpg123_silence

    monkeypatch.setattr(mpg123_silence, "enabled", True)


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A folder with 4000 samples of noise in a.flac and b.flac, at 8 kHz, and in c.flac, at 16 kHz."""
    import numpy as np
    import soundfile

    rng = np.random.default_rng(1)
    for name, rate in {"a.flac": 8000, "b.flac": 8000, "c.flac": 16000}.items():
        soundfile.write(tmp_path / name, rng.integers(-20000, 20000, 4000).astype(np.int16), rate)
    return tmp_path
