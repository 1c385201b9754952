"""The versions of a model that its folder holds. Runs without torch.

A model is a bundle's folder (version 1), or a folder of them with numbers as names (their versions). A policy that was
fitted later lies beside a bundle's own as `policy-2.json` and so on, and is the version `1.2`.
"""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from offramp.bundle.manifest import MANIFEST
from offramp.bundle.read import Bundle, open_bundle
from offramp.early_exit.policy_file import load_with_origin

LATER_POLICY = re.compile(r"policy-([1-9][0-9]{0,8})\.json")


def open_versions(folder: Path, runtime: str) -> dict[str, Bundle]:
    """Every version of a model, the oldest first; those that differ in their policy share the segments.

    Raises:
        ValueError: if there is no bundle, or one of them cannot be opened.
    """
    return {
        version: bundle for number, path in _bundles(folder) for version, bundle in _policies(number, path, runtime)
    }


def _bundles(folder: Path) -> list[tuple[int, Path]]:
    """The bundles of a model's folder by version."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if (folder / MANIFEST).is_file():
        return [(1, folder)]
    numbered = [
        path for path in folder.iterdir() if path.name.isascii() and path.name.isdigit() and (path / MANIFEST).is_file()
    ]
    if not numbered:
        return [(1, folder)]  # opening it says what is wrong
    versions = sorted((int(path.name), path) for path in numbered)
    for (number, path), (following, other) in pairwise(versions):
        if number == following:
            raise ValueError(f"{path} and {other} are both version {number}: rename one of them")
    return versions


def _policies(number: int, folder: Path, runtime: str) -> list[tuple[str, Bundle]]:
    """A bundle with its own policy, and with each that was fitted later."""
    bundle = open_bundle(folder, runtime)
    result = [(str(number), bundle)]
    for later, path in later_policies(folder):
        policy, origin = load_with_origin(path)
        if policy.enabled != bundle.policy.enabled:
            raise ValueError(f"{path} enables other exits than {folder / MANIFEST} has segments for")
        if origin.get("bundle", bundle.manifest.digest) != bundle.manifest.digest:
            raise ValueError(f"{path} was fitted to another bundle than the one in {folder}: remove it")
        about = {**bundle.manifest.provenance, "policy": origin}  # drift is measured from what it was fitted on
        manifest = replace(bundle.manifest, provenance=about)
        result.append((f"{number}.{later}", replace(bundle, policy=policy, manifest=manifest)))
    return result


def later_policies(folder: Path) -> list[tuple[int, Path]]:
    """The policies that were fitted after the bundle was written, by number."""
    matches = [(LATER_POLICY.fullmatch(path.name), path) for path in folder.iterdir() if not path.is_symlink()]
    return sorted((int(match[1]), path) for match, path in matches if match and path.is_file())
