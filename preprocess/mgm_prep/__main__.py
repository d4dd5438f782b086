"""`python -m mgm_prep` is `mgm-prep`."""

from mgm_prep.cli import main

main(prog_name="mgm-prep")
