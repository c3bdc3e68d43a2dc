import json
import re
import tomllib
from dataclasses import dataclass, field
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from deepfabric_trainer.cli import main
from deepfabric_trainer.encode import Context, EncodedExample, Region
from deepfabric_trainer.preview import PreviewedRow, print_example, print_row, render_html
from deepfabric_trainer.schema import Repair
from tests.fixtures.tiny import TOOLS, tiny_tokenizer, tool_rows

TOKENIZER = tiny_tokenizer()
CALL = [
    (Region.CONTEXT, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
    (Region.REASONING, "Hm."),
    (Region.CONTENT, "I look.\n"),
    (Region.FORMAT, "<tool_call>"),
    (Region.TOOL_NAME, "fly"),
    (Region.TOOL_ARGUMENTS, '{"to": "Köln"}'),
    (Region.STOP, "<|im_end|>"),
    (Region.CONTEXT, "\n"),
]


@dataclass
class Page(HTMLParser):
    """What a browser makes of a page: its tags, its texts, and the tokens of each example."""

    examples: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    tokens: list[tuple[str, str, str]] = field(default_factory=list)
    """The class, the tooltip and the text of each token."""
    marks: list[tuple[str, str]] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    anchors: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in {"href", "src", "srcset", "data", "action"}]
        self.anchors += [given["id"] or ""] if "id" in given else []
        if tag == "meta":
            return
        if tag in {"td", "th", "li"}:
            self.text += " "
        if given.get("class") == "t":
            self.examples.append("")
        if tag == "details":
            self.folded.append("")
        if tag == "b":
            self.tokens.append((self.open[-1][1]["class"] or "", given["title"] or "", ""))
        if tag == "i" and "data-c" in given:
            self.marks.append((given["data-c"] or "", ""))
        self.open.append((tag, given))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if "style" in tags:
            return
        self.text += data
        if "b" not in tags:
            return
        style, title, text = self.tokens[-1]
        self.tokens[-1] = (style, title, text + data)
        self.examples[-1] += data
        if "details" in tags:
            self.folded[-1] += data
        if "i" in tags:
            self.marks[-1] = (self.marks[-1][0], self.marks[-1][1] + data)


def example(*parts: tuple[Region, str], **more: Any) -> EncodedExample:
    """Encode texts one after the other, as the encoder does."""
    encoded = [(region, TOKENIZER(text, add_special_tokens=False)["input_ids"]) for region, text in parts]
    ids = [token for _, tokens in encoded for token in tokens]
    regions = [region for region, tokens in encoded for _ in tokens]
    labels = [-100 if region is Region.CONTEXT else token for token, region in zip(ids, regions, strict=True)]
    return EncodedExample(ids, labels, regions, "".join(text for _, text in parts), **more)


def parsed(*rows: PreviewedRow, **more: Any) -> Page:
    page = Page()
    page.feed(render_html(rows, TOKENIZER, **more))
    page.close()
    assert page.open == []
    return page


def page_of(*examples: EncodedExample) -> Page:
    return parsed(PreviewedRow(0, {}, examples))


def words(page: Page) -> str:
    return " ".join(page.text.split())


texts = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from('\n\t<>&"\ufffd😀é'), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(Region)), texts), min_size=1, max_size=6))
def test_every_token_is_in_the_page_once_and_in_order(parts: list[tuple[Region, str]]) -> None:
    page = page_of(example(*parts))
    assert page.examples == ["".join(text for _, text in parts)]
    positions = [title.split(" ")[0].lstrip("#").split("-") for _, title, _ in page.tokens]
    seen = [number for first, *last in positions for number in range(int(first), int((last or [first])[0]) + 1)]
    assert seen == list(range(len(example(*parts).input_ids)))


def test_a_token_is_in_the_class_of_its_region_and_says_its_position_id_text_and_region() -> None:
    page = page_of(example(*CALL))
    stop = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    (token,) = [token for token in page.tokens if token[0] == "s"]
    assert token[1:] == (f"#{len(example(*CALL).input_ids) - 2} id {stop} “<|im_end|>” stop", "<|im_end|>")
    of_class = {style: "".join(text for kind, _, text in page.tokens if kind == style) for style in "rcfnas"}
    assert of_class == {
        "r": "Hm.", "c": "I look.\n", "f": "<tool_call>", "n": "fly", "a": '{"to": "Köln"}', "s": "<|im_end|>",
    }  # fmt: skip


def test_tokens_that_are_text_only_together_are_one() -> None:
    page = page_of(example((Region.CONTENT, "aé😀�b")))
    assert [text for _, _, text in page.tokens] == ["a", "é", "😀", "�", "b"]
    ids = TOKENIZER("😀")["input_ids"]
    assert page.tokens[2][1] == f"#3-6 id {' '.join(map(str, ids))} “😀” content"


def test_a_character_of_which_a_part_is_trained_is_shown_as_trained() -> None:
    ids = TOKENIZER("😀")["input_ids"]
    regions = [Region.CONTEXT, Region.CONTEXT, Region.CONTENT, Region.STOP]
    page = page_of(EncodedExample(ids, [-100, -100, *ids[2:]], regions, "😀"))
    assert [(style, text) for style, _, text in page.tokens] == [("c", "😀")]


def test_a_character_that_never_ends_is_shown_as_the_tokenizer_decodes_it() -> None:
    ids = TOKENIZER("a😀")["input_ids"][:3]
    page = page_of(EncodedExample(ids, ids, [Region.CONTENT] * 3, "a"))
    assert page.examples == ["a�"]


DECODERS: dict[str, tuple[Any, list[str], list[str]]] = {
    "drops the space that it is given first": (decoders.Metaspace(), ["▁I", "▁look", "▁up"], ["I", " look", " up"]),
    "has tokens without text": (decoders.Fuse(), ["a", "", "b"], ["a", "", "b"]),
    "has tokens that end one character and begin others": (decoders.ByteLevel(), ["Ã", "©bcd", "e"], ["ébcd", "e"]),
    "decodes bytes that are no text one by one": (
        decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]),
        ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "a", "<0xEF>", "<0xBF>", "<0xBD>", "b"],
        ["😀", "a", "\ufffd", "b"],
    ),
}


@pytest.mark.parametrize(("decoder", "tokens", "shown"), DECODERS.values(), ids=DECODERS)
def test_tokens_are_shown_as_decoded_in_their_place(decoder: Any, tokens: list[str], shown: list[str]) -> None:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=tokens[0]))
    backend.decoder = decoder
    ids = list(vocabulary.values())
    row = PreviewedRow(0, {}, [EncodedExample(ids, ids, [Region.CONTENT] * len(ids), "")])
    page = Page()
    page.feed(render_html([row], PreTrainedTokenizerFast(tokenizer_object=backend)))
    assert [text for _, _, text in page.tokens] == shown


def test_what_looks_like_html_is_text_wherever_it_comes_from() -> None:
    code = "<script>alert(1)</script><img src='x'>\"&amp;"
    rows = [
        PreviewedRow(0, {}, [example((Region.CONTEXT, code), (Region.CONTENT, code))]),
        PreviewedRow(1, {"messages": code}, error=f"found {code}"),
    ]
    page = parsed(*rows, title=f"a {code}", facts={f"b {code}": f"c {code}"})
    assert page.tags.isdisjoint({"script", "img"})
    assert page.examples == [code * 2]
    for found in (f"a {code}", f"b {code} c {code}", f"found {code}", json.dumps({"messages": code})[1:-1]):
        assert found in page.text


def test_the_page_loads_nothing() -> None:
    rows = [
        PreviewedRow(0, {}, [example((Region.CONTEXT, "x" * 999), *CALL)] * 2),
        PreviewedRow(1, {"x": 1}, error="no"),
    ]
    html = render_html(rows, TOKENIZER)
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'\"" in html
    assert not re.search(r"https?:|url\(|@import|<script|<link|<iframe", html)
    page = parsed(*rows)
    assert page.links
    assert set(page.links) <= {f"#{anchor}" for anchor in page.anchors}


def test_tokens_are_counted_by_region_and_trained_ones_by_label() -> None:
    page = page_of(example(*CALL))
    total = len(example(*CALL).input_ids)
    context = total - 41
    assert f"{total} tokens, 41 trained ({41 / total:.1%})" in words(page)
    counts = f"context {context} reasoning 3 content 8 tool name 3 tool arguments 15 format 11 stop 1"
    assert counts in words(page)


def test_the_head_sums_the_rows_up() -> None:
    one = example((Region.CONTEXT, "x" * 1500), (Region.CONTENT, "y" * 500))
    rows = [PreviewedRow(7, {}, [one, one]), PreviewedRow(8, {}, error="no"), PreviewedRow(9, {}, [one])]
    page = parsed(*rows, facts={"tokenizer:": "tiny \udc80"})
    assert "tokenizer: tiny \\udc80" in page.text
    assert "3 rows (1 rejected), 6,000 tokens, 1,500 trained (25.0%)" in words(page)
    assert "row examples tokens trained 7 2 4,000 1,000 25.0% 8 rejected 9 1 2,000 500 25.0%" in words(page)
    assert {"#row-7", "#row-8", "#row-9"} <= set(page.links)


def test_a_long_untrained_stretch_is_folded_between_its_lines_and_kept() -> None:
    text = "first\nsecond line\n" + "tool " * 200 + "\nlast but one\nlast\n"
    page = page_of(example((Region.CONTEXT, text), (Region.CONTENT, "y" * 2000)))
    assert page.examples == [text + "y" * 2000]
    assert page.folded == ["tool " * 200 + "\n"]
    assert "1,001 untrained tokens (1,001 characters)" in page.text


def test_a_long_line_is_folded_too() -> None:
    page = page_of(example((Region.CONTEXT, "x" * 1000), (Region.STOP, "<|im_end|>")))
    assert page.folded == ["x" * (1000 - 60 - 120)]


def test_short_stretches_are_not_folded() -> None:
    assert page_of(example((Region.CONTEXT, "x" * 239), (Region.CONTENT, "y"))).folded == []
    assert page_of(example((Region.CONTEXT, "x" * 240), (Region.CONTENT, "y"))).folded == ["x" * 60]


def test_what_an_earlier_example_shows_is_named_and_not_repeated() -> None:
    tools = "tools\n" + "x" * 1000 + "\n"
    first = example((Region.CONTEXT, tools + "a" * 100 + "\n"), (Region.CONTENT, "one"))
    second = example((Region.CONTEXT, tools + "b" * 300 + "\n" + "c" * 50), (Region.CONTENT, "two"))
    page = page_of(first, second)
    assert page.examples[0] == first.text
    assert page.examples[1] == second.text.replace("x" * 1000 + "\n", "")
    assert page.folded == ["x" * 1000 + "\n", "b" * 300 + "\n"]
    assert "1,001 untrained tokens, the same tokens as in example 1" in words(page)
    assert "#row-0-example-1" in page.links
    assert "Example 2 of 2 (the template rewrites history)" in words(page)


def test_only_what_is_the_same_is_left_out() -> None:
    first = example((Region.CONTEXT, "a" * 1000), (Region.CONTENT, "one"))
    second = example((Region.CONTEXT, "b" * 1000), (Region.CONTENT, "two"))
    assert page_of(first, second).examples == [first.text, second.text]
    assert parsed(PreviewedRow(0, {}, [first]), PreviewedRow(1, {}, [first])).examples == [first.text] * 2


def test_white_space_is_marked_where_it_is_trained_and_what_is_invisible_everywhere() -> None:
    page = page_of(example((Region.CONTEXT, "\n\t \u202e"), (Region.CONTENT, "\n\t \u00a0\u200b👩\u200d🔬")))
    assert page.marks == [("U+202E", "\u202e"), ("↵", "\n"), ("⇥", "\t"), ("⍽", "\u00a0"), ("U+200B", "\u200b")]


def test_control_characters_are_shown_as_pictures() -> None:
    page = page_of(example((Region.CONTENT, "a\x1b[31m\x00\r\n\x7f\x9b")))
    assert page.examples == ["a␛[31m␀␍\n␡\\x9b"]


def test_weights_are_in_the_tooltips_of_trained_tokens_and_summed_up() -> None:
    weights = [0.0] * 2 + [0.5] * 4 + [2.0]
    page = page_of(
        example((Region.CONTEXT, "ab"), (Region.CONTENT, "😀"), (Region.STOP, "<|im_end|>"), weights=weights)
    )
    assert [title.partition(" weight ")[2] for _, title, _ in page.tokens] == ["", "", "0.5", "2"]
    assert "trained tokens weigh from 0.5 to 2" in page.text
    even = example((Region.CONTEXT, "a"), (Region.CONTENT, "b"), weights=[0.0, 1.0])
    assert "trained tokens weigh 1\n" in page_of(even).text
    assert "weigh" not in page_of(example(*CALL)).text


@pytest.mark.parametrize("coloured", [False, True])
def test_what_was_mended_and_what_is_not_as_at_inference_is_said(coloured: bool) -> None:
    contexts = (Context.EXACT, Context.NO_PROMPT, Context.EXACT)
    one = example(*CALL, contexts=contexts, unstopped_turns=2, lost_reasoning=3)
    row = PreviewedRow(0, {}, [one], notes=["[mended] & <more>"])
    to = console(coloured=coloured)
    print_row(row, TOKENIZER, to)
    for said in (parsed(row).text, printed(to)):
        assert "[mended] & <more>" in said
        assert "trained turns behind the prompt that inference shows: 2" in said
        assert "trained turns behind a history for which the template renders no prompt: 1" in said
        assert "trained turns that the template ends without a stop token: 2" in said
        assert "assistant messages whose reasoning the template left out: 3" in said
    assert "turns" not in page_of(example(*CALL)).text


def test_a_rejected_row_is_shown_with_its_error() -> None:
    row = {"messages": [{"role": "user", "content": "half \ud83d \x9b"}]}
    html = render_html([PreviewedRow(4, row, error="row 4 is bad \ud83d")], TOKENIZER)
    html.encode("utf-8")
    page = Page()
    page.feed(html)
    assert "Rejected. row 4 is bad \\ud83d" in words(page)
    assert '"content": "half \\ud83d \\x9b"' in page.text
    assert page.examples == []


def test_every_region_has_a_name_a_colour_and_a_mark_that_is_no_colour() -> None:
    html = render_html([PreviewedRow(0, {}, [example(*[(region, "x") for region in Region])])], TOKENIZER)
    page = Page()
    page.feed(html)
    styles = [style for style, _, _ in page.tokens]
    assert len(set(styles)) == len(Region)
    lines = {}
    for style, region in zip(styles, Region, strict=True):
        assert f'<span class="{style}">{region.name.lower().replace("_", " ")}</span>' in html
        (rule,) = re.findall(rf"^\.{style} {{(.*)}}", html, flags=re.MULTILINE)
        lines[region] = (re.findall(r"decoration-style: (\w+)", rule), "background" in rule, "font-weight" in rule)
    assert len({str(line) for line in lines.values()}) == len(Region)
    assert [region for region, (_, background, _) in lines.items() if not background] == [Region.CONTEXT]


def console(*, coloured: bool) -> Console:
    system = "standard" if coloured else None
    return Console(file=StringIO(), force_terminal=coloured, color_system=system, width=80, _environ={})


def printed(to: Console) -> str:
    assert isinstance(to.file, StringIO)
    return to.file.getvalue()


def test_the_terminal_marks_regions_where_it_has_no_colour() -> None:
    to = console(coloured=False)
    print_example(example(*CALL), TOKENIZER, to)
    assert printed(to).endswith(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦reasoning:Hm.⟧⟦content:I look.\n⟧⟦format:<tool_call>⟧"
        '⟦tool_name:fly⟧⟦tool_arguments:{"to": "Köln"}⟧⟦stop:<|im_end|>⟧\n\n'
    )
    assert " 41 trained (" in printed(to)


def test_the_terminal_has_a_style_for_each_region() -> None:
    to = console(coloured=True)
    print_example(example(*[(region, region.name) for region in Region]), TOKENIZER, to)
    codes = dict(re.findall(r"\x1b\[([\d;]+)m([A-Z_]+)\x1b", printed(to)))
    assert sorted(codes.values()) == sorted(region.name for region in Region)
    assert "⟦" not in printed(to)


@pytest.mark.parametrize("full", [False, True])
def test_the_terminal_shortens_what_is_not_trained_unless_asked_not_to(full: bool) -> None:
    to = console(coloured=False)
    print_example(example((Region.CONTEXT, "x" * 600), (Region.CONTENT, "y" * 600)), TOKENIZER, to, full=full)
    assert ("x" * 600 in printed(to)) == full
    assert ("[... 120 characters of 600 untrained tokens ...]" in printed(to)) != full
    assert "y" * 600 in printed(to)


def test_nothing_of_a_row_controls_the_terminal() -> None:
    to = console(coloured=False)
    text = "[bold]a[/bold] \x1b[31m\r"
    row = PreviewedRow(3, {"messages": text}, error=f"found {text}")
    print_row(PreviewedRow(2, {}, [example((Region.CONTENT, text), (Region.CONTEXT, text))]), TOKENIZER, to)
    print_row(row, TOKENIZER, to)
    assert "⟦content:[bold]a[/bold] ␛[31m␍⟧[bold]a[/bold] ␛[31m␍" in printed(to)
    assert "row 3 is rejected: found [bold]a[/bold] ␛[31m␍" in printed(to)
    assert '"messages": "[bold]a[/bold]' in printed(to)
    assert "\x1b" not in printed(to)


@pytest.mark.parametrize("full", [False, True])
def test_the_terminal_shortens_a_rejected_row_unless_asked_not_to(full: bool) -> None:
    to = console(coloured=False)
    print_row(PreviewedRow(3, {"messages": "x" * 1000}, error="no"), TOKENIZER, to, full=full)
    assert ("x" * 1000 in printed(to)) == full


def test_the_terminal_numbers_the_examples_of_a_row() -> None:
    to = console(coloured=False)
    print_row(PreviewedRow(3, {}, [example(*CALL)] * 2), TOKENIZER, to)
    assert "example 1 of 2: the template rewrites history" in printed(to)
    assert printed(to).count("⟦tool_name:fly⟧") == 2


def test_the_template_of_the_page_is_in_the_wheel() -> None:
    """A file that is no Python is left out of the wheel without a word."""
    root = Path(__file__).parent.parent
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    files = (root / "deepfabric_trainer" / "preview").iterdir()
    others = [path.name for path in files if path.is_file() and path.suffix != ".py"]
    assert data["deepfabric_trainer.preview"] == others == ["page.html.j2"]


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> str:
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def rows_file(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def page_at(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def test_the_command_writes_a_page_of_as_many_rows_as_asked_for(
    tmp_path: Path, tokenizer_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = rows_file(tmp_path, tool_rows()), tmp_path / "page.html"
    options = ["--tokenizer", tokenizer_folder, "--row", "1", "--rows", "3", "--html", str(page)]
    assert main(["preview", path, *options]) == 0
    seen = page_at(page)
    assert [f"Row {number}" in seen.text for number in range(5)] == [False, True, True, True, False]
    assert "3 rows," in seen.text
    assert f"data: {path}" in seen.text
    names = "".join(text for style, _, text in seen.tokens if style == "n")
    assert names == "get_weather" * 3
    assert seen.text.count("trained turns behind the prompt that inference shows: 1") == 3
    out = capsys.readouterr().out
    assert out.count("⟦tool_name:get_weather⟧") == 3
    assert f"wrote {page}" in out


def test_the_command_shows_the_rows_that_there_are(tmp_path: Path, tokenizer_folder: str) -> None:
    page = tmp_path / "page.html"
    options = ["--tokenizer", tokenizer_folder, "--rows", "100", "--html", str(page)]
    assert main(["preview", rows_file(tmp_path, tool_rows()), *options]) == 0
    assert "8 rows," in page_at(page).text


def test_the_command_says_what_was_mended(
    tmp_path: Path, tokenizer_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {**tool_rows()[0], "tools": json.dumps(TOOLS), "reasoning": {"style": "freetext", "content": "Hm."}}
    page = tmp_path / "page.html"
    main(["preview", rows_file(tmp_path, [row]), "--tokenizer", tokenizer_folder, "--html", str(page)])
    for said in (capsys.readouterr().out, page_at(page).text):
        assert Repair.TOOLS_JSON in said
        assert "the `reasoning` column found no place" in said


def test_the_command_goes_on_after_a_rejected_row(
    tmp_path: Path, tokenizer_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = rows_file(tmp_path, [{"messages": []}, *tool_rows()[:1]]), tmp_path / "page.html"
    options = ["--tokenizer", tokenizer_folder, "--rows", "2", "--html", str(page)]
    assert main(["preview", path, *options]) == 0
    out = capsys.readouterr().out
    assert "row 0 is rejected: " in out
    assert "⟦tool_name:get_weather⟧" in out
    assert "2 rows (1 rejected)" in words(page_at(page))


def test_the_command_exits_with_1_when_no_row_could_be_shown(
    tmp_path: Path, tokenizer_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = rows_file(tmp_path, [{"messages": []}] * 2), tmp_path / "page.html"
    options = ["--tokenizer", tokenizer_folder, "--rows", "2", "--html", str(page)]
    assert main(["preview", path, *options]) == 1
    assert capsys.readouterr().out.count("is rejected") == 2
    assert "2 rows (2 rejected)" in words(page_at(page))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--html", "{tmp}/nowhere/page.html"], "cannot write --html"),
        (["--rows", "0"], "--rows is 0"),
        (["--row", "8"], "--row is 8"),
    ],
)
def test_options_that_cannot_work_give_one_line_and_exit_code_2(
    tmp_path: Path, tokenizer_folder: str, capsys: pytest.CaptureFixture[str], options: list[str], reason: str
) -> None:
    given_options = [option.format(tmp=tmp_path) for option in options]
    path = rows_file(tmp_path, tool_rows())
    assert main(["preview", path, "--tokenizer", tokenizer_folder, *given_options]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
