if not __name__.startswith("deepfabric_trainer."):
    raise ImportError(
        "import `deepfabric_trainer.callbacks`; the folder `callbacks/` holds its source and is no package"
    )
