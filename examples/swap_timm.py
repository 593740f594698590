"""Fuse models of timm, and read in the report what of each could be fused.

usage: swap_timm.py [NAME ...]
"""

import copy
import sys

import timm
import torch

import fused_resnet

for name in sys.argv[1:] or ["resnet26d", "seresnet50", "resnetv2_50", "regnety_002"]:
    stock = timm.create_model(name, num_classes=10).double()
    model = copy.deepcopy(stock)
    report = fused_resnet.fuse(model)
    print(f"{name}: {len(report.fused)} fused, {len(report.partial)} in part, {len(report.skipped)} left")
    for entry in (*report.partial, *report.skipped):
        print(f"  {entry.name or '(model)'}: {entry.reason}")
        break  # the others of a model say much the same

    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(model(images), stock(images))  # both in training: the batch's own statistics
    for ours, theirs in zip(model.buffers(), stock.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
