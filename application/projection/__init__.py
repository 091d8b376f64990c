"""The read model as a function of the log: events to row changes, without a single read.

`VERSION` rises with every change of what rows look like or hold; a database whose rows were
made by another version is rebuilt from the log.
"""

from application.projection.changes import VERSION, Change, Key, Table, changes_of
from application.projection.fold import Fold, RowChanges, fold

__all__ = ["VERSION", "Change", "Fold", "Key", "RowChanges", "Table", "changes_of", "fold"]
