#!/usr/bin/env python
"""Checks a dataset in COCO's format: counts, and each problem with what training does about it.

    python tools/check_dataset.py --annotations FILE --images FOLDER [--fix OUT.json] \\
        [--pictures 16 --output DIR] [--split 0.9]

The files that are checked are never changed. The exit code is 1 if training would stop.
"""

import argparse
from pathlib import Path

from detectron2.data import MetadataCatalog

from nl_detectron.data.checking import Checked, Effect, check_file, having
from nl_detectron.data.checking.pictures import write_contact_sheet
from nl_detectron.data.checking.split import split, write_parts
from nl_detectron.data.checking.table import tables
from nl_detectron.data.prepare import write_corrected
from nl_detectron.engine.dataset_checks import check_dataset_files
from nl_detectron.errors import UsageError, usage_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", metavar="FILE", help="in COCO's format")
    parser.add_argument("--images", metavar="FOLDER", help="that the images' names are relative to")
    parser.add_argument("--dataset", metavar="NAME", help="a registered dataset, in their place")
    parser.add_argument(
        "--quick", action="store_true", help="read the heads of the images alone, not all of them"
    )
    parser.add_argument(
        "--pictures", type=int, metavar="N", help="a sheet of N annotated images, worst first"
    )
    parser.add_argument("--fix", metavar="FILE", help="write a corrected copy")
    parser.add_argument(
        "--split", type=float, metavar="FRACTION", help="write *_train.json and *_val.json"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --split (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="of pictures.png and of what --split writes"
    )
    return parser.parse_args()


def files_of(args: argparse.Namespace) -> tuple[str, str]:
    """The annotation file and the image folder."""
    if args.dataset:
        check_dataset_files(args.dataset)
        metadata = MetadataCatalog.get(args.dataset)
        if not metadata.get("json_file"):
            raise UsageError(f"--dataset {args.dataset} has no annotation file in COCO's format")
        return metadata.json_file, metadata.get("image_root", "")
    if not args.annotations or not args.images:
        raise UsageError("give --annotations and --images, or --dataset")
    if not Path(args.images).is_dir():
        raise UsageError(f"--images {args.images} is no folder")
    return args.annotations, args.images


def outputs_of(args: argparse.Namespace, json_file: str) -> dict[str, Path]:
    """Where what was asked for goes.

    Raises:
        UsageError: if something is there that must not be written over.
    """
    outputs = {}
    if args.fix:
        outputs["fix"] = Path(args.fix)
        if outputs["fix"].resolve() == Path(json_file).resolve():
            raise UsageError(f"--fix {args.fix} is the file itself, which is never changed")
    if args.pictures is not None:
        if args.pictures < 1 or not args.output:
            raise UsageError("--pictures takes at least 1, and --output, a folder to write to")
        outputs["pictures"] = args.output / "pictures.png"
    if args.split is not None:
        name = outputs.get("fix", Path(json_file))
        for part in ("train", "val"):
            file = (args.output or name.parent) / f"{name.stem}_{part}.json"
            if file.exists():
                raise UsageError(f"--split: {file} is there already; use another --output")
            outputs[part] = file
    return outputs


def write(checked: Checked, args: argparse.Namespace, outputs: dict[str, Path], root: str) -> None:
    for file in outputs.values():
        file.parent.mkdir(parents=True, exist_ok=True)
    if "fix" in outputs:
        write_corrected(checked, outputs["fix"])
    if "train" in outputs:
        if having(checked.findings, Effect.STOPS) or not checked.has_annotations:
            raise UsageError("--split needs a file with annotations in which nothing stops")
        first = split(checked.content["images"], checked.annotations(), args.split, seed=args.seed)
        files = outputs["train"], outputs["val"]
        for file, count in zip(files, write_parts(checked, first, files), strict=True):
            print(f"{file}: {count} images")
    if "pictures" in outputs:
        write_contact_sheet(checked, root, outputs["pictures"], num_images=args.pictures)
    for name in ("fix", "pictures"):
        if name in outputs:
            print(outputs[name])


@usage_errors()
def main() -> None:
    args = parse_args()
    json_file, image_root = files_of(args)
    outputs = outputs_of(args, json_file)
    checked = check_file(
        json_file,
        image_root,
        decode=not args.quick,
        progress=True,
        **({"max_examples": None} if args.fix else {}),
    )
    print(tables(checked))
    write(checked, args, outputs, image_root)
    raise SystemExit(1 if having(checked.findings, Effect.STOPS) else 0)


if __name__ == "__main__":
    main()
