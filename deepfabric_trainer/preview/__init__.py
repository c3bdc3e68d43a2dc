"""Which tokens of a row are trained, for a person to see: in the terminal, or as a page of HTML.

`tokens` cuts an example into stretches of one region, `terminal` prints them, `html` makes the page.
"""

from deepfabric_trainer.preview.html import render_html
from deepfabric_trainer.preview.rows import PreviewedRow
from deepfabric_trainer.preview.terminal import print_example, print_row

__all__ = ["PreviewedRow", "print_example", "print_row", "render_html"]
