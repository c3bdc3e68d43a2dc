"""`PrefixGroupSampler`: an order in which examples that begin alike come in the same batch."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from deepfabric_trainer.errors import ConfigError
from deepfabric_trainer.grouping.batches import Numbers, group_examples, group_units


class PrefixGroupSampler(Sampler[int]):
    """Draws every example once an epoch, those that begin alike in the same batch, batches in random order.

    Each run of `batch_size` examples is a batch; whoever cuts them (PyTorch's `BatchSampler`) need not know. Where
    there is nothing to group the order is that of transformers' and accelerate's own random sampling, with the same
    seed and epoch. An order follows from the seed and the epoch alone, so a run that resumes sees the batches that it
    would have seen. Over the epochs every example has the same chance to stand early, or last.

    Args:
        codes (`array`): A code for each example, [N] integers, from [`~deepfabric_trainer.grouping.row_codes`] or
            [`~deepfabric_trainer.grouping.encoded_codes`]: equal ones begin alike, near ones nearly so.
        batch_size (`int`): Examples a batch and process.
        seed (`int`): Of the run: `args.data_seed`, or else `args.seed`.
        rows (`array`, *optional*): The number of the row that each example comes from, [N]. The examples of a row stay
            together, in their order, with the code of the first.

    Raises:
        ConfigError: If `batch_size` is not positive, or `codes` and `rows` are not of one length.

    Example:
    ```python
    >>> from deepfabric_trainer.grouping import PrefixGroupSampler

    >>> order = list(PrefixGroupSampler([7, 5, 7, 5], batch_size=2, seed=0))
    >>> sorted(sorted(batch) for batch in (order[:2], order[2:]))
    [[0, 2], [1, 3]]

    ```
    """

    def __init__(self, codes: npt.ArrayLike, batch_size: int, seed: int, rows: npt.ArrayLike | None = None) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}", expected="at least 1 example")
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self._codes: Numbers = np.asarray(codes, np.int64)
        self._rows: Numbers | None = None
        if rows is not None:
            numbers = np.asarray(rows, np.int64)
            if len(numbers) != len(self._codes):
                raise ConfigError(
                    f"there are {len(self._codes)} codes and {len(numbers)} row numbers",
                    expected="one of each an example",
                )
            self._rows = numbers if len(np.unique(numbers)) < len(numbers) else None
        distinct = len(np.unique(self._codes))
        self.groups = self._rows is not None or 1 < distinct < len(self._codes)
        """Whether there is anything to group; without it the order is plainly random."""

    def __len__(self) -> int:
        return len(self._codes)

    def __iter__(self) -> Iterator[int]:
        return iter(self._order().tolist())

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next pass is for, counted from 0."""
        self.epoch = epoch

    def _order(self) -> npt.NDArray[np.int64]:
        if not self.groups:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            return torch.randperm(len(self), generator=generator).numpy()
        rng = np.random.default_rng((self.seed, self.epoch))
        if self._rows is None:
            return group_examples(self._codes, self.batch_size, rng)
        order = np.argsort(self._rows, kind="stable")
        first = np.flatnonzero(np.diff(self._rows[order], prepend=self._rows[order[0]] - 1))
        units = np.split(order, first[1:])
        return group_units(self._codes[order[first]], units, self.batch_size, rng)
