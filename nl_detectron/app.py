"""A local web page: drop an image and see what is detected; click, and see the attention there.

Only this module needs Gradio, the optional extra ``app``.
"""

import html
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np
from gradio.blocks import Block
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from .data.images import read_image
from .errors import UsageError, one_line
from .inference import Predictor
from .log import logger
from .visualization import draw_attention, draw_instances

# Detections below are not asked for: the lower, the longer a prediction takes.
LOWEST_THRESHOLD = 0.05
DRAWN_SIZE = 800  # longer side of the detections' picture, in pixels
MAX_FILE_SIZE = "50mb"  # of an upload
MAX_PIXELS = 25_000_000  # of an image: each mask of a detection takes a byte for each of them
LOCAL = ("127.0.0.1", "localhost", "::1")
HINT = "Click into the picture: what does each non-local block relate to that pixel?"


def build_app(load: Callable[[str], Predictor], models: Sequence[str]) -> gr.Blocks:
    """The page.

    Args:
        load: gives the predictor of a model's name, with a threshold of ``LOWEST_THRESHOLD``. The
            last two are kept.
        models: the names to choose from.
    """
    load = lru_cache(maxsize=2)(load)

    def detect(file: str | None, model: str, threshold: float) -> tuple:
        """The drawn detections, a sentence on them, and no attention yet."""
        if file is None:
            return None, "", None
        with _shown_errors():
            predictor = load(model)
            image = predictor.load(read_image(file, max_pixels=MAX_PIXELS))
            instances = predictor(image)
        instances = instances[instances.scores >= threshold]
        drawn = draw_instances(image, instances, predictor.metadata, scale=_scale(image))
        names = [predictor.class_names[index] for index in instances.pred_classes]
        counts = [f"{names.count(name)} {as_markdown(name)}" for name in dict.fromkeys(names)]
        return _rgb(drawn), f"Found: {', '.join(counts) or 'nothing'}. {HINT}", None

    def look(file: str, model: str, event: gr.SelectData) -> list[tuple[np.ndarray, str]]:
        """A heat map for each block that sees the pixel clicked."""
        with _shown_errors():
            predictor = load(model)
            image = predictor.load(read_image(file, max_pixels=MAX_PIXELS))
            x, y = (coordinate / _scale(image) for coordinate in event.index)
            # Rounding must not lead outside.
            point = min(x, image.shape[1] - 1), min(y, image.shape[0] - 1)
            found = predictor.attention(image, [point])
        return [(_rgb(draw_attention(image, one)), one.block) for one in found.maps]

    # Both run the same model, one at a time.
    queue = {"concurrency_id": "model", "concurrency_limit": 1}
    with gr.Blocks(title="nl_detectron", analytics_enabled=False, delete_cache=(3600, 3600)) as app:
        gr.Markdown("# Non-local networks: detections and attention")
        with gr.Row():
            model = gr.Dropdown(list(models), value=models[0], label="Model")
            threshold = gr.Slider(LOWEST_THRESHOLD, 1, value=0.5, step=0.05, label="Threshold")
        with gr.Row():
            upload = gr.Image(label="Image", sources=["upload", "clipboard"], elem_id="image")
            # As the path of the uploaded file, so that it is read as everywhere else. (A class of
            # its own would make Gradio write a stub file beside this one.)
            upload.preprocess = lambda payload: payload and _uploaded(payload.path, upload)
            drawn = gr.Image(label="Detections", interactive=False, elem_id="detections")
        summary = gr.Markdown(elem_id="summary")
        gallery = gr.Gallery(
            label="Attention, by block", columns=3, object_fit="contain", elem_id="attention"
        )
        gr.on(
            [upload.change, model.change, threshold.release],
            detect,
            [upload, model, threshold],
            [drawn, summary, gallery],
            **queue,
        )
        drawn.select(look, [upload, model], gallery, **queue)
    for block in app.blocks.values():
        _fetch_nothing(block)
    return app


def serve(app: gr.Blocks, *, host: str = "127.0.0.1", port: int = 7860, **options: Any) -> None:
    """Serves the page until interrupted.

    On an address of this machine alone only requests for it by one of its names are answered, so
    that no other page in the same browser reaches it.

    Args:
        options: of Gradio's ``launch``.

    Raises:
        UsageError: if the address is taken or not this machine's.
    """
    names = [*LOCAL] if host in LOCAL else ["*"]
    if host not in LOCAL:
        logger.warning(
            f"host {host}: whoever reaches this machine there can use the page; there is no login"
        )
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)
    # Fonts of the system: the page loads nothing from elsewhere.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        app.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            theme=theme,
            max_file_size=MAX_FILE_SIZE,
            app_kwargs={"middleware": [hosts]},
            **options,
        )
    except OSError as error:
        raise UsageError(
            f"cannot serve at {host}:{port}: {error}; choose another port",
            arguments=["port"],
        ) from error


def as_markdown(name: str) -> str:
    """A name that shows as it is: one from a file could load a picture from elsewhere."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", one_line(name))


def model_names(weights: Sequence[Path]) -> dict[str, Path]:
    """Checkpoints by name: folder and file."""
    return {f"{file.absolute().parent.name}/{file.name}": file for file in weights}


def _uploaded(path: object, block: Block) -> str:
    """The path of a file that was uploaded or drawn; what a request names elsewhere is none."""
    file = Path(str(path)).resolve()
    if not file.is_relative_to(Path(block.GRADIO_CACHE).resolve()):
        raise gr.Error("this is no uploaded image", print_exception=False)
    return str(file)


def _fetch_nothing(block: Block) -> None:
    """Refuses the address that a request may name in the place of a file: Gradio would fetch it."""
    move = block.async_move_resource_to_block_cache

    async def move_uploaded(path: str | Path | None) -> str | None:
        return await move(None if path is None else _uploaded(path, block))

    block.async_move_resource_to_block_cache = move_uploaded


class _shown_errors:
    """Shows a UsageError on the page."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, UsageError):
            # Gradio shows messages as HTML.
            message = html.escape(str(error), quote=False)
            raise gr.Error(message, print_exception=False) from error


def _scale(image: np.ndarray) -> float:
    return DRAWN_SIZE / max(image.shape[:2])


def _rgb(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
