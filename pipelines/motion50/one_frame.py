"""How much of the label one frame tells: a small network on one frame against the same network on the clip.

    python pipelines/motion50/one_frame.py MOTION50 --frames 9 --size 48 --epochs 30

The network is the same, a few 3-D convolutions; in the one-frame run each clip is its own frame, repeated: a random
frame in training, the middle frame in the test. `pair` is the accuracy of the class among the two of its scene, where
chance is 50 %.

Axes: N clips · T frames · C = RGB · H,W pixels.
"""

import json
import sys
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 16, 1e-3, 0.05
WIDTHS = (24, 48, 96, 160)


def read_set(folder: Path, num_frames: int, size_px: int, classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Clips (N, C, T, H, W) as uint8, frames evenly spread, and labels (N,)."""
    clips, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).glob("*.mp4")):
            clips.append(read_clip(path, num_frames, size_px))
            labels.append(label)
    return torch.from_numpy(np.stack(clips)), torch.tensor(labels)


def read_clip(path: Path, num_frames: int, size_px: int) -> NDArray[np.uint8]:
    """One clip, (C, T, H, W)."""
    with av.open(str(path)) as container:
        frames = [frame.reformat(size_px, size_px, "rgb24").to_ndarray() for frame in container.decode(video=0)]
    chosen = np.rint(np.linspace(0, len(frames) - 1, num_frames)).astype(int)
    return np.ascontiguousarray(np.stack([frames[t] for t in chosen]).transpose(3, 0, 1, 2))


def make_network(num_classes: int, channels: int = 3) -> nn.Module:
    """3-D convolutions that halve the picture each, then the mean over time and place."""
    layers: list[nn.Module] = []
    for before, after in zip((channels, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Conv3d(before, after, 3, stride=(1, 2, 2), padding=1), nn.BatchNorm3d(after), nn.ReLU()]
    head = (nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(WIDTHS[-1], num_classes))
    return nn.Sequential(*layers, *head)


def prepare(clips_NCTHW: Tensor, is_one_frame: bool, generator: torch.Generator | None) -> Tensor:
    """Clips as the network takes them; in training, with a generator, moved by a few pixels and of other brightness."""
    batch_NCTHW = clips_NCTHW.float() / 127.5 - 1
    num_frames = batch_NCTHW.shape[2]
    if is_one_frame:
        middle = num_frames // 2
        frame = middle if generator is None else int(torch.randint(num_frames, (), generator=generator))
        batch_NCTHW = batch_NCTHW[:, :, frame : frame + 1].expand(-1, -1, num_frames, -1, -1)
    if generator is None:
        return batch_NCTHW
    reach = batch_NCTHW.shape[-1] // 12
    down, across = (int(step) for step in torch.randint(-reach, reach + 1, (2,), generator=generator))
    light = 0.8 + 0.4 * torch.rand((len(batch_NCTHW), 1, 1, 1, 1), generator=generator)
    return torch.roll(batch_NCTHW, (down, across), (3, 4)) * light


def train_and_test(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], is_one_frame: bool, epochs: int, seed: int
) -> dict[str, float]:
    """Accuracies on the test clips after `epochs`; nothing is chosen by them."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    clips, labels = train
    network = make_network(int(max(labels.max(), test[1].max())) + 1, clips.shape[1])
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(clips) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        network.train()
        for rows in torch.randperm(len(clips), generator=generator).split(BATCH_SIZE):
            loss = nn.functional.cross_entropy(network(prepare(clips[rows], is_one_frame, generator)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        logits = torch.cat([network(prepare(part, is_one_frame, None)) for part in test[0].split(64)])
    return score(logits, test[1])


def score(logits_NK: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Accuracy over all classes, over scenes, and between the two classes of the right scene."""
    found_N = logits_NK.argmax(1)
    other_N = labels_N ^ 1
    is_ahead_N = logits_NK.gather(1, labels_N[:, None]) > logits_NK.gather(1, other_N[:, None])
    return {
        "top1": round(float((found_N == labels_N).float().mean()), 4),
        "scene": round(float((found_N // 2 == labels_N // 2).float().mean()), 4),
        "pair": round(float(is_ahead_N.float().mean()), 4),
    }


@click.command()
@click.argument("motion50", type=click.Path(path_type=Path, exists=True))
@click.option("--frames", "num_frames", default=9, show_default=True, help="Frames of a clip that are seen; odd.")
@click.option("--size", "size_px", default=48, show_default=True, help="Side in pixels.")
@click.option("--epochs", default=30, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(motion50: Path, num_frames: int, size_px: int, epochs: int, seed: int) -> None:
    """Train both networks on a set that `pipelines/motion50` made, and print their accuracies."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from motion50.scenes import CLASSES

    sets = [read_set(motion50 / "videos" / split, num_frames, size_px, CLASSES) for split in ("train", "test")]
    results: dict[str, Any] = {"train_clips": len(sets[0][1]), "test_clips": len(sets[1][1])}
    for name, is_one_frame in (("one_frame", True), ("clip", False)):
        results[name] = train_and_test(sets[0], sets[1], is_one_frame, epochs, seed)
    click.echo(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
