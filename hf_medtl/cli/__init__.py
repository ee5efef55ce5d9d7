"""The `hf-medtl` command: one module per subcommand."""

from hf_medtl.cli.app import main as main
