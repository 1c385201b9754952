"""Recipes by name: what ships with the package is listed, printed and trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from offramp.config import recipes

Offramp = Callable[..., Any]


def test_recipes_are_listed_and_printed(offramp: Offramp) -> None:
    assert all(title for title in recipes.available().values())
    listed = offramp("recipes")
    assert listed.status == 0 and all(name in listed.out for name in recipes.available())
    printed = offramp("recipes", "digits")
    assert yaml.safe_load(printed.out)["data"] == "digits"


def test_an_unknown_recipe_names_the_nearest(offramp: Offramp, tmp_path: Path) -> None:
    for words in (("recipes", "digit"), ("train", "--recipe", "digit", "--out", tmp_path / "r")):
        ran = offramp(*words)
        assert ran.status == 2 and "unknown recipe 'digit'; the nearest is 'digits'" in ran.err


def test_one_file_of_options_at_most(offramp: Offramp, tmp_path: Path) -> None:
    ran = offramp("train", "--recipe", "digits", "--config", "x.yaml", "--out", tmp_path / "r")
    assert ran.status != 0 and "give one of them, once" in ran.err
