"""Abilities: sets of examples with a chance level, and how well a model knows their answers.

`documents` and `library_text` make text to train on. The generators know neither jax nor tokenizers; `measure` runs a
model.
"""

from jaxscale.abilities.library import library_text
from jaxscale.abilities.table import ABILITIES, documents, find

__all__ = ["ABILITIES", "documents", "find", "library_text"]
