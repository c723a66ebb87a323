"""The parts of ``ablate.py``: rows of the papers' ablations, counted, trained and compared."""
