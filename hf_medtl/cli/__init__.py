"""The `hf-medtl` command: one module per subcommand."""
