"""Which versions of mgm, Python and the libraries are installed. No library is imported."""

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def installed_version(package: str) -> str:
    """The version of an installed package, or `not installed`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def version_lines(program: str, libraries: Iterable[str]) -> list[str]:
    """Lines `name version`: the program, Python with its platform, the libraries."""
    python = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    return [
        f"{program} {installed_version('mgm')}",
        python,
        *(f"{name} {installed_version(name)}" for name in libraries),
    ]
