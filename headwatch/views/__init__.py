"""What a run looks like: figures as data once (figures), drawn for W&B (plotly_figures) and as one HTML file (report)."""
