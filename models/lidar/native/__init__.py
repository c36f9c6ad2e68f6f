"""Kernels of the sparse networks for the CPU: one C++ library, compiled on first use, called by ctypes.

`kernels.cpp` is the one translation unit; each header beside it is one subject. What calls them from torch lies in the
Python files beside them.
"""
