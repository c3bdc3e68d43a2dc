import pytest

from deepfabric_trainer.template import watch_of
from tests.fixtures.templates import ALL, trl_template

LOOP = "{% for m in messages %}%s{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    "test",
    [
        "'</x>' in m.content",
        "m.content.startswith('</x>')",
        "m.content.split('</x>') | length > 1",
        "'</x>' not in m.content and m.role == 'user'",
        "m.content.replace('</x>', '') != m.content",
        "m.content | replace('</x>', '') == ''",
    ],
)
def test_what_a_template_looks_for_inside_texts_is_found(test: str) -> None:
    watch = watch_of(LOOP.replace("%s", "{% if " + test + " %}!{% endif %}"))
    assert watch.inside.search("a </x> b") or not watch.is_clear
    assert not watch.inside.search("a b")


def test_texts_that_a_template_compares_with_are_known() -> None:
    watch = watch_of(LOOP.replace("%s", "{% if m.content == 'stop' or m.content in ['go', 'on'] %}!{% endif %}"))
    assert {"stop", "go", "on"} <= watch.whole
    assert watch.is_clear


def test_keys_of_objects_are_no_texts() -> None:
    watch = watch_of(LOOP.replace("%s", "{% if 'tool_calls' in m or m.get('name') %}!{% endif %}"))
    assert not watch.inside.search("tool_calls name")


@pytest.mark.parametrize(
    "test",
    ["m.content | length > 5", "m.content[0] == 'x'", "(m.content | trim | length) == n", "m.content[:2] == '{{'"],
)
def test_templates_that_measure_texts_are_not_clear(test: str) -> None:
    assert not watch_of(LOOP.replace("%s", "{% if " + test + " %}!{% endif %}")).is_clear


@pytest.mark.parametrize(
    "test",
    ["messages | length > 1", "m.content | length == 0", "m.tool_call_id | length != 9", "messages[0].role == 'x'"],
)
def test_lengths_of_lists_and_ids_are_no_measures_of_texts(test: str) -> None:
    assert watch_of(LOOP.replace("%s", "{% if " + test + " %}!{% endif %}")).is_clear


def test_a_template_that_cannot_be_read_is_not_clear() -> None:
    assert not watch_of("{% if %}").is_clear


def test_templates_of_trl_are_clear_but_for_those_that_ask_how_contents_begin() -> None:
    unclear = {name.removesuffix("_training") for name in ALL if not watch_of(trl_template(name)).is_clear}
    assert unclear == {"idefics3", "smolvlm"}
