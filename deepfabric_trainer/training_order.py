"""The order in which a trainer draws its examples."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset
from torch.utils.data import Sampler

from deepfabric_trainer.config import DeepFabricSFTConfig
from deepfabric_trainer.encode import ConversationEncoder
from deepfabric_trainer.grouping import PrefixGroupSampler, row_codes, template_writes_tools_first
from deepfabric_trainer.template import ChatTemplate

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Grouping:
    """Which examples of a dataset begin alike.

    Args:
        dataset (`Dataset` or `EncodedOnDemand`): The dataset that it is about.
        codes (`np.ndarray`): A code for each example, [N] int64: equal ones begin alike.
        rows (`np.ndarray`, *optional*): The row that each example comes from, [N] int64.
    """

    dataset: Any
    codes: Numbers
    rows: Numbers | None = None

    def sampler(self, args: Any) -> Sampler[int] | None:
        """Return the order of a run's examples; `None` where there is nothing to group."""
        seed = args.seed if args.data_seed is None else args.data_seed
        sampler = PrefixGroupSampler(self.codes, args.train_batch_size, seed, self.rows)
        return sampler if sampler.groups else None


def find_sampler(loader: Any) -> PrefixGroupSampler | None:
    """Return the sampler of ours in a data loader, in whatever accelerate wrapped it; `None` if there is none."""
    inner = getattr(loader, "batch_sampler", None)
    while inner is not None and not isinstance(inner, PrefixGroupSampler):
        inner = getattr(inner, "batch_sampler", None) or getattr(inner, "sampler", None)
    return inner


def groups(args: Any) -> bool:
    """Tell whether a trainer's settings ask for groups."""
    is_ours = isinstance(args, DeepFabricSFTConfig) and args.group_by_prefix
    return is_ours and not args.packing and args.train_sampling_strategy == "random"


def codes_of_rows(dataset: Dataset, encoder: ConversationEncoder) -> Numbers:
    """Return a code for each row of a dataset of conversations, by its tools and its system message."""
    template = ChatTemplate(
        encoder.processing_class, chat_template=encoder.chat_template, variables=encoder.chat_template_kwargs
    )
    return row_codes(dataset, tools_first=template_writes_tools_first(template))


def shuffled(dataset: Dataset, seed: int) -> tuple[Dataset, Numbers]:
    """Return a dataset in the order that `Dataset.shuffle` gives it, and that order."""
    order = Dataset.from_dict({"number": range(len(dataset))}).shuffle(seed=seed)["number"]
    numbers = np.asarray(order, np.int64)
    return dataset.select(numbers), numbers
