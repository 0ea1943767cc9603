"""The part of Dassl's API that the CoOp family uses: same import paths, names, log lines; current PyTorch."""

__version__ = "0.6.3"  # the upstream release whose behaviour is kept
