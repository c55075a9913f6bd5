"""The command line: `python -m recipe STAGE --config FILE [--set KEY=VALUE …] [--resume]`."""

from __future__ import annotations

import argparse
import sys

from recipe import config

TRAINING = ("sft", "rl", "distil")


def main(arguments: list[str] | None = None) -> int:
    """Runs one stage. Exit codes: 0 done, 2 wrong usage, configuration or data."""
    parser = argparse.ArgumentParser(prog="python -m recipe", description=__doc__)
    parser.add_argument("stage", choices=list(config.STAGES))
    parser.add_argument("--config", required=True, help="the stage's TOML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--threads", type=int, help="of the processor; by default PyTorch's choice")
    args = parser.parse_args(arguments)
    try:
        stage = config.load(args.stage, args.config, args.set)
        if args.threads:
            import torch

            torch.set_num_threads(args.threads)
        run(args.stage, stage, args.resume)
    except (ValueError, OSError) as problem:
        print(f"recipe {args.stage}: {problem}", file=sys.stderr)
        return 2
    return 0


def run(name: str, stage, resume: bool = False):
    """Runs a stage from its configuration."""
    if resume and name not in TRAINING:
        raise ValueError(f"--resume is for {', '.join(TRAINING)}, not for {name}")
    if name == "data":
        from recipe import prepare

        return prepare.prepare(stage)
    if name == "teach":
        from recipe import teach

        return teach.teach(stage)
    if name == "export":
        from recipe import export

        return export.export(stage)
    if name == "ablation":
        from recipe import ablation

        return ablation.ablation(stage)
    from recipe import distil, loop, rl, sft

    loss = {"sft": sft.supervised, "rl": rl.Reinforcement(), "distil": distil.distilled}[name]
    return loop.Run(stage, loss, resume).fit()


if __name__ == "__main__":
    sys.exit(main())
