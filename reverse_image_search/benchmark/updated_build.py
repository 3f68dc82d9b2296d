"""A synthetic build whose index changes, and what each version of it must answer."""

import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverse_image_search import contract, layout
from reverse_image_search.gallery import GalleryImage, GalleryMetadata, rows_of
from reverse_image_search.gallery_writer import write_gallery
from reverse_image_search.indexes import INDEXES, IndexOptions, VectorDatabase
from reverse_image_search.serving.export import write_model_files
from reverse_image_search.serving.index_files import write_index
from reverse_image_search.serving.model_config import write_configs
from reverse_image_search.serving.publishing import (
    KEEP_VERSIONS,
    publish_index_version,
    staging,
    staging_update,
)

_QUERIES = 32
_LEAST_FOUND = 0.9  # of the K nearest, by an index that is approximate
_TOP_K = 20
TOLERANCE = 1e-4  # of a score: the batch that a query shares changes rounding


class FlattenedPixels(nn.Module):
    """An encoder whose embeddings are the pixels; mirrored, it is another one."""

    def __init__(self, is_mirrored: bool) -> None:
        super().__init__()
        self.is_mirrored = is_mirrored

    def forward(self, images: Tensor) -> Tensor:
        """Embed images: (batch, 3, side, side) -> (batch, 3 * side * side)."""
        if self.is_mirrored:
            images = images.flip(3)
        return F.normalize(images.flatten(1) - 0.5)


@dataclass(frozen=True)
class Version:
    """What one version of the index holds, and when it may have been current."""

    ids: np.ndarray  # (N,)
    embeddings: np.ndarray  # (N, D)
    is_mirrored: bool  # the encoder
    begin: float  # just before it was published
    least_found: float  # share of the K nearest that an answer must have

    def holds(self, image: np.ndarray, ids: np.ndarray, scores: np.ndarray) -> bool:
        """Whether these are the K nearest neighbors of an image, best first."""
        all_scores = self.embeddings @ embed(image, self.is_mirrored)
        rows = rows_of(ids, self.ids)
        lowest = np.partition(all_scores, -len(ids))[-len(ids)]
        return bool(
            (rows >= 0).all()
            and len(np.unique(ids)) == len(ids)
            and np.allclose(all_scores[rows], scores, rtol=0, atol=TOLERANCE)
            and (np.diff(scores) <= 0).all()
            and np.mean(scores >= lowest - TOLERANCE) >= self.least_found
        )


class UpdatedBuild:
    """A synthetic build of random images, and the history of its index.

    Parameters
    ----------
    output_dir : empty; gets ``model_repo/``, ``ensemble_repo/`` and ``gallery/``
    side : pixels of an image, whose embedding has 3 * side * side dimensions
    index : of the registry
    """

    def __init__(
        self,
        output_dir: Path,
        image_count: int,
        side: int = 4,
        seed: int = 0,
        index: str = next(iter(INDEXES)),
    ) -> None:
        self.output_dir, self._side, self._dims = output_dir, side, 3 * side * side
        self._index = INDEXES[index]
        self._index_name = ""
        self._rng = np.random.default_rng(seed)
        self._next_id = 0
        self.images: dict[int, np.ndarray] = {}  # (3, side, side) float32, by id
        self.queries = [self._random_image() for _ in range(_QUERIES)]
        self.is_mirrored = False
        self.history: list[Version] = []
        self._ended: dict[int, float] = {}  # when the update after a version had returned
        self._add(image_count)
        with staging(output_dir) as folder:
            self._write_build(folder)

    def rebuild(self) -> None:
        """Publish a build with another encoder and other images under the same ids."""
        self.is_mirrored = not self.is_mirrored
        self.images = {each: self._random_image() for each in self.images}
        with staging(self.output_dir) as folder:
            self._write_build(folder)

    def returned_to(self, number: int) -> None:
        """The version `number` of the history was published again."""
        self.history.append(replace(self.history[number], begin=time.monotonic()))

    def update(self, add: int, remove: int) -> tuple[list[int], list[int]]:
        """Publish a version with `add` more images and `remove` fewer: their ids."""
        removed = self._rng.choice(np.array(list(self.images)), remove, replace=False).tolist()
        with_both = dict(self.images)
        for each in removed:
            del self.images[each]
        added = self._add(add)
        if database := self._index.database:
            with_both |= self.images
            with staging_update(
                self.output_dir, lambda: self._update_database(database, added, removed, with_both)
            ) as folder:
                self._write_gallery(folder)
        else:
            publish_index_version(self.output_dir, self._write_update)
        return added, removed

    def drop(self) -> None:
        """Delete what is in a database."""
        if self._index.database:
            self._index.database.drop(self._index_name)

    def took_effect(self) -> None:
        """The running server has taken the newest version over: older ones are wrong from now."""
        for number in range(len(self.history) - 1):
            self._ended.setdefault(number, time.monotonic())

    def is_right(
        self, image: np.ndarray, ids: np.ndarray, scores: np.ndarray, begin: float, end: float
    ) -> bool:
        """Whether a version that was current between `begin` and `end` gives this answer."""
        current = (
            version
            for number, version in enumerate(self.history)
            if version.begin <= end and self._ended.get(number, end) >= begin
        )
        return any(version.holds(image, ids, scores) for version in current)

    def _random_image(self) -> np.ndarray:
        return self._rng.random((3, self._side, self._side), dtype=np.float32)

    def _add(self, count: int) -> list[int]:
        ids = list(range(self._next_id, self._next_id + count))
        self._next_id += count
        self.images |= {each: self._random_image() for each in ids}
        return ids

    def _write_build(self, folder: Path) -> None:
        model_repo = folder / layout.MODEL_REPO
        encoder_folder = layout.version_folder(model_repo, contract.IMAGE_ENCODER.name)
        write_model_files(
            {layout.MODEL_FILENAME: FlattenedPixels(self.is_mirrored)}, encoder_folder, input_ndim=4
        )
        self._index_name = f"live_updates_{uuid.uuid4().hex}"
        self._write_update(folder)
        write_configs(folder, self._metadata, self._dims, _TOP_K, self._index, self._index_name)

    def _write_update(self, folder: Path) -> None:
        version = self._version(self.images)
        write_index(
            self._index,
            version.ids,
            version.embeddings,
            IndexOptions(_TOP_K, name=self._index_name),
            layout.version_folder(folder / layout.MODEL_REPO, contract.VECTOR_SIMILARITY.name),
        )
        self._write_gallery(folder)
        self.history.append(replace(version, begin=time.monotonic()))

    def _update_database(
        self,
        database: VectorDatabase,
        added: list[int],
        removed: list[int],
        with_both: dict[int, np.ndarray],
    ) -> None:
        """Change the index in place, which is not one step: images are added first."""
        self.history += [self._version(with_both), self._version(self.images)]
        final = self.history[-1]
        vectors = torch.from_numpy(final.embeddings[rows_of(np.array(added, int), final.ids)])
        new, gone = (torch.tensor(ids, dtype=torch.int64) for ids in (added, removed))
        database.update(self._index_name, new, vectors, gone)

    def _version(self, images: dict[int, np.ndarray]) -> Version:
        """That of an index of these images, by ascending id."""
        ids = np.array(sorted(images))
        embeddings = embed(np.stack([images[each] for each in ids]), self.is_mirrored)
        least_found = 1.0 if self._index.is_exact else _LEAST_FOUND
        return Version(ids, embeddings, self.is_mirrored, time.monotonic(), least_found)

    def _write_gallery(self, folder: Path) -> None:
        # Rows of removed images stay as long as a kept version of the index has them.
        kept = [set(version.ids.tolist()) for version in self.history[1 - KEEP_VERSIONS :]]
        rows = sorted(set(self.images).union(*kept))
        sides = self._side, self._side
        images = (GalleryImage(each, str(each), None, *sides, b"", b"") for each in rows)
        write_gallery(layout.gallery_file(folder), self._metadata, images)

    @property
    def _metadata(self) -> GalleryMetadata:
        sides = self._side, self._side
        return GalleryMetadata(self._name, self._name, "pixels", [], *sides, False, False)

    @property
    def _name(self) -> str:
        return "mirrored" if self.is_mirrored else "pixels"


def embed(image: np.ndarray, is_mirrored: bool) -> np.ndarray:
    """The embedding of one image or of several, as `FlattenedPixels` makes it."""
    if is_mirrored:
        image = image[..., ::-1]
    flat = image.reshape(*image.shape[:-3], -1) - 0.5
    return flat / np.linalg.norm(flat, axis=-1, keepdims=True)
