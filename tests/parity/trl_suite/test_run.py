import textwrap
from pathlib import Path

import pytest

from tests.parity.trl_suite.run import lost, main, read_outcomes, table

REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_sft_trainer.TestSFTTrainer" name="test_train[a]" />
<testcase classname="tests.test_sft_trainer.TestSFTTrainer" name="test_b"><failure>trace</failure></testcase>
<testcase classname="tests.test_sft_trainer.TestSFTTrainer" name="test_c"><skipped message="no GPU" /></testcase>
<testcase classname="tests.test_sft_trainer.TestSFTTrainer" name="test_d"><error message="no">trace</error></testcase>
</testsuite></testsuites>"""


def test_outcomes_are_read_from_the_report() -> None:
    assert read_outcomes(REPORT) == {
        "TestSFTTrainer::test_train[a]": "passed",
        "TestSFTTrainer::test_b": "failed",
        "TestSFTTrainer::test_c": "skipped",
        "TestSFTTrainer::test_d": "error",
    }


def test_only_what_passed_can_be_lost() -> None:
    theirs = {"a": "passed", "b": "passed", "c": "failed", "d": "passed", "e": "passed"}
    ours = {"a": "passed", "b": "failed", "c": "error", "d": "skipped"}
    assert lost(theirs, ours) == ["b", "d", "e"]
    assert [line.split() for line in table(theirs, ours).splitlines()] == [
        ["passed", "failed", "error", "skipped"],
        ["SFTTrainer", "4", "1", "0", "0"],
        ["DeepFabricTrainer", "1", "1", "1", "1"],
    ]


@pytest.mark.slow
def test_tests_run_with_either_trainer_on_stand_ins(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "test_trainer.py").write_text(
        textwrap.dedent(
            """
            import pytest
            from datasets import load_dataset
            from trl import SFTConfig, SFTTrainer


            class TestTrainer:
                @pytest.mark.parametrize("config", ["standard_language_modeling", "conversational_language_modeling"])
                def test_train(self, config, tmp_path):
                    dataset = load_dataset("trl-internal-testing/zen", config, split="train")
                    settings = SFTConfig(str(tmp_path), max_steps=1, report_to="none")
                    model = "trl-internal-testing/tiny-Qwen2ForCausalLM-2.5"
                    trainer = SFTTrainer(model=model, args=settings, train_dataset=dataset)
                    trainer.train()
                    assert trainer.state.log_history

                def test_name(self):
                    assert SFTTrainer.__name__ == "SFTTrainer"

                def test_nothing(self):
                    pytest.skip("with either")
            """
        )
    )
    assert main([str(folder / "test_trainer.py"), "--stand-ins"]) == 1
    printed = capfd.readouterr().out
    assert "passes with SFTTrainer only: TestTrainer::test_name (failed)" in printed
    assert printed.count("passes with SFTTrainer only") == 1
