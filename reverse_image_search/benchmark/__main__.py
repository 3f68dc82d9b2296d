"""``python -m reverse_image_search.benchmark``: see ``reverse_image_search/bin/benchmark.sh``."""

import sys

from reverse_image_search.benchmark.run import main

sys.exit(main())
