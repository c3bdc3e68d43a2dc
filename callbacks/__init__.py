if not __name__.startswith("deepfabric_trainer."):
    raise ImportError(
        "import `deepfabric_trainer.callbacks`; the folder `callbacks/` holds its source and is no package"
    )

from deepfabric_trainer.callbacks.metric_early_stopping import MetricEarlyStoppingCallback
from deepfabric_trainer.callbacks.metrics_logger import MetricsLoggerCallback
from deepfabric_trainer.callbacks.progress import TrainingProgressCallback
from deepfabric_trainer.callbacks.run_report import RunReportCallback
from deepfabric_trainer.callbacks.sample_generation import GenerationResult, SampleGenerationCallback, TurnSample
from deepfabric_trainer.callbacks.training_health import TrainingHealthCallback

__all__ = [
    "GenerationResult",
    "MetricEarlyStoppingCallback",
    "MetricsLoggerCallback",
    "RunReportCallback",
    "SampleGenerationCallback",
    "TrainingHealthCallback",
    "TrainingProgressCallback",
    "TurnSample",
]
