"""A mark for arrays whose gradient is written for reverse mode alone: forward mode then says what to use instead.

`jax.custom_vjp` refuses `jax.jvp` with an error of JAX that names no repair. Under `jax.jit` it does so while the
program is compiled, where none of our code could catch it. The mark is the identity. Its tangent is a primitive: reverse
mode transposes it away before anything is computed, and computing it, as forward mode does, raises our error.
"""

from __future__ import annotations

import functools

import jax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from minimoe.errors import UserError


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def reverse_mode_only(x: Float[Array, "*N"], message: str) -> Float[Array, "*N"]:
    """``x``; differentiating it in forward mode (`jax.jvp`, `jax.jacfwd`) raises ``message``, under `jax.jit` too.

    Args:
      x: what is about to enter a function with `jax.custom_vjp`. message: of the error, with the repair.

    Example:
      >>> x = jnp.float32(3)
      >>> print(jax.grad(lambda x: reverse_mode_only(x, "use grad") ** 2)(x))
      6.0
      >>> try:
      ...     jax.jvp(jax.jit(lambda x: reverse_mode_only(x, "use grad")), (x,), (x,))
      ... except UserError as error:
      ...     print(error)
      use grad
    """
    return x


def _rule(message, primals, tangents):
    (x,), (tangent,) = primals, tangents
    return x, tangent if isinstance(tangent, SymbolicZero) else _tangent.bind(tangent, message=message)


def _refuse(*_, message, **__):
    raise UserError(message)


reverse_mode_only.defjvp(_rule, symbolic_zeros=True)
_tangent = Primitive("reverse_mode_only")
_tangent.def_impl(_refuse)
_tangent.def_abstract_eval(lambda x, **_: x)
ad.deflinear(_tangent, lambda cotangent, **_: [cotangent])
batching.defvectorized(_tangent)
mlir.register_lowering(_tangent, _refuse)
