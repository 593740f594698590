"""The native module built from csrc/cuda/bindings.cpp. Addresses are ``Tensor.data_ptr()``, 0 for none.

A launch that fails raises RuntimeError with the kernel's name. A ``_workspace`` function gives the bytes of working
memory that the kernel of its name takes.
"""

_Queue = tuple[int, int]  # device index, cudaStream_t
_View = tuple[int, int, int]  # outer, channels, inner
_Norm = tuple[int, int, int, int, float]  # addresses of mean, var, weight, bias; eps
_Activation = tuple[int, float]  # number, negative_slope
_Pool = tuple[int, ...]  # the fields of PoolShape in csrc/shapes.h
_ConvShape = tuple[int, ...]  # the fields of ConvShape in csrc/shapes.h
_ConvCall = tuple[int, bool, int, _ConvShape]  # dtype, allow_tf32, tile, shape
_Gradient = tuple[int, ...]  # addresses of g_y, y, y_mean, g_mean, g_var

def channel_statistics_workspace(dtype: int, view: _View) -> int: ...
def channel_statistics(queue: _Queue, dtype: int, view: _View, y: int, mean: int, var: int, workspace: int) -> None: ...
def channel_statistics_backward(
    queue: _Queue, dtype: int, view: _View, g_y: int, y: int, mean: int, g_mean: int, g_var: int, g: int
) -> None: ...
def bn_add_act(
    queue: _Queue,
    dtype: int,
    activation: _Activation,
    view: _View,
    x: int,
    bn: _Norm,
    residual: int,
    residual_bn: _Norm,
    out: int,
) -> None: ...
def bn_add_act_backward_workspace(dtype: int, view: _View) -> int: ...
def bn_add_act_backward(
    queue: _Queue,
    dtype: int,
    activation: _Activation,
    view: _View,
    g_out: int,
    x: int,
    bn: _Norm,
    residual: int,
    residual_bn: _Norm,
    g_x: int,
    g_bn: int,
    g_residual: int,
    g_residual_bn: int,
    workspace: int,
) -> None: ...
def bn_act_max_pool(
    queue: _Queue,
    dtype: int,
    activation: _Activation,
    shape: _Pool,
    channels_last: bool,
    x: int,
    bn: _Norm,
    out: int,
    indices: int,
) -> None: ...
def bn_act_max_pool_backward_workspace(dtype: int, shape: _Pool, channels_last: bool) -> int: ...
def bn_act_max_pool_backward(
    queue: _Queue,
    dtype: int,
    activation: _Activation,
    shape: _Pool,
    channels_last: bool,
    g_out: int,
    indices: int,
    x: int,
    bn: _Norm,
    g_x: int,
    g_bn: int,
    workspace: int,
) -> None: ...
def conv_forward_workspace(shape: _ConvShape) -> int: ...
def conv_forward(
    queue: _Queue,
    call: _ConvCall,
    activation: _Activation,
    x: int,
    bn: _Norm,
    weight: int,
    bias: int,
    y: int,
    mean: int,
    var: int,
    workspace: int,
) -> None: ...
def conv_bn_add_act(
    queue: _Queue,
    call: _ConvCall,
    activation: _Activation,
    x: int,
    weight: int,
    bias: int,
    bn: _Norm,
    residual: int,
    out: int,
) -> None: ...
def conv_dgrad_workspace(shape: _ConvShape) -> int: ...
def conv_dgrad(
    queue: _Queue,
    call: _ConvCall,
    activation: _Activation,
    gradient: _Gradient,
    x: int,
    bn: _Norm,
    weight: int,
    g_x: int,
    g_bn: int,
    workspace: int,
) -> None: ...
def conv_wgrad_workspace(shape: _ConvShape) -> int: ...
def conv_wgrad(
    queue: _Queue,
    call: _ConvCall,
    activation: _Activation,
    gradient: _Gradient,
    x: int,
    bn: _Norm,
    g_weight: int,
    workspace: int,
) -> None: ...
