import json

from hypothesis import given
from hypothesis import strategies as st

from deepfabric_trainer.template.brackets import Bracket, Span, has_brackets, take_out


def test_brackets_leave_the_text_and_its_spans() -> None:
    field = f"{Bracket.FIELD.opening(7)}cd{Bracket.FIELD.closing(7)}"
    text = f"a{Bracket.MESSAGE.opening(0)}b{field}{Bracket.MESSAGE.closing(0)}"
    bracketed = take_out(text)
    assert bracketed.text == "abcd"
    assert bracketed.only(Bracket.MESSAGE, 0) == Span(1, 4)
    assert bracketed.only(Bracket.FIELD, 7) == Span(2, 4)
    assert bracketed.only(Bracket.FIELD, 0) is None


def test_a_bracket_without_partner_and_a_repeated_one_give_no_span() -> None:
    opening, closing = Bracket.FIELD.opening(1), Bracket.FIELD.closing(1)
    assert take_out(f"a{opening}b").only(Bracket.FIELD, 1) is None
    assert take_out(f"{opening}a{closing}{opening}a{closing}").only(Bracket.FIELD, 1) is None


@given(st.text(alphabet=st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"])), st.integers(0, 0x7FFD))
def test_brackets_survive_json_filters_that_write_ascii_only(text: str, number: int) -> None:
    escaped = json.dumps(f"{Bracket.FIELD.opening(number)}{text}{Bracket.FIELD.closing(number)}", ensure_ascii=True)
    assert take_out(escaped).text == json.dumps(text, ensure_ascii=True)


def test_texts_with_private_use_characters_are_seen() -> None:
    assert has_brackets("a\U000f0001")
    assert not has_brackets("日本 \ue000 😀")
