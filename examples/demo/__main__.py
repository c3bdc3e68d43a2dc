"""`python -m examples.demo`: a small model learns to call tools on this machine, and you see it happen.

With `--model` and `--data` it takes your own: a model by path or hub id, and rows of `messages` and `tools`.
"""

import argparse
import sys
from pathlib import Path

from deepfabric_trainer.errors import DeepFabricTrainerError
from examples.demo.run import Settings, run_demo


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--model", help="a model by path or hub id (default: SmolLM2-135M-Instruct from its package)")
    parser.add_argument("--data", help="rows to train on, .jsonl or .json (default: generated ones)")
    parser.add_argument("--output", default="runs/demo", help="the folder of the run (default: runs/demo)")
    parser.add_argument("--steps", type=int, default=Settings.max_steps, help="the most training steps")
    parser.add_argument("--seed", type=int, default=0, help="of the data and of the training (default: 0)")
    parser.add_argument("--short", action="store_true", help="a few steps and prompts, to see that everything works")
    arguments = parser.parse_args()
    settings = Settings(
        model=arguments.model,
        data=arguments.data,
        output=Path(arguments.output),
        max_steps=arguments.steps,
        seed=arguments.seed,
    )
    try:
        run_demo(settings.shortened() if arguments.short else settings)
    except DeepFabricTrainerError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
