"""The ledger: predictions, and the labels that came later.

A worker never talks to the database. It writes pages into the spool (`Sheet`, `Spool`) and labels into asks
(`validated`, `Feedback`); the one `writer.Writer` of a pod moves both into the database. This package imports nothing
heavy: SQLAlchemy comes with `serving.ledger.writer`.
"""

from serving.ledger.feedback import Feedback, Label, LedgerFull, validated
from serving.ledger.page import Sheet, Taken, sampled
from serving.ledger.spool import Spool

__all__ = ["Feedback", "Label", "LedgerFull", "Sheet", "Spool", "Taken", "sampled", "validated"]
