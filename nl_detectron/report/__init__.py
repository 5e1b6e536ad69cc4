from .browser import find_chromium, screenshot
from .build import write_report

__all__ = ["find_chromium", "screenshot", "write_report"]
