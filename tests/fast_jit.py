"""`fast_jit.jit` is jax.jit with little optimization, for programs whose compilation dominates
their run time.
"""

import functools

import jax

jit = functools.partial(
  jax.jit,
  compiler_options={'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True},
)
