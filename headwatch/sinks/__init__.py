"""Where a run is shown while it trains: one small class a service, behind the interface `Sink`."""

from headwatch.sinks.base import Figure, Figures, Scalars, Sink
from headwatch.sinks.wandb_sink import WandbSink

__all__ = ["Figure", "Figures", "Scalars", "Sink", "WandbSink"]
