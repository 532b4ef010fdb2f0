"""Rendering speed: images per second of the drawing alone, scenes prepared beforehand.

Run alone on the machine: ``python -m benchmarks.renderer [--size small] [--images 1024] [--device cpu]``.
"""

from __future__ import annotations

import argparse
import time

import torch

from datasets.rendered import SIZES, draw_world
from datasets.rendered.renderer import Renderer
from datasets.rendered.write import render_all


def images_per_second(renderer: Renderer, count: int) -> float:
    """Speed over the first `count` images of the world, after a first chunk that is not counted."""
    for _ in render_all(renderer, min(count, 64)):
        pass
    start = time.perf_counter()
    for _ in render_all(renderer, count):
        pass
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    start = time.perf_counter()
    world = draw_world(arguments.size, arguments.world)
    renderer = Renderer(world, arguments.device)
    prepared = time.perf_counter() - start
    count = min(arguments.images, len(world.images))
    speed = images_per_second(renderer, count)
    size = world.size
    print(
        f"{count} images of {size.height}x{size.width} on {arguments.device}, {torch.get_num_threads()} threads: "
        f"{speed:.0f} images/s (table and scenes before that: {prepared:.1f} s)"
    )


if __name__ == "__main__":
    main()
