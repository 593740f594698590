"""Fuse a torchvision ResNet in place, train a step, serve it, and get the stock model back."""

import torch
import torch.nn.functional as F
import torchvision

import fused_resnet

model = torchvision.models.resnet18(num_classes=10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # before or after fuse: the parameters are the same objects
report = fused_resnet.fuse(model)
print(report)

images, labels = torch.randn(8, 3, 64, 64), torch.randint(10, (8,))
loss = F.cross_entropy(model(images), labels)
loss.backward()
optimizer.step()
print(f"loss {loss.item():.3f}")

model.eval()
with torch.no_grad():
    fused_logits = model(images)
fused_resnet.unfuse(model)
with torch.no_grad():
    stock_logits = model(images)
print(f"largest difference from stock: {(fused_logits - stock_logits).abs().max().item():.1e}")
torch.testing.assert_close(fused_logits, stock_logits, rtol=1e-3, atol=1e-3)
torchvision.models.resnet18(num_classes=10).load_state_dict(model.state_dict())  # the keys never changed
