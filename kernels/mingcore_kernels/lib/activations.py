"""Activations in float32, as the convolutions apply them to tiles on their way.

No library call: its sine keeps a table in local memory for huge arguments. Snake needs
sin(v)^2 only, whose period is pi: v - n pi in two steps that lose nothing, then a polynomial in the
square that is within 2e-7 on [-pi/2, pi/2]. So it holds for |v| up to some 1e5, where the float32 v
itself is coarser; it stays in [0, 1] for any v. tanh and ELU lose nothing near zero.
"""

import triton
import triton.language as tl


@triton.jit
def _sine_squared(v):
    n = tl.fma(v, 0.3183098861837907, 12582912.0) - 12582912.0  # 1.5 * 2^23: rounds to integers
    r = tl.fma(n, -3.1415927410125732, v)  # pi as float32, and what that is too large by
    r = tl.fma(n, 8.742277657347586e-08, r)
    s = r * r
    p = tl.fma(s, 7.978331240110492e-08, -4.220871687721228e-06)
    p = tl.fma(p, s, 0.00014098279643803835)
    p = tl.fma(p, s, -0.0031744793523103)
    p = tl.fma(p, s, 0.04444437101483345)
    p = tl.fma(p, s, -0.3333333134651184)
    p = tl.fma(p, s, 1.0)
    return tl.minimum(tl.maximum(p * s, 0.0), 1.0)


@triton.jit
def _tanh(v):
    """By exp where that loses nothing, else by its series."""
    s = v * v
    p = (((62.0 / 2835.0 * s - 17.0 / 315.0) * s + 2.0 / 15.0) * s - 1.0 / 3.0) * s
    e = tl.exp(-2.0 * tl.abs(v))
    large = (1.0 - e) / (1.0 + e)
    return tl.where(s < 0.04, v + v * p, tl.where(v < 0, -large, large))


@triton.jit
def _elu(v):
    low = tl.minimum(v, 0.0, propagate_nan=tl.PropagateNan.ALL)
    p = ((((low / 7.0 + 1.0) * low / 6.0 + 1.0) * low / 5.0 + 1.0) * low / 4.0 + 1.0) * low / 3.0
    small = ((p + 1.0) * low / 2.0 + 1.0) * low
    return tl.where(v > 0, v, tl.where(low > -0.25, small, tl.exp(low) - 1.0))


@triton.jit
def activate(v, NAME: tl.constexpr, alpha, gain):
    """v of any shape in float32; alpha and gain, for "snake", broadcast against it."""
    if NAME == "silu":
        v = v / (1.0 + tl.exp(-v))
    elif NAME == "elu":
        v = _elu(v)
    elif NAME == "gelu":
        v = 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        v = v / (1.0 + tl.exp(-1.5957691216057308 * (v + 0.044715 * v * v * v)))
    elif NAME == "tanh":
        v = _tanh(v)
    elif NAME == "snake":
        v = v + gain * _sine_squared(alpha * v)
    return v
