from .attention import draw_attention, draw_attention_sheet, draw_cross, heat_map, spotlight
from .curves import figure_picture, plot_training_curves, read_metrics
from .errors import plot_confusion, plot_errors
from .instances import (
    contact_sheet,
    draw_comparison,
    draw_ground_truth,
    draw_instances,
    draw_predictions,
)

__all__ = [
    "contact_sheet",
    "draw_attention",
    "draw_attention_sheet",
    "draw_comparison",
    "draw_cross",
    "draw_ground_truth",
    "draw_instances",
    "draw_predictions",
    "figure_picture",
    "heat_map",
    "plot_confusion",
    "plot_errors",
    "plot_training_curves",
    "read_metrics",
    "spotlight",
]
