"""What a rendered world is made of: its sizes and how hard it is. Nothing else in the package holds such numbers."""

from __future__ import annotations

from dataclasses import dataclass

RENDERER_VERSION = "1"  # raise it when the same table would give other pixels


@dataclass(frozen=True)
class Counts:
    """One labelled split: people, the (person, camera) pairs they are seen in, and the images of those pairs."""

    people: int
    pairs: int
    images: int


@dataclass(frozen=True)
class Size:
    """Image size in pixels and the counts of every split; each test pair has one query image more than `test`."""

    height: int
    width: int
    cameras: int  # of the target domain; the source domain has as many of its own
    source: Counts
    train: Counts
    test: Counts  # its pairs are the queries, its images the labelled gallery
    distractors: int
    junk: int


SIZES = {
    "tiny": Size(64, 32, 3, Counts(14, 36, 84), Counts(12, 34, 100), Counts(10, 28, 56), 8, 6),
    "small": Size(128, 64, 6, Counts(400, 1400, 2600), Counts(60, 300, 900), Counts(90, 300, 900), 100, 40),
    "medium": Size(128, 64, 6, Counts(400, 1400, 2400), Counts(120, 540, 1560), Counts(400, 900, 1800), 150, 40),
    "large": Size(
        256,
        128,
        6,
        Counts(751, 3370, 7510),
        Counts(751, 3410, 12936),
        Counts(750, 3368, 13115),
        2798,
        3819,
    ),
}


@dataclass(frozen=True)
class Difficulty:
    """Every parameter that makes matching harder or easier, calibrated on world 1 of size small."""

    # Wardrobe: the fewer garments, the more people share them.
    tops: int = 200
    bottoms: int = 80
    shoes: int = 16
    bags: int = 24
    vivid: float = 0.7  # share of garments in a hue of their own rather than a common clothing colour
    # Camera shift.
    colour_cast: float = 0.04  # largest relative gain of a channel
    gamma: float = 0.08  # largest bend of the tone curve
    exposure: float = 0.05  # largest relative gain of a camera
    exposure_jitter: float = 0.03  # the same from image to image
    blur: float = 0.4  # largest blur of a camera, in pixels of a 128x64 image
    noise: float = 0.01  # largest sensor noise of a camera, in units of full scale
    # Viewpoint, in degrees.
    yaw_spread: float = 20.0  # of tracks around their camera's main direction
    turned: float = 0.12  # share of tracks that walk the other way
    yaw_jitter: float = 10.0  # within a track
    elevation: float = 17.0  # highest camera
    # The detector's box.
    offset: float = 0.015  # standard deviation, share of the box
    scale: float = 0.03
    truncation: float = 0.02  # share of images that cut legs or head off
    # What stands in the way.
    occlusion: float = 0.05  # share of images behind a pole, a box, a bush or a rail
    companion: float = 0.02  # share of images with a second pedestrian


DIFFICULTY = Difficulty()
