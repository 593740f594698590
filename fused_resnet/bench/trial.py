"""One variant of one model with its data and optimizer: what a child process holds, checks and times."""

from __future__ import annotations

import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..models.registry import create_model
from .allocator import use_allocator
from .memory import SavedBytes, peak_bytes, reset_peak
from .settings import DTYPES, Job
from .variants import VARIANTS

__all__ = ["Answer", "Trial"]


class Answer(TypedDict, total=False):
    """What a variant computes for the common input, on the CPU; without loss and gradients in mode infer."""

    logits: Tensor  # [N, classes, ...]
    loss: Tensor  # []
    gradients: list[Tensor]  # of each parameter that has requires_grad, in the order of model.parameters()


class Trial:
    """A model made from the job's seed, in the variant's form.

    Train: forward, cross entropy, backward and an SGD step; half types under autocast with fp32 parameters, as people
    train. Infer: forward under no_grad, the parameters in the working type. Dropout is off, as its random numbers
    depend on the layout and would make the variants incomparable.
    """

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        torch.manual_seed(job.seed)
        self.job = job
        self.is_train = job.mode == "train"
        variant = VARIANTS[job.variant]
        dtype: torch.dtype = getattr(torch, DTYPES[job.dtype].torch_name)
        self.autocast_dtype = dtype if self.is_train and dtype.itemsize == 2 else None
        storage_dtype = torch.float32 if self.autocast_dtype else dtype
        memory_format = torch.channels_last if variant.channels_last else torch.contiguous_format

        model = create_model(job.model).train(self.is_train)
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        self.model = model.to(job.device, storage_dtype).to(memory_format=memory_format)
        generator = torch.Generator().manual_seed(job.seed + 1)
        images = torch.randn(job.batch, 3, job.image_size, job.image_size, generator=generator)
        self.images = images.to(job.device, storage_dtype, memory_format=memory_format)  # [N, 3, S, S]
        self.labels = self._random_labels(generator)  # [N, ...]
        self.forward = variant.prepare(self.model, self.images)
        self.compiles = variant.compiles
        self.warm_s = 0.0  # that untimed steps have taken
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def check(self, path: Path) -> int | None:
        """Makes one step and saves its :class:`Answer` for ``torch.load``.

        Returns the bytes saved for backward, without parameters, buffers and images; None in mode infer.
        """
        start = time.perf_counter()
        with self._context(), SavedBytes() as saved:
            logits, loss = self._forward()
        answer = Answer(logits=logits.detach().cpu())
        if self.is_train:
            loss.backward()
            gradients = [(p, p.grad) for p in self.model.parameters() if p.requires_grad]
            answer["loss"] = loss.detach().cpu()
            answer["gradients"] = [torch.zeros_like(p) if grad is None else grad.cpu() for p, grad in gradients]
        torch.save(answer, path)
        if self.is_train:
            del answer, gradients
            self._update()
        if not self.compiles:
            self.warm_s += time.perf_counter() - start
        if not self.is_train:
            return None
        return saved.count(excluded=[*self.model.parameters(), *self.model.buffers(), self.images])

    def use_allocator(self, name: str) -> None:
        """Goes on under another setting of malloc."""
        use_allocator(name)
        self.warm_s = 0.0

    def warm_up(self, at_least_s: float) -> int:
        """Untimed steps until they have taken that long under this allocator; how many were still to be made.

        The step of the check counts, but where it compiled. The peak of memory counts from their end.
        """
        steps = 0
        while self.warm_s < at_least_s:
            self.warm_s += self.step_ms() / 1e3
            steps += 1
        reset_peak(self.job.device)
        return steps

    def step_ms(self, at_least_s: float = 0.0) -> float:
        """Wall time of a step in ms, the device's work included: the median of as many as take that long together."""
        steps_s: list[float] = []
        self._synchronize()
        while not steps_s or sum(steps_s) < at_least_s:
            start = time.perf_counter()
            self._step()
            self._synchronize()
            steps_s.append(time.perf_counter() - start)
        return statistics.median(steps_s) * 1e3

    def peak_bytes(self) -> int:
        """Peak of memory since warm-up."""
        return peak_bytes(self.job.device)

    def _step(self) -> None:
        with self._context():
            _, loss = self._forward()
        if self.is_train:
            loss.backward()
            self._update()

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _forward(self) -> tuple[Tensor, Tensor]:
        logits = _logits(self.forward(self.images))
        return logits, cross_entropy(logits, self.labels) if self.is_train else logits

    def _context(self) -> AbstractContextManager[object]:
        if not self.is_train:
            return torch.no_grad()
        return torch.autocast(self.job.device, self.autocast_dtype) if self.autocast_dtype else nullcontext()

    def _random_labels(self, generator: torch.Generator) -> Tensor:
        """A class for each image, or for each pixel where the model segments."""
        self.model.eval()
        with torch.no_grad():
            logits = _logits(self.model(self.images[:1]))
        self.model.train(self.is_train)
        shape = (self.job.batch, *logits.shape[2:])
        return torch.randint(logits.shape[1], shape, generator=generator).to(self.job.device)

    def _synchronize(self) -> None:
        if self.job.device == "cuda":
            torch.cuda.synchronize()


def _logits(output: object) -> Tensor:
    """The logits in what a classifier (a tensor) or a segmentation model (a dict with "out") returns."""
    logits = output["out"] if isinstance(output, dict) and "out" in output else output
    if not isinstance(logits, Tensor) or logits.ndim < 2:
        raise TypeError(f"expected a model that returns logits [N, classes, ...], got {type(output).__name__}")
    return logits
