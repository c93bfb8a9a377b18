"""Writes the tables of the pages in this folder from configs/, the published names and the limits of the tests.

python docs/models/make.py            rewrites what stands between `<!-- TABLE -->` and `<!-- end -->` of every page
python docs/models/make.py --check    names the pages that are out of date, and exits with 1 where there is one
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from jaxasr.configs import named_configs
from jaxasr.convert.hub.published import published_models
from jaxasr.model import AbstractModel
from jaxasr.model_config import ModelConfig
from jaxasr.store import parameter_count, read_config

FOLDER = Path(__file__).resolve().parent
LIMITS = FOLDER.parent.parent / "tests" / "golden_models.py"
_PART = re.compile(r"(<!-- (?P<table>\w+) (?P<kind>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def parameters(config: ModelConfig) -> int:
    """Parameters of a model, from its shapes."""
    return parameter_count(AbstractModel(config).parameters)


def configs(kind: str, count: Callable[[ModelConfig], int] = parameters) -> str:
    """The configurations whose encoder is of this kind: their sizes."""
    rows = ["| configuration | parameters | heads | vocabulary | width | streams |", "|---|---|---|---|---|---|"]
    for name, path in sorted(named_configs().items()):
        config = read_config(path)
        if config.encoder.kind == kind:
            causal = "yes" if config.encoder.facts().get("causal") else "no"
            rows.append(
                f"| [{name}](../../configs/{path.name}) | {count(config):,} | {', '.join(config.heads)} "
                f"| {config.vocabulary_size:,} | {config.encoder.output_dim} | {causal} |"
            )
    return "\n".join(rows)


def published(kind: str) -> str:
    """The published models with such an encoder, or of such a family where a checkpoint says all: for `--model`."""
    named = named_configs()
    rows = ["| name | repository | commit | precisions | licence of the weights |", "|---|---|---|---|---|"]
    for model in published_models():
        if kind == (model.family if model.config is None else read_config(named[model.config]).encoder.kind):
            commit = f"`{model.revision[:8]}`" if model.revision else "pinned at the first download"
            rows.append(
                f"| `{model.name}` | {model.repository} | {commit} | {', '.join(model.precisions)} | {model.licence} |"
            )
    return "\n".join(rows)


def limits(kind: str) -> str:
    """The limits within which the tests hold activations against the originals'."""
    found = re.search(r"^PER_MODULE, END_TO_END = (\S+), (\S+)$", LIMITS.read_text("utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{LIMITS.name}: PER_MODULE and END_TO_END are not where they were")
    return (
        "| what | largest difference, as a share of the largest magnitude |\n|---|---|\n"
        f"| every module, stack and state, fed with what the original fed it | {found[1]} |\n"
        f"| the whole encoder from features, log-probabilities | {found[2]} |\n"
        "| tokens, frames, texts | none: equal |"
    )


def render(page: str, count: Callable[[ModelConfig], int] = parameters) -> str:
    """The text of a page with its tables made anew."""
    tables: dict[str, Callable[[str], str]] = {
        "configs": lambda kind: configs(kind, count),
        "published": published,
        "limits": limits,
    }
    return _PART.sub(lambda part: f"{part[1]}{tables[part['table']](part['kind'])}\n{part[4]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, name the pages that are out of date")
    options = parser.parse_args()
    stale = []
    for path in sorted(FOLDER.glob("*.md")):
        before = path.read_text("utf-8")
        after = render(before)
        if before != after:
            stale.append(path.name)
            if not options.check:
                path.write_text(after, "utf-8")
    if stale:
        print("out of date:" if options.check else "written:", ", ".join(stale))
    sys.exit(bool(stale and options.check))


if __name__ == "__main__":
    main()
