"""Rendering through any chat template, with the proof of which characters came from which field.

`rendering` is the public part; `marks` finds what each field gave, with the `brackets` that it leaves in the text;
`dialect` finds the form in which a template wants calls, `habits` what it writes around a turn. `direct` renders the
tools of a `catalogue` once; `watch` reads from a template what it looks for in texts, `appended` whether its prompts
are the conversation with an end of their own.
"""

from deepfabric_trainer.template.brackets import Span
from deepfabric_trainer.template.catalogue import Catalogue, KnownTool, KnownTools
from deepfabric_trainer.template.dialect import Dialect
from deepfabric_trainer.template.direct import DirectRenderer
from deepfabric_trainer.template.habits import Habits
from deepfabric_trainer.template.marks import Field, FieldKind
from deepfabric_trainer.template.rendering import ChatTemplate, Rendering
from deepfabric_trainer.template.watch import Watch, watch_of

__all__ = [
    "Catalogue",
    "ChatTemplate",
    "Dialect",
    "DirectRenderer",
    "Field",
    "FieldKind",
    "Habits",
    "KnownTool",
    "KnownTools",
    "Rendering",
    "Span",
    "Watch",
    "watch_of",
]
