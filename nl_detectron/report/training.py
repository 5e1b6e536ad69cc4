"""The part of a report on how the training went."""

from pathlib import Path

from ..engine.best import read_best
from ..visualization import figure_picture, plot_training_curves, read_metrics
from .page import Section, picture


def training_section(run: Path) -> Section:
    """The curves of a run's ``metrics.json``, and which checkpoint is the best."""
    if not any("total_loss" in record for record in read_metrics(run / "metrics.json")):
        return Section("Training", note="No losses were logged.")
    curves = figure_picture(plot_training_curves(run / "metrics.json"))
    best, text = read_best(str(run)), ""
    if best is not None:
        text = f"The best checkpoint is model_best.pth: {best['metric']} {best['value']:.2f} at "
        text += f"iteration {best['iteration']}."
    caption = "Losses, learning rate and, where it was evaluated, AP"
    return Section("Training", text=text, pictures=[picture(curves, caption)])
