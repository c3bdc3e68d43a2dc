from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from deepfabric_trainer import label_scores
from deepfabric_trainer.label_scores import as_scored, give_up_chunks, score_labels, wants_logits
from deepfabric_trainer.loss import weigh
from deepfabric_trainer.region_metrics import RegionMetrics
from tests.collators.models import make_model
from tests.fixtures.tiny import tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8], [11, 12, 13, 14]])
LABELS = torch.tensor([[-100, -100, 7, 8], [-100, -100, -100, 14]])
WEIGHTS = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.5]])


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_scores, "FUSED_HEAD", False)


@pytest.fixture
def model() -> Any:
    return tiny_model(tiny_tokenizer())


def losses(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    """The loss of each predicted token, [R, T - 1]."""
    log_probs = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    return -log_probs.gather(-1, ids[:, 1:, None])[..., 0].detach()


def test_scores_are_those_of_the_labels(model: Any) -> None:
    logits = model(input_ids=IDS).logits
    log_probs, is_top1, mask = score_labels(logits, LABELS)
    assert mask.tolist() == [[False, True, True], [False, False, True]]
    torch.testing.assert_close(log_probs, -losses(model) * mask)
    best = logits.argmax(-1)
    assert score_labels(logits, torch.cat([best[:, :1], best[:, :-1]], dim=1))[1].all()
    assert not is_top1[~mask].any()


def test_virtual_tokens_stand_before_each_row_and_are_not_trained() -> None:
    logits = torch.randn(2, 6, 20)
    log_probs, _, mask = score_labels(logits, LABELS)
    assert mask.tolist() == [[False, False, False, True, True], [False, False, False, False, True]]
    torch.testing.assert_close(log_probs[:, 2:], score_labels(logits[:, 2:], LABELS)[0])


def test_with_trls_head_nothing_is_done(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    monkeypatch.setattr(label_scores, "FUSED_HEAD", True)
    assert as_scored(model, {"labels": LABELS}, lambda called: called, None) is model


@pytest.mark.usefixtures("older")
def test_the_loss_stays_without_weights_and_is_the_weighted_mean_with_them(model: Any) -> None:
    for weights, items in ((None, None), (None, 3), (WEIGHTS, None), (WEIGHTS, 3.5)):
        batch = {"input_ids": IDS, "labels": LABELS, **({} if weights is None else {"loss_weights": weights})}
        count = None if items is None else torch.tensor(items)
        called = as_scored(model, batch, lambda given: weigh(given, batch, count), count)  # noqa: B023
        outputs = called(**batch, **({} if count is None else {"num_items_in_batch": count}))
        used = LABELS.ne(-100).float() if weights is None else weights
        expected = (losses(model) * used[:, 1:]).sum() / used.sum()
        torch.testing.assert_close(outputs["loss"], expected)
        assert outputs.loss.requires_grad


@pytest.mark.usefixtures("older")
def test_regions_are_measured(model: Any) -> None:
    metrics = RegionMetrics()
    batch = {"input_ids": IDS, "labels": LABELS, "regions": torch.tensor([[0, 0, 2, 6], [0, 0, 0, 6]])}
    as_scored(model, batch, lambda given: metrics.measured(given, batch, "train"), None)(**batch)
    taken = metrics.take("train", lambda sums: sums)
    assert taken["loss_content"] == pytest.approx(float(losses(model)[0, 1]), rel=1e-5)
    assert {"loss_content", "loss_stop", "token_accuracy_content", "token_accuracy_stop"} == set(taken)


@pytest.mark.usefixtures("older")
def test_the_routers_loss_is_the_mean_of_the_passes() -> None:
    model = make_model("qwen3-moe", output_router_logits=True, router_aux_loss_coef=0.5)
    batch = {"input_ids": IDS, "labels": LABELS}
    whole = model(**batch)
    for passes in (1, 4):
        outputs = as_scored(model, batch, lambda given: lambda **inputs: given(**inputs), None, passes=passes)(**batch)
        missing = 0.5 * whole.aux_loss * (1 - 1 / passes)
        torch.testing.assert_close(outputs.loss, whole.loss - missing)


@pytest.mark.usefixtures("older")
def test_what_is_called_for_the_model_is_the_model_in_all_else(model: Any) -> None:
    standing = as_scored(model, {"labels": LABELS}, lambda given: given, None)
    assert isinstance(standing, PreTrainedModel)
    assert standing.config is model.config


def test_chunks_are_given_up_where_labels_are_scored_from_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Settings:
        loss_type = "chunked_nll"

    for fused, are_scored, expected in (
        (True, True, "chunked_nll"),
        (False, False, "chunked_nll"),
        (False, True, "nll"),
    ):
        monkeypatch.setattr(label_scores, "FUSED_HEAD", fused)
        settings = Settings()
        give_up_chunks(settings, are_scored=are_scored)
        assert settings.loss_type == expected


def test_an_older_trl_says_when_it_reads_no_logits() -> None:
    trainer: Any = SimpleNamespace(compute_loss_func=None, label_smoother=None)
    assert wants_logits(trainer, {}, True)
    assert not wants_logits(trainer, {}, False)
    assert not wants_logits(trainer, {"_prediction_loss_only": True}, True)
    assert wants_logits(trainer, {"_prediction_loss_only": None}, True)
    for name in ("compute_loss_func", "label_smoother"):
        assert wants_logits(SimpleNamespace(**{**vars(trainer), name: print}), {}, False)
