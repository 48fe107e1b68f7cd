"""Attention by kernels: plain XLA, splash on TPU, cuDNN on NVIDIA; whole, and one block of keys at a time."""
