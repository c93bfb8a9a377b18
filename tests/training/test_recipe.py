"""Recipes: those that come with jaxasr, what is refused, and how masks and dropout begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxasr.errors import ConfigError
from jaxasr.training.curriculum import CurriculumConfig
from jaxasr.training.recipe import named_recipes, read_recipe


@pytest.mark.parametrize("name", named_recipes())
def test_named_recipes_are_whole(name: str) -> None:
    assert read_recipe(name).steps > 0


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("curriculum: {gentle_steps: [2, 1]}", "gentle_steps"),
        ("curriculum: {gentle_steps: [1]}", "gentle_steps"),
        ("curriculum: {gentle_steps: [-1, 2]}", "gentle_steps"),
        ("curriculum: {clean_epochs: -1}", "clean_epochs"),
        ("curriculum: {join_most: 0}", "join_most"),
        ("curriculum: {gap_seconds: [0.4, 0.05]}", "gap_seconds"),
        ("curriculum: {repeat_share: 1.5}", "repeat_share"),
        ("dropout: 1.0", "dropout"),
        ("dropout: -0.1", "dropout"),
        ("dropout: .nan", "dropout"),
        ("drop: 0.1", "drop"),
    ],
)
def test_what_cannot_be_is_refused(line: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"steps: 3\n{line}\n")
    with pytest.raises(ConfigError, match=named):
        read_recipe(path)


@pytest.mark.parametrize(
    ("gentle_steps", "expected"),
    [
        ((0, 0), [1, 1, 1, 1, 1]),
        ((3, 3), [0, 0, 1, 1, 1]),
        ((1, 3), [0, 0.5, 1, 1, 1]),
        ((2, 6), [0, 0, 0.25, 0.5, 0.75]),
    ],
)
def test_strength_of_the_first_steps(gentle_steps: tuple[int, int], expected: list[float]) -> None:
    curriculum = CurriculumConfig(gentle_steps=gentle_steps)
    assert [float(curriculum.strength(done)) for done in range(5)] == expected
