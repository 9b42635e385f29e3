"""Real photographs and handwritten digits that pip packages ship, and their train/val split.

Nothing is downloaded: scikit-image and scikit-learn carry these files inside their wheels. Both
packages are optional (``pip install vitadapter[sample]``) and imported on first use.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

__all__ = [
    "DIGIT_SOURCE",
    "PHOTO_SOURCES",
    "SPLITS",
    "DigitPool",
    "Source",
    "load_digit_pools",
    "load_photos",
    "photo_region",
]

SPLITS = ("train", "val")
VAL_SHARE = 0.2  # of the digit samples of every class
# Crops of train end at 65 % of a photo's width and crops of val start at 70 %: the strip between
# them keeps the smoothing of a resized crop from reaching into the other split.
TRAIN_RIGHT_EDGE, VAL_LEFT_EDGE = 0.65, 0.70


@dataclass(frozen=True)
class Source:
    """Where one ingredient comes from and under which terms.

    Attributes:
        key: name in the annotations.
        title: what it shows.
        author: whom to credit.
        license_name: name of the licence.
        license_url: text of the licence, or the statement of rights.
        source_url: the original.
        package: the pip package that ships the file.
    """

    key: str
    title: str
    author: str
    license_name: str
    license_url: str
    source_url: str
    package: str


_CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"
_CC_BY_2 = "https://creativecommons.org/licenses/by/2.0/"
_SKIMAGE_DATA = "https://scikit-image.org/docs/stable/api/skimage.data.html"

PHOTO_SOURCES = (
    Source(
        key="astronaut",
        title="Portrait of Eileen Collins",
        author="NASA",
        license_name="Public domain (no known copyright restrictions)",
        license_url=f"{_SKIMAGE_DATA}#skimage.data.astronaut",
        source_url="https://flic.kr/p/r9qvLn",
        package="scikit-image",
    ),
    Source(
        key="coffee",
        title="Coffee cup, courtesy of Pikolo Espresso Bar",
        author="Rachel Michetti",
        license_name="CC0 1.0",
        license_url=_CC0,
        source_url=f"{_SKIMAGE_DATA}#skimage.data.coffee",
        package="scikit-image",
    ),
    Source(
        key="chelsea",
        title="Chelsea the cat",
        author="Stefan van der Walt",
        license_name="CC0 1.0",
        license_url=_CC0,
        source_url=f"{_SKIMAGE_DATA}#skimage.data.chelsea",
        package="scikit-image",
    ),
    Source(
        key="china",
        title="Temple in China",
        author="danielbuechele (Flickr)",
        license_name="CC BY 2.0",
        license_url=_CC_BY_2,
        source_url="https://www.flickr.com/photos/danielbuechele/6061409035/",
        package="scikit-learn",
    ),
    Source(
        key="flower",
        title="Flower",
        author="vultilion (Flickr)",
        license_name="CC BY 2.0",
        license_url=_CC_BY_2,
        source_url="https://www.flickr.com/photos/vultilion/6056698931/",
        package="scikit-learn",
    ),
)

DIGIT_SOURCE = Source(
    key="digits",
    title="Optical Recognition of Handwritten Digits (test set of the UCI repository)",
    author="E. Alpaydin and C. Kaynak",
    license_name="CC BY 4.0",
    license_url="https://creativecommons.org/licenses/by/4.0/",
    source_url="https://archive.ics.uci.edu/dataset/80",
    package="scikit-learn",
)


@dataclass(frozen=True)
class DigitPool:
    """The digit samples that one split may draw from.

    Attributes:
        bitmaps: ``(N, 8, 8)`` float32, ink in [0, 1], of all samples of scikit-learn's digits.
        labels: ``(N,)`` digits 0 to 9.
        samples: indexes into the two above that belong to the split.
    """

    bitmaps: np.ndarray
    labels: np.ndarray
    samples: np.ndarray


def _missing_package(error: ImportError) -> ImportError:
    return ImportError(
        "the sample data set is made from files that scikit-image and scikit-learn ship; "
        f"install them with `pip install vitadapter[sample]` ({error})"
    )


def load_photos() -> dict[str, np.ndarray]:
    """Read the photographs out of the installed packages.

    Returns:
        ``(H, W, 3)`` uint8 RGB arrays by ``Source.key``, in the order of ``PHOTO_SOURCES``.

    Raises:
        ImportError: scikit-image or scikit-learn is absent, or ships the photo no longer.
    """
    try:
        from skimage import data
        from sklearn.datasets import load_sample_image

        return {
            "astronaut": data.astronaut(),
            "coffee": data.coffee(),
            "chelsea": data.chelsea(),
            "china": load_sample_image("china.jpg"),
            "flower": load_sample_image("flower.jpg"),
        }
    except ImportError as error:
        raise _missing_package(error) from error


def load_digit_pools(seed: int) -> Mapping[str, DigitPool]:
    """Read the handwritten digits and split them, class by class, into disjoint pools.

    Args:
        seed: decides which samples go to val.

    Returns:
        one pool per name of ``SPLITS``.

    Raises:
        ImportError: scikit-learn is absent.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _missing_package(error) from error
    digits = load_digits()
    bitmaps = (digits.images / digits.images.max()).astype(np.float32)
    rng = np.random.default_rng([seed, len(SPLITS)])  # a stream that no split's images use
    samples: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for label in range(10):
        of_label = rng.permutation(np.flatnonzero(digits.target == label))
        num_val = round(VAL_SHARE * len(of_label))
        samples["val"].append(of_label[:num_val])
        samples["train"].append(of_label[num_val:])
    return {
        split: DigitPool(bitmaps, digits.target, np.sort(np.concatenate(samples[split])))
        for split in SPLITS
    }


def photo_region(split: str, height: int, width: int) -> tuple[int, int, int, int]:
    """The part of a photo that one split may crop from: left for train, right for val.

    Args:
        split: a name of ``SPLITS``.
        height: of the photo in pixels.
        width: of the photo in pixels.

    Returns:
        ``(x, y, w, h)`` in pixels.
    """
    if split == "train":
        return 0, 0, int(TRAIN_RIGHT_EDGE * width), height
    left = int(np.ceil(VAL_LEFT_EDGE * width))
    return left, 0, width - left, height
