"""`headwatch train`: the launcher behind the recipes."""
