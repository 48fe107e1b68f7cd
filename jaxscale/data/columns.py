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
    "weights": np.float32,  # what a target counts; 0 for padding; of pairs 1 in the chosen and -1 in the rejected one
    "ends": np.float32,  # of pairs: 1 at the last token of a chosen document, -1 at that of a rejected one
    "reference": np.float32,  # a target's log-probability by the model that the run began with
    "old": np.float32,  # a target's log-probability by the model that sampled it
    "advantages": np.float32,  # how much better than expected a target's sample was
}
TEXT = ("tokens", "targets", "segments", "positions", "weights")  # what rows of a text or of conversations hold
NEXT = ("tokens", "targets", "weights")  # what the loss of each next token reads
SAMPLES = (*NEXT, "advantages", "old")  # what a policy gradient reads
PAIRS = (*TEXT, "ends")  # what rows of pairs hold: documents 2j+1 and 2j+2 of a row are its pair j
COUNTED = ("weights", "ends")  # all 0 in a row that counts nothing
MOST_PAIRS = 32  # of a row
DOCUMENTS = ("positions", "segments")  # what a model takes beside tokens where a row holds several documents
