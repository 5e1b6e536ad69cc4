"""The command-line arguments that several tools share."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.engine import DEFAULT_TIMEOUT, default_argument_parser

from nl_detectron.errors import UsageError
from nl_detectron.inference import DTYPES, Predictor


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's command line for training, and what to do about checkpoints."""
    parser = default_argument_parser()
    parser.add_argument(
        "--dataset",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "FOLDER"),
        help="own data: annotations in COCO's format and their images. Those whose NAME ends in "
        "'train' are trained on, the others evaluated on",
    )
    add_import_argument(parser)
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT.total_seconds(),
        metavar="SECONDS",
        help="how long one of several processes waits for the others before it ends the training "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="run what the files of weights and configs tell to: only for files of your own",
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="go on with weights that do not fit the model, after a table of what was loaded",
    )
    return parser


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """Adds what to run first; see :func:`run_files`."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE.py",
        help="Python of your own that is run first, to register datasets or models",
    )


def run_files(files: Sequence[str]) -> None:
    """Runs Python files of the user's, as modules that stay loaded; each once in a process.

    Raises:
        UsageError: if one does not exist or fails.
    """
    for file in files:
        if not Path(file).is_file():
            raise UsageError(f"--import {file} does not exist")
        name = f"import of {Path(file).resolve()}"  # no other module's, whatever the file is called
        if name in sys.modules:
            continue
        specification = importlib.util.spec_from_file_location(name, file)
        if specification is None or specification.loader is None:
            raise UsageError(f"--import {file} is no Python file")
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        try:
            specification.loader.exec_module(module)
        except Exception as error:  # whatever it does
            del sys.modules[name]
            raise UsageError(f"--import {file} fails: {error!r}") from error


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds which model to run, and how, with the names of Detectron2's demo."""
    group = parser.add_argument_group("model")
    group.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint")
    group.add_argument(
        "--config-file",
        metavar="FILE",
        help="a path or a name of the model zoo; by default what is kept with the weights",
    )
    group.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="run what the files of weights and config tell to: only for files of your own",
    )
    group.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="leave out what is less sure, 0 to 1 (default: %(default)s)",
    )
    group.add_argument("--classes", nargs="+", metavar="NAME", help="keep only these classes")
    group.add_argument("--device", help="cuda or cpu; by default CUDA where there is a GPU")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="bfloat16 is faster where the hardware has it (default: %(default)s)",
    )
    group.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config options, KEY VALUE ..."
    )


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what to read, where to write, and how to go on."""
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--resume", action="store_true", help="skip what has been written already")


def predictor_from(args: argparse.Namespace) -> Predictor:
    """The model that :func:`add_model_arguments`' arguments name; says on what it runs.

    Raises:
        UsageError: see :class:`Predictor`.
    """
    predictor = Predictor(
        args.weights,
        args.config_file,
        device=args.device,
        dtype=args.dtype,
        confidence_threshold=args.confidence_threshold,
        classes=args.classes,
        opts=args.opts,
        trust=args.trust_checkpoint,
    )
    device = str(predictor.device)
    if predictor.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(predictor.device)})"
    elif args.device is None:
        device += " (PyTorch sees no CUDA device)"
    print(f"Running {args.weights} on {device}", flush=True)
    return predictor
