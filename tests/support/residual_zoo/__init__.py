"""A zoo of small nets, each with the residual joins that it has."""

from residual_zoo import (
    additions,
    aggregation,
    arithmetic,
    conditions,
    images,
    in_place,
    positions,
    published,
    published_images,
    pyramids,
    recurrent,
    sequences,
    structure,
    transformers,
)
from residual_zoo.harness import ZOO, Case, Net, Recording, prepare, record

__all__ = [
    "ZOO",
    "Case",
    "Net",
    "Recording",
    "additions",
    "aggregation",
    "arithmetic",
    "conditions",
    "images",
    "in_place",
    "positions",
    "prepare",
    "published",
    "published_images",
    "pyramids",
    "record",
    "recurrent",
    "sequences",
    "structure",
    "transformers",
]
