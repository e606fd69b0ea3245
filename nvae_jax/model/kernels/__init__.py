"""Operations with a separate formulation for CPU, each next to the plain formula.

The formulation is chosen by the platform that a program is compiled for, with
`jax.lax.platform_dependent`. All choices are inside the rules of a `jax.custom_vjp`: automatic
differentiation through such a choice would keep the residuals of every platform's branch.
"""
