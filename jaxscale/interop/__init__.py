"""Published models: their config.json and safetensors files, read and written. No jax."""
