if not __name__.startswith("deepfabric_trainer."):
    raise ImportError("import `deepfabric_trainer.collators`; the folder `collators/` holds its source and is no package")

