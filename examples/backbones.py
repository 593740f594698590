"""Fuse the backbone of a detector, frozen norms and all, and a segmentation model."""

import torch
import torchvision

import fused_resnet

detector = torchvision.models.detection.retinanet_resnet50_fpn(
    weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64
)
body = fused_resnet.fuse(detector.backbone)  # or the whole detector: its heads fuse where they have norms
print(f"detector: {len(body.fused)} modules of the backbone fused")
images = [torch.rand(3, 64, 64), torch.rand(3, 48, 64)]
boxes = torch.tensor([[4.0, 4.0, 40.0, 40.0]])
losses = detector(images, [{"boxes": boxes, "labels": torch.tensor([1])} for _ in images])
sum(losses.values()).backward()
print({name: round(loss.item(), 3) for name, loss in losses.items()})

segmenter = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=4)
report = fused_resnet.fuse(segmenter)
print(f"segmenter: {len(report.fused)} fused, {len(report.partial)} in part, {len(report.skipped)} left")
logits = segmenter(torch.randn(2, 3, 64, 64))["out"]
torch.nn.functional.cross_entropy(logits, torch.randint(4, (2, 64, 64))).backward()
print(f"logits {list(logits.shape)}")
