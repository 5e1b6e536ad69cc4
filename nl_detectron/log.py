"""The logger of this package, below the one that Detectron2 sets up."""

import logging

logger = logging.getLogger("detectron2.nl_detectron")
