"""Trained models as files for other runtimes: checked against the model, measured, quantised."""

from reusekit.exports.exporter import Exporter, export
from reusekit.exports.record import Export, Exports, Figures

__all__ = ["Export", "Exporter", "Exports", "Figures", "export"]
