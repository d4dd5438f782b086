"""The root of a store: where a store may be created, with which settings it may be extended, what a killed run left."""

from importlib.metadata import version

import av
import cv2

from mgm_prep.config import ExtractSettings
from mgm_shared.errors import UserError
from mgm_shared.index import committed_parts
from mgm_shared.lock import LOCK_FILE
from mgm_shared.schema import PARTS_DIR, SCHEMA_VERSION, UNFINISHED_DIR, group_metadata
from mgm_shared.storage import StorePath, file_names, folder_names, is_file, remove, write_bytes
from mgm_shared.store import check_schema
from mgm_shared.store_files import METADATA_FILE


def check_place(store: StorePath) -> None:
    """UserError when the path is neither free, nor a store, nor what a run that was killed at once has left."""
    if is_file(store / METADATA_FILE):
        return
    foreign = {*folder_names(store), *file_names(store)} - {PARTS_DIR, UNFINISHED_DIR, LOCK_FILE}
    if is_file(store) or foreign or committed_parts(store):
        raise UserError(f"{store} exists and is not an mgm store; choose another place for the store")


def open_or_create(store: StorePath, settings: ExtractSettings) -> None:
    """Write the root group of a new store. UserError when an existing store was made with other settings."""
    if not is_file(store / METADATA_FILE):
        names = ["mgm", "av", "zarr", "numcodecs"]
        names += ["motion-vector-extractor"] if settings.decoder == "mv-extractor" else []
        libraries = {name: version(name) for name in names}
        ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
        attributes = {
            "mgm_schema_version": SCHEMA_VERSION,
            "settings": settings.recorded(),
            # OpenCV has several package names (headless, contrib), or none.
            "libraries": libraries | {"opencv": cv2.__version__, "ffmpeg": ffmpeg},
        }
        write_bytes(store / PARTS_DIR / METADATA_FILE, group_metadata())
        # Last, because this file makes the folder a store.
        write_bytes(store / METADATA_FILE, group_metadata(attributes))
        return
    recorded = check_schema(store)["settings"]
    differing = [name for name, value in settings.recorded().items() if recorded.get(name) != value]
    if differing:
        was = ", ".join(f"{name} = {recorded.get(name)}" for name in differing)
        raise UserError(f"{store} was extracted with {was}; use the same settings, or another store, or --force")


def clear_unfinished(store: StorePath) -> None:
    """Delete unfinished parts."""
    remove(store / UNFINISHED_DIR)
    parts = store / PARTS_DIR
    for name in set(folder_names(parts)) - set(committed_parts(store)):
        remove(parts / name)
