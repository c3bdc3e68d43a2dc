import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from deepfabric_trainer.callbacks._journal import RunEvent
from deepfabric_trainer.callbacks._measurements import GenerationResult
from deepfabric_trainer.callbacks._report.metrics_json import read_earlier, render_json
from deepfabric_trainer.callbacks._report.page import advice_for, duration, render_html, render_markdown
from deepfabric_trainer.callbacks._report.record import RunStatus
from deepfabric_trainer.toolcalls.tables import Confusion, ToolCount, ToolTable
from tests.fixtures.run_records import learning_run, losses, measured, record, sample
from tests.fixtures.tiny import call

HOSTILE = "</script><img src=x onerror=alert(1)><script>alert(2)</script>\x00\u202e{{ 7*7 }}'\"javascript:alert(3)"
LONG = 30_000


@dataclass
class Page(HTMLParser):
    """What a browser makes of a page."""

    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str | None]] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts.append(data)
        elif self.inside != "style":
            self.text += data


def read(page: str) -> Page:
    parsed = Page()
    parsed.feed(page)
    return parsed


def hostile_run() -> Any:
    made = sample(
        [call(HOSTILE, **{HOSTILE: HOSTILE})],
        [call("x", **{HOSTILE: 1})],
        text=HOSTILE,
        request=HOSTILE,
        error=HOSTILE,
    )
    table = ToolTable([ToolCount(HOSTILE, 1, 1, 1)], [Confusion(HOSTILE, None, 1)])
    return learning_run(
        results=[GenerationResult(0, {}, [made]), GenerationResult(600, {}, [made], table)],
        history=[*losses(1.0, 2.0), {HOSTILE: 1.0, f"eval_{HOSTILE}_loss": 1.0, "step": 1}],
        events=[RunEvent(HOSTILE, 1, HOSTILE, {HOSTILE: HOSTILE}, HOSTILE, HOSTILE, HOSTILE, HOSTILE)],
        error=HOSTILE,
        status=RunStatus.ENDED,
        output_dir=HOSTILE,
        checkpoints=[HOSTILE],
        best_checkpoint=HOSTILE,
        best_metric=HOSTILE,
        data=[(HOSTILE, HOSTILE)],
        settings={HOSTILE: HOSTILE},
        environment={HOSTILE: HOSTILE, "command": HOSTILE},
    )


class TestHtml:
    def test_everything_is_there(self):
        text = read(render_html(learning_run())).text
        for part in (
            "The model learned to call tools",
            "gradient_spike",
            "Look at rows 17 and 203",
            "Learning rate",
            "Tokens per second",
            "Token accuracy by region",
            "search_flights",
            "What will the weather be in Oslo",
            "train: rejected",
            "per_device_train_batch_size",
            "84e14561aabb",
            "trainer_state.json",
            "AutoModelForCausalLM.from_pretrained('runs/first/checkpoint-600')",
        ):
            assert part in text, part

    def test_what_is_not_known_is_left_out(self):
        page = render_html(record(losses(2.0, 1.0)))
        for part in ('id="samples"', 'id="tools"', 'id="events"', 'id="conversations"', 'id="data"', "Exact match of"):
            assert part not in page

    def test_nothing_at_all(self):
        assert "Nothing measured tool calls." in read(render_html(record(step=0, status=RunStatus.RUNNING))).text

    def test_it_loads_nothing_and_its_policy_says_so(self):
        page = render_html(learning_run())
        assert not re.search(r"(?:src|href)=\"(?!#)", page)
        assert "url(" not in page
        assert "@import" not in page
        (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
        (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
        (style,) = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (script, style)]
        assert policy.replace("&#39;", "'") == (
            f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
            "base-uri 'none'; form-action 'none'"
        )
        assert not re.search(r"<[^>]+\s(?:style|on\w+)=", page)

    def test_hostile_text_stays_text(self):
        page, harmless = read(render_html(hostile_run())), read(render_html(learning_run()))
        assert set(page.tags) <= set(harmless.tags)
        assert page.scripts == harmless.scripts
        assert {name for name, _ in page.attributes} <= {name for name, _ in harmless.attributes}
        assert "\x00" not in page.text
        assert "\u202e" not in page.text
        assert "⟨U+202E⟩" in page.text
        assert "{{ 7*7 }}" in page.text

    def test_a_long_output_is_cut_with_a_count(self):
        results = [GenerationResult(0, {}, [sample([], [], text="x" * 1_000_000)])]
        page = render_html(record(results=results))
        assert len(page) < 100_000
        assert "and 996,000 more characters" in page

    def test_a_long_run_is_a_small_page(self):
        history = [
            {"loss": 1 / step, "grad_norm": 1.0, "learning_rate": 1e-4, "step": step} for step in range(1, LONG)
        ]
        page, numbers = render_html(record(history)), render_json(record(history))
        assert len(page) < 300_000
        assert len(numbers) < 1_000_000

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_numbers_that_are_none(self, value):
        history = [*losses(1.0, value, 2.0), {"grad_norm": value, "step": 1}]
        assert "Loss" in render_html(record(history))
        assert "Loss" in render_html(record(losses(1.0, value)))

    def test_every_picture_has_words(self):
        page = render_html(learning_run())
        named = re.findall(r'role="img" aria-labelledby="([\w-]+)" aria-describedby="([\w-]+)"', page)
        assert len(named) == page.count("<figure")
        assert all(f'id="{name}"' in page for pair in named for name in pair)


class TestMarkdown:
    def test_a_run(self):
        text = render_markdown(learning_run())
        assert text.startswith("**The model learned to call tools: exact match 0.10 → 0.87")
        assert "| 600 | 0.87 | 0.76–0.93 | 60 |" in text
        assert len(text.splitlines()) < 25

    def test_hostile_text_stays_text(self):
        text = render_markdown(hostile_run())
        assert not re.search(r"(?<!\\)<", text)


class TestJson:
    def test_strict(self):
        def refuse(word: str) -> None:
            raise ValueError(word)

        history = [*losses(1.0, math.nan), measured(2, 0.5), {"loss": -math.inf, "step": 3}]
        content = json.loads(render_json(record(history)), parse_constant=refuse)
        assert content["history"][1]["loss"] == "NaN"
        assert content["metrics"]["loss"] == "-Infinity"
        assert content["measurements"][0]["exact_match"] == 0.5
        assert content["verdict"]["finding"] == "diverged"

    def test_evaluations_of_a_long_run_are_all_kept(self):
        history = [{"loss": 1.0, "step": step} for step in range(20_000)]
        history[10_000:10_000] = [{"eval_loss": 0.5, "step": 10_000}]
        content = json.loads(render_json(record(history)))
        assert {"eval_loss": 0.5, "step": 10_000} in content["history"]
        assert content["history_left_out"] == 20_001 - len(content["history"]) > 0
        assert content["history"][-1]["step"] == 19_999

    def test_what_a_resumed_run_reads(self, tmp_path: Path):
        run = learning_run()
        path = tmp_path / "metrics.json"
        path.write_text(render_json(run))
        earlier = read_earlier(path, 300)
        assert earlier.started == run.started
        assert earlier.events == [event for event in run.events if event.step <= 300]
        assert earlier.speeds == [pair for pair in run.speeds if pair[0] <= 300]

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"events": [1], "started": 3}', '{"events": [{"kind": "x"}]}'])
    def test_a_file_that_is_no_report(self, tmp_path: Path, text: str):
        path = tmp_path / "metrics.json"
        path.write_text(text)
        assert read_earlier(path, 10).events == []
        assert read_earlier(tmp_path / "none.json", 10).started is None


class TestAdvice:
    def test_a_finished_run(self):
        (one,) = advice_for(learning_run())
        assert "checkpoint-600" in one.code

    def test_an_unfinished_run(self):
        advice = advice_for(learning_run(status=RunStatus.ENDED, best_checkpoint=None, is_adapter=True))
        assert advice[0].code == "trainer.train(resume_from_checkpoint='runs/first/checkpoint-600')"
        assert "AutoPeftModelForCausalLM" in advice[1].code

    def test_no_checkpoint(self):
        assert advice_for(record())[0].code == "trainer.save_model('runs/first')"
        assert "save_steps" in advice_for(record(status=RunStatus.ENDED))[0].code

    @pytest.mark.parametrize(("seconds", "said"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (11_100, "3 h 05 min")])
    def test_durations(self, seconds, said):
        assert duration(seconds) == said


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--window-size=360,800",
]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to show the page in")
class TestBrowser:
    @staticmethod
    def show(tmp_path: Path, page: str, fragment: str = "") -> str:
        (tmp_path / "report.html").write_text(page, encoding="utf-8")
        log = tmp_path / "net.json"
        command = [
            str(CHROMIUM),
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--log-net-log={log}",
            "--dump-dom",
        ]
        run = subprocess.run(
            [*command, f"file://{tmp_path / 'report.html'}{fragment}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert ":CONSOLE" not in run.stderr
        return run.stdout

    def test_the_filter_follows_the_address(self, tmp_path: Path):
        dom = self.show(tmp_path, render_html(learning_run()), "#samples?show=wrong&text=oslo")
        (shown,) = re.findall(r"<output[^>]*>(\d+) of 24</output>", dom)
        visible = [tag for tag in re.findall(r"<details class=\"card sample\"[^>]*>", dom) if "hidden" not in tag]
        assert 0 < len(visible) == int(shown) < 24
        assert all('data-outcome="wrong"' in tag for tag in visible)

    def test_a_run_that_was_killed_long_ago(self, tmp_path: Path):
        dom = self.show(tmp_path, render_html(record(losses(2.0), status=RunStatus.RUNNING)))
        assert re.search(r"</time> \(\d+ days ago: if nothing is running any more, it was killed\)", dom)

    def test_a_hostile_page_runs_nothing(self, tmp_path: Path):
        dom = self.show(tmp_path, render_html(hostile_run()))
        assert "<img" not in dom
        assert dom.count("<script") == 1
        assert "1 of 1" in dom

    def test_it_fits_a_phone(self, tmp_path: Path):
        """A copy of the page, its policy taken away, says how wide it is."""
        probe = "<script>document.title = `${document.documentElement.scrollWidth} of ${innerWidth}`</script></body>"
        page = re.sub(r"<meta http-equiv[^>]*>", "", render_html(learning_run())).replace("</body>", probe)
        page = page.replace("<details", "<details open")
        width, screen = re.search(r"<title>(\d+) of (\d+)</title>", self.show(tmp_path, page)).groups()
        assert int(width) <= int(screen)
