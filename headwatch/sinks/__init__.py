"""Services that show a run while it trains: one class per service, with the interface `Sink`."""

from headwatch.sinks.base import Figure, Figures, Notice, Row, Scalars, Sink, Texts
from headwatch.sinks.factory import check_report_to, make_sinks
from headwatch.sinks.tensorboard import TensorBoardSink
from headwatch.sinks.trackio import TrackioSink
from headwatch.sinks.wandb import WandbSink

__all__ = [
    "Figure",
    "Figures",
    "Notice",
    "Row",
    "Scalars",
    "Sink",
    "TensorBoardSink",
    "Texts",
    "TrackioSink",
    "WandbSink",
    "check_report_to",
    "make_sinks",
]
