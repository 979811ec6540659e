"""Translation with models of the M2M100, NLLB and Marian families, as a library and for our own servers.

`backends` is the contract between what gathers texts and what computes; `families` reads what a model's
folder says without anything heavy.
"""
