"""Two marks for arrays whose gradient has limits: where one is met, the error says what to use instead.

`jax.custom_vjp` refuses `jax.jvp` with an error of JAX that names no repair. Under `jax.jit` it does so while the
program is compiled, where none of our code could catch it. The same holds for reverse mode through a loop whose number
of turns is traced. A mark is the identity. Its tangent is a primitive, which reverse mode transposes and forward mode
computes: the one or the other raises our error.
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def forward_mode_only(x: Float[Array, "*N"], message: str) -> Float[Array, "*N"]:
    """``x``; differentiating it in reverse mode (`jax.grad`, `jax.vjp`) raises ``message``, under `jax.jit` too.

    Args:
      x: what leaves a loop whose number of turns is traced. message: of the error, with the repair.

    Example:
      >>> x = jnp.float32(3)
      >>> print(jax.jvp(lambda x: forward_mode_only(x, "use jvp") ** 2, (x,), (x,))[1])
      18.0
      >>> try:
      ...     jax.grad(jax.jit(lambda x: forward_mode_only(x, "use jvp")))(x)
      ... except UserError as error:
      ...     print(error)
      use jvp
    """
    return x


def _refuse(*_, message, **__):
    raise UserError(message)


def _add_rule(mark, name, impl, transpose, lower):
    """Gives ``mark`` a tangent that is a primitive of this name: what computes, transposes and lowers it."""
    tangent_of = Primitive(name)
    tangent_of.def_impl(impl)
    tangent_of.def_abstract_eval(lambda x, **_: x)
    ad.deflinear(tangent_of, transpose)
    batching.defvectorized(tangent_of)
    mlir.register_lowering(tangent_of, lower)

    def rule(message, primals, tangents):
        (x,), (tangent,) = primals, tangents
        return x, tangent if isinstance(tangent, SymbolicZero) else tangent_of.bind(tangent, message=message)

    mark.defjvp(rule, symbolic_zeros=True)


_add_rule(reverse_mode_only, "reverse_mode_only", _refuse, lambda cotangent, **_: [cotangent], _refuse)
_add_rule(forward_mode_only, "forward_mode_only", lambda x, **_: x, _refuse, lambda _, x, **__: [x])
