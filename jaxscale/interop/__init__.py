"""Published models: their safetensors files, and which tensor is which weight, read and written. No jax."""
