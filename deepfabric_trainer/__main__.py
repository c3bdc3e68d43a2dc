import sys

from deepfabric_trainer.cli import main

sys.exit(main())
