"""Training: recipes, the Trainer subclass and its callbacks."""
