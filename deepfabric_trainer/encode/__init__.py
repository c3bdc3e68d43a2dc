"""From a row to tokens, labels and regions, with a proof.

`encoder` is the public part; `messages` encodes one conversation, of which `select` and `truncate` choose what is
trained. `turns` finds what of a rendering one assistant turn trains, with the places of its `fields`; `parts` finds
the renderings in which every turn stands in the context of inference. `tokens` tokenizes them, `literals` keeps other
people's control tokens plain text, and `labels` carries regions over to tokens and proves them. `examples` are what
comes out, packed for whole datasets and with a value for each token for everybody else. What comes again is
remembered: `chunks` tokenizes the tools of many rows once, and `known_parts` finds the turns of conversations of one
`shape` by the `skeleton` of their renderings.
"""

from deepfabric_trainer.encode.encoder import ConversationEncoder
from deepfabric_trainer.encode.examples import EncodedExample, EncodedRow
from deepfabric_trainer.encode.regions import Region, TrainOn, Truncation
from deepfabric_trainer.encode.turns import Context

__all__ = ["Context", "ConversationEncoder", "EncodedExample", "EncodedRow", "Region", "TrainOn", "Truncation"]
