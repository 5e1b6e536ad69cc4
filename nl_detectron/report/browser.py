"""A picture of a page, made by Chromium where it is installed."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import cv2

from ..errors import UsageError
from ..files import write_image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT = 300  # seconds, on a busy machine


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome, None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def screenshot(page: Path, picture: Path, *, width: int = 1100, height: int = 1500) -> None:
    """Writes the upper part of a local page as a picture, PNG or JPEG by its name.

    Args:
        width, height: of the browser's window in pixels.

    Raises:
        UsageError: if there is no Chromium, or it fails.
    """
    browser = find_chromium()
    if browser is None:
        raise UsageError(f"a screenshot needs one of {', '.join(NAMES)}, and none is installed")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "page.png")
        command = [browser, "--headless", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--window-size={width},{height}", f"--screenshot={file}"]
        command += [f"--user-data-dir={folder}/profile", page.absolute().as_uri()]
        if os.name == "posix" and os.geteuid() == 0:
            command.insert(1, "--no-sandbox")  # without which it refuses to run as root
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            raise UsageError(f"{browser} made no picture of {page} in {TIMEOUT} s") from None
        if not file.exists():
            lines = result.stderr.strip().splitlines() or ["no message"]
            raise UsageError(f"{browser} made no picture of {page}: {lines[-1]}")
        shot = cv2.imread(str(file))
        if shot is None:
            raise UsageError(f"{browser} made no picture of {page}")
        write_image(picture, shot)
