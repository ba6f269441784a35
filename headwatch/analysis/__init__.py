"""Analyses of one or two models on probe pairs: interventions, exact patching, faithfulness of circuits, roles."""
