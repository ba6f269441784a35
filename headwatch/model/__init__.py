"""The model: where its parts are, how it is run, and the guard that leaves no trace in it."""
