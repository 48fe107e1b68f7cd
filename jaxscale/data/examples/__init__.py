"""Conversations, preference pairs and prompts as prepared data: records, templates, masks, packed rows. No jax."""
