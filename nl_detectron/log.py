"""The logger of this package, below the one that Detectron2 sets up."""

import logging

import detectron2

# The snapshot of Detectron2 logs under a name of its own.
logger = logging.getLogger(f"{detectron2.__name__}.nl_detectron")
