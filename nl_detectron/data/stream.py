"""The samples of a training in an order that any batch of it can be gone on from."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from detectron2.data.common import AspectRatioGroupedDataset, ToIterableDataset
from detectron2.utils import comm
from torch import Generator
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from .seeds import SAMPLE, derive, drawing_from


def as_it_is(record: dict[str, Any]) -> dict[str, Any]:
    """The mapper of a loader that gives records."""
    return record


class SampleStream(IterableDataset):
    """What Detectron2's loader gives, batch after batch, from ``start`` on.

    Batch number k is always the same one: what is drawn for a sample depends on its position in
    the sampler's stream alone, and which samples make a batch is known from indices and sizes.
    So neither the number of workers, nor what they have fetched ahead, nor the batch begun with
    changes anything; and going on at a late batch reads no image of those before. Nor does the
    number of processes, as long as they do not group by aspect ratio: the images of an iteration
    are the same.

    Attributes:
        seed: that of all samples.
        start: the number of the first batch, from 0. It counts when the iteration begins.
    """

    def __init__(
        self,
        records: Dataset,
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        sampler: Sampler[int],
        *,
        batch_size: int,
        wide: Sequence[int] | None,
        seed: int,
    ):
        """
        Args:
            records: by index, as Detectron2 has them.
            mapper: makes a sample of a record.
            sampler: the endless indices of this process, the same ones each time.
            batch_size: of this process.
            wide: by index, whether an image is wider than high, where all images of a batch are to
                be so or not; otherwise None.
        """
        self.seed, self.start = seed, 0
        self._records, self._mapper, self._sampler = records, mapper, sampler
        self._batch_size, self._wide = batch_size, wide
        self._rank, self._processes = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # PyTorch's loader takes a batch from each worker in turn.
        for batch in itertools.islice(self.batches(), self.start + worker, None, workers):
            for place in batch:
                with drawing_from(derive(self.seed, SAMPLE, place["position"])):
                    sample = self._mapper(self._records[place["index"]])
                yield sample

    def batches(self) -> Iterator[list[dict[str, int]]]:
        """The index and the position of each sample, batch by batch from number 0 on."""
        places = (
            {"position": number * self._processes + self._rank, "index": index}
            for number, index in enumerate(self._sampler)
        )
        if self._wide is None:
            while True:
                yield list(itertools.islice(places, self._batch_size))
        wide = self._wide
        sized = (place | {"width": int(wide[place["index"]]), "height": 0} for place in places)
        yield from AspectRatioGroupedDataset(sized, self._batch_size)


def stream_of(
    loader: Any, mapper: Callable, records: Sequence[dict[str, Any]], *, seed: int
) -> SampleStream | None:
    """The stream of what a loader that Detectron2 has built would give.

    Args:
        loader: of records, with the mapper :func:`as_it_is`.
        mapper: makes a sample of a record.
        records: what the loader was built of.

    Returns:
        None if the loader is not of Detectron2's making.
    """
    groups = isinstance(loader, AspectRatioGroupedDataset)
    inner = loader.dataset if groups else loader
    if not isinstance(inner, DataLoader) or not isinstance(inner.dataset, ToIterableDataset):
        return None
    return SampleStream(
        inner.dataset.dataset,
        mapper,
        inner.dataset.sampler,
        batch_size=loader.batch_size,
        wide=bytes(r["width"] > r["height"] for r in records) if groups else None,
        seed=seed,
    )


def with_own_generator(loader: Any) -> DataLoader:
    """The loader, which draws its workers' seeds from no generator of others then."""
    loader.generator = Generator()
    return loader
