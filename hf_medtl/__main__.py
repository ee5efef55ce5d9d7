"""`python -m hf_medtl`: the `hf-medtl` command, where scripts are not on the PATH."""

import sys

from hf_medtl.cli import main

if __name__ == "__main__":
    sys.argv[0] = "hf-medtl"
    main()
