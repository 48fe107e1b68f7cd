"""The columns of rows and batches: what each is called, its dtype and its meaning.

A row holds arrays [T], a batch [microbatches, B, T]. A source of rows says which columns it gives
(`RowSource.columns`), an objective which it reads.
"""

import numpy as np

DTYPES = {
    "tokens": np.int32,  # what the model reads
    "targets": np.int32,  # the tokens one later
    "segments": np.int32,  # which document of the row, from 1
    "positions": np.int32,  # within the document
    "weights": np.float32,  # what a target counts; 0 for padding, -1 in a rejected answer
    "ends": np.float32,  # 1 at the last token of a chosen document, -1 of a rejected one, else 0
    "reference": np.float32,  # the target's log-probability by another model
}
TEXT = ("tokens", "targets", "segments", "positions", "weights")  # what rows cut from a text, or conversations, hold
MOST_PAIRS = 32  # of one row: pair j is segments 2j + 1, chosen, and 2j + 2, rejected
DOCUMENTS = ("positions", "segments")  # what a model takes beside tokens where a row holds several documents
