"""`python pipelines/motion50 OUT --corpus CORPUS`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from motion50.cli import main

    main()
