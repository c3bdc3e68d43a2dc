import pytest

from deepfabric_trainer.template import watch_of
from tests.fixtures.templates import ALL, recorded_templates, trl_template

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


@recorded_templates
def test_templates_of_trl_are_clear_but_for_those_that_compare_or_measure_contents() -> None:
    unclear = {name.removesuffix("_training") for name in ALL if not watch_of(trl_template(name)).is_clear}
    assert unclear == {"idefics3", "smolvlm", "cohere2", "lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl"}


@pytest.mark.parametrize(
    "test",
    [
        "m.content | wordcount > 3",
        "m.content | length % 2",
        "m.content | first == 'h'",
        "m.content | int > 5",
        "m.content is upper",
        "m.content.isupper()",
        "m.content < 'h'",
        "m.content == messages[0].content",
        "m.content in messages[0].content",
        "m == messages[-1]",
        "m == messages[0]",
        "m == messages | last",
        "messages | map(attribute='content') | unique | list | length > 1",
        "(messages | map(attribute='content') | max) == 'x'",
    ],
)
def test_templates_that_tell_texts_apart_are_not_clear(test: str) -> None:
    assert not watch_of(LOOP.replace("%s", "{% if " + test + " %}!{% endif %}")).is_clear


@pytest.mark.parametrize(
    "before",
    [
        "{% set n = m.content | length %}{% if n > 5 %}!{% endif %}",
        "{% for w in l %}{% if w in m.content %}!{% endif %}{% endfor %}",
    ],
)
def test_variables_do_not_hide_that(before: str) -> None:
    assert not watch_of(LOOP.replace("%s", before)).is_clear


@pytest.mark.parametrize(
    "test",
    [
        "m.role != messages[loop.index0 - 1].role",
        "loop.index0 > ns.last_query_index",
        "m.get('tool_call_id') == call.get('id')",
        "m.content | length",
        "(messages | first).role == 'system'",
    ],
)
def test_roles_places_and_ids_are_no_texts(test: str) -> None:
    assert watch_of(LOOP.replace("%s", "{% if " + test + " %}!{% endif %}")).is_clear


def test_what_a_template_writes_is_known() -> None:
    watch = watch_of("{{ '<think>\\n' }}Thought: {{ m['content'] }}")
    assert {"<think>", "Thought:"} == set(watch.written)
