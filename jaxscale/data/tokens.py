"""Everything a trainer needs to read tokens, behind one door.

store = open_tokens("data/stdlib")                      # tokens on disk, checked
source = windows(store, 1024, model_vocab_size=50304)   # numbered rows
for batch in batches(source, seed=0, batch_size=64):    # step -> global batch
    ...
"""

from jaxscale.data.batches import batches
from jaxscale.data.order import row_indices
from jaxscale.data.rows import RowSource, Synthetic, Windows, load_rows, make_row, windows
from jaxscale.data.store import TokenStore, open_llmc, open_tokenizer, open_tokens

__all__ = [
    "RowSource",
    "Synthetic",
    "TokenStore",
    "Windows",
    "batches",
    "load_rows",
    "make_row",
    "open_llmc",
    "open_tokenizer",
    "open_tokens",
    "row_indices",
    "windows",
]
