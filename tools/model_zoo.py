#!/usr/bin/env python
"""Prints MODEL_ZOO.md: what each config is, what the paper reports for it, and what it costs.

python tools/model_zoo.py > MODEL_ZOO.md
"""

import argparse

from nl_detectron.model_zoo.table import model_zoo_markdown

if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(model_zoo_markdown(), end="")
