"""What a model looks at, and whether the maps that say so are to be believed."""
