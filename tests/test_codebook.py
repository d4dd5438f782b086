"""Codebooks: vectors and codes against loops, k-means against Lloyd's algorithm by hand, files, the command.

Axes: N patches · H,W pixels · C = RGB · K codes · P numbers of a patch.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from mgm_prep import CodebookSettings, fit_codebook
from mgm_prep.cli import main
from mgm_prep.store_tools.fit_codebook import k_means
from mgm_shared.codebook import Codebook, PatchNorm, patch_vectors, read_codebook, write_codebook
from mgm_shared.errors import UserError
from mgm_shared.store import Store

SMALL = CodebookSettings(num_codes=8, num_patches=640, num_iterations=5)


def random_patches(num: int = 7, side: int = 16) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (num, side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize("norm", ["none", "patch"])
@pytest.mark.parametrize("side", [8, 16])
def test_a_patch_is_a_vector_of_means_of_four_pixels(norm: PatchNorm, side: int) -> None:
    patches_NHWC = random_patches(side=side)
    vectors_NP = patch_vectors(patches_NHWC, norm)
    assert vectors_NP.shape == (7, 3 * (side // 2) ** 2)
    for n in range(7):
        expected = []
        for colour in range(3):
            values = [
                sum(float(patches_NHWC[n, 2 * y + j, 2 * x + i, colour]) for j in (0, 1) for i in (0, 1)) / 4 / 255
                for y in range(side // 2)
                for x in range(side // 2)
            ]
            if norm == "patch":
                mean = sum(values) / len(values)
                std = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
                values = [(value - mean) / (std + 1 / 255) for value in values]
            expected += values
        np.testing.assert_allclose(vectors_NP[n], expected, atol=1e-5)


def test_a_flat_patch_has_no_texture() -> None:
    flat_NHWC = np.full((1, 16, 16, 3), 77, np.uint8)
    assert np.abs(patch_vectors(flat_NHWC, "patch")).max() < 1e-4
    flat_NHWC[0, 0, 0] += 1
    assert np.abs(patch_vectors(flat_NHWC, "patch")).max() < 0.3


def test_the_code_is_the_nearest_centre() -> None:
    centres_KP = np.random.default_rng(1).random((5, 192)).astype(np.float32)
    codes_N = Codebook(centres_KP=centres_KP, patch_px=16).codes(random_patches(40))
    for vector_P, code in zip(patch_vectors(random_patches(40), "none"), codes_N, strict=True):
        distances = [sum((a - b) ** 2 for a, b in zip(vector_P, centre_P, strict=True)) for centre_P in centres_KP]
        assert code == int(np.argmin(distances))
    assert len(set(codes_N.tolist())) > 1
    twice = Codebook(centres_KP=np.concatenate([centres_KP, centres_KP]), patch_px=16)
    np.testing.assert_array_equal(twice.codes(random_patches(40)), codes_N)


def test_k_means_finds_clusters_that_lie_apart() -> None:
    rng = np.random.default_rng(0)
    true_K2 = np.array([(0, 0), (0, 9), (9, 0), (9, 9), (4, 20)], np.float32)
    true_N = rng.integers(5, size=400)
    vectors_N2 = (true_K2[true_N] + rng.normal(0, 0.3, (400, 2))).astype(np.float32)
    centres_K2, label_N, _ = k_means(vectors_N2, 5, CodebookSettings(num_iterations=30))
    assert len({(int(true), int(label)) for true, label in zip(true_N, label_N, strict=True)}) == 5
    for code in range(5):
        np.testing.assert_allclose(centres_K2[code], vectors_N2[label_N == code].mean(0), atol=1e-4)


def test_an_iteration_is_one_of_lloyds_algorithm() -> None:
    vectors_NP = np.random.default_rng(2).random((120, 4)).astype(np.float32)
    centres_KP, _, num_iterations = k_means(vectors_NP, 6, CodebookSettings(num_iterations=2))
    later_KP, label_N, _ = k_means(vectors_NP, 6, CodebookSettings(num_iterations=3))
    assert num_iterations == 2
    sums, counts = np.zeros((6, 4)), np.zeros(6)
    for n, vector_P in enumerate(vectors_NP):
        code = int(np.argmin([((vector_P - centre_P) ** 2).sum() for centre_P in centres_KP]))
        assert label_N[n] == code
        sums[code] += vector_P
        counts[code] += 1
    np.testing.assert_allclose(later_KP, sums / counts[:, None], atol=1e-5)
    assert np.abs(later_KP - centres_KP).max() > 1e-3


def test_the_same_call_writes_the_same_bytes_and_another_seed_others(pan_store: Store, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        summary = fit_codebook(pan_store.path, tmp_path / name, SMALL.replace(seed=seed))
        assert (summary.codes, summary.patches, summary.unreadable) == (8, 640, 0)
        assert 0.2 < summary.explained < 1
        assert summary.smallest > 0
    contents = {name: (tmp_path / name).read_bytes() for name in "abc"}
    assert contents["a"] == contents["b"] != contents["c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_centres_lie_where_the_patches_of_the_training_videos_do(pan_store: Store, tmp_path: Path) -> None:
    fit_codebook(pan_store.path, tmp_path / "a.npz", SMALL)
    codebook = read_codebook(tmp_path / "a.npz")
    assert (codebook.num_codes, codebook.patch_px, codebook.norm) == (8, 16, "none")
    frame_HWC = pan_store["train/right/0.mp4"].frames[5]
    patches_NHWC = np.stack([frame_HWC[y : y + 16, x : x + 16] for y in range(0, 128, 16) for x in range(0, 160, 16)])
    vectors_NP = patch_vectors(patches_NHWC, "none")
    missed = ((vectors_NP - codebook.centres_KP[codebook.codes(patches_NHWC)]) ** 2).sum()
    assert missed < 0.8 * ((vectors_NP - vectors_NP.mean(0)) ** 2).sum()


def test_a_codebook_survives_its_file(tmp_path: Path) -> None:
    centres_KP = np.random.default_rng(0).random((3, 48)).astype(np.float32)
    write_codebook(tmp_path / "a.npz", Codebook(centres_KP=centres_KP, patch_px=8, norm="patch"))
    found = read_codebook(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.centres_KP, centres_KP)
    assert (found.patch_px, found.norm) == (8, "patch")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _single(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def _of_the_future(path: Path) -> None:
    np.savez(path, format=2, patch_px=16, norm="none", centres_KP=np.zeros((2, 192), np.float32))


def _pickled(path: Path) -> None:
    np.savez(path, format=1, patch_px=16, norm="none", centres_KP=np.array([{}, None]))


def _of_another_shape(path: Path) -> None:
    np.savez(path, format=1, patch_px=16, norm="none", centres_KP=np.zeros((2, 12), np.float32))


def _of_other_types(path: Path) -> None:
    np.savez(path, format=1, patch_px="x", norm="none", centres_KP=np.array(["a"]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cut, "damaged"),
        (_flip, "damaged"),
        (lambda path: path.write_text("hello"), "no codebook"),
        (lambda path: path.write_bytes(b""), "no codebook"),
        (lambda path: np.savez(path, centres_KP=np.zeros((2, 192))), "no codebook"),
        (_single, "no codebook"),
        (_pickled, "no codebook"),
        (_of_the_future, "version 2"),
        (_of_another_shape, "no centres"),
        (_of_other_types, "no codebook"),
        (Path.unlink, "mgm-prep codebook STORE -o"),
    ],
)
def test_what_is_no_codebook_is_refused_in_one_line(tmp_path: Path, spoil: Any, message: str) -> None:
    path = tmp_path / "a.npz"
    write_codebook(path, Codebook(centres_KP=np.ones((40, 192), np.float32), patch_px=16))
    spoil(path)
    with pytest.raises(UserError, match=message):
        read_codebook(path)


def test_a_folder_is_no_codebook(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no codebook"):
        read_codebook(tmp_path)


def test_too_few_patches_and_a_file_that_is_there_are_errors(pan_store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gave 64 patches, fewer than num-codes, 100"):
        fit_codebook(pan_store.path, tmp_path / "a", CodebookSettings(num_codes=100, num_patches=64))
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").write_text("precious")
    with pytest.raises(UserError, match="--force"):
        fit_codebook(pan_store.path, tmp_path / "a", SMALL)
    assert (tmp_path / "a").read_text() == "precious"
    fit_codebook(pan_store.path, tmp_path / "a", SMALL, force=True)
    assert read_codebook(tmp_path / "a").num_codes == 8


def test_a_folder_is_not_written_over_and_a_missing_one_is_made(pan_store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        fit_codebook(pan_store.path, tmp_path, SMALL, force=True)
    fit_codebook(pan_store.path, tmp_path / "new" / "a.npz", SMALL)
    assert read_codebook(tmp_path / "new" / "a.npz").num_codes == 8


def test_frames_that_cannot_be_read_are_left_out_and_counted(pan_store: Store, tmp_path: Path) -> None:
    shutil.copytree(str(pan_store.path), tmp_path / "a.store")
    (shard,) = (tmp_path / "a.store").glob("parts/*/frames/c.*")
    content = bytearray(shard.read_bytes())
    # The videos for training are in the second half, and the index is at the end.
    for place in range(100, len(content) * 3 // 4, 500):
        content[place] ^= 255
    shard.write_bytes(content)
    summary = fit_codebook(tmp_path / "a.store", tmp_path / "a.npz", SMALL)
    assert 0 < summary.unreadable < 20
    assert summary.patches == 32 * (20 - summary.unreadable)
    options = ["-o", str(tmp_path / "b.npz"), "--num-codes", "8", "--num-patches", "640"]
    result = CliRunner().invoke(main, ["codebook", str(tmp_path / "a.store"), *options])
    assert result.exit_code == 3
    assert f"{summary.unreadable} frames cannot be read" in result.stderr


def test_the_command(pan_store: Store, tmp_path: Path) -> None:
    options = ["--num-codes", "8", "--num-patches", "640", "--num-iterations", "5", "--norm", "patch", "--json"]
    result = CliRunner().invoke(main, ["codebook", str(pan_store.path), "-o", str(tmp_path / "a.npz"), *options])
    assert result.exit_code == 0, result.output
    assert '"codes": 8' in result.stdout
    assert read_codebook(tmp_path / "a.npz").norm == "patch"
