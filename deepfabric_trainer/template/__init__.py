"""Rendering through any chat template, with the proof of which characters came from which field.

`rendering` is the public part; `marks` finds what each field gave, with the `brackets` that it leaves in the text;
`dialect` finds the form in which a template wants calls, `habits` what it writes around a turn.
"""

from deepfabric_trainer.template.brackets import Span
from deepfabric_trainer.template.dialect import Dialect
from deepfabric_trainer.template.habits import Habits
from deepfabric_trainer.template.marks import Field, FieldKind
from deepfabric_trainer.template.rendering import ChatTemplate, Rendering

__all__ = ["ChatTemplate", "Dialect", "Field", "FieldKind", "Habits", "Rendering", "Span"]
