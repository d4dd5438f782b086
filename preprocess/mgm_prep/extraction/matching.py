"""Find the video of a store that each annotation means."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mgm_prep.sources.annotations import Annotation
from mgm_prep.sources.names import normalized, text_of, without_media_suffix


@dataclass(frozen=True, kw_only=True)
class Match:
    """Which video each annotation means."""

    values: dict[str, dict[str, str | None]]
    """By video_id: `label`, `split` or both."""
    unmatched: list[str]
    """Names that no video has."""
    ambiguous: list[str]
    """Names that several videos have, or for which the files state different labels. Nothing is attached to these."""
    comments: list[str]
    """Lines that begin with `#` and name no video."""


def match_videos(annotations: Sequence[Annotation], video_ids: Collection[str]) -> Match:
    """Match names to ids: by path, else by the end of the path, else by a file name that occurs only once.

    Only the first step compares suffixes, so a transcoded file is found.
    """
    finder = _Finder(annotations, video_ids)
    claims: dict[str, list[tuple[str, dict[str, str | None]]]] = defaultdict(list)
    unmatched: list[str] = []
    ambiguous: list[str] = []
    comments: list[str] = []
    for annotation in annotations:
        name, values, found = _reading_with_video(annotation, finder)
        if len(found) == 1:
            claims[found[0]].append((name, values))
        elif found:
            ambiguous.append(name)
        else:
            (comments if annotation.is_optional else unmatched).append(name)
    values_of_video: dict[str, dict[str, str | None]] = {}
    for video_id, said in claims.items():
        merged = {key: value for _, one in said for key, value in one.items()}
        if all(merged[key] == value for _, one in said for key, value in one.items()):
            values_of_video[video_id] = merged
        else:
            ambiguous.append(said[0][0])
    return Match(values=values_of_video, unmatched=unmatched, ambiguous=ambiguous, comments=comments)


def find_videos(names: Sequence[tuple[str, ...]], video_ids: Collection[str]) -> dict[tuple[str, ...], list[str]]:
    """The videos that each tuple of names may mean, by its first name that finds some: one when it is certain."""
    distinct = dict.fromkeys(names)
    finder = _Finder([Annotation(names=one, values={}) for one in distinct], video_ids)
    return {one: next((found for name in one if (found := finder.find(text_of(name)))), []) for one in distinct}


def _reading_with_video(annotation: Annotation, finder: "_Finder") -> tuple[str, dict[str, str | None], list[str]]:
    """Name, values and videos of the first reading that names a video; of the most likely one when none does."""
    for reading in annotation.readings:
        for name in reading.names:
            find = finder.find_marked if annotation.is_optional else finder.find
            if found := find(text_of(name)):
                return text_of(reading.names[0]), reading.values, found
    return annotation.shown, annotation.values, []


class _Finder:
    """The videos of a store, by path and by file name."""

    def __init__(self, annotations: Iterable[Annotation], video_ids: Collection[str]) -> None:
        self._ids = frozenset(video_ids)
        self._by_path: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for video_id in sorted(video_ids):
            path = _without_suffix(video_id)
            self._by_path[path].append(video_id)
            self._by_stem[_last(path)].append(video_id)
        names = {_without_suffix(text_of(name)) for annotation in annotations for name in annotation.names}
        self._listed = Counter(map(_last, names))

    def find(self, name: str) -> list[str]:
        """The ids that a name may mean: one when it is certain."""
        # With its suffix first: `transcode` calls the copy of b.avi b.avi.mp4 where there is another b. Then without,
        # and with the separators of Windows.
        paths = dict.fromkeys((name, _without_suffix(name), _without_suffix(name.replace("\\", "/"))))
        return next((found for path in paths if (found := self._find(name, path))), [])

    def find_marked(self, name: str) -> list[str]:
        """As `find`, for a name that begins with `#`: only videos whose own name has the `#` too.

        `#a/b.mp4` may be the line of `a/b.mp4`, commented out.
        """
        first = {path.partition("/")[0] for path in (name, _without_suffix(name))}
        return [found for found in self.find(name) if first & {*_without_suffix(found).split("/")}]

    def _find(self, name: str, path: str) -> list[str]:
        if name in self._ids:
            return [name]
        for tail in _tails(path):
            if tail in self._by_path:
                return self._by_path[tail]
        same_stem = self._by_stem.get(_last(path), [])
        ending = [video_id for video_id in same_stem if f"/{_without_suffix(video_id)}".endswith(f"/{path}")]
        if ending:
            return ending
        # A path that fits no other may still be the same file in another tree, if nothing else has its name.
        return same_stem if len(same_stem) == 1 and self._listed[_last(path)] == 1 else []


def _tails(path: str) -> Iterable[str]:
    """`a/b/c`, `b/c`; the name alone is no path."""
    yield path
    parts = PurePosixPath(path).parts
    for start in range(1, len(parts) - 1):
        yield "/".join(parts[start:])


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _without_suffix(name: str) -> str:
    return without_media_suffix(normalized(name))
