"""Rows of `DATASETS`, by organ: each is the layout, origin and known problems of a public dataset."""
