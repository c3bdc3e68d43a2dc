"""The detectors, fed with numbers; no training."""

import json
import math
import random
from collections.abc import Iterator

import pytest

from deepfabric_trainer.callbacks import TrainingHealthCallback
from deepfabric_trainer.callbacks._health.evaluations import MemorizingDetector, OverfittingDetector
from deepfabric_trainer.callbacks._health.findings import CAN_ROLL_BACK, CAN_SKIP, Finding, Kind, Policy, advice_on
from deepfabric_trainer.callbacks._health.monitor import Monitor, StepNumbers
from deepfabric_trainer.callbacks._health.processes import clearest
from deepfabric_trainer.callbacks._health.resources import (
    MemoryDetector,
    MemoryUse,
    SlowInputDetector,
    memory_in_use,
)
from deepfabric_trainer.callbacks._health.rollback import scale_rates
from deepfabric_trainer.callbacks._health.spikes import SpikeDetector
from deepfabric_trainer.callbacks._health.trends import DivergenceDetector, PlateauDetector
from deepfabric_trainer.errors import ConfigError


def healthy(steps: int, seed: int, *, spread: float = 0.2, floor: float = 0.4) -> Iterator[float]:
    """Losses that fall from 3 to `floor`, with noise of so many standard deviations in log space."""
    draw = random.Random(seed)
    for step in range(steps):
        yield (floor + (3 - floor) * math.exp(-step / 60)) * math.exp(draw.gauss(0, spread))


def spikes_in(losses: list[float], **options: float) -> list[int]:
    detector = SpikeDetector(**({"ratio": 2.0, "above_all": 1.5, "beyond": 5.0, "rise": 0.3} | options))
    return [step for step, loss in enumerate(losses, start=1) if detector.add(loss)]


def divergence_in(losses: list[float]) -> list[int]:
    detector = DivergenceDetector()
    return [step for step, loss in enumerate(losses, start=1) if detector.add(loss, step)]


def plateau_in(losses: list[float], rates: list[float] | None = None) -> list[int]:
    detector = PlateauDetector()
    rates = rates or [1e-3] * len(losses)
    return [
        step for step, (loss, rate) in enumerate(zip(losses, rates, strict=True), start=1) if detector.add(loss, rate)
    ]


class TestSpikes:
    def test_one_value_far_above(self):
        losses = list(healthy(300, 0))
        losses[199] = 4.0
        assert spikes_in(losses) == [200]

    def test_several_are_all_seen(self):
        losses = list(healthy(300, 0))
        for step in (150, 170, 180, 181):
            losses[step - 1] = 5.0
        assert spikes_in(losses) == [150, 170, 180, 181]

    def test_not_before_there_is_a_scale(self):
        assert spikes_in([3.0] * 20 + [1.0] * 29 + [9.0]) == []
        assert spikes_in([3.0] * 20 + [1.0] * 30 + [9.0]) == [51]

    def test_large_by_statistics_only_is_none(self):
        """Losses that hardly vary: 1.5 is many deviations above 1.0, and nothing to worry about."""
        assert spikes_in([1.0] * 100 + [1.5]) == []

    def test_large_in_practice_only_is_none(self):
        """Losses that vary by a factor of ten anyhow."""
        draw = random.Random(0)
        losses = [math.exp(draw.gauss(0, 1.2)) for _ in range(100)]
        assert spikes_in([*losses, 6.0]) == []

    def test_while_losses_fall_steeply(self):
        losses = [3 * math.exp(-step / 12) for step in range(100)]
        losses[79] = 5.0
        assert spikes_in(losses) == [80]

    def test_near_zero_is_none(self):
        assert spikes_in([0.001] * 100 + [0.1]) == []

    def test_a_new_level_is_no_row_of_spikes(self):
        steps = spikes_in([1.0] * 100 + [4.0] * 200)
        assert steps == list(range(101, 111))

    @pytest.mark.parametrize("spread", [0.02, 0.1, 0.3, 0.8])
    def test_no_false_alarm(self, spread):
        for seed in range(50):
            assert spikes_in(list(healthy(500, seed, spread=spread))) == []

    def test_no_false_alarm_with_long_tails(self):
        """Student's t with five degrees of freedom: now and then a batch of hard rows."""
        alarms = 0
        for seed in range(50):
            draw = random.Random(seed)
            noise = [draw.gauss(0, 1) / math.sqrt(draw.gammavariate(2.5, 1 / 2.5)) for _ in range(500)]
            alarms += len(spikes_in([math.exp(0.3 * value) for value in noise]))
        assert alarms <= 15  # of 25,000 steps


class TestDivergence:
    def test_far_and_for_long(self):
        assert divergence_in([3.0] * 20 + [1.0] * 60 + [5.0] * 100) == [80 + 13 + 24]

    def test_a_spike_or_a_short_rise_is_none(self):
        assert divergence_in([1.0] * 60 + [9.0] * 20 + [1.0] * 60) == []

    def test_small_in_practice_is_none(self):
        assert divergence_in([0.05] * 60 + [0.3] * 100) == []

    def test_again_after_it_has_come_back(self):
        losses = [1.0] * 60 + [5.0] * 60 + [1.0] * 60 + [5.0] * 60
        assert len(divergence_in(losses)) == 2

    def test_no_false_alarm(self):
        for seed in range(50):
            assert divergence_in(list(healthy(600, seed, spread=0.4))) == []

    def test_what_is_worth_keeping(self):
        detector = DivergenceDetector()
        assert not detector.is_near_best
        for step in range(50):
            detector.add(1.0, step)
        assert detector.is_near_best
        for step in range(50, 65):
            detector.add(2.0, step)
        assert not detector.is_near_best


class TestPlateau:
    def test_flat(self):
        draw = random.Random(0)
        losses = [1.0 + draw.gauss(0, 0.1) for _ in range(1000)]
        (step,) = plateau_in(losses)
        assert 400 <= step <= 700

    def test_falling_is_none(self):
        for seed in range(30):
            draw = random.Random(seed)
            losses = [(2.0 - step / 1000) * math.exp(draw.gauss(0, 0.1)) for step in range(1000)]
            assert plateau_in(losses) == []

    def test_decayed_to_nothing_is_none(self):
        rates = [1e-3] * 300 + [1e-5] * 700
        assert plateau_in([1.0] * 1000, rates) == []

    def test_nothing_left_to_learn_is_none(self):
        assert plateau_in([0.01] * 1000) == []


class TestEvaluations:
    def overfits(self, losses: list[float], train: list[float]) -> list[int]:
        detector = OverfittingDetector()
        pairs = zip(losses, train, strict=True)
        return [number for number, pair in enumerate(pairs) if detector.add(*pair, number * 10)]

    def test_rises_while_training_falls(self):
        train = [2.0, 1.0, 0.8, 0.6, 0.4, 0.3]
        assert self.overfits([2.0, 1.0, 1.1, 1.2, 1.3, 1.4], train) == [4]

    def test_training_rises_as_well(self):
        assert self.overfits([2.0, 1.0, 1.1, 1.2, 1.3, 1.4], [2.0, 1.0, 1.1, 1.2, 1.3, 1.4]) == []

    def test_noise(self):
        for seed in range(200):
            draw = random.Random(seed)
            losses = [1.0 + draw.gauss(0, 0.005) for _ in range(20)]
            assert self.overfits(losses, [1.0 - 0.01 * number for number in range(20)]) == []

    def test_once_for_a_best(self):
        losses = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 0.9, 1.0, 1.1, 1.2]
        assert self.overfits(losses, [1 - 0.05 * number for number in range(10)]) == [3, 9]

    @pytest.mark.parametrize(
        ("numbers", "said"),
        [
            ((0.5, 0.01, None, None), True),
            ((0.02, 0.01, None, None), False),
            ((0.5, 0.3, None, None), False),
            ((0.5, None, 0.8, 0.999), True),
            ((0.5, None, 0.98, 0.999), False),
            ((0.5, None, 0.5, 0.9), False),
        ],
    )
    def test_memorizing(self, numbers, said):
        detector = MemorizingDetector()
        assert [detector.add(*numbers), detector.add(*numbers)] == [said, False]

    def test_evaluations_of_several_sets(self):
        monitor = Monitor()
        found = []
        for number, loss in enumerate([1.0, 1.1, 1.2, 1.3]):
            monitor.step(StepNumbers(losses=(0.9 - 0.1 * number,), labels=(5,)), number, 1e-3)
            metrics = {"eval_a_loss": 0.5, "eval_a_runtime": 1, "eval_b_loss": loss, "eval_b_runtime": 1}
            found += monitor.evaluated(metrics, number)
        assert [finding.kind for finding in found] == ["overfitting"]
        assert "eval_b_loss has risen from 1 (step 0) to 1.3" in found[0].message

    def test_each_set_is_compared_with_all_steps_before(self):
        """A trainer tells of each set by itself; the last step alone, whose batch is easy, says little."""
        monitor = Monitor()
        found = []
        for number, loss in enumerate([1.0, 1.1, 1.2, 1.3]):
            monitor.step(StepNumbers(losses=(0.9,), labels=(5,)), 2 * number, 1e-3)
            monitor.step(StepNumbers(losses=(0.9 - 0.3 * number,), labels=(5,)), 2 * number + 1, 1e-3)
            for name, value in (("a", 0.5), ("b", loss)):
                metrics = {f"eval_{name}_loss": value, f"eval_{name}_runtime": 1}
                found += [(finding.kind, finding.evidence) for finding in monitor.evaluated(metrics, 2 * number + 1)]
        ((kind, evidence),) = found
        assert kind == "overfitting"
        assert evidence["train_now"] == pytest.approx((0.3 + 0.9 + 0.0) / 3)

    def test_one_batch_that_is_all_right_is_not_known_by_heart(self):
        monitor = Monitor()
        for accuracy in (0.9, 0.95, 0.88, 1.0):
            monitor.logged(
                {"loss": 0.3, "mean_token_accuracy": accuracy}, sees_losses=True, sees_gradients=True, sees_norm=True
            )
        metrics = {"eval_loss": 0.3, "eval_mean_token_accuracy": 0.93, "eval_runtime": 1}
        assert monitor.evaluated(metrics, 4) == []

    def test_memorizing_is_said_once_although_another_set_is_well(self):
        monitor = Monitor()
        found = []
        for number in range(3):
            monitor.step(StepNumbers(losses=(0.01,), labels=(5,)), number, 1e-3)
            for name, loss in (("a", 2.0), ("b", 0.01)):
                metrics = {f"eval_{name}_loss": loss, f"eval_{name}_runtime": 1}
                found += [(finding.kind, number) for finding in monitor.evaluated(metrics, number)]
        assert found == [("memorizing", 0)]


class TestResources:
    def test_waiting(self):
        monitor = Monitor()
        found = [finding for _ in range(200) for finding in monitor.waited(0.5, 0.5)]
        assert [finding.kind for finding in found] == ["slow_input"]
        assert found[0].message == "50% of a step's time is waiting for data: 0.5 of 1 seconds"

    @pytest.mark.parametrize("times", [(0.001, 0.001), (0.1, 1.0)])
    def test_waiting_that_does_not_matter(self, times):
        detector = SlowInputDetector()
        assert not any(detector.add(*times) for _ in range(200))

    def test_an_evaluation_between_steps_is_no_slow_input(self):
        detector = SlowInputDetector()
        assert not any(detector.add(30.0 if step % 5 == 0 else 0.01, 0.5) for step in range(200))

    @pytest.mark.parametrize(
        ("use", "said"),
        [
            (MemoryUse("device", 95, 100, 95), True),
            (MemoryUse("device", 88, 100, 88), False),
            (MemoryUse("device", 88, 100, 88, retries=2), True),
            (MemoryUse("host", 95, 100, 90), True),
            (MemoryUse("host", 95, 100, 10), False),
        ],
    )
    def test_memory(self, use, said):
        detector = MemoryDetector()
        assert [detector.add(use), detector.add(use)] == [said, False]

    def test_memory_of_this_machine(self):
        (use,) = memory_in_use("cpu")
        assert use.place == "host"
        assert 0 < use.used < use.limit
        assert use.own > 10**7


class TestMonitor:
    def test_nan_is_not_taken_into_any_scale(self):
        monitor = Monitor()
        found = monitor.step(StepNumbers(losses=(math.nan, 1.0), labels=(3, 3), gradients_finite=False), 1, 1e-3)
        assert [(finding.kind, finding.batches) for finding in found] == [("nan", (0,))]
        assert monitor.loss_spikes.seen == 0

    def test_logs_are_read_where_steps_show_nothing(self):
        monitor = Monitor()
        logs = {"loss": 0.0, "grad_norm": math.nan}
        assert monitor.logged(logs, sees_losses=True, sees_gradients=True, sees_norm=True) == []
        (finding,) = monitor.logged(logs, sees_losses=True, sees_gradients=False, sees_norm=False)
        assert (finding.kind, finding.form) == ("nan", "gradient")

    def test_gradient_spikes_of_logged_norms(self):
        monitor = Monitor(clip=1.0)
        found = []
        for step in range(100):
            logs = {"loss": 1.0, "grad_norm": 50.0 if step == 90 else 0.9 + 0.001 * step}
            found += monitor.logged(logs, sees_losses=True, sees_gradients=True, sees_norm=False)
        assert [finding.message for finding in found] == ["the gradient norm is 50, 52 times the usual 0.9595"]

    def test_a_norm_that_is_not_even_clipped_is_no_spike(self):
        monitor = Monitor(clip=1.0)
        norms = [0.01] * 100 + [0.9]
        assert not any(monitor.gradient(norm) for norm in norms)

    def test_state_survives_json(self):
        monitor = Monitor(clip=1.0)
        for step, loss in enumerate(healthy(90, 0)):
            monitor.step(StepNumbers((loss,), (4,), 1.0 + 0.01 * step, True), step, 1e-3)
        monitor.evaluated({"eval_loss": 1.0, "eval_runtime": 1.0}, 90)
        again = Monitor.from_state(json.loads(json.dumps(monitor.state())))
        assert again.state() == monitor.state() | {"slow_input": again.state()["slow_input"]}
        spike = StepNumbers((50.0,), (4,), 99.0, True)
        kinds = [finding.kind for finding in again.step(spike, 91, 1e-3)]
        assert kinds == [finding.kind for finding in monitor.step(spike, 91, 1e-3)] == ["loss_spike", "gradient_spike"]


class TestPolicies:
    def test_every_kind_has_advice(self):
        forms = {Kind.NAN: ("loss", "gradient"), Kind.MEMORY: ("device", "host")}
        for kind in Kind:
            for form in forms.get(kind, ("",)):
                cause, advice = advice_on(Finding(kind, "", form=form))
                assert cause
                assert advice.endswith(".")

    def test_defaults(self):
        policies = TrainingHealthCallback().settings.policies
        assert {kind for kind, policy in policies.items() if policy is not Policy.LOG} == {Kind.NAN}
        assert policies[Kind.NAN] is Policy.STOP

    @pytest.mark.parametrize("kind", Kind)
    @pytest.mark.parametrize("policy", Policy)
    def test_which_policy_can_mend_what(self, kind, policy):
        possible = {Policy.SKIP_STEP: kind in CAN_SKIP, Policy.ROLLBACK: kind in CAN_ROLL_BACK}.get(policy, True)
        if possible:
            assert TrainingHealthCallback({str(kind): str(policy)}).settings.policies[kind] is policy
        else:
            with pytest.raises(ConfigError, match=f"policy of '{kind}' is '{policy}'"):
                TrainingHealthCallback({str(kind): str(policy)})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"policies": {"spike": "log"}}, 'kind \'spike\'. Expected one of "nan", "loss_spike", "gradient_spike"'),
            ({"policies": {"nan": "ignore"}}, 'Expected one of "log", "skip_step", "rollback", "stop"'),
            ({"policies": {"plateau": "skip_step"}}, 'Expected one of "log", "stop"'),
            ({"max_rollbacks": 0}, "max_rollbacks"),
            ({"rollback_every": 0.5}, "rollback_every"),
            ({"rollback_lr_factor": 0.0}, "rollback_lr_factor"),
            ({"rollback_lr_factor": math.nan}, "rollback_lr_factor"),
        ],
    )
    def test_settings(self, options, message):
        with pytest.raises(ConfigError) as error:
            TrainingHealthCallback(**options)
        assert message in str(error.value)


def test_of_several_processes_the_clearest_is_heard():
    findings = [
        [Finding(Kind.NAN, "gradients", weight=1.0)],
        [Finding(Kind.NAN, "loss", weight=2.0), Finding(Kind.LOSS_SPIKE, "spike")],
    ]
    assert [finding.message for finding in clearest(findings)] == ["loss", "spike"]


@pytest.mark.parametrize("nested", [False, True])
def test_rates_of_schedules(nested):
    import torch
    from torch.optim.lr_scheduler import LambdaLR, LinearLR, SequentialLR

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if nested:
        parts = [LinearLR(optimizer, 1.0, 1.0, 2), LinearLR(optimizer, 1.0, 0.5, 2)]
        scheduler = SequentialLR(optimizer, parts, milestones=[2])
    else:
        scheduler = LambdaLR(optimizer, lambda step: 1.0 if step < 3 else 0.5)
    rates = []
    for step in range(5):
        if step == 1:
            scale_rates(optimizer, scheduler, 0.1)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert rates[0] == 1.0
    assert max(rates[1:]) <= 0.1
    assert rates[-1] == pytest.approx(0.05)
