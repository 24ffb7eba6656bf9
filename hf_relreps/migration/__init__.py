"""Change the embedding model of a live index: search it with a new model, without encoding all documents again.

`migrate` takes the index's vectors and texts, and the new model. It encodes a sample, says how much a search will
find, and returns a `TextMigration`: translated queries for the index as it is, or a search in which the new model
itself puts the first candidates in order and keeps what it encoded.

`fit` is the same for vectors alone, and returns a `Migration`. `hf_relreps.migration.adapters` makes a
`SentenceTransformer` of it.
"""

from hf_relreps.migration.fitting import Migration, fit
from hf_relreps.migration.measuring import Measured
from hf_relreps.migration.search import Found, RenewedVectors
from hf_relreps.migration.texts import TextMigration, in_memory, migrate
from hf_relreps.migration.ways import WAYS


__all__ = ["WAYS", "Found", "Measured", "Migration", "RenewedVectors", "TextMigration", "fit", "in_memory", "migrate"]
