"""Token data: text -> token shards on disk -> the global batch of a step. Knows nothing of JAX or meshes."""
