import pytest

from deepfabric_trainer.callbacks._measurements import GenerationResult
from deepfabric_trainer.callbacks._report.samples import (
    MOST_SAMPLES,
    Outcome,
    compare_calls,
    compare_samples,
    outcome_of,
)
from tests.fixtures.run_records import sample
from tests.fixtures.tiny import call

WEATHER = call("get_weather", city="Rome", days=2)


def relations(expected, made):
    return [{field.name or "tool": field.relation for field in one.fields} for one in compare_calls(expected, made)]


def test_fields_of_a_call():
    made = call("get_weather", city="Oslo", unit="C")
    assert relations([WEATHER], [made]) == [{"tool": "equal", "city": "different", "days": "missing", "unit": "extra"}]


def test_values_are_equal_as_the_scores_have_it():
    made = call("f", a=1.0, b="1", c=True, d={"x": [1, None]})
    expected = call("f", a=1, b=1, c=1, d={"x": [1, None]})
    found = {"tool": "equal", "a": "equal", "b": "different", "c": "different", "d": "equal"}
    assert relations([expected], [made]) == [found]


def test_another_tool():
    found = {"tool": "different", "city": "missing", "days": "missing", "to": "extra"}
    assert relations([WEATHER], [call("send_mail", to="Ann")]) == [found]


def test_calls_are_paired_with_the_most_alike():
    expected = [call("get_weather", city="Rome"), call("get_weather", city="Oslo"), call("send_mail", to="Ann")]
    made = [call("get_weather", city="Oslo"), call("get_weather", city="Rome")]
    compared = compare_calls(expected, made)
    assert [one.relation for one in compared] == ["equal", "equal", "missing"]
    assert {field.relation for field in compare_calls([], made)[0].fields} == {"extra"}


@pytest.mark.parametrize("arguments", ['{"city": "Rome"}', {"city": "Rome"}])
def test_arguments_may_be_text(arguments):
    made = {"function": {"name": "get_weather", "arguments": arguments}}
    assert relations([call("get_weather", city="Rome")], [made]) == [{"tool": "equal", "city": "equal"}]


@pytest.mark.parametrize(
    ("expected", "made", "error", "outcome"),
    [
        ([WEATHER], [WEATHER], None, Outcome.RIGHT),
        ([], [], None, Outcome.RIGHT),
        ([WEATHER], [call("get_weather", city="Oslo")], None, Outcome.WRONG),
        ([], [WEATHER], None, Outcome.FALSE_CALL),
        ([WEATHER], [], None, Outcome.MISSED_CALL),
        ([WEATHER], [], "not JSON", Outcome.MALFORMED),
    ],
)
def test_outcomes(expected, made, error, outcome):
    assert outcome_of(sample(expected, made, error=error)) is outcome


def test_first_and_last_measurement():
    first = GenerationResult(0, {}, [sample([WEATHER], [], text="Hm?"), sample([WEATHER], [], row=1)])
    last = GenerationResult(9, {}, [sample([WEATHER], [WEATHER])])
    (turn,) = compare_samples([first, last]).turns
    assert (turn.before.text, turn.before_outcome) == ("Hm?", Outcome.MISSED_CALL)
    (turn,) = compare_samples([last]).turns
    assert turn.before is None


def test_wrong_turns_are_kept_where_there_are_many():
    many = [sample([WEATHER], [WEATHER] if row else [], row=MOST_SAMPLES - row) for row in range(MOST_SAMPLES + 10)]
    compared = compare_samples([GenerationResult(0, {}, many)])
    assert len(compared.turns) == MOST_SAMPLES
    assert compared.left_out == 10
    assert compared.counts == {"right": MOST_SAMPLES + 9, "missed call": 1}
    assert compared.turns[0].outcome is Outcome.MISSED_CALL


def test_nothing_to_compare():
    assert compare_samples([]) is None
    assert compare_samples([GenerationResult(0, {}, [])]) is None


def test_long_texts_are_cut_with_a_count():
    long = "x" * 1_000_000
    turn = compare_samples(
        [GenerationResult(0, {}, [sample([WEATHER], [call("f", a=long)], text=long, request=long)])]
    ).turns[0]
    texts = [turn.generated_text, turn.prompt[1].text, turn.calls[0].fields[-1].generated]
    assert [len(one.text) + one.left_out for one in texts] == [1_000_000, 1_000_000, 1_000_002]
    assert max(len(one.text) for one in texts) <= 4000
