"""What is installed is what lies in the tree, and what the README says about it holds."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import jaxasr
import jaxasr.configs
import jaxasr.convert
from conftest import REPOSITORY
from jaxasr import testing
from jaxasr.convert.hub.published import published_models
from jaxasr.quantizing import QuantizationReport
from jaxasr.store import ModelCard
from jaxasr.training.train import TrainingResult
from sources import PACKAGE_FOLDERS, imports, modules

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = (
    "transcribe", "convert", "compile", "info", "evaluate", "quantize", "sensitivity", "export", "train", "bench",
)  # fmt: skip
# Packages in the core that no module imports.
UNUSED = {
    "flatbuffers",  # jax.export imports it to write programs, and does not depend on it
}


def jaxasr_command() -> str:
    """The console script that belongs to the Python that runs the tests."""
    found = shutil.which("jaxasr", path=str(Path(sys.executable).parent)) or shutil.which("jaxasr")
    assert found, "the command jaxasr is not installed"
    return found


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    # Wide enough that no help text is wrapped inside an option's name.
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run([jaxasr_command(), *arguments], capture_output=True, text=True, cwd=cwd, env=environment)


def tracked() -> list[Path]:
    """The files that git tracks or would track."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=REPOSITORY, capture_output=True
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in listing.stdout.decode().split("\0") if name]
    return [path for path in (REPOSITORY / name for name in names) if path.is_file()]


def fenced(language: str) -> list[str]:
    """The README's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_package_list_is_the_tree() -> None:
    found = set()
    for folder, package in PACKAGE_FOLDERS.items():
        for init in (REPOSITORY / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(REPOSITORY / folder).parts]))
    assert sorted(found) == PROJECT["tool"]["setuptools"]["packages"]


def test_every_module_lies_in_a_package() -> None:
    for folder in PACKAGE_FOLDERS:
        for module in (REPOSITORY / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), f"{module} would not be installed"


def test_data_files_are_installed() -> None:
    installed = importlib.resources.files("jaxasr.configs")
    names = sorted(path.name for path in (REPOSITORY / "configs").glob("*.yaml"))
    assert names
    for name in names:
        assert (installed / name).read_bytes() == (REPOSITORY / "configs" / name).read_bytes()
    assert (importlib.resources.files("jaxasr") / "py.typed").is_file()


def test_no_other_files_are_forgotten() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    for path in tracked():
        relative = path.relative_to(REPOSITORY)
        if relative.parts[0] in PACKAGE_FOLDERS and path.suffix != ".py":
            # The package that it lies in, or one above: folders of data are none.
            parts = [PACKAGE_FOLDERS[relative.parts[0]], *relative.parts[1:-1]]
            packages = (".".join(parts[: length + 1]) for length in range(len(parts)))
            covered = any(path.match(pattern) for package in packages for pattern in patterns.get(package, ()))
            assert covered, f"{relative} is in no package-data"


def test_the_installed_package_is_tested_where_that_was_asked_for() -> None:
    homes = [Path(str(module.__file__)).resolve() for module in (jaxasr, jaxasr.convert, jaxasr.configs)]
    inside = [REPOSITORY in home.parents for home in homes]
    if os.environ.get("JAXASR_TESTS_INSTALLED"):
        assert not any(inside), homes
    else:
        assert len(set(inside)) == 1, f"half installed, half from the checkout: {homes}"


def test_the_two_folders_have_one_name_each() -> None:
    """`import convert` would make a second copy of every module of jaxasr.convert."""
    pattern = re.compile(r"^\s*(from|import) (convert|configs)\b", re.MULTILINE)
    for path in tracked():
        if path.suffix in (".py", ".ipynb", ".md"):
            assert not pattern.search(path.read_text(encoding="utf-8")), path


def test_versions_agree() -> None:
    assert jaxasr.__version__ == PROJECT["project"]["version"] == importlib.metadata.version("jaxasr")
    assert f"## {jaxasr.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def declared(requirements: list[str]) -> set[str]:
    """The distributions that requirements name, in pip's spelling; not what an extra of our own stands for."""
    names = {re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in requirements}
    return {_normalized(name) for name in names} - {"jaxasr"}


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(*, for_types: bool) -> dict[str, str]:
    """The distributions that the library imports, each with a place where it does; for types too where asked."""
    homes = importlib.metadata.packages_distributions()
    found: dict[str, str] = {}
    for module, path in modules().items():
        source = path.read_text(encoding="utf-8")
        for line, home, _ in imports(source, module, path.name == "__init__.py", for_types=for_types):
            package = home.partition(".")[0]
            if package != "jaxasr" and package not in sys.stdlib_module_names:
                for distribution in homes.get(package, [package]):
                    found[_normalized(distribution)] = f"{path.relative_to(REPOSITORY)}:{line}"
    return found


def test_dependencies_are_what_is_imported() -> None:
    """The core has what the library imports, but for what an extra brings; and nothing else."""
    core = declared(PROJECT["project"]["dependencies"])
    extras = PROJECT["project"]["optional-dependencies"]
    optional = declared([*extras["media"], *extras["train"], *extras["notebooks"]])
    found = imported(for_types=False)
    assert not {name: where for name, where in found.items() if name not in core | optional}, "not declared"
    assert core - found.keys() == UNUSED and optional <= found.keys(), "declared, but imported nowhere"
    assert not core & optional
    known = core | optional | declared(extras["test"])
    assert imported(for_types=True).keys() <= known, "the type checker's environment lacks it"


def test_nothing_is_pinned_from_above() -> None:
    project = PROJECT["project"]
    required = [*project["dependencies"], *PROJECT["build-system"]["requires"], project["requires-python"]]
    for extra in project["optional-dependencies"].values():
        required += extra
    for requirement in required:
        # What follows a semicolon says on which machines, not which version.
        assert not re.search(r"<|==|~=|!=", requirement.partition(";")[0]), requirement
    for notebook in (REPOSITORY / "notebooks").glob("*.ipynb"):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            for line in "".join(cell["source"]).splitlines():
                if "pip install" in line:
                    assert not re.search(r"<|==|~=", line), f"{notebook.name}: {line}"


def test_public_names_exist() -> None:
    assert len(jaxasr.__all__) <= 15
    for name in jaxasr.__all__:
        assert getattr(jaxasr, name) is not None
    with pytest.raises(AttributeError, match="load_modle"):
        jaxasr.load_modle  # noqa: B018


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    # Put together here, so that this file does not hold what it looks for.
    words = ["/" + "work/", "/" + "root/", "/" + "tmp/v", "site" + "-packages/", "pyenv" + "/versions/3"]
    pattern = re.compile("|".join(map(re.escape, words)) + r"|/(home|Users)/[a-z]\w*/")
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # models, arrays and recordings
        found = pattern.search(text)
        assert not found, f"{path.relative_to(REPOSITORY)}: {found and text[found.start() - 30 : found.end() + 30]!r}"


def test_python_versions_agree() -> None:
    versions = [c.rsplit(" ")[-1] for c in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert versions == ["3.11", "3.12", "3.13"] and PROJECT["project"]["requires-python"] == ">=3.11"
    assert f"Python {versions[0]} to {versions[-1]}" in README


# The README


def test_readme_sets_up_with_two_commands() -> None:
    main_job, tests = (line for line in fenced("sh")[0].splitlines() if line)
    assert main_job.startswith("pip install -e . && ") and tests.startswith("pip install -e '.[test]' && ")
    assert README.index(main_job) < 1500, "not on the first screen"


def test_readme_main_job() -> None:
    """The first command as it stands, without the network that only its first half needs."""
    main_job = fenced("sh")[0].splitlines()[0].split(" && ", 1)[1]
    name, *arguments = shlex.split(main_job)
    assert name == "jaxasr"
    result = run(*arguments, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert f"`{result.stdout.strip()}`" in README


def test_readme_converts_and_transcribes(shared: Path, tmp_path: Path) -> None:
    """The line with both, as it stands but for its two place holders."""
    (line,) = (line for line in fenced("sh")[1].splitlines() if "CHECKPOINT" in line)
    line = line.replace("CHECKPOINT", str(shared / "golden" / "zipformer-tiny"))
    line = line.replace("AUDIO.wav", str(shared / "golden" / "audio" / "espeak_sentence.wav"))
    for command in line.split(" && "):
        name, *arguments = shlex.split(command)
        assert name == "jaxasr"
        result = run(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    expected = json.loads((shared / "golden" / "zipformer-tiny" / "sherpa_onnx.json").read_text())
    assert expected["runs"]["greedy_search"]["espeak_sentence"]["text"].strip() in result.stdout


def test_readme_commands_and_options_exist() -> None:
    assert set(re.findall(r"jaxasr (\w+)", "\n".join(fenced("sh")))) == set(COMMANDS)
    helps = {command: run(command, "--help").stdout for command in COMMANDS}
    for line in "\n".join(fenced("sh")).splitlines():
        for command, rest in re.findall(r"jaxasr (\w+)([^|&#]*)", line):
            for option in re.findall(r"--[\w-]+", rest):
                assert option in helps[command], f"jaxasr {command} has no {option}"
    for option in re.findall(r"`(--[\w-]+)", README):
        assert any(option in text for text in helps.values()), option


def test_readme_links_lead_somewhere() -> None:
    pages = [
        page for room in (".", "docs", "benchmarks", "jaxasr/embedded") for page in (REPOSITORY / room).glob("*.md")
    ]
    assert len(pages) > 8
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page} links to {target}"


def test_readme_lists_the_published_models() -> None:
    rows = re.findall(r"^\| `([\w.…-]+)` \|.*\| (.+?) \| (.+?) \|$", README, re.MULTILINE)
    listed = {name: (precisions, licence) for name, precisions, licence in rows}
    for model in published_models():
        name = model.name if model.name in listed else "icefall-librispeech-zipformer-…"
        precisions, licence = listed.pop(name) if name in listed and not name.endswith("…") else listed[name]
        assert precisions == ", ".join(model.precisions) and licence == model.licence, model.name
    assert set(listed) == {"icefall-librispeech-zipformer-…"}, "names that do not exist"


def test_published_models_have_their_configurations() -> None:
    for model in published_models():
        assert model.config is None or (REPOSITORY / "configs" / f"{model.config}.yaml").is_file(), model.name


def test_readme_configurations_exist() -> None:
    names = re.findall(r"--config (\w+)", README)
    assert names and all((REPOSITORY / "configs" / f"{name}.yaml").is_file() for name in names)


def test_licence_is_whole() -> None:
    text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"
    metadata = importlib.metadata.metadata("jaxasr")
    assert metadata["License-Expression"] == "Apache-2.0"


PUBLIC = [getattr(jaxasr, name) for name in jaxasr.__all__ if name != "__version__"]
# What users get without naming it: results, and what the module for their tests has.
FURTHER = [
    TrainingResult, QuantizationReport, ModelCard, testing.tiny_config, testing.tiny_recognizer,
    testing.tiny_model_directory, testing.random_parameters,
]  # fmt: skip


def public_functions(value: Any) -> list[Any]:
    """A function itself, or the constructor, public methods and properties of a class."""
    if not inspect.isclass(value):
        return [value]
    functions = [each for key, each in vars(value).items() if key == "__init__" or not key.startswith("_")]
    functions = [each.fget if isinstance(each, property) else each for each in functions]
    return list(filter(inspect.isfunction, functions))


@pytest.mark.parametrize("value", PUBLIC + FURTHER, ids=lambda value: value.__name__)
def test_the_public_surface_says_its_types(value: Any) -> None:
    """Every parameter and result of a public name is annotated, and none as Any."""
    noted = [(value.__name__, dict(getattr(value, "__annotations__", {})))] if inspect.isclass(value) else []
    for function in public_functions(value):
        signature = inspect.signature(function)
        notes = {key: each.annotation for key, each in signature.parameters.items() if key != "self"}
        noted.append((function.__qualname__, notes | {"return": signature.return_annotation}))
    for place, notes in noted:
        for key, note in notes.items():
            untyped = note is inspect.Signature.empty or re.search(r"\bAny\b", str(note))
            assert not untyped, f"{place}: {key}"


@pytest.mark.parametrize("value", [*filter(inspect.isfunction, PUBLIC), *public_functions(jaxasr.Recognizer)])
def test_every_argument_has_a_line_of_its_own(value: Any) -> None:
    lines = [line.strip() for line in (inspect.getdoc(value) or "").splitlines()]
    for name in inspect.signature(value).parameters:
        assert name == "self" or any(line.startswith(f"`{name}`: ") for line in lines), f"{value.__qualname__}: {name}"
