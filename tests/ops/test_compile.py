"""The ops under torch.compile: one graph, the numbers of eager mode."""

from __future__ import annotations

import torch
from support.cases import image
from support.oracle import relative_error

from fused_resnet import ops


def block(x, w1, w2, gamma, beta):
    """conv, batch norm, ReLU, conv, batch norm, add, ReLU, with the statistics of the batch."""
    y, mean, var = ops.bn_act_conv(x, None, "identity", w1, 1, 1)
    y, mean, var = ops.bn_act_conv(y, ops.BatchNorm(mean, var, gamma, beta, 1e-5), "relu", w2, 1, 1)
    return ops.bn_add_act(y, ops.BatchNorm(mean, var, gamma, beta, 1e-5), x)


def inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    weights = [torch.randn(8, 8, 3, 3) * 0.1 for _ in range(2)]
    return [t.to(dtype).requires_grad_() for t in (image(2, 8, 6, 6), *weights, torch.ones(8), torch.zeros(8))]


def test_compiled_equals_eager(target: str) -> None:
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    results = []
    for function in (block, compiled):
        leaves = inputs()
        out = function(*leaves)
        out.square().sum().backward()
        results.append([out, *(t.grad for t in leaves)])
    for eager, other in zip(*results, strict=True):
        assert relative_error(other, eager.detach()) < 1e-6


def test_inductor_and_dynamic_shapes() -> None:
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    _, *weights = inputs()
    for size in (6, 9):
        x = image(3, 8, size, size)
        assert relative_error(compiled(x, *weights), block(x, *weights).detach()) < 1e-6


def test_export() -> None:
    class Block(torch.nn.Module):
        def forward(self, *args):
            return block(*args)

    leaves = [t.detach() for t in inputs()]
    program = torch.export.export(Block(), tuple(leaves))
    assert relative_error(program.module()(*leaves), block(*leaves)) < 1e-7
