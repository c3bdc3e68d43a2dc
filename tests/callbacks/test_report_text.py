import pytest

from deepfabric_trainer.callbacks._report.text import cut
from deepfabric_trainer.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b\x1b[31m", "a␀b␛[31m"),
        ("one\ntwo\tthree", "one\ntwo\tthree"),
        ("\u202eevil\u2066", "⟨U+202E⟩evil⟨U+2066⟩"),
        ("zero\u200bwidth\u2028line", "zero⟨U+200B⟩width⟨U+2028⟩line"),
        ("half \ud800", "half \\ud800"),
        ("می\u200cخواهم 東京 👩\u200d🚀", "می\u200cخواهم 東京 👩\u200d🚀"),
    ],
)
def test_what_cannot_be_seen_is_shown(text, shown):
    assert visible(text) == shown


def test_cut_counts_what_is_left_out():
    assert (cut("abcdef", 4).text, cut("abcdef", 4).left_out) == ("abcd", 2)
    assert cut("abc", 4).left_out == 0
