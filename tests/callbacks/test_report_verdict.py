import math

import pytest

from deepfabric_trainer.callbacks._journal import RunEvent
from deepfabric_trainer.callbacks._measurements import GenerationResult
from deepfabric_trainer.callbacks._report.record import RunStatus
from deepfabric_trainer.callbacks._report.verdict import Finding, verdict_of
from tests.fixtures.run_records import losses, measured, record, samples


def judge(*measurements, **fields):
    return verdict_of(record(list(measurements), **fields))


class TestMeasured:
    def test_improved(self):
        verdict = judge(measured(0, 0.25), measured(60, 52 / 60))
        assert verdict.finding is Finding.IMPROVED
        assert verdict.sentence == (
            "The model learned to call tools: exact match 0.25 → 0.87 (95% interval 0.76–0.93) in 60 steps."
        )

    def test_better_from_a_good_start_is_not_called_learned(self):
        verdict = judge(measured(0, 0.7, turns=400), measured(60, 0.9, turns=400))
        assert verdict.sentence.startswith("The model got better at calling tools: exact match 0.70 → 0.90")

    @pytest.mark.parametrize("turns", [8, 16, 30])
    def test_few_turns_are_no_evidence(self, turns):
        verdict = judge(measured(0, 0.5, turns=turns), measured(60, 0.75, turns=turns))
        assert verdict.finding is Finding.UNCLEAR
        assert verdict.sentence.startswith("No evidence of improvement: exact match 0.50 → 0.75 in 60 steps")
        assert "overlap" in verdict.sentence

    def test_a_wide_interval_is_said(self):
        assert "8 turns are few" in judge(measured(0, 0.5, turns=8), measured(60, 0.75, turns=8)).remarks[-1]

    def test_more_turns_make_the_same_difference_evidence(self):
        assert judge(measured(0, 0.5, turns=400), measured(60, 0.75, turns=400)).finding is Finding.IMPROVED

    @pytest.mark.parametrize("exact", [0.0, 0.5, 1.0])
    def test_no_change_is_no_evidence(self, exact):
        assert judge(measured(0, exact), measured(60, exact)).finding is Finding.UNCLEAR

    def test_worse(self):
        verdict = judge(measured(0, 0.9), measured(60, 0.2))
        assert verdict.finding is Finding.WORSE
        assert verdict.sentence.startswith("The model got worse at calling tools: exact match 0.90 → 0.20")

    def test_not_measured_before_training(self):
        verdict = judge(measured(30, 0.3), measured(60, 0.9))
        assert "from step 30 to step 60" in verdict.sentence

    @pytest.mark.parametrize(("step", "missing"), [(0, "nothing after it"), (60, "nothing before training")])
    def test_one_measurement_claims_no_change(self, step, missing):
        verdict = judge(measured(step, 0.9))
        assert verdict.finding is Finding.ONE_MEASUREMENT
        assert missing in verdict.sentence

    def test_failed_measurements_do_not_count(self):
        verdict = judge(measured(0, 0.1), measured(30, 0.9), {"eval_tool_call_exact_match": math.nan, "step": 60})
        assert "0.10 → 0.90" in verdict.sentence
        assert "in 30 steps" in verdict.sentence

    def test_the_last_of_a_step_counts(self):
        assert "0.10 → 0.90" in judge(measured(0, 0.1), measured(60, 0.2), measured(60, 0.9)).sentence

    def test_intervals_that_were_not_logged_are_computed(self):
        logs = [
            {"eval_tool_call_exact_match": share, "eval_tool_call_turns": 60, "step": step}
            for step, share in ((0, 0.25), (60, 0.9))
        ]
        assert judge(*logs).finding is Finding.IMPROVED

    def test_without_turns_nothing_is_claimed(self):
        logs = [{"eval_tool_call_exact_match": share, "step": step} for step, share in ((0, 0.0), (60, 1.0))]
        assert judge(*logs).finding is Finding.UNCLEAR

    def test_prefix(self):
        logs = [
            {name.replace("eval_", "held_"): value for name, value in one.items()}
            for one in (measured(0, 0.1), measured(60, 0.9))
        ]
        assert judge(*logs).finding is Finding.IMPROVED


class TestBestCheckpoint:
    def test_is_judged_where_it_is_what_the_run_leaves(self):
        fields = {"best_step": 30, "ends_with_best": True}
        verdict = judge(measured(0, 0.1), measured(30, 0.9), measured(60, 0.1), **fields)
        assert verdict.finding is Finding.IMPROVED
        assert "in 30 steps; best checkpoint step 30." in verdict.sentence
        assert "chosen among 3 measurements" in verdict.remarks[0]

    def test_is_not_judged_where_it_is_not_loaded(self):
        verdict = judge(measured(0, 0.1), measured(30, 0.9), measured(60, 0.1), best_step=30)
        assert verdict.finding is Finding.UNCLEAR
        assert verdict.remarks[0].startswith("It was better before: 0.90")

    def test_stopped_early(self):
        verdict = judge(measured(0, 0.1), measured(60, 0.9), max_steps=200)
        assert verdict.sentence.endswith("stopped early at step 60 of 200.")


class TestRemarks:
    def test_false_calls(self):
        verdict = judge(
            measured(0, 0.5, turns_with_call=20, false_call=0.0), measured(60, 0.6, turns_with_call=20, false_call=0.9)
        )
        assert "False calls rose: 0.00 → 0.90 of the turns that expect no call." in verdict.remarks

    def test_false_calls_over_few_turns(self):
        verdict = judge(
            measured(0, 0.5, turns_with_call=58, false_call=0.0), measured(60, 0.6, turns_with_call=58, false_call=0.5)
        )
        assert not any("False calls" in remark for remark in verdict.remarks)

    def test_turns_that_changed(self):
        results = [GenerationResult(0, {}, samples(0.0)), GenerationResult(60, {}, samples(1.0))]
        right_before = sum(sample.score.exact_match for sample in results[0].samples)
        remark = f"Of the 24 turns measured both first and last, {24 - right_before} became right and 0 became wrong."
        assert remark in judge(measured(0, 0.1), measured(60, 0.9), results=results).remarks


class TestUnmeasured:
    def test_loss_is_not_taken_for_calls(self):
        verdict = verdict_of(record(losses(2.0, 1.0, 0.5)))
        assert verdict.finding is Finding.UNMEASURED
        assert verdict.sentence == (
            "Nothing measured tool calls. The training loss went 2 → 0.5 in 3 steps, which says little about calls."
        )
        assert "SampleGenerationCallback" in verdict.remarks[0]

    def test_nothing_at_all(self):
        assert verdict_of(record()).sentence == "Nothing measured tool calls."


class TestDiverged:
    @pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinite")])
    def test_not_finite_to_the_end(self, value, word):
        verdict = verdict_of(record([measured(0, 0.1), *losses(2.0, 1.0, value, value), measured(60, 0.9)]))
        assert verdict.finding is Finding.DIVERGED
        assert verdict.sentence == f"Training diverged at step 3: the loss became {word}."
        assert "0.90" in verdict.remarks[1]

    def test_not_finite_for_a_while(self):
        assert verdict_of(record(losses(2.0, math.nan, 1.0))).finding is Finding.UNMEASURED

    def test_said_by_an_event_that_stopped_the_run(self):
        event = RunEvent("nan_loss", 12, "The loss is NaN.", action="stop", severity="critical")
        assert verdict_of(record(events=[event])).sentence == "Training diverged at step 12: The loss is NaN."

    @pytest.mark.parametrize("changes", [{"action": "skip_step"}, {"severity": "warning"}, {"kind": "info_nanny"}])
    def test_not_said_by_other_events(self, changes):
        fields = {"kind": "nan_loss", "step": 12, "message": "", "action": "stop", "severity": "critical"} | changes
        assert verdict_of(record(events=[RunEvent(**fields)])).finding is Finding.UNMEASURED

    def test_loss_that_rises(self):
        verdict = verdict_of(record(losses(*[2.0] * 5, 1.0, 1.5, *[8.0] * 5)))
        assert "the loss rose from 1 to 8, above its 2 at first" in verdict.sentence

    def test_loss_that_wobbles(self):
        assert verdict_of(record(losses(*[2.0] * 5, 1.0, *[2.5] * 5))).finding is Finding.UNMEASURED

    def test_loss_that_scatters(self):
        verdict = verdict_of(record(losses(1.0, 0.4, 3.0, 0.9, 1.1, 0.8, 2.0, 2.5, 0.5, 1.9, 2.2)))
        assert verdict.finding is Finding.UNMEASURED


class TestUnfinished:
    def test_running(self):
        verdict = judge(measured(0, 0.1), measured(60, 0.9), status=RunStatus.RUNNING, max_steps=200)
        assert verdict.sentence.startswith("Not finished (step 60 of 200). The model learned")

    def test_ended(self):
        verdict = judge(measured(0, 0.1), status=RunStatus.ENDED, max_steps=200, error="RuntimeError: boom")
        assert verdict.sentence.startswith("The run ended unexpectedly at step 60 of 200 (RuntimeError: boom). ")
