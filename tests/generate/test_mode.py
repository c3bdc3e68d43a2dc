from typing import Any

import pytest
import torch

from deepfabric_trainer.errors import ConfigError
from deepfabric_trainer.generate import generate_with_shared_prefix, generation_mode
from tests.fixtures.tiny import enable_checkpointing, is_checkpointing
from tests.generate.test_batches import OPTIONS, PREFIX, PROMPTS, expected


class TestGenerationMode:
    @pytest.fixture
    def training_model(self, tiny_model):
        tiny_model.train()
        tiny_model.lm_head.eval()
        tiny_model.config.use_cache = False
        enable_checkpointing(tiny_model)
        return tiny_model

    @staticmethod
    def snapshot(model: Any) -> Any:
        return (
            [
                (name, module.training, getattr(module, "gradient_checkpointing", None))
                for name, module in model.named_modules()
            ],
            model.config.to_dict(),
            id(model.generation_config),
            model.generation_config.to_dict(),
            torch.get_rng_state().tolist(),
            {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        )

    def test_inside(self, training_model):
        with generation_mode(training_model) as model:
            assert model is training_model
            assert not any(module.training for module in model.modules())
            assert not is_checkpointing(model)
            assert model.config.use_cache
        assert is_checkpointing(training_model)

    def test_training_model_generates_the_same(self, training_model):
        rows = expected(training_model)
        before = self.snapshot(training_model)
        assert generate_with_shared_prefix(training_model, PROMPTS, **OPTIONS) == rows
        assert self.snapshot(training_model) == before

    def test_restores_after_a_failure(self, training_model):
        before = self.snapshot(training_model)
        with pytest.raises(ZeroDivisionError), generation_mode(training_model):
            torch.rand(3) / (1 // 0)
        assert self.snapshot(training_model) == before

    def test_unwraps(self, tiny_model):
        with generation_mode(torch.nn.DataParallel(tiny_model)) as model:
            assert model is tiny_model

    def test_compiled_models_run_as_they_are_written(self, tiny_model):
        rows = expected(tiny_model)
        calls: list[int] = []

        def backend(graph: Any, inputs: Any) -> Any:
            calls.append(1)
            return graph.forward

        wrapped = torch.compile(tiny_model, backend=backend)
        assert generate_with_shared_prefix(wrapped, PROMPTS, **OPTIONS) == rows
        tiny_model.compile(backend=backend)
        in_place = tiny_model._compiled_call_impl
        assert generate_with_shared_prefix(tiny_model, PROMPTS, **OPTIONS) == rows
        assert calls == []
        assert tiny_model._compiled_call_impl is in_place

    def test_weights_that_are_spread_over_processes_are_refused(self, tiny_model):
        next(tiny_model.parameters()).ds_id = 0  # as ZeRO-3 marks its parameters
        with pytest.raises(ConfigError, match="spread over processes"):
            generate_with_shared_prefix(tiny_model, PROMPTS, **OPTIONS)

    def test_gradients_still_flow_afterwards(self, training_model):
        generate_with_shared_prefix(training_model, PROMPTS, **OPTIONS)
        ids = torch.tensor([PREFIX])
        training_model(ids, labels=ids).loss.backward()
        assert all(parameter.grad is not None for parameter in training_model.parameters())
