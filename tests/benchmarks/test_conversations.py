import json

from benchmarks.conversations import make_sessions, make_texts
from deepfabric_trainer.validate import validate_dataset


def test_sessions_have_several_exchanges_over_catalogues_that_overlap() -> None:
    rows = make_sessions(40)
    assert rows[:5] == make_sessions(5)
    assert rows != make_sessions(40, seed=1)
    assert not validate_dataset(rows).findings
    turns = [sum(message["role"] == "user" for message in row["messages"]) for row in rows]
    assert set(turns) == {3, 4, 5}
    assert {len(row["tools"]) for row in rows} == {14, 28, 42}
    catalogues = {json.dumps(row["tools"]) for row in rows}
    assert len(catalogues) < len(rows)
    assert len({json.dumps(row["tools"][0]) for row in rows}) < len(catalogues)


def test_texts_begin_differently_and_are_of_similar_lengths() -> None:
    rows = make_texts(30, words=40)
    assert rows == make_texts(30, words=40)
    assert not validate_dataset(rows).findings
    assert len({row["messages"][0]["content"][:6] for row in rows}) > 25
    for row in rows:
        assert 36 <= sum(len(message["content"].split()) for message in row["messages"]) <= 44
