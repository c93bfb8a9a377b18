"""What is imported when: starting is quick, and no package of the publishers is ever needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "jax", "jaxlib", "flax", "orbax", "optax", "scipy", "librosa", "huggingface_hub", "onnx", "onnxruntime", "torch",
    "matplotlib",
)  # fmt: skip
# The command line imports none of these before it knows what is asked.
HELP = (*HEAVY, "numpy", "soundfile", "soxr", "yaml", "ml_dtypes", "filelock", "sentencepiece", "av")
COMMANDS = (
    "transcribe", "convert", "compile", "info", "evaluate", "quantize", "sensitivity", "export", "train", "bench",
)  # fmt: skip
SAMPLES = Path(__file__).parent / "samples"
PUBLISHERS = ("torch", "torchaudio", "onnx", "onnxruntime", "nemo", "sherpa_onnx", "k2", "lhotse")

# Runs a program, then prints which of the packages named in argv[1] it has imported or tried to import.
PROBE = """
import json, sys

names, tried = json.loads(sys.argv[1]), set()

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in names:
            tried.add(name)

sys.meta_path.insert(0, Watch())
try:
{program}
except SystemExit as stop:
    code = stop.code or 0
else:
    code = 0
print("\\n" + json.dumps([code, sorted(tried | (set(names) & set(sys.modules)))]))
"""


def imported(program: str, names: tuple[str, ...] = HEAVY) -> tuple[int, list[str]]:
    """Exit code of `program` in a Python of its own, and which of `names` it imported or tried to import."""
    body = "\n".join("    " + line for line in program.splitlines())
    result = subprocess.run(
        [sys.executable, "-c", PROBE.replace("{program}", body), json.dumps(names)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    code, found = json.loads(result.stdout.splitlines()[-1])
    return code, found


def command(*arguments: str) -> str:
    return f"import sys\nsys.argv = {['jaxasr', *arguments]!r}\nfrom jaxasr.cli import main\nmain()"


def test_the_probe_sees_imports() -> None:
    assert imported("import jax") == (0, ["jax", "jaxlib"])


@pytest.mark.parametrize(
    "program",
    [
        "import jaxasr; jaxasr.__version__; dir(jaxasr); jaxasr.JaxasrError",
        "import jaxasr.errors, jaxasr.configuration, jaxasr.writers, jaxasr.manifests, jaxasr.evaluation, jaxasr.audio",
        "import jaxasr.text.tokens, jaxasr.text.sherpa_onnx, jaxasr.speechlike",
        "import jaxasr.convert.formats.torch.pickles, jaxasr.convert.formats.onnx.files",
        "import jaxasr.convert.hub.published, jaxasr.convert.hub.downloads",
    ],
)
def test_light_modules_import_nothing_heavy(program: str) -> None:
    assert imported(program) == (0, [])


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([c, "--help"] for c in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert imported(command(*arguments), HELP) == (0, [])


def test_a_mistake_on_the_command_line_is_told_before_anything_heavy_is_imported() -> None:
    code, found = imported(command("transcribe", "a.wav", "--modle", "x"), HELP)
    assert code == 2 and found == []


@pytest.mark.parametrize("source", ["pretrained.pt", "."])
def test_conversion_needs_no_package_of_the_publishers(shared: Path, tmp_path: Path, source: str) -> None:
    folder = shared / "golden" / "zipformer-tiny"
    checkpoint = folder / source
    if source == ".":
        checkpoint = tmp_path / "onnx"
        checkpoint.mkdir()
        for path in [*folder.glob("*-avg-1.onnx"), folder / "tokens.txt"]:
            (checkpoint / path.name).symlink_to(path)
    arguments = ["convert", str(checkpoint), str(tmp_path / "model")]
    if source == "pretrained.pt":
        arguments += ["--config", str(folder / "config.yaml")]
    code, found = imported(command(*arguments), PUBLISHERS)
    assert code == 0 and (tmp_path / "model" / "manifest.json").is_file()
    assert found == []


def test_a_warm_process_imports_neither_flax_nor_orbax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXASR_CACHE", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    program = command("transcribe", str(SAMPLES / "name.wav"))
    assert imported(program, ("flax", "orbax")) == (0, ["flax", "orbax"])
    assert imported(program, ("flax", "orbax", "optax", "librosa", "scipy")) == (0, [])
