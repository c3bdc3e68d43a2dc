if not __name__.startswith("deepfabric_trainer."):
    raise ImportError(
        "import `deepfabric_trainer.callbacks`; the folder `callbacks/` holds its source and is no package"
    )

from deepfabric_trainer.callbacks.metric_early_stopping import MetricEarlyStoppingCallback
from deepfabric_trainer.callbacks.metrics_logger import MetricsLoggerCallback
from deepfabric_trainer.callbacks.sample_generation import GenerationResult, SampleGenerationCallback, TurnSample

__all__ = [
    "GenerationResult",
    "MetricEarlyStoppingCallback",
    "MetricsLoggerCallback",
    "SampleGenerationCallback",
    "TurnSample",
]
