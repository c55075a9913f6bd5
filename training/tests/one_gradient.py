"""Run by test_train.py, by one process or by two: the gradient of one step, to a file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from recipe import config, loop, sft

stage = config.load("sft", sys.argv[1])
run = loop.Run(stage, sft.supervised)
run.model.train()
run.optimizer.step = run.optimizer.zero_grad = lambda *_: None
run._update()
if run.main:
    named = run.accelerator.unwrap_model(run.model).named_parameters()
    torch.save({"world": run.world, "gradient": {n: p.grad for n, p in named}}, sys.argv[2])
