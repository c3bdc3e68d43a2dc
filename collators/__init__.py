if not __name__.startswith("deepfabric_trainer."):
    raise ImportError(
        "import `deepfabric_trainer.collators`; the folder `collators/` holds its source and is no package"
    )

from deepfabric_trainer.collators.packing import PackingCollator
from deepfabric_trainer.collators.shared_prefix import SharedPrefixCollator
from deepfabric_trainer.collators.tool_call import ToolCallCollator

__all__ = ["PackingCollator", "SharedPrefixCollator", "ToolCallCollator"]
