"""Motion for codecs that export no vectors, by FFmpeg's block matching (its filter mestimate) on the stored frames.

Unlike a codec's, these vectors are whole pixels and every cell has one, also where nothing was found to match.

Axes: H,W pixels · Y,X cells of 8×8 px · 2 = (dx, dy) px a frame, right and down positive, NaN = none.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, TypeVar

import av
import numpy as np
from av.filter import Graph
from av.video.format import VideoFormat
from numpy.typing import NDArray

from mgm_prep.decoding.pyav import VECTOR_DTYPE, side_data
from mgm_shared.geometry import CELL_PX

Item = TypeVar("Item")

# epzs starts at the vectors of the neighbours and of the frame before, so a wide search costs nothing; FFmpeg's default
# of 7 px loses whatever is faster.
SEARCH_PX = 32
OPTIONS = f"method=epzs:mb_size={CELL_PX}:search_param={SEARCH_PX}"


def with_estimates(
    shown: Iterable[tuple[Item, NDArray[np.uint8]]], height: int, width: int
) -> Iterator[tuple[Item, NDArray[np.float32]]]:
    """Items with their luma_HW → items with their motion_YX2 since the one before, all NaN for the first.

    mestimate hands a frame out when the next one has come, so one is held, and the last is given twice.
    """
    graph = _graph(height, width)
    held: tuple[Item, NDArray[np.uint8]] | None = None
    num_frames = 0
    for item, luma_HW in shown:
        _push(graph, luma_HW, num_frames)
        if held is not None:
            yield held[0], _pull(graph, is_first=num_frames == 1)
        held = item, luma_HW
        num_frames += 1
    if held is not None:
        _push(graph, held[1], num_frames)
        yield held[0], _pull(graph, is_first=num_frames == 1)


class Matcher:
    """Matches frames one by one and hands back each one's motion at once, for twice the work of `with_estimates`."""

    def __init__(self, height: int, width: int) -> None:
        self._graph = _graph(height, width)
        self._num_pushed = 0

    def motion(self, luma_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The velocity of each cell since the luma that was given before, (H/8, W/8, 2); all NaN for the first."""
        is_first = not self._num_pushed
        # Given twice, the frame before comes out by the first, and this one by the second.
        _push(self._graph, luma_HW, self._num_pushed)
        if not is_first:
            self._graph.pull()
        _push(self._graph, luma_HW, self._num_pushed + 1)
        self._num_pushed += 2
        return _pull(self._graph, is_first)


def _graph(height: int, width: int) -> Graph:
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(width=width, height=height, format=VideoFormat("gray"), time_base=Fraction(1, 25))
    matching, sink = graph.add("mestimate", OPTIONS), graph.add("buffersink")
    source.link_to(matching)
    matching.link_to(sink)
    graph.configure()
    return graph


def _push(graph: Graph, luma_HW: NDArray[np.uint8], number: int) -> None:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(luma_HW), format="gray")
    frame.pts = number
    graph.push(frame)


def _pull(graph: Graph, is_first: bool) -> NDArray[np.float32]:
    """From the block's place in the frame before to its own; motion_x, motion_y and motion_scale are never written."""
    frame: Any = graph.pull()
    num_rows, num_columns = frame.height // CELL_PX, frame.width // CELL_PX
    motion_YX2 = np.full((num_rows, num_columns, 2), np.nan, np.float32)
    if is_first:
        return motion_YX2
    vectors_K = np.frombuffer(side_data(frame, "MOTION_VECTORS"), VECTOR_DTYPE)
    # Each block also has a vector to the frame after.
    vectors_K = vectors_K[vectors_K["source"] < 0]
    row_K, column_K = vectors_K["dst_y"] // CELL_PX, vectors_K["dst_x"] // CELL_PX
    motion_YX2[row_K, column_K, 0] = vectors_K["dst_x"] - vectors_K["src_x"]
    motion_YX2[row_K, column_K, 1] = vectors_K["dst_y"] - vectors_K["src_y"]
    return motion_YX2
