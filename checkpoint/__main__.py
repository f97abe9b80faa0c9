"""`python -m checkpoint convert|diff|recover`: see checkpoint/weights.py."""

import sys

from checkpoint.weights import main

sys.exit(main())
