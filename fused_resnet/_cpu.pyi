"""The native module built from csrc/cpu/bindings.cpp. Addresses are ``Tensor.data_ptr()``, 0 for none."""

_View = tuple[int, int, int]  # outer, channels, inner
_Norm = tuple[int, int, int, int, float]  # addresses of mean, var, weight, bias; eps
_Activation = tuple[int, float]  # number, negative_slope

def isa() -> str: ...
def set_isa(name: str) -> None: ...
def supported_isas() -> list[str]: ...
def channel_stats(dtype: int, view: _View, threads: int, x: int, mean: int, var: int) -> None: ...
def channel_stats_backward(
    dtype: int, view: _View, threads: int, g_y: int, y: int, y_mean: int, g_mean: int, g_var: int, g: int
) -> None: ...
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
