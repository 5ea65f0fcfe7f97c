"""scvi-tools' ZeroInflatedLogNormal, from the installed package or else from its released wheel.

scvi-tools 1.4.3 and later need Python 3.12, and much else; the class needs but torch. So where the package is not
installed, its wheel is downloaded once to `benchmarks/wheels`, checked against the published hash, and the one module
that defines the class is imported from it, unchanged. What that module takes from the rest of the package is a setting
for a warning, for which an empty stand-in does.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

VERSION = "1.5.1"
SHA256 = "89fcd8f1a8e19f1a1fbe1c409e1969a838f6b57b3dc032934836a31d5ef8b837"
WHEEL = Path(__file__).parent / "wheels" / f"scvi_tools-{VERSION}-py3-none-any.whl"


@cache
def scvi_class() -> tuple[type, str]:
    """The class, and the version with where it is from.

    Raises:
        ImportError: the package is not installed, and its wheel cannot be had either.
    """
    if importlib.util.find_spec("scvi"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from scvi.distributions import ZeroInflatedLogNormal
        return ZeroInflatedLogNormal, importlib.metadata.version("scvi-tools")
    return _from_wheel(_checked(WHEEL)), f"{VERSION}, the class from the wheel"


def _checked(wheel: Path) -> Path:
    if not wheel.exists():
        _download(wheel.parent)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise ImportError(f"{wheel} is not the released wheel: its sha256 is {found}, not {SHA256}. Delete it.")
    return wheel


def _download(folder: Path) -> None:
    which = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", f"scvi-tools=={VERSION}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *which, "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        raise ImportError(f"scvi-tools is not installed, and its wheel cannot be downloaded: {reason}")


def _from_wheel(wheel: Path) -> type:
    """Import the module from the zip, its parents being empty packages in their place; they are gone afterwards."""
    parents = {name: ModuleType(name) for name in ("scvi", "scvi.distributions")}
    for name, module in parents.items():
        module.__path__ = [str(wheel / name.replace(".", "/"))]
    parents["scvi"].settings = SimpleNamespace(warnings_stacklevel=2)  # type: ignore[attr-defined]
    sys.modules.update(parents)
    try:
        found: type = importlib.import_module("scvi.distributions._lognormal").ZeroInflatedLogNormal
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "scvi"]:
            del sys.modules[name]
    return found
