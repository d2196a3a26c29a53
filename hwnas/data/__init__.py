"""Labelled images for search and training: loading, splitting and resumable batches.

``load_data`` turns a text such as ``imagenet:/data/imagenet`` into an ``ImageData`` (training and held-out
images); ``split_stratified`` divides the training images between weights and architecture; ``BatchStream``
addresses training batches by step number, so a resumed run sees the batches it would have seen, and shares them
among ranks; ``randaugment`` augments them further; ``evaluation_batches`` is one plain pass.
"""

from hwnas.data.augmentation import randaugment
from hwnas.data.dataset import ImageData, ImageDataset
from hwnas.data.sources import load_data
from hwnas.data.splitting import split_stratified
from hwnas.data.streams import BatchStream, evaluation_batches

__all__ = [
    "BatchStream",
    "ImageData",
    "ImageDataset",
    "evaluation_batches",
    "load_data",
    "randaugment",
    "split_stratified",
]
