"""The native module built from csrc/cpu/bindings.cpp. Addresses are ``Tensor.data_ptr()``, 0 for none."""

from collections.abc import Sequence

_View = tuple[int, int, int]  # outer, channels, inner
_Norm = tuple[int, int, int, int, float]  # addresses of mean, var, weight, bias; eps
_Activation = tuple[int, float]  # number, negative_slope
_Conv = tuple[int, int, tuple[int, ...], tuple[int, ...], int]  # the fields of ConvArgs in csrc/cpu/kernels.h
_Gradient = tuple[int, ...]  # those of ConvGradient
# conv, activation, weight, packed, bias, bn; pool, x, residual, fingerprint
_Layer = tuple[_Conv, _Activation, int, int, int, _Norm, tuple[int, ...], int, int, int]
# conv, weight_gradient, activation, eps, momentum, x
_TrainedLayer = tuple[_Conv, int, _Activation, float, float, int]

def isa() -> str: ...
def has_dot_products() -> bool: ...
def set_isa(name: str) -> None: ...
def supported_isas() -> list[str]: ...
def bn_add_act(
    dtype: int,
    activation: _Activation,
    view: _View,
    threads: int,
    x: int,
    bn: _Norm,
    residual: int,
    residual_bn: _Norm,
    out: int,
) -> None: ...
def bn_add_act_backward(
    dtype: int,
    activation: _Activation,
    view: _View,
    threads: int,
    g_out: int,
    x: int,
    bn: _Norm,
    residual: int,
    residual_bn: _Norm,
    g_x: int,
    g_bn: int,
    g_residual: int,
    g_residual_bn: int,
) -> None: ...
def bn_act_max_pool(
    dtype: int,
    activation: _Activation,
    shape: tuple[int, ...],
    threads: int,
    x: int,
    bn: _Norm,
    out: int,
    indices: int,
) -> None: ...
def bn_act_max_pool_backward(
    dtype: int,
    activation: _Activation,
    shape: tuple[int, ...],
    threads: int,
    g_out: int,
    indices: int,
    x: int,
    bn: _Norm,
    g_x: int,
    g_bn: int,
) -> None: ...
def conv_packed_size(conv: _Conv) -> int: ...
def conv_pack(conv: _Conv, weight: int, packed: int) -> None: ...
def conv_forward(
    conv: _Conv, activation: _Activation, x: int, bn: _Norm, weight: int, bias: int, y: int, mean: int, var: int
) -> None: ...
def conv_dgrad(
    conv: _Conv, activation: _Activation, gradient: _Gradient, x: int, bn: _Norm, weight: int, g_x: int, g_bn: int
) -> None: ...
def conv_wgrad(conv: _Conv, activation: _Activation, gradient: _Gradient, x: int, bn: _Norm, g_weight: int) -> None: ...
def conv_bn_add_act(
    conv: _Conv,
    activation: _Activation,
    x: int,
    weight: int,
    packed: int,
    bias: int,
    bn: _Norm,
    residual: int,
    out: int,
) -> None: ...
def filter_fingerprint(conv: _Conv, weight: int) -> int: ...

class PreparedConvs:
    def __init__(self, given: int, layers: list[_Layer]) -> None: ...
    def run(self, given: list[int], out: int) -> bool: ...

class TrainingBlock:
    def __init__(self, layers: list[_TrainedLayer], residual: int) -> None: ...
    @property
    def is_current(self) -> bool: ...
    @property
    def backward_bytes(self) -> int: ...
    def forward(
        self, x: int, parameters: list[int], running: list[int], raw: list[int], statistics: int, out: int
    ) -> None: ...
    def backward(
        self,
        g_out: int,
        x: int,
        parameters: list[int],
        raw: list[int],
        statistics: int,
        memory: int,
        g_x: int,
        g_weight: list[int],
        g_bn: int,
    ) -> None: ...

def multiply_add_peak(dtype: int, threads: int, seconds: float) -> float: ...
def workspace_bytes() -> int: ...
def free_workspace() -> None: ...
def empty_tensor(code: int, bits: int, shape: Sequence[int], stride: Sequence[int]) -> object | None: ...
def tensor_memory() -> tuple[int, int]: ...
def free_kept_memory() -> None: ...
def set_memory_profiler(is_enabled: int, report: int) -> None: ...
