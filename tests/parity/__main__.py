"""``python -m tests.parity DIR``: see tests/parity/files.py."""

import sys

from tests.parity.files import main

sys.exit(main())
