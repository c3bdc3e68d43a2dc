import json

from hypothesis import given
from hypothesis import strategies as st

from deepfabric_trainer.template.brackets import Span, bracket, has_brackets, take_out


def test_brackets_leave_the_text_and_its_spans() -> None:
    bracketed = take_out(f"a{bracket('b' + bracket('cd', 7), 0)}")
    assert bracketed.text == "abcd"
    assert bracketed.spans == {7: [Span(2, 4)], 0: [Span(1, 4)]}


def test_a_text_that_stands_twice_has_two_spans() -> None:
    assert take_out(bracket("a", 1) * 2).spans == {1: [Span(0, 1), Span(1, 2)]}


def test_a_bracket_without_partner_gives_no_span() -> None:
    opened, closed = bracket("a", 1)[:-1], bracket("a", 1)[1:]
    assert take_out(opened) == ("a", {})
    assert take_out(closed) == ("a", {})


@given(st.text(alphabet=st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"])), st.integers(0, 0x7FFD))
def test_brackets_survive_json_filters_that_write_ascii_only(text: str, number: int) -> None:
    escaped = json.dumps(bracket(text, number), ensure_ascii=True)
    assert take_out(escaped).text == json.dumps(text, ensure_ascii=True)


def test_texts_with_private_use_characters_are_seen() -> None:
    assert has_brackets("a\U00100001")
    assert not has_brackets("日本 \ue000 😀")


def test_brackets_survive_the_repr_of_python() -> None:
    assert take_out(repr([bracket("é", 7)])) == (repr(["é"]), {7: [Span(2, 3)]})
