"""`python -m mgm_train` and `torchrun -m mgm_train` are `mgm-train`."""

from mgm_train.cli import main

main(prog_name="mgm-train")
