"""Compiles every kernel and tile for GPUs that are not here, and holds what comes out against a budget.

``python -m triton_gate`` (with ``tests`` on the path) compiles the whole matrix, ``--ci`` a part of it. The ops
themselves run, on tensors without data, with a launch that compiles instead: the gate sees the arguments a GPU would.
"""
