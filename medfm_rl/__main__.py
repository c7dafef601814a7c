"""`python -m medfm_rl` is `medfm-rl`."""

from medfm_rl.cli import main

main()
