"""Scripts, each also `python -m nl_detectron.tools.NAME` and a command of its own."""
