"""`python pipelines/evidence small OUT --corpus CORPUS`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from evidence.cli import main

    main()
