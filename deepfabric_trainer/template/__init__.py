"""Rendering through any chat template, with the proof of which characters came from which message and field.

`rendering` is the public part; `loops` finds what each message gave, `marks` what each field gave, both with the
`brackets` that they leave in the text.
"""

from deepfabric_trainer.template.brackets import Span
from deepfabric_trainer.template.marks import Field, FieldKind
from deepfabric_trainer.template.rendering import ChatTemplate, Rendering

__all__ = ["ChatTemplate", "Field", "FieldKind", "Rendering", "Span"]
