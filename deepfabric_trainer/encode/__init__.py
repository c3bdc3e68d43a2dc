"""From a row to tokens, labels and regions, with a proof.

`encoder` is the public part. `turns` finds what of a rendering one assistant turn trains, `parts` finds the renderings
in which every turn stands in the context of inference, `labels` carries both over to tokens, `truncate` shortens.
"""

from deepfabric_trainer.encode.encoder import ConversationEncoder, EncodedExample, EncodedRow
from deepfabric_trainer.encode.regions import Region, TrainOn, Truncation

__all__ = ["ConversationEncoder", "EncodedExample", "EncodedRow", "Region", "TrainOn", "Truncation"]
