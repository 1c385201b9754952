"""The package stands without its clone: a wheel, installed outside the checkout, runs README's commands."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def run(words: list[str], folder: Path, **environment: str) -> str:
    ran = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, timeout=280, env={**os.environ, **environment}
    )
    assert ran.returncode == 0, f"{words}: {ran.stderr}"
    return ran.stdout


@pytest.mark.full
def test_an_installed_wheel_runs_the_readmes_commands(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    source = tmp_path / "source"  # a copy: building leaves files behind
    shutil.copytree(ROOT / "offramp", source / "offramp", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)], tmp_path)
    (wheel,) = tmp_path.glob("offramp-*.whl")
    run([*pip, "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("L", (8, 8), 200).save(tmp_path / "photos" / "grey.png")

    def offramp(command: str) -> str:
        words = [sys.executable, "-P", "-m", "offramp", *shlex.split(command)[1:]]
        return run(words, tmp_path, PYTHONPATH=str(tmp_path / "site"), OMP_NUM_THREADS="1")

    where = run(
        [sys.executable, "-P", "-c", "import offramp; print(offramp.__file__)"],
        tmp_path,
        PYTHONPATH=str(tmp_path / "site"),
    )
    assert Path(where.strip()).is_relative_to(tmp_path / "site")
    assert "digits" in offramp("offramp recipes")
    assert "muse-table-2" in offramp("offramp reproduce")
    block = (ROOT / "README.md").read_text().split("```console")[1].split("```")[0]
    for command in re.findall(r"^\$ (offramp .*)$", block, re.MULTILINE):
        offramp(command)
    offramp("offramp train --recipe digits --width 4 --epochs 1 --out runs/recipe")
