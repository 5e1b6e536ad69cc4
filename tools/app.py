#!/usr/bin/env python
"""Serves a local web page: drop an image, see detections; click into it, see the attention there.

    pip install nl-detectron[app]
    python tools/app.py --weights output/demo/people/model_final.pth

It can be reached from this machine only, unless --host says otherwise.
"""

import argparse
from pathlib import Path

from nl_detectron import Predictor
from nl_detectron.errors import UsageError, usage_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument(
        "--config-file", metavar="FILE", help="of all weights; by default what is kept with each"
    )
    parser.add_argument("--device", help="cuda or cpu; by default CUDA where there is a GPU")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    return parser.parse_args()


@usage_errors()
def main() -> None:
    args = parse_args()
    try:
        from nl_detectron.app import LOWEST_THRESHOLD, build_app, model_names, serve
    except ImportError as error:
        raise UsageError(
            f"the web page needs Gradio ({error}); install it with: pip install nl-detectron[app]"
        ) from None
    models = model_names(args.weights)

    def load(name: str) -> Predictor:
        return Predictor(
            models[name],
            args.config_file,
            device=args.device,
            confidence_threshold=LOWEST_THRESHOLD,
        )

    for name in models:  # what cannot be loaded is said before anything is served
        print(f"{name} on {load(name).device}", flush=True)
    serve(build_app(load, list(models)), host=args.host, port=args.port)


if __name__ == "__main__":
    main()
