#!/usr/bin/env python
"""Converts weights of other libraries, and between .pth, .pkl and .safetensors.

    python tools/convert_checkpoint.py resnet50-19c8e357.pth r50.pth --from torchvision
    python tools/convert_checkpoint.py model_final.pth model_final.safetensors

With --config-file, the model is built and the result loaded into it, and the config with what the
weights need is stored in the file.
"""

import argparse

from nl_detectron.checkpoint.converters import SOURCES, convert_file
from nl_detectron.engine import load_cfg
from nl_detectron.errors import usage_errors
from nl_detectron.layers import PAIRWISE_FUNCTIONS


@usage_errors()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("target", help="a .safetensors or .pth file")
    parser.add_argument(
        "--from", dest="library", default="detectron2", choices=("detectron2", *SOURCES)
    )
    parser.add_argument("--config-file", default="", metavar="FILE")
    parser.add_argument("--base", metavar="FILE", help="a ResNet to add blocks alone to")
    parser.add_argument(
        "--coco-80", action="store_true", help="torchvision: 80 of COCO's 90 classes"
    )
    parser.add_argument(
        "--pairwise",
        choices=PAIRWISE_FUNCTIONS,
        help="mmdetection: mode of its non-local blocks",
    )
    parser.add_argument("--no-scale", action="store_true", help="mmdetection: use_scale=False")
    parser.add_argument("--caffe-style", action="store_true", help="mmdetection: style='caffe'")
    parser.add_argument("--trust-checkpoint", action="store_true")
    parser.add_argument("opts", nargs="*", help="config options, KEY VALUE")
    args = parser.parse_intermixed_args()
    options = {}
    if args.library == "torchvision":
        options = {"coco_80": args.coco_80}
    if args.library == "mmdetection":
        options = {
            "pairwise": args.pairwise,
            "use_scale": not args.no_scale,
            "caffe_style": args.caffe_style,
        }
    cfg = None
    if args.config_file:
        cfg = load_cfg(args.config_file, args.opts, trust=args.trust_checkpoint)
    converted = convert_file(
        args.source,
        args.target,
        library=args.library,
        cfg=cfg,
        base=args.base,
        trust=args.trust_checkpoint,
        **options,
    )
    print(f"{args.target}: {len(converted.weights)} tensors")
    for note in converted.notes:
        print(f"note: {note}")
    if converted.overrides:
        print("It needs these config options" + (", which it holds:" if args.config_file else ":"))
        for key, value in converted.overrides.items():
            print(f'  {key} "{value}"')


if __name__ == "__main__":
    main()
