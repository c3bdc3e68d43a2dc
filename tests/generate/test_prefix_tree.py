from hypothesis import given
from hypothesis import strategies as st

from deepfabric_trainer.generate.prefix_tree import MIN_SHARED_TOKENS, Node, build_prefix_tree

SYSTEM = list(range(40))
CATALOGUES = [[*SYSTEM, *range(start, start + 50)] for start in (100, 200)]


def path(node: Node | None) -> list[int]:
    """Return the lengths of a node and its parents, the longest first."""
    return [] if node is None else [node.length, *path(node.parent)]


def test_catalogues_below_a_system_prompt() -> None:
    prompts = [[*CATALOGUES[0], 1, 2], [*CATALOGUES[1], 1, 2, 3], [*CATALOGUES[0], 2, 2], [*CATALOGUES[1], 9, 9]]
    tree = build_prefix_tree([*prompts, [*SYSTEM, 7, 7]])
    assert [path(node) for node in tree.nodes] == [[90, 40]] * 4 + [[40]]
    assert tree.nodes[0] is tree.nodes[2]
    assert tree.nodes[0] is not tree.nodes[1]
    assert tree.order == (1, 3, 0, 2, 4)


def test_the_last_token_is_never_shared() -> None:
    tree = build_prefix_tree([SYSTEM, SYSTEM, [*SYSTEM, 7]])
    assert [path(node) for node in tree.nodes] == [[39]] * 3


def test_what_saves_little_is_no_node() -> None:
    short = list(range(MIN_SHARED_TOKENS // 2))
    assert build_prefix_tree([[*short, 100, 1], [*short, 200, 1]]).nodes == (None, None)
    assert all(build_prefix_tree([[*short, 100 + number, 1] for number in range(3)]).nodes)
    assert build_prefix_tree([[1], [2, 3]]).nodes == (None, None)
    assert build_prefix_tree([]).order == ()


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=60), min_size=1, max_size=12))
def test_every_node_is_a_beginning_of_its_prompts(prompts: list[list[int]]) -> None:
    prompts = [[7] * 30 + prompt for prompt in prompts]
    tree = build_prefix_tree(prompts)
    assert sorted(tree.order) == list(range(len(prompts)))
    for prompt, node in zip(prompts, tree.nodes, strict=True):
        lengths = path(node)
        assert lengths == sorted(set(lengths), reverse=True)
        if node is not None:
            assert node.length < len(prompt)
            assert prompts[node.prompt][: node.length] == prompt[: node.length]
